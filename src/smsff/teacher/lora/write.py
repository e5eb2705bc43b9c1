"""Writing a trained LoRA adapter to a file that other programs read too."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from smsff.atomic import write_atomically
from smsff.errors import UserError
from smsff.teacher.lora.inspect import FLOWS
from smsff.teacher.lora.names import plain_name, sgm_name, weighted_layers

Format = Literal["kohya", "diffusers", "ai-toolkit"]


@dataclass(frozen=True)
class _Layer:
    """One adapted layer: down (r, in, ...), up (out, r, ...), and W + alpha / r * up @ down."""

    name: str
    down: Tensor
    up: Tensor
    alpha: float


def save_style_lora(
    path: Path,
    *,
    unet: nn.Module,
    text_encoders: Sequence[nn.Module] = (),
    adapter_name: str,
    format: Format,
    metadata: Mapping[str, str],
    dtype: torch.dtype | None = None,
) -> None:
    """Write the LoRA `adapter_name` of a network and its text encoders; the file appears complete or not at all.

    ``kohya``: ``lora_unet_…``, ``lora_te_…`` (SDXL: ``lora_te1_…``, ``lora_te2_…``, and the original names of the
    U-Net's blocks) with an ``alpha`` for each layer. ``diffusers``: ``unet.….lora_A.weight`` and so on. That format has
    no place for alpha that every program reads, so alpha / rank is multiplied into the up matrix. ``ai-toolkit``: the
    same with ``diffusion_model.`` before the layers, as programs read it for transformers, whose part is called
    ``transformer`` in diffusers.

    Args:
        text_encoders: the first, and for SDXL the second; those without the adapter add nothing.
        metadata: added to the header, and overrides what is written there by default.
        dtype: of the tensors; None keeps the adapter's.

    Raises:
        UserError: for another format, if no layer has the adapter, or if it is a DoRA.
    """
    if format not in get_args(Format):
        raise UserError(f"format={format!r} is not one of {', '.join(get_args(Format))}")
    network = "diffusion_model" if format == "ai-toolkit" else "transformer" if type(unet).__name__ in FLOWS else "unet"
    parts = {network: _layers(unet, adapter_name)}
    for key, encoder in zip(("text_encoder", "text_encoder_2"), text_encoders, strict=False):
        parts[key] = _layers(encoder, adapter_name)
    layers = [layer for part in parts.values() for layer in part]
    if not layers:
        raise UserError(f"{path}: no layer of the model has the LoRA adapter {adapter_name!r}; nothing to write")
    xl = getattr(getattr(unet, "config", None), "addition_embed_type", None) == "text_time"
    if format == "kohya":
        names = list(weighted_layers(unet)) if xl else []
        tensors = dict(_kohya(parts, names))
        header = _kohya_header(layers, unet, xl)
    else:
        tensors = dict(_diffusers(parts))
        saved = json.dumps(_diffusers_config(parts), sort_keys=True)
        header = {"lora_adapter_metadata": saved} if format == "diffusers" else {}
    tensors = {key: value.detach().to("cpu", dtype or value.dtype).contiguous() for key, value in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"format": "pt"} | header | dict(metadata)
    write_atomically(path, lambda partial: save_file(tensors, partial, metadata=header))


def _layers(model: nn.Module, adapter: str) -> list[_Layer]:
    found = []
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer) or adapter not in layer.lora_A:
            continue
        if adapter in layer.lora_magnitude_vector:
            raise UserError(f"the adapter {adapter!r} is a DoRA, which cannot be written")
        down, up = layer.lora_A[adapter].weight.detach(), layer.lora_B[adapter].weight.detach()
        found.append(_Layer(plain_name(name), down, up, float(layer.scaling[adapter]) * len(down)))
    return found


def _kohya(parts: Mapping[str, list[_Layer]], sgm: list[str]) -> Iterator[tuple[str, Tensor]]:
    """With `sgm`, the layers of an SDXL U-Net, in SDXL's names."""
    prefixes = {"text_encoder": "lora_te1_" if sgm else "lora_te_", "text_encoder_2": "lora_te2_"}
    for part, layers in parts.items():
        for layer in layers:
            name = (sgm_name(layer.name, sgm) if sgm and part == "unet" else None) or layer.name
            if part.startswith("text") and not name.startswith(("text_model.", "text_projection")):
                name = f"text_model.{name}"
            key = prefixes.get(part, "lora_unet_") + name.replace(".", "_")
            yield f"{key}.lora_down.weight", layer.down
            yield f"{key}.lora_up.weight", layer.up
            yield f"{key}.alpha", torch.tensor(layer.alpha, dtype=layer.down.dtype)


def _kohya_header(layers: list[_Layer], unet: nn.Module, xl: bool) -> dict[str, str]:
    width = getattr(getattr(unet, "config", None), "cross_attention_dim", None)
    base = "sdxl_base_v1-0" if xl else {768: "sd_v1", 1024: "sd_v2"}.get(width or 0)
    header = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(_most_common([len(layer.down) for layer in layers])),
        "ss_network_alpha": str(_most_common([layer.alpha for layer in layers])),
    }
    return header if base is None else header | {"ss_base_model_version": base}


def _diffusers(parts: Mapping[str, list[_Layer]]) -> Iterator[tuple[str, Tensor]]:
    for part, layers in parts.items():
        for layer in layers:
            scale = layer.alpha / len(layer.down)
            yield f"{part}.{layer.name}.lora_A.weight", layer.down
            yield f"{part}.{layer.name}.lora_B.weight", layer.up if scale == 1 else layer.up * scale


def _diffusers_config(parts: Mapping[str, list[_Layer]]) -> dict[str, object]:
    """peft's configuration of each part: alpha equals the rank everywhere."""
    config: dict[str, object] = {}
    for part, layers in parts.items():
        if not layers:
            continue
        rank = _most_common([len(layer.down) for layer in layers])
        others = {layer.name: len(layer.down) for layer in layers if len(layer.down) != rank}
        config |= {
            f"{part}.r": rank,
            f"{part}.lora_alpha": rank,
            f"{part}.rank_pattern": others,
            f"{part}.alpha_pattern": others,
            f"{part}.target_modules": sorted(layer.name for layer in layers),
        }
    return config


def _most_common(values: list[float]) -> float:
    return Counter(values).most_common(1)[0][0]
