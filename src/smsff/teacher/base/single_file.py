"""Checkpoints in one ``.safetensors`` file with the names of the original Stable Diffusion code.

Most published style bases come so. The file has the weights alone: its kind is told from the names of its tensors, its
configuration is the published one of that kind (`families`) or that of another pipeline, and diffusers' own conversion
gives the tensors their names there. Nothing is asked of the hub.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import CLIPTokenizer, PreTrainedModel

from smsff.errors import UserError, first_line
from smsff.teacher.base.families import clip_tokenizer, family_config
from smsff.teacher.base.pipeline_config import FAMILY_NAMES, SUPPORTED, Family, PipelineConfig
from smsff.teacher.base.skeleton import skeleton_texts, skeleton_unet, skeleton_vae
from smsff.teacher.base.source import Source

Tensors = dict[str, Tensor]

_UNET = "model.diffusion_model."
_CONV_IN = _UNET + "input_blocks.0.0.weight"
_VAE = ("first_stage_model.", "vae.")
_VAE_ALONE = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
# Endings of tensor names in files of 8 bits: a number, or one for each output, that a weight is multiplied by, and what
# is for the arithmetic of 8 bits alone.
_SCALES = (".scale_weight", ".weight_scale")
_BESIDE_SCALES = ("scaled_fp8", "scale_input", "input_scale", "comfy_quant")
_QUANTISED = (
    (".weight_scale_2", "NVFP4"),
    (".weight_scale_inv", "scales of blocks"),
    (".weight_zero_point", "zero points"),
    (".absmax", "bitsandbytes, 4 bits"),
    (".SCB", "bitsandbytes, 8 bits"),
    (".qweight", "GPTQ or AWQ"),
    (".wscales", "SVDQuant"),
)
_V_NAMES = ("v", "v_prediction", "v-prediction", "v_pred", "vpred")
_EPSILON_NAMES = ("epsilon", "eps")
# Part of a tensor name, and what it says about the file.
_FOREIGN = (
    ("joint_blocks.", "a Stable Diffusion 3 (flow-matching transformer) checkpoint"),
    ("double_blocks.", "a Flux (flow-matching transformer) checkpoint"),
    ("edm_mean", "a checkpoint with EDM noise levels (Playground v2.5)"),
    ("edm_vpred.sigma_max", "a checkpoint with EDM noise levels"),
    ("lora_", "a LoRA"),
    ("control_model.", "a ControlNet"),
)
# Where each family keeps its text encoders: OpenAI's under "transformer", OpenCLIP's under "model".
_TEXT: dict[Family, tuple[str, ...]] = {
    "sd1": ("cond_stage_model.transformer.",),
    "sd2": ("cond_stage_model.model.",),
    "sdxl": ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."),
}


def file_config(source: Source, given: PipelineConfig | None, *, vae: bool = True) -> PipelineConfig:
    """The configuration of a single file, by its header alone.

    Args:
        given: of another pipeline of the same family; None takes the published one.
        vae: whether its auto-encoder is needed; if not, there may be none.

    Raises:
        UserError: if the file is another kind of model, or not of the family of `given`.
    """
    shapes, metadata = header(source)
    family = _family(shapes, source)
    if given is not None and given.family != family:
        raise UserError(
            f"{source}: the file is {FAMILY_NAMES[family]} and teacher.config is {FAMILY_NAMES[given.family]}"
        )
    config = given or family_config(family)
    channels = shapes[_CONV_IN][1]
    if channels != config.unet["in_channels"]:
        raise UserError(
            f"{source}: its U-Net takes {channels} channels; models for inpainting or with image conditioning are not "
            "supported"
        )
    for part in _parts(config, vae=vae):
        _check_part(part, shapes, source)
    noise = _noise_settings(shapes, metadata)
    return replace(config, scheduler={**config.scheduler, **noise}, says_prediction="prediction_type" in noise)


def check_vae_file(source: Source, config: PipelineConfig) -> None:
    """Hold the auto-encoder of a single file, which may have nothing else, against the pipeline's configuration.

    Raises:
        UserError: if the file has none, or one of another shape.
    """
    shapes, _ = header(source)
    _check_part(_vae_part(config, shapes), shapes, source)


def load_unet(source: Source, config: PipelineConfig, dtype: torch.dtype) -> UNet2DConditionModel:
    """The U-Net of a single file."""
    return _filled(_unet_part(config), source, dtype)


def load_vae(source: Source, config: PipelineConfig) -> AutoencoderKL:
    """The auto-encoder of a single file, which may have nothing else, in float32."""
    return _filled(_vae_part(config, header(source)[0]), source, torch.float32)


def load_text(
    source: Source, config: PipelineConfig, tokenizers: Iterable[CLIPTokenizer] | None
) -> tuple[list[PreTrainedModel], list[CLIPTokenizer]]:
    """The text encoders of a single file, in float32, and `tokenizers` or CLIP's own."""
    encoders = []
    for part in _text_parts(config):
        tensors = _fitted(part, _read(source, part.prefixes, torch.float32), source)
        kind: Any = type(part.skeleton)
        # Not `_filled`: these models have tensors that are in no file, which transformers makes.
        encoders.append(
            kind.from_pretrained(None, config=part.skeleton.config, state_dict=tensors, dtype=torch.float32).eval()
        )
    own = [clip_tokenizer(config.family, i) for i in range(len(encoders))] if tokenizers is None else list(tokenizers)
    return encoders, own


@dataclass(frozen=True)
class _Part:
    """One network of a checkpoint.

    Attributes:
        prefixes: how the names of its tensors in the file start.
        skeleton: the network without memory (on the meta device).
        convert: tensors of the file to tensors of the network.
        surplus: whether the published files have tensors that the network has not.
    """

    what: str
    prefixes: tuple[str, ...]
    skeleton: Any
    convert: Callable[[Tensors], Tensors]
    surplus: bool = False
    otherwise: str = ""


def _parts(config: PipelineConfig, *, vae: bool) -> list[_Part]:
    return [_unet_part(config), *([_vae_part(config)] if vae else []), *_text_parts(config)]


def _unet_part(config: PipelineConfig) -> _Part:
    settings = dict(config.unet)
    return _Part("U-Net", (_UNET,), skeleton_unet(config), lambda raw: convert_ldm_unet_checkpoint(raw, settings))


def _vae_part(config: PipelineConfig, names: Iterable[str] = ()) -> _Part:
    """`names`: of a file that may have an auto-encoder alone, whose names then have no prefix or are diffusers'."""
    settings, names = dict(config.vae), list(names)

    def convert(raw: Tensors) -> Tensors:
        return raw if any(".mid_block." in name for name in raw) else convert_ldm_vae_checkpoint(raw, settings)

    alone = any(name.startswith(_VAE_ALONE) for name in names) and not any(name.startswith(_VAE) for name in names)
    otherwise = "; teacher.vae takes the auto-encoder from elsewhere"
    return _Part("auto-encoder", _VAE_ALONE if alone else _VAE, skeleton_vae(config), convert, otherwise=otherwise)


def _text_parts(config: PipelineConfig) -> list[_Part]:
    parts = []
    for index, skeleton in enumerate(skeleton_texts(config)):
        prefix = _TEXT[config.family][index]
        convert = partial(_convert_text, skeleton=skeleton, prefix=prefix, with_level=index == 1)
        parts.append(_Part(f"text encoder {index + 1}", (prefix,), skeleton, convert, surplus=True))
    return parts


def _convert_text(raw: Tensors, *, skeleton: Any, prefix: str, with_level: bool) -> Tensors:
    if prefix.endswith(".model."):
        tensors = convert_open_clip_checkpoint(skeleton, raw, prefix=prefix)
    else:
        tensors = convert_ldm_clip_checkpoint(raw)
    if with_level:
        return tensors
    # Transformers 5 dropped the level "text_model" from the names of one of its two classes.
    return {key.removeprefix("text_model."): value for key, value in tensors.items()}


def _fitted(part: _Part, raw: Tensors, source: Source) -> Tensors:
    """The network's tensors from those of the file, in their dtype there.

    Raises:
        UserError: if some are missing or of another shape.
    """
    try:
        tensors = part.convert(raw) if raw else {}
    except (KeyError, IndexError, RuntimeError) as error:  # of the conversion, which takes a complete file for granted
        raise UserError(
            f"{source}: the file lacks weights of the {part.what} ({first_line(error, at_most=200)})"
        ) from None
    own = part.skeleton.state_dict()
    misfits = [key for key in own if key in tensors and own[key].shape != tensors[key].shape]
    misfits += [key for key in tensors if key not in own and not part.surplus]
    if misfits:
        raise UserError(
            f"{source}: its {part.what} has another shape than its configuration says ({misfits[0]}); set "
            "teacher.config to a folder with the configuration files of this model"
        )
    missing = [key for key in own if key not in tensors]
    if missing:
        raise UserError(f"{source}: the file lacks weights of the {part.what}, {missing[0]} for one{part.otherwise}")
    return {key: tensors[key] for key in own}


def _check_part(part: _Part, shapes: Mapping[str, tuple[int, ...]], source: Source) -> None:
    raw = {k: torch.empty(v, device="meta") for k, v in shapes.items() if k.startswith(part.prefixes)}
    _fitted(part, _unscaled(raw, source, torch.float32), source)


def refuse_quantised(names: Iterable[str], source: Source, *, scales: bool = False) -> None:
    """UserError, with the scheme, for names of tensors of a quantisation that cannot be undone; `scales`: of any."""
    schemes = (*_QUANTISED, *(((end, "fp8 with scales") for end in _SCALES) if scales else ()))
    for name in names:
        for end, scheme in schemes:
            if name.endswith(end):
                raise UserError(
                    f"{source}: its weights are quantised in a way that is not read ({scheme}: {name}); use the "
                    "checkpoint in 16 bits"
                )


def _unscaled(raw: Tensors, source: Source, dtype: torch.dtype) -> Tensors:
    """Tensors of a file with the scales of 8 bits multiplied in, in `dtype`; all others as they are."""
    refuse_quantised(raw, source)
    scales = {key: f"{key.removesuffix(end)}.weight" for end in _SCALES for key in raw if key.endswith(end)}
    left = {k: v for k, v in raw.items() if k not in scales and k.rpartition(".")[2] not in _BESIDE_SCALES}
    for key, name in scales.items():
        scale, weight = raw[key], left.get(name)
        whole = weight is not None and weight.ndim > 0 and scale.numel() in (1, len(weight))
        if weight is None or not whole or (scale.numel() > 1 and scale.numel() != len(scale)):
            what = "no weight" if weight is None else f"a weight of shape {tuple(weight.shape)}"
            raise UserError(
                f"{source}: its weights are quantised in a way that is not read: the scale {key} of shape "
                f"{tuple(scale.shape)} belongs to {what}; use the checkpoint in 16 bits"
            )
        left[name] = (weight.float() * scale.float().reshape(-1, *[1] * (weight.ndim - 1))).to(dtype)
    return left


def _filled(part: _Part, source: Source, dtype: torch.dtype) -> Any:
    tensors = _fitted(part, _read(source, part.prefixes, dtype), source)
    part.skeleton.load_state_dict({key: value.to(dtype) for key, value in tensors.items()}, assign=True)
    return part.skeleton.eval()


def header(source: Source) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Shapes by name, and the metadata."""
    try:
        with safe_open(_path(source), "pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
            return shapes, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{source}: the file cannot be read ({first_line(error, at_most=200)})") from None


def _read(source: Source, prefixes: tuple[str, ...], dtype: torch.dtype) -> Tensors:
    """The tensors whose names start with one of `prefixes`; those with a scale in `dtype`."""
    with safe_open(_path(source), "pt") as file:
        raw = {key: file.get_tensor(key) for key in file.keys() if key.startswith(prefixes)}  # noqa: SIM118
    return _unscaled(raw, source, dtype)


def _path(source: Source) -> Path:
    assert source.file is not None
    return source.file


def _family(shapes: Mapping[str, Any], source: Source) -> Family:
    for part, meaning in _FOREIGN:
        if any(part in key for key in shapes):
            raise UserError(f"{source}: the file is {meaning}; {SUPPORTED}")
    if _CONV_IN not in shapes:
        raise UserError(
            f"{source}: no Stable Diffusion checkpoint, there is no tensor {_CONV_IN} in it; a model in the layout of "
            "diffusers is given by its folder"
        )
    for family, prefixes in _TEXT.items():
        if all(any(key.startswith(prefix) for key in shapes) for prefix in prefixes):
            return family
    if any(key.startswith("conditioner.embedders.0.model.") for key in shapes):
        raise UserError(f"{source}: the file is SDXL's refiner; the base model is needed")
    raise UserError(f"{source}: the file has no text encoder; a complete checkpoint is needed")


def _noise_settings(shapes: Mapping[str, Any], metadata: Mapping[str, str]) -> dict[str, Any]:
    """What the file says about its noise schedule: in its metadata (modelspec), or by empty tensors with a name."""
    stated = metadata.get("modelspec.prediction_type", "").strip().lower()
    settings: dict[str, Any] = {}
    if "v_pred" in shapes or stated in _V_NAMES:
        settings["prediction_type"] = "v_prediction"
    elif stated in _EPSILON_NAMES:
        settings["prediction_type"] = "epsilon"
    if "ztsnr" in shapes:
        settings["rescale_betas_zero_snr"] = True
    return settings
