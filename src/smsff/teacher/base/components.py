"""The parts of a pipeline, from a folder, a single file or the Hugging Face hub, checked as they are loaded."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from smsff.errors import UserError
from smsff.method.schedule import NoiseSchedule
from smsff.teacher.base import single_file
from smsff.teacher.base.families import family_config
from smsff.teacher.base.pipeline_config import PipelineConfig, check_config, check_vae, complete_vae, read_config
from smsff.teacher.base.source import INDEX, Source, local_first, read_json

VaeModel: TypeAlias = AutoencoderKL | AutoencoderTiny
UNetPrediction = Literal["epsilon", "v_prediction"]

logger = logging.getLogger(__name__)

_VAE_CLASSES = ("AutoencoderKL", "AutoencoderTiny")


def find_config(
    source: Source, settings: Source | None = None, *, vae: Source | None = None, own_vae: bool = True
) -> PipelineConfig:
    """The configuration of a pipeline, checked before anything large is read: the parts that will be loaded.

    Args:
        settings: a folder or hub id whose configuration files (and tokenizer) a single file takes; None takes the
            published ones of its family.
        vae: where the auto-encoder comes from instead: a folder, a hub id or a single file.
        own_vae: False where none is loaded, as of a style's own base. Its configuration is the published one then, if
            the pipeline has none.

    Raises:
        UserError: if something is missing, cannot be reached, or is a kind of model that is not supported.
    """
    given = None
    if settings is not None:
        given = read_config(settings)
        check_config(given, settings)
    needed = own_vae and vae is None
    if source.file is not None:
        config = single_file.file_config(source, given, vae=needed)
    else:
        config = read_config(source, vae=needed)
        if not config.vae:
            same = given is not None and given.family == config.family
            config = replace(config, vae=(given if given and same else family_config(config.family)).vae)
        check_config(config, source)
    return config if vae is None else _with_vae(config, vae)


def _with_vae(config: PipelineConfig, vae: Source) -> PipelineConfig:
    """With the auto-encoder `vae`; in a single file it has the shape that the pipeline's own would have."""
    if vae.file is not None:
        single_file.check_vae_file(vae, config)
        return config
    own = complete_vae(read_json(vae, vae_place(vae), "config.json", index="config.json"))
    check_vae(own, vae)
    if own["latent_channels"] != config.unet["in_channels"]:
        raise UserError(
            f"{vae}: gives {own['latent_channels']} channels and the U-Net of teacher.base works on "
            f"{config.unet['in_channels']}; they do not belong together"
        )
    return replace(config, vae=own)


def vae_place(source: Source) -> str:
    """Sub-folder of the auto-encoder in a folder or a hub repository of its own ("") or of a pipeline (``vae``)."""
    if source.folder is not None and not (source.folder / "config.json").is_file():
        return "vae"
    try:
        own = read_json(source, "", "config.json", index="config.json")
    except UserError:
        return "vae"
    return "" if own.get("_class_name") in _VAE_CLASSES else "vae"


def settle_prediction(
    found: Sequence[tuple[Source, PipelineConfig]], wanted: UNetPrediction | None
) -> list[tuple[Source, PipelineConfig]]:
    """What each of one or two models predicts: as the checkpoint says, or as `wanted`.

    `wanted` counts before what a single model says; of two models, for those that say nothing. Where nobody says it, it
    is what is usual for the family, with a warning for families in which both are.

    Raises:
        UserError: `wanted` is given, and there are two models that each say what they predict.
    """
    if wanted is not None and len(found) > 1 and all(config.says_prediction for _, config in found):
        said = " and ".join(f"{source.key} {config.scheduler['prediction_type']}" for source, config in found)
        raise UserError(
            f"teacher.prediction_type={wanted}: of two models it is for those that do not say what they predict, and "
            f"both do ({said}); set it to null"
        )
    settled = []
    for source, config in found:
        usual = config.scheduler.get("prediction_type", "epsilon")
        if wanted is not None and (len(found) == 1 or not config.says_prediction):
            if config.says_prediction and wanted != usual:
                logger.warning("%s: says that it predicts %s; teacher.prediction_type=%s counts", source, usual, wanted)
            usual = wanted
        elif not config.says_prediction and config.family in ("sd2", "sdxl"):
            logger.warning(
                "%s: does not say whether it predicts noise or v; taken as %s. If that is wrong, every picture is: set "
                "teacher.prediction_type to epsilon or v_prediction, as the author of the checkpoint says",
                source,
                usual,
            )
        settled.append((source, replace(config, scheduler={**config.scheduler, "prediction_type": usual})))
    return settled


def load_unet(source: Source, config: PipelineConfig, dtype: torch.dtype) -> UNet2DConditionModel:
    """The U-Net in `dtype`; UserError if weights are missing."""
    if source.file is not None:
        return single_file.load_unet(source, config, dtype)
    unet, info = local_first(
        source,
        "unet",
        lambda **where: UNet2DConditionModel.from_pretrained(
            source.location, variant=source.variant, torch_dtype=dtype, output_loading_info=True, **where
        ),
    )
    refuse_incomplete(info, source, "U-Net")
    return unet


def refuse_incomplete(info: dict[str, Any], source: Source, what: str) -> None:
    """UserError if the file of a network lacks weights or has quantised ones, by what diffusers says of the loading."""
    if info["missing_keys"]:
        raise UserError(f"{source}: the {what}'s file lacks weights, {sorted(info['missing_keys'])[0]} for one")
    single_file.refuse_quantised([*info["unexpected_keys"]], source, scales=True)


def load_vae(source: Source, config: PipelineConfig, *, alone: bool = False) -> VaeModel:
    """The auto-encoder, in float32: those of Stable Diffusion and SDXL overflow in float16.

    Args:
        alone: `source` is that of an auto-encoder (``teacher.vae``), not of the pipeline.
    """
    if source.file is not None:
        return single_file.load_vae(source, config)
    kind = AutoencoderTiny if config.vae.get("_class_name") == "AutoencoderTiny" else AutoencoderKL
    vae, info = local_first(
        source,
        vae_place(source) if alone else "vae",
        lambda **where: kind.from_pretrained(
            source.location, variant=source.variant, torch_dtype=torch.float32, output_loading_info=True, **where
        ),
        index="config.json" if alone else INDEX,
    )
    refuse_incomplete(info, source, "auto-encoder")
    return vae


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
