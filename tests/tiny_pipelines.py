"""Small Stable Diffusion pipelines and LoRA files, built from configurations without any download.

They have every component a real one has (CLIP text encoder, BPE tokenizer, UNet2DConditionModel, AutoencoderKL,
scheduler) at reduced width, with random weights, in the folder layout of diffusers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDPMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from smsff.teacher.base.families import family_config
from smsff.teacher.base.pipeline_config import Family

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
CONVOLUTIONS = ("conv1", "conv2", "proj_in", "proj_out", "downsamplers.0.conv")
TEXT = ("q_proj", "v_proj", "fc1")


@dataclass(frozen=True)
class TinySpec:
    """What differs between the tiny pipelines. The defaults are shaped like the bundled teacher, only smaller."""

    prediction_type: str = "epsilon"
    latent_channels: int = 8
    downscale: int = 2
    tokens: int = 16
    width: int = 16
    text_width: int = 16
    scaling_factor: float = 0.7
    tiny_vae: bool = False
    seed: int = 0


def build_tokenizer(tokens: int, pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """Byte-level BPE over single letters, with two merges, in CLIP's format."""
    letters = [chr(c) for c in range(ord("!"), ord("~") + 1)]
    merges = [("i", "n"), ("t", "h")]
    pieces = letters + [f"{letter}</w>" for letter in letters] + ["in", "th", "<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=tokens, pad_token=pad)


def build_text_encoder(spec: TinySpec, vocab_size: int) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=spec.text_width,
        intermediate_size=2 * spec.text_width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=spec.tokens,
        bos_token_id=vocab_size - 2,
        eos_token_id=vocab_size - 1,
        pad_token_id=vocab_size - 1,
    )
    return CLIPTextModel(config)


def build_unet(spec: TinySpec) -> UNet2DConditionModel:
    """Two levels, attention on the lowest one only."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=spec.latent_channels,
        out_channels=spec.latent_channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(spec.width, 2 * spec.width),
        layers_per_block=1,
        cross_attention_dim=spec.text_width,
        attention_head_dim=2,
        norm_num_groups=4,
    )


def build_vae(spec: TinySpec) -> AutoencoderKL | AutoencoderTiny:
    levels = spec.downscale.bit_length()
    if spec.tiny_vae:
        return AutoencoderTiny(
            encoder_block_out_channels=(8,) * levels,
            decoder_block_out_channels=(8,) * levels,
            num_encoder_blocks=(1,) * levels,
            num_decoder_blocks=(1,) * levels,
            latent_channels=spec.latent_channels,
        )
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8, 16, 16, 16)[:levels],
        layers_per_block=1,
        latent_channels=spec.latent_channels,
        norm_num_groups=4,
        scaling_factor=spec.scaling_factor,
    )


def build_pipeline(folder: Path, spec: TinySpec = TinySpec()) -> Path:
    """Write a complete pipeline folder. Biases and zero-initialised layers are random too, so that nothing cancels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        tokenizer = build_tokenizer(spec.tokens)
        models = {
            "text_encoder": build_text_encoder(spec, len(tokenizer)),
            "unet": build_unet(spec),
            "vae": build_vae(spec),
        }
        save_models(folder, models)
    tokenizer.save_pretrained(folder / "tokenizer")
    scheduler = DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=spec.prediction_type
    )
    scheduler.save_pretrained(folder / "scheduler")
    components = {name: ["diffusers", type(model).__name__] for name, model in models.items()}
    write_model_index(folder, "StableDiffusionPipeline", components)
    return folder


def save_models(folder: Path, models: dict[str, Any]) -> None:
    for name, model in models.items():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(folder / name)


def build_family(folder: Path, family: Family, *, seed: int = 0, tokens: int = 20) -> Path:
    """Write a pipeline with the published structure of Stable Diffusion 1.5, 2.1 or SDXL at a twentieth of its width.

    Block types, layers of a block, layout of the attention heads, linear or convolutional projections, kind and number
    of text encoders with their activations, conditions, scheduler and scaling are the published ones.
    """
    config = family_config(family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pads = {"sd1": ("<|endoftext|>",), "sd2": ("!",), "sdxl": ("<|endoftext|>", "!")}[family]
        tokenizers = [build_tokenizer(tokens, pad) for pad in pads]
        texts = [
            dict(text) | {"hidden_size": 16 + 8 * i, "intermediate_size": 48, "projection_dim": 20}
            | {"num_hidden_layers": 3, "num_attention_heads": 2, "max_position_embeddings": tokens}
            | {"vocab_size": len(t)}
            for i, (text, t) in enumerate(zip(config.text_encoders, tokenizers, strict=True))
        ]  # fmt: skip
        unet = dict(config.unet) | {
            "block_out_channels": [c // 20 for c in config.unet["block_out_channels"]],
            "norm_num_groups": 4,
            "cross_attention_dim": sum(text["hidden_size"] for text in texts),
            "attention_head_dim": 4 if family == "sd1" else [1, 2, 4, 4][: len(config.unet["block_out_channels"])],
        }
        if family == "sdxl":
            sizes = {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 6 * 8 + 20}
            unet |= sizes | {"transformer_layers_per_block": [1, 2, 3]}
        vae = dict(config.vae) | {"block_out_channels": [8, 16, 16, 16], "norm_num_groups": 4}
        kinds = (CLIPTextModel, CLIPTextModelWithProjection)
        models: dict[str, Any] = {
            "unet": UNet2DConditionModel.from_config(unet),
            "vae": AutoencoderKL.from_config(vae),
        }
        for i, text in enumerate(texts):
            models[f"text_encoder{'_2' * i}"] = kinds[i](CLIPTextConfig.from_dict(text))
        save_models(folder, models)
    for i, tokenizer in enumerate(tokenizers):
        tokenizer.save_pretrained(folder / f"tokenizer{'_2' * i}")
    kind = {"sd1": PNDMScheduler, "sd2": DDPMScheduler, "sdxl": EulerDiscreteScheduler}[family]
    kind.from_config(dict(config.scheduler)).save_pretrained(folder / "scheduler")
    names = {name: ["diffusers" if name in ("unet", "vae") else "transformers", type(m).__name__]
             for name, m in models.items()}  # fmt: skip
    names |= {f"tokenizer{'_2' * i}": ["transformers", "CLIPTokenizer"] for i in range(len(texts))}
    names["scheduler"] = ["diffusers", kind.__name__]
    write_model_index(folder, "StableDiffusionXLPipeline" if family == "sdxl" else "StableDiffusionPipeline", names)
    return folder


def write_model_index(folder: Path, class_name: str, components: Mapping[str, Sequence[str | None]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    index = {"_class_name": class_name, "_diffusers_version": "0.30.0", **components}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))


def adapted_layers(model: nn.Module, targets: Iterable[str]) -> dict[str, nn.Linear | nn.Conv2d]:
    """The linear and convolution layers whose names end in one of `targets`."""
    suffixes = tuple(f".{target}" for target in targets)
    layers = ((name, module) for name, module in model.named_modules() if name.endswith(suffixes))
    return {name: layer for name, layer in layers if isinstance(layer, nn.Linear | nn.Conv2d)}


def lora_pair(layer: nn.Linear | nn.Conv2d, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random (down, up): linear (r, in), (out, r); convolution (r, in, kh, kw), (out, r, 1, 1), as LoCon has them."""
    weight = layer.weight
    down = torch.randn(rank, *weight.shape[1:], generator=generator) / weight[0].numel() ** 0.5
    up = torch.randn(weight.shape[0], rank, *[1] * (weight.ndim - 2), generator=generator)
    return down, 0.3 * up


def kohya_tensors(
    model: nn.Module,
    targets: Iterable[str],
    *,
    prefix: str = "lora_unet_",
    rank: int = 4,
    alpha: float = 2.0,
    seed: int = 1,
) -> dict[str, Tensor]:
    """LoRA tensors as kohya's scripts name them. The rank alternates with rank + 2 and alpha with alpha + 1."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for i, (name, layer) in enumerate(adapted_layers(model, targets).items()):
        key = prefix + name.replace(".", "_")
        down, up = lora_pair(layer, rank + 2 * (i % 2), generator)
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        tensors[f"{key}.alpha"] = torch.tensor(alpha + i % 2)
    return tensors


def write_kohya_lora(
    path: Path,
    unet: nn.Module,
    text_encoder: nn.Module | None = None,
    *,
    targets: Iterable[str] = ATTENTION + CONVOLUTIONS,
    rank: int = 4,
    alpha: float = 2.0,
    seed: int = 1,
) -> dict[str, Tensor]:
    """Write a kohya-format LoRA (attention, and convolutions as in LoCon) and return its tensors."""
    tensors = kohya_tensors(unet, targets, rank=rank, alpha=alpha, seed=seed)
    if text_encoder is not None:
        inner = getattr(text_encoder, "text_model", text_encoder)
        prefix = "lora_te_text_model_"
        tensors |= kohya_tensors(inner, TEXT, prefix=prefix, rank=rank, alpha=alpha, seed=seed + 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return tensors


def lora_delta(tensors: dict[str, Tensor], name: str, prefix: str = "lora_unet_") -> Tensor:
    """alpha / rank * up @ down of one layer, in the shape of its weight; computed in float64."""
    key = prefix + name.replace(".", "_")
    down, up = tensors[f"{key}.lora_down.weight"].double(), tensors[f"{key}.lora_up.weight"].double()
    scale = float(tensors[f"{key}.alpha"]) / down.shape[0]
    return scale * (up.flatten(1) @ down.flatten(1)).view(up.shape[0], *down.shape[1:])


def merge_kohya(model: nn.Module, tensors: dict[str, Tensor], *, strength: float, prefix: str = "lora_unet_") -> None:
    """Add `strength` times the LoRA to the weights in place: what loading an adapter has to be equal to."""
    for name, module in model.named_modules():
        if f"{prefix}{name.replace('.', '_')}.lora_down.weight" in tensors:
            delta = lora_delta(tensors, name, prefix)
            module.weight.data = (module.weight.data.double() + strength * delta).to(module.weight.dtype)
