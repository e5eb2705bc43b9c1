"""Small flow-matching pipelines of the published structure, built from configurations without any download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tiny_pipelines import build_tokenizer
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

FAMILIES = ("sd35", "flux1", "klein", "zimage", "qwen")
CHAT = (  # Qwen3's template, as far as the pipelines use it
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
LATENT_16 = {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
FLUX_SCALE = {"shift_factor": 0.1159, "scaling_factor": 0.3611}


def build_flow(family: str, *, seed: int = 0) -> Any:
    """The stock pipeline with random weights; biases, statistics and what starts at zero are random too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = {"sd35": _sd35, "flux1": _flux1, "klein": _klein, "zimage": _zimage, "qwen": _qwen}[family]()
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                part.eval().requires_grad_(False)
                for parameter in part.parameters():
                    if parameter.ndim == 1 or not parameter.any():
                        parameter.add_(0.1 * torch.randn_like(parameter))
    # Levels of noise are given by hand in the tests, unshifted; the transformer does not know of the scheduler.
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def write_flow(folder: Path, family: str, *, seed: int = 0) -> Path:
    """The same as a folder."""
    build_flow(family, seed=seed).save_pretrained(folder)
    return folder


def _vae(kind: Any, **settings: Any) -> Any:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return kind(**blocks, block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=4, **settings)


def _clip(kind: Any, tokenizer: Any) -> Any:
    n = len(tokenizer)
    return kind(
        CLIPTextConfig(
            vocab_size=n, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length, projection_dim=16, bos_token_id=n - 2,
            eos_token_id=n - 1, pad_token_id=n - 1,
        )
    )  # fmt: skip


def _t5() -> tuple[Any, Any]:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((chr(c), -3.0) for c in range(33, 127))]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0)
    sizes = {"d_model": 40, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 2}
    return T5EncoderModel(T5Config(vocab_size=len(tokenizer), feed_forward_proj="gated-gelu", **sizes)), tokenizer


def _qwen_tokenizer() -> Any:
    letters = [*map(chr, (*range(33, 127), *range(161, 173), *range(174, 256)))]
    letters += [chr(256 + i) for i in range(256 - len(letters))]
    vocab = {piece: i for i, piece in enumerate([*letters, "in", "th"])}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[("i", "n"), ("t", "h")], pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHAT
    return tokenizer


_QWEN = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
_QWEN |= {"bos_token_id": 0, "eos_token_id": 0}


def _qwen3(kind: Any, tokenizer: Any, layers: int) -> Any:
    sizes = {"head_dim": 8, "max_position_embeddings": 1024, "num_hidden_layers": layers}
    return kind(Qwen3Config(vocab_size=len(tokenizer), **sizes, **_QWEN))


def _sd35() -> Any:
    one, two = build_tokenizer(16), build_tokenizer(16, "!")
    t5, three = _t5()
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=16, patch_size=2, in_channels=16, out_channels=16, num_layers=3, attention_head_dim=8,
            num_attention_heads=4, joint_attention_dim=40, caption_projection_dim=32, pooled_projection_dim=32,
            pos_embed_max_size=64, qk_norm="rms_norm", dual_attention_layers=(0, 1),
        ),
        vae=_vae(AutoencoderKL, **LATENT_16, shift_factor=0.0609, scaling_factor=1.5305),
        text_encoder=_clip(CLIPTextModelWithProjection, one), tokenizer=one,
        text_encoder_2=_clip(CLIPTextModelWithProjection, two), tokenizer_2=two,
        text_encoder_3=t5, tokenizer_3=three, scheduler=FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip


def _flux1() -> Any:
    one = build_tokenizer(16)
    t5, two = _t5()
    return FluxPipeline(
        transformer=FluxTransformer2DModel(
            patch_size=1, in_channels=64, num_layers=2, num_single_layers=2, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=40, pooled_projection_dim=16, guidance_embeds=True,
            axes_dims_rope=(4, 6, 6),
        ),
        vae=_vae(AutoencoderKL, **LATENT_16, **FLUX_SCALE), scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=_clip(CLIPTextModel, one), tokenizer=one, text_encoder_2=t5, tokenizer_2=two,
    )  # fmt: skip


def _klein() -> Any:
    tokenizer, vae = _qwen_tokenizer(), _vae(AutoencoderKLFlux2, latent_channels=32)
    vae.bn.running_mean.normal_(0, 0.3)
    vae.bn.running_var.uniform_(0.5, 2)
    return Flux2KleinPipeline(
        transformer=Flux2Transformer2DModel(
            patch_size=1, in_channels=128, num_layers=2, num_single_layers=2, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=48, timestep_guidance_channels=32, axes_dims_rope=(4,) * 4,
            guidance_embeds=False,
        ),
        vae=vae, text_encoder=_qwen3(Qwen3ForCausalLM, tokenizer, 28), tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(), is_distilled=False,
    )  # fmt: skip


def _zimage() -> Any:
    tokenizer = _qwen_tokenizer()
    transformer = ZImageTransformer2DModel(
        all_patch_size=(2,), all_f_patch_size=(1,), in_channels=16, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2,
        n_kv_heads=2, cap_feat_dim=16, axes_dims=[4, 6, 6], axes_lens=[1536, 512, 512],
    )  # fmt: skip
    nn.init.normal_(transformer.x_pad_token)
    nn.init.normal_(transformer.cap_pad_token)
    return ZImagePipeline(
        transformer=transformer, vae=_vae(AutoencoderKL, **LATENT_16, **FLUX_SCALE), tokenizer=tokenizer,
        text_encoder=_qwen3(Qwen3Model, tokenizer, 3), scheduler=FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip


def _qwen() -> Any:
    tokenizer = _qwen_tokenizer()
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]}
    text = {"vocab_size": len(tokenizer), "num_hidden_layers": 2, "rope_parameters": rope, **_QWEN}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision | {"fullatt_block_indexes": [0]})
    statistics = {"latents_mean": torch.linspace(-0.5, 0.5, 16).tolist()}
    statistics["latents_std"] = torch.linspace(1.5, 3.0, 16).tolist()
    return QwenImagePipeline(
        transformer=QwenImageTransformer2DModel(
            patch_size=2, in_channels=64, out_channels=16, num_layers=2, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=16, axes_dims_rope=(4, 6, 6),
        ),
        vae=AutoencoderKLQwenImage(base_dim=8, z_dim=16, dim_mult=[1, 2, 2, 2], num_res_blocks=1, **statistics),
        text_encoder=Qwen2_5_VLForConditionalGeneration(config), tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip
