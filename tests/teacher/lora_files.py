"""Small models and the tensors of LoRA files in every format, for the tests of reading and writing them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from tiny_pipelines import TinySpec, adapted_layers, build_text_encoder, build_tokenizer, build_unet
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from smsff.teacher.lora.load import LoraFile, LoraReport, load_style_loras

SPEC = TinySpec()
UNET_TARGETS = r".*(to_q|to_v|to_out\.0|conv1|conv2|proj_in|conv_shortcut|time_emb_proj|ff\.net\.0\.proj|sers\.0\.conv)"
LAYERS = ("attn1.to_q", "to_out.0", "proj_in", "conv1", "downsamplers.0.conv", "time_emb_proj")
TEXT_LAYERS = ("q_proj", "out_proj", "fc1")
Tensors = dict[str, Tensor]
TEXT_TARGETS = r".*(q_proj|out_proj|fc1)"


def load_style_lora(
    unet: nn.Module, text: nn.Module | None, path: Path, *, strength: float = 1.0, adapter_name: str = "style"
) -> LoraReport:
    """`load_style_loras` for one file and at most one text encoder."""
    encoders = () if text is None else (text,)
    return load_style_loras(unet, encoders, [LoraFile(path, strength)], adapter_name=adapter_name)[0]


def sd_models() -> tuple[nn.Module, nn.Module]:
    """U-Net and text encoder in the shape of SD 1.x, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_unet(SPEC).eval(), build_text_encoder(SPEC, len(build_tokenizer(SPEC.tokens))).eval()


def xl_models() -> tuple[nn.Module, nn.Module, nn.Module]:
    """U-Net (two residual blocks a level, as in SDXL) and both text encoders in the shape of SDXL."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16, 16),
            layers_per_block=2,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 1, 2),
            attention_head_dim=(2, 2, 2),
            cross_attention_dim=24,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=12 + 6 * 4,
            use_linear_projection=True,
        )
        config = CLIPTextConfig(
            vocab_size=100,
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            projection_dim=12,
            max_position_embeddings=16,
            bos_token_id=98,
            eos_token_id=99,
            pad_token_id=99,
        )
        first = CLIPTextModel(config)
        config.hidden_size = 16
        return unet.eval(), first.eval(), CLIPTextModelWithProjection(config).eval()


@torch.no_grad()
def run_unet(unet: nn.Module) -> Tensor:
    """The noise prediction (2, C, 8, 8) for fixed random inputs."""
    generator = torch.Generator().manual_seed(5)
    z = torch.randn(2, unet.config.in_channels, 8, 8, generator=generator)
    cond = torch.randn(2, 6, unet.config.cross_attention_dim, generator=generator)
    added = None
    if unet.config.addition_embed_type is not None:
        added = {"text_embeds": torch.randn(2, 12, generator=generator), "time_ids": torch.full((2, 6), 64.0)}
    return unet(z, torch.tensor([3, 800]), encoder_hidden_states=cond, added_cond_kwargs=added).sample


@torch.no_grad()
def run_text(encoder: nn.Module) -> Tensor:
    return encoder(torch.arange(32).view(2, 16)).last_hidden_state


def add_lora(model: nn.Module, targets: str, name: str = "trained", *, mixed: bool = True) -> None:
    """A random LoRA adapter, as it is after training; `mixed`: every second layer of another rank and alpha."""
    layers = sorted(n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d))
    others = "|".join(n.replace(".", r"\.") for n in layers[::2])
    config = LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=targets,
        rank_pattern={others: 5} if mixed else {},
        alpha_pattern={others: 6} if mixed else {},
    )
    inject_adapter_in_model(config, model, name)
    generator = torch.Generator().manual_seed(7)
    for parameter_name, parameter in model.named_parameters():
        if f".{name}." in parameter_name:
            value = torch.randn(parameter.shape, generator=generator)
            parameter.data = 0.5 * value / parameter[0].numel() ** 0.5


# What the tensors of one layer are called in LyCORIS's and kohya's files, and in float64 what they do to its weight.


def _random(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator) / max(shape[-1], 2) ** 0.5


def lora(weight: Tensor, g: torch.Generator) -> Tensors:
    kernel = weight.shape[2:]
    return {
        "lora_down.weight": _random(g, 3, weight.shape[1], *kernel),
        "lora_up.weight": _random(g, weight.shape[0], 3, *[1] * len(kernel)),
        "alpha": torch.tensor(2.0),
    }


def lora_delta(t: Tensors, shape: torch.Size) -> Tensor:
    up, down = t["lora_up.weight"].double(), t["lora_down.weight"].double()
    if "lora_mid.weight" in t:
        mid = t["lora_mid.weight"].double()
        return 2 / 3 * torch.einsum("om,mnkl,ni->oikl", up[:, :, 0, 0], mid, down[:, :, 0, 0])
    return 2 / 3 * torch.einsum("or,r...->o...", up.flatten(1), down)


def tucker(weight: Tensor, g: torch.Generator) -> Tensors:
    if weight.ndim < 4 or weight.shape[-1] == 1:
        return lora(weight, g)
    return {
        "lora_down.weight": _random(g, 3, weight.shape[1], 1, 1),
        "lora_mid.weight": _random(g, 3, 3, *weight.shape[2:]),
        "lora_up.weight": _random(g, weight.shape[0], 3, 1, 1),
        "alpha": torch.tensor(2.0),
    }


def loha(weight: Tensor, g: torch.Generator) -> Tensors:
    out, rest = weight.shape[0], weight[0].numel()
    shapes = {"hada_w1_a": (out, 3), "hada_w1_b": (3, rest), "hada_w2_a": (out, 3), "hada_w2_b": (3, rest)}
    return {name: _random(g, *shape) for name, shape in shapes.items()} | {"alpha": torch.tensor(2.0)}


def loha_delta(t: Tensors, shape: torch.Size) -> Tensor:
    parts = []
    for i in "12":
        a, b = t[f"hada_w{i}_a"].double(), t[f"hada_w{i}_b"].double()
        if f"hada_t{i}" in t:
            parts.append(torch.einsum("mo,mnkl,ni->oikl", a, t[f"hada_t{i}"].double(), b))
        else:
            parts.append((a @ b).view(shape))
    return 2 / 3 * parts[0] * parts[1]


def loha_tucker(weight: Tensor, g: torch.Generator) -> Tensors:
    if weight.ndim < 4 or weight.shape[-1] == 1:
        return loha(weight, g)
    out, inputs, *kernel = weight.shape
    tensors = {"alpha": torch.tensor(2.0)}
    for i in "12":
        tensors[f"hada_w{i}_a"] = _random(g, 3, out)
        tensors[f"hada_w{i}_b"] = _random(g, 3, inputs)
        tensors[f"hada_t{i}"] = _random(g, 3, 3, *kernel)
    return tensors


def lokr(*, left: bool, right: bool, core: bool = False) -> Callable[[Tensor, torch.Generator], Tensors]:
    """A LoKr with w1 (`left`), w2 (`right`) as products of two, or w2 with Tucker's core."""

    def make(weight: Tensor, g: torch.Generator) -> Tensors:
        out, inputs, *kernel = weight.shape
        tensors = {"alpha": torch.tensor(2.0)}
        if left:
            tensors |= {"lokr_w1_a": _random(g, 4, 3), "lokr_w1_b": _random(g, 3, 2)}
        else:
            tensors["lokr_w1"] = _random(g, 4, 2)
        if core and kernel not in ([], [1, 1]):
            tensors |= {"lokr_w2_a": _random(g, 3, out // 4), "lokr_w2_b": _random(g, 3, inputs // 2)}
            tensors["lokr_t2"] = _random(g, 3, 3, *kernel)
        elif right:
            rest = weight[0].numel() // 2
            tensors |= {"lokr_w2_a": _random(g, out // 4, 3), "lokr_w2_b": _random(g, 3, rest)}
        else:
            tensors["lokr_w2"] = _random(g, out // 4, inputs // 2, *kernel)
        return tensors

    return make


def lokr_delta(t: Tensors, shape: torch.Size) -> Tensor:
    """Without decomposition alpha plays no part (LyCORIS)."""
    t = {name: tensor.double() for name, tensor in t.items()}
    scale = 1.0 if {"lokr_w1", "lokr_w2"} <= t.keys() else 2 / 3
    w1 = t["lokr_w1"] if "lokr_w1" in t else t["lokr_w1_a"] @ t["lokr_w1_b"]
    kernel = shape[2:]
    if "lokr_t2" in t:
        w2 = torch.einsum("mo,mnkl,ni->oikl", t["lokr_w2_a"], t["lokr_t2"], t["lokr_w2_b"])
    elif "lokr_w2" in t:
        w2 = t["lokr_w2"]
    else:
        w2 = (t["lokr_w2_a"] @ t["lokr_w2_b"]).view(shape[0] // 4, shape[1] // 2, *kernel)
    blocks = [torch.cat([w1[i, j] * w2 for j in range(w1.shape[1])], dim=1) for i in range(w1.shape[0])]
    return scale * torch.cat(blocks)


def dora(
    make: Callable[[Tensor, torch.Generator], Tensors], *, on_output: bool
) -> Callable[[Tensor, torch.Generator], Tensors]:
    """Magnitudes on top of another algorithm: for outputs (out, 1, ...) or inputs (1, in, ...) of the layer."""

    def with_magnitude(weight: Tensor, g: torch.Generator) -> Tensors:
        shape = [1] * weight.ndim
        shape[0 if on_output else 1] = weight.shape[0 if on_output else 1]
        return make(weight, g) | {"dora_scale": 0.5 + torch.rand(shape, generator=g)}

    return with_magnitude


def reference_delta(tensors: Tensors, weight: Tensor, strength: float) -> Tensor:
    """strength times what the algorithm's authors define, in float64 and independent of any library."""
    kinds = (("hada", loha_delta), ("lokr", lokr_delta), ("lora", lora_delta))
    compute = next(f for start, f in kinds if any(name.startswith(start) for name in tensors))
    delta = compute(tensors, weight.shape)
    if "dora_scale" in tensors:
        magnitude, v = tensors["dora_scale"].double(), weight.double() + delta
        axes = tuple(d for d in range(v.ndim) if magnitude.shape[d] == 1)
        delta = v * magnitude / v.square().sum(dim=axes, keepdim=True).sqrt() - weight.double()
    return strength * delta


ALGORITHMS: dict[str, tuple[str, Callable[[Tensor, torch.Generator], Tensors]]] = {
    "lora": ("LoRA", lora),
    "tucker": ("LoRA Tucker", tucker),
    "dora": ("LoRA DoRA", dora(lora, on_output=True)),
    "dora on inputs": ("LoRA DoRA", dora(lora, on_output=False)),
    "dora tucker": ("LoRA Tucker DoRA", dora(tucker, on_output=True)),
    "loha": ("LoHa", loha),
    "loha tucker": ("LoHa Tucker", loha_tucker),
    "loha dora": ("LoHa DoRA", dora(loha, on_output=True)),
    "lokr full": ("LoKr", lokr(left=False, right=False)),
    "lokr": ("LoKr", lokr(left=False, right=True)),
    "lokr both": ("LoKr", lokr(left=True, right=True)),
    "lokr left": ("LoKr", lokr(left=True, right=False)),
    "lokr tucker": ("LoKr Tucker", lokr(left=False, right=True, core=True)),
    "lokr dora": ("LoKr DoRA", dora(lokr(left=False, right=True), on_output=True)),
}


def file_tensors(
    model: nn.Module, algorithm: str, targets: Iterable[str] = LAYERS, *, seed: int = 3
) -> dict[str, Tensors]:
    """{layer of `model`: {end of a tensor's name: tensor}}."""
    generator = torch.Generator().manual_seed(seed)
    make = ALGORITHMS[algorithm][1]
    return {name: make(layer.weight, generator) for name, layer in adapted_layers(model, targets).items()}


def kohya(layers: dict[str, Tensors], prefix: str = "lora_unet_") -> Tensors:
    return {f"{prefix}{name.replace('.', '_')}.{end}": t for name, ts in layers.items() for end, t in ts.items()}


def merge(model: nn.Module, layers: dict[str, Tensors], strength: float, original: nn.Module | None = None) -> None:
    """Change the weights as the file should; `original` has the weights that a DoRA's magnitudes refer to."""
    start = dict((original or model).named_modules())
    for name, tensors in layers.items():
        layer = model.get_submodule(name)
        delta = reference_delta(tensors, start[name].weight, strength)
        layer.weight.data = (layer.weight.double() + delta).float()


def merged_weights(model: nn.Module) -> Tensors:
    """The weights of the adapted layers with the active adapter in them, in float64."""
    weights: Tensors = {}
    for name, layer in model.named_modules():
        if hasattr(layer, "get_delta_weight"):
            plain = name.replace(".base_layer", "")
            base = weights.get(plain, layer.get_base_layer().weight.double())
            weights[plain] = base + layer.get_delta_weight("style").double()
    return weights
