"""A flow's transformer in one ``.safetensors`` file, with the names of its original code or of diffusers.

All else comes from the pipeline that ``teacher.config`` names. diffusers converts the names.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from safetensors import safe_open

from smsff.errors import UserError, first_line
from smsff.teacher.base.single_file import header, refuse_quantised
from smsff.teacher.base.skeleton import skeleton_unet
from smsff.teacher.base.source import Source
from smsff.teacher.flow.families import FAMILIES, FlowConfig, read_flow_config, supported
from smsff.teacher.flow.published import PUBLISHED_FLOWS

PREFIX = "model.diffusion_model."
_MARKS = {
    "StableDiffusion3Pipeline": ("joint_blocks.0.x_block.attn.qkv.weight", "pos_embed.pos_embed"),
    "FluxPipeline": ("double_blocks.0.img_mod.lin.weight", "single_transformer_blocks.0.norm.linear.weight"),
    "Flux2KleinPipeline": ("double_stream_modulation_img.lin.weight", "double_stream_modulation_img.linear.weight"),
    "ZImagePipeline": ("layers.0.adaLN_modulation.0.weight",),
    "QwenImagePipeline": ("transformer_blocks.0.img_mod.1.weight",),
}
"""A tensor that tells the family, in the original code and in diffusers."""
_SURPLUS = ("norm_final.weight",)
"""In published files, and in no transformer."""


def find_flow_config(source: Source, settings: Source | None) -> FlowConfig:
    """The configuration of a pipeline, or of the single file `source` and the pipeline `settings`; by headers alone.

    Raises:
        UserError: as `read_flow_config`, and if file and pipeline do not belong together.
    """
    if source.file is None:
        if settings is not None:
            raise UserError(f"{settings}: is for a single file, and {source} is none")
        return read_flow_config(source)
    shapes = _shapes(source)
    refuse_quantised(shapes, source, scales=True)
    kind = next((kind for kind, marks in _MARKS.items() if any(mark in shapes for mark in marks)), None)
    if kind is None:
        what = "a LoRA" if any("lora_" in name for name in shapes) else f"it has {min(shapes, default='no tensors')}"
        raise UserError(f"{source}: by the names of its tensors no transformer of {supported()} ({what})")
    family = FAMILIES[kind]
    if settings is None:
        known = next(name for name, config in PUBLISHED_FLOWS.items() if config.family is family)
        raise UserError(
            f"{source}: of this file the transformer alone is read; set teacher.config to a folder or hub id with the "
            f"auto-encoder, text encoders and tokenizers of {family.title}, such as {known}"
        )
    config = read_flow_config(settings, base=source)
    if config.family is not family:
        raise UserError(f"{source}: the file is {family.title}, and {settings} is {config.family.title}")
    own = sum(tensor.numel() for tensor in skeleton_unet(config).state_dict().values())
    found = sum(math.prod(shape) for name, shape in shapes.items() if name not in _SURPLUS)
    if own != found:
        raise UserError(
            f"{source}: its transformer has {found:,} weights, and that of {settings} has {own:,}; "
            "it is another model, or the file is not whole"
        )
    return config


def load_transformer(source: Source, settings: Source, config: FlowConfig, dtype: torch.dtype) -> Any:
    """The transformer of a single file that `find_flow_config` has accepted."""
    names, kind = _shapes(source), config.family.transformer
    with safe_open(str(source.file), "pt") as file:
        start = PREFIX if any(name.startswith(PREFIX) for name in file.keys()) else ""  # noqa: SIM118
        tensors = {name: file.get_tensor(start + name) for name in names}
    try:
        return kind.from_single_file(
            tensors, config=settings.location, subfolder="transformer", torch_dtype=dtype, local_files_only=True
        )
    except (KeyError, IndexError, ValueError, RuntimeError) as error:  # of a conversion that takes all for granted
        raise UserError(
            f"{source}: its transformer is not that of {settings} ({first_line(error, at_most=200)})"
        ) from None


def _shapes(source: Source) -> dict[str, tuple[int, ...]]:
    """Of the transformer's tensors, by their names without the prefix of complete checkpoints."""
    shapes, _ = header(source)
    inside = {name.removeprefix(PREFIX): shape for name, shape in shapes.items() if name.startswith(PREFIX)}
    return inside or shapes
