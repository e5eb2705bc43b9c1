"""The networks of a pipeline without memory (on the meta device): what they consist of, before any file is read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from smsff.teacher.base.pipeline_config import PipelineConfig
from smsff.teacher.flow.families import FlowConfig
from smsff.teacher.flow.quantise import BITS, Quantise, quantised_layers


@dataclass(frozen=True)
class Network:
    """Size of one network: parameters, and the bytes that they take in its dtype."""

    name: str
    parameters: int
    dtype: str
    bytes: int


def networks(
    config: PipelineConfig | FlowConfig,
    *,
    dtype: str,
    prefix: str = "",
    vae: bool = True,
    quantise: Quantise | None = None,
) -> list[Network]:
    """What loading this pipeline brings into memory: the U-Net in `dtype`, the rest in float32.

    Of a flow the text encoders are in `dtype` too.

    Args:
        vae: whether the auto-encoder is loaded too (that of a style's own base is not).
    """
    flow = isinstance(config, FlowConfig)
    unet = skeleton_unet(config)
    found = [_size(f"{prefix}{'transformer' if flow else 'U-Net'}", unet, dtype)]
    if quantise is not None:
        fewer = sum(layer.weight.numel() for layer in quantised_layers(unet).values())
        saved = int(fewer * (getattr(torch, dtype).itemsize - BITS[quantise] / 8))
        found = [replace(found[0], dtype=f"{dtype}, {quantise}", bytes=found[0].bytes - saved)]
    if vae:
        found.append(_size(f"{prefix}auto-encoder", skeleton_vae(config), "float32"))
    texts = skeleton_texts(config)
    names = ["text encoder"] if len(texts) == 1 else [f"text encoder {i + 1}" for i in range(len(texts))]
    return found + [
        _size(prefix + name, text, dtype if flow else "float32") for name, text in zip(names, texts, strict=True)
    ]


def network_sizes(found: Iterable[Network]) -> str:
    """In words, ``U-Net 860 M parameters, 1.7 GB (bfloat16); ...``."""
    return "; ".join(
        f"{n.name} {n.parameters / 1e6:.0f} M parameters, {n.bytes / 1e9:.2f} GB ({n.dtype})" for n in found
    )


def skeleton_unet(config: PipelineConfig | FlowConfig) -> Any:
    """The U-Net or transformer, on the meta device."""
    with torch.device("meta"):
        if isinstance(config, FlowConfig):
            return config.family.transformer.from_config(dict(config.transformer))
        return UNet2DConditionModel.from_config(dict(config.unet))


def skeleton_vae(config: PipelineConfig | FlowConfig) -> Any:
    """The auto-encoder, on the meta device."""
    if isinstance(config, FlowConfig):
        kind: Any = config.family.vae
    else:
        kind = AutoencoderTiny if config.vae.get("_class_name") == "AutoencoderTiny" else AutoencoderKL
    with torch.device("meta"):
        return kind.from_config(dict(config.vae))


def skeleton_texts(config: PipelineConfig | FlowConfig) -> list[Any]:
    """The text encoders, on the meta device."""
    clip: tuple[Any, ...] = (CLIPTextModel, CLIPTextModelWithProjection)
    kinds = config.family.texts if isinstance(config, FlowConfig) else clip
    texts = config.texts if isinstance(config, FlowConfig) else config.text_encoders
    with torch.device("meta"):
        return [kind(kind.config_class.from_dict(dict(text))) for kind, text in zip(kinds, texts, strict=False)]


def _size(name: str, model: nn.Module, dtype: str) -> Network:
    parameters = sum(p.numel() for p in model.parameters())
    return Network(name, parameters, dtype, parameters * getattr(torch, dtype).itemsize)
