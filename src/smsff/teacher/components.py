"""The parts of a pipeline, from a folder, a single file or the Hugging Face hub, checked as they are loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from smsff.errors import UserError
from smsff.teacher import single_file
from smsff.teacher.pipeline_config import PipelineConfig, read_config
from smsff.teacher.schedule import NoiseSchedule
from smsff.teacher.source import Source, local_first

VaeModel: TypeAlias = AutoencoderKL | AutoencoderTiny


def find_config(source: Source, settings: Source | None = None) -> PipelineConfig:
    """The configuration of a pipeline, checked before anything large is read.

    Args:
        settings: a folder or hub id whose configuration files (and tokenizer) a single file takes; None takes the
            published ones of its family.

    Raises:
        UserError: if something is missing, cannot be reached, or is a kind of model that is not supported.
    """
    if source.file is None:
        return read_config(source)
    return single_file.file_config(source, None if settings is None else read_config(settings))


def load_unet(source: Source, config: PipelineConfig, dtype: torch.dtype) -> UNet2DConditionModel:
    """The U-Net in `dtype`.

    Raises:
        UserError: if weights are missing.
    """
    if source.file is not None:
        return single_file.load_unet(source, config, dtype)
    unet, info = local_first(
        source,
        "unet",
        lambda **where: UNet2DConditionModel.from_pretrained(
            source.location, variant=source.variant, torch_dtype=dtype, output_loading_info=True, **where
        ),
    )
    if info["missing_keys"]:
        raise UserError(f"{source}: the U-Net's file lacks weights, {info['missing_keys'][0]} for one")
    return unet


def load_vae(source: Source, config: PipelineConfig) -> VaeModel:
    """The auto-encoder, in float32: those of Stable Diffusion and SDXL overflow in float16."""
    if source.file is not None:
        return single_file.load_vae(source, config)
    kind = AutoencoderTiny if config.vae.get("_class_name") == "AutoencoderTiny" else AutoencoderKL
    return local_first(
        source,
        "vae",
        lambda **where: kind.from_pretrained(
            source.location, variant=source.variant, torch_dtype=torch.float32, **where
        ),
    )


@contextmanager
def no_weight_bars() -> Iterator[None]:
    """Silence transformers' progress bar over weights already on disk; those of downloads are others and stay."""
    enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers_logging.enable_progress_bar()


@no_weight_bars()
def load_text(
    source: Source, config: PipelineConfig, settings: Source | None = None
) -> tuple[list[PreTrainedModel], list[CLIPTokenizer]]:
    """Text encoders, in float32, and their tokenizers; `settings` as in `find_config`."""
    count = len(config.text_encoders)
    if source.file is not None:
        return single_file.load_text(source, config, None if settings is None else _tokenizers(settings, count))
    kinds = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    encoders = [_text_encoder(source, part, kind) for part, kind in list(kinds.items())[:count]]
    return encoders, _tokenizers(source, count)


def build_schedule(config: PipelineConfig) -> NoiseSchedule:
    """Betas and prediction type as the checkpoint's scheduler has them, whatever sampler that is.

    Read through DDPMScheduler: others define `add_noise` differently (EulerDiscreteScheduler works in sigmas).
    """
    scheduler = DDPMScheduler.from_config(dict(config.scheduler))
    return NoiseSchedule(scheduler.betas, scheduler.config.prediction_type)


def _text_encoder(source: Source, part: str, kind: Any) -> PreTrainedModel:
    return local_first(
        source,
        part,
        lambda **where: kind.from_pretrained(source.location, variant=source.variant, dtype=torch.float32, **where),
    )


def _tokenizers(source: Source, count: int) -> list[CLIPTokenizer]:
    return [
        local_first(source, part, lambda **where: CLIPTokenizer.from_pretrained(source.location, **where))
        for part in ("tokenizer", "tokenizer_2")[:count]
    ]
