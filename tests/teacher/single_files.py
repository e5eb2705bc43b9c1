"""A pipeline folder as one file with the names of the original Stable Diffusion code: the way back of the conversion.

Written from the public structure of those checkpoints, independently of diffusers' conversion that reads them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

Tensors = dict[str, Tensor]

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
_OPEN_CLIP |= {"self_attn.out_proj": "attn.out_proj"}


def write_single_file(
    path: Path, folder: Path, *, extra: Tensors | None = None, metadata: dict[str, str] | None = None
) -> Path:
    """The pipeline in `folder` (of the family that its text encoders show) as one file at `path`."""
    tensors = _tensors(folder) | (extra or {})
    save_file(tensors, path, metadata={"format": "pt", **(metadata or {})})
    return path


@cache
def _tensors(folder: Path) -> Tensors:
    models: list[Any] = [
        UNet2DConditionModel.from_pretrained(folder, subfolder="unet"),
        AutoencoderKL.from_pretrained(folder, subfolder="vae"),
        CLIPTextModel.from_pretrained(folder / "text_encoder"),
    ]
    if (folder / "text_encoder_2").is_dir():
        models.append(CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2"))
    return {name: value.detach().clone().contiguous() for name, value in original_names(models).items()}


def original_names(models: Sequence[Any]) -> Tensors:
    """U-Net, auto-encoder and one or two text encoders, with the names that a single file has."""
    unet, vae, *text = models
    tensors = {f"model.diffusion_model.{name}": value for name, value in unet_tensors(unet).items()}
    tensors |= {f"first_stage_model.{name}": value for name, value in vae_tensors(vae).items()}
    if len(text) == 2:
        tensors |= clip_tensors(text[0], "conditioner.embedders.0.transformer.")
        return tensors | open_clip_tensors(text[1], "conditioner.embedders.1.model.")
    if text[0].config.hidden_act == "gelu":
        return tensors | open_clip_tensors(text[0], "cond_stage_model.model.")
    return tensors | clip_tensors(text[0], "cond_stage_model.transformer.")


def unet_tensors(unet: UNet2DConditionModel) -> Tensors:
    per_level = unet.config.layers_per_block + 1
    tensors = {_unet_name(name, per_level): value for name, value in unet.state_dict().items()}
    with_attention = {name.split(".")[1] for name in tensors if re.match(r"output_blocks\.\d+\.1\.", name)}
    return {name.replace(".UP.", ".2." if name.split(".")[1] in with_attention else ".1."): value
            for name, value in tensors.items()}  # fmt: skip


def _unet_name(name: str, per_level: int) -> str:
    for ours, theirs in _UNET_OUTSIDE.items():
        if name.startswith(f"{ours}."):
            return name.replace(ours, theirs, 1)
    way, level, kind, index, rest = _parts(name)
    if way == "mid":
        return f"middle_block.{2 * index if kind == 'resnets' else 1}.{_resnet(rest) if kind == 'resnets' else rest}"
    inside = f"0.{_resnet(rest)}" if kind == "resnets" else f"1.{rest}"
    if way == "down":
        if kind == "downsamplers":
            return f"input_blocks.{(level + 1) * per_level}.{rest.replace('conv', '0.op')}"
        return f"input_blocks.{1 + level * per_level + index}.{inside}"
    if kind == "upsamplers":  # after the level's last residual block, and after its attention where there is one
        return f"output_blocks.{level * per_level + per_level - 1}.UP.{rest}"
    return f"output_blocks.{level * per_level + index}.{inside}"


def _parts(name: str) -> tuple[str, int, str, int, str]:
    found = re.fullmatch(r"(down|up|mid)_blocks?\.(?:(\d+)\.)?(\w+)\.(\d+)\.(.+)", name)
    assert found is not None, name
    return found[1], int(found[2] or 0), found[3], int(found[4]), found[5]


def _resnet(rest: str) -> str:
    layer, _, parameter = rest.rpartition(".")
    return f"{_RESNET[layer]}.{parameter}"


def vae_tensors(vae: AutoencoderKL) -> Tensors:
    levels = len(vae.config.block_out_channels)
    tensors = {}
    for name, value in vae.state_dict().items():
        new = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        new = re.sub(r"down_blocks\.(\d)\.resnets\.", r"down.\1.block.", new)
        new = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(r"up_blocks\.(\d)\.resnets\.", lambda m: f"up.{levels - 1 - int(m[1])}.block.", new)
        new = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", new)
        if "mid_block.attentions.0." in new:
            layer, _, parameter = new.partition("mid_block.attentions.0.")[2].rpartition(".")
            new = f"{new.partition('mid_block')[0]}mid.attn_1.{_VAE_ATTENTION[layer]}.{parameter}"
            value = value[:, :, None, None] if value.ndim == 2 else value  # convolutions of one pixel there
        tensors[new] = value
    return tensors


def clip_tensors(encoder: CLIPTextModel, prefix: str) -> Tensors:
    names = {name: name if name.startswith("text_model.") else f"text_model.{name}" for name in encoder.state_dict()}
    tensors = {prefix + names[name]: value for name, value in encoder.state_dict().items()}
    length = encoder.config.max_position_embeddings
    return tensors | {f"{prefix}text_model.embeddings.position_ids": torch.arange(length)[None]}


def open_clip_tensors(encoder: CLIPTextModel | CLIPTextModelWithProjection, prefix: str) -> Tensors:
    state = {name.removeprefix("text_model."): value for name, value in encoder.state_dict().items()}
    width = encoder.config.hidden_size
    projection = state.pop("text_projection.weight", torch.zeros(width, width))
    tensors = {
        "positional_embedding": state.pop("embeddings.position_embedding.weight"),
        "token_embedding.weight": state.pop("embeddings.token_embedding.weight"),
        "ln_final.weight": state.pop("final_layer_norm.weight"),
        "ln_final.bias": state.pop("final_layer_norm.bias"),
        "text_projection": projection.T,
        "logit_scale": torch.tensor(4.6),
    }
    for layer in range(encoder.config.num_hidden_layers):
        here, there = f"encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            joined = [state[f"{here}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            tensors[f"{there}attn.in_proj_{kind}"] = torch.cat(joined)
            for ours, theirs in _OPEN_CLIP.items():
                tensors[f"{there}{theirs}.{kind}"] = state[f"{here}{ours}.{kind}"]
    return {prefix + name: value for name, value in tensors.items()}
