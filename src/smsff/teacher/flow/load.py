"""Loading a flow-matching teacher: one transformer for base, style and fake."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from transformers import AutoTokenizer

from smsff.errors import UserError
from smsff.method.schedule import NoiseSchedule, scaled_linear_betas
from smsff.teacher.base.components import no_weight_bars, refuse_incomplete
from smsff.teacher.base.source import Source, local_first
from smsff.teacher.flow.families import FlowConfig, text_parts
from smsff.teacher.flow.prompts import FlowPrompts
from smsff.teacher.flow.quantise import Quantise, check_quantise, quantise_transformer
from smsff.teacher.flow.single_file import find_flow_config, load_transformer
from smsff.teacher.latent import AutoencoderLatent
from smsff.teacher.lora.inspect import inspect_lora, refuse_text_alone
from smsff.teacher.lora.load import load_style_loras
from smsff.teacher.stable_diffusion import STYLE, Precision, StableDiffusionTeacher, lora_files

logger = logging.getLogger(__name__)


def load_flow(
    *,
    base: str,
    lora: str | Sequence[Mapping[str, Any]] | None = None,
    style_base: str | None = None,
    lora_strength: float = 1.0,
    lora_text: bool = True,
    config: str | None = None,
    shift: float = 1.0,
    guidance: float = 1.0,
    dtype: Precision = "float32",
    quantise: Quantise | None = None,
    gradient_checkpointing: bool = True,
    revision: str | None = None,
    variant: str | None = None,
    local_files_only: bool = False,
) -> StableDiffusionTeacher:
    """Load a teacher of one of `smsff.teacher.flow.families`. What is wrong is found before anything large is read.

    Args:
        base: folder in the layout of diffusers, or a hub id, whose ``model_index.json`` tells the family; or a single
            ``.safetensors`` file of a transformer, which the names of its tensors tell.
        lora, lora_strength: as in `load_stable_diffusion`.
        style_base: None or `base`: there is one transformer.
        lora_text: without effect, for no LoRA adapts these text encoders; what a file has for them is left out and
            counted in the report.
        config: folder or hub id of the pipeline from which a single file takes all but the transformer.
        shift: k of `NoiseSchedule.shifted`, on the grid of Stable Diffusion.
        guidance: input of a guidance-distilled transformer (FLUX.1 dev); others have none.
        dtype: of transformer and text encoders, not float16. The auto-encoder stays in float32.
        quantise: store the transformer's frozen weights in fewer bits, after the LoRA is beside them.
        gradient_checkpointing, revision, variant, local_files_only: as in `load_stable_diffusion`.

    Raises:
        UserError: for missing files, another architecture, or a LoRA that does not fit; the message names the key.
    """
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"teacher.dtype={dtype!r} must be float32 or bfloat16: flow transformers overflow in float16")
    check_quantise(quantise)
    source = Source(base, "teacher.base", revision, variant, local_files_only)
    if style_base not in (None, base):
        raise UserError(
            f"teacher.style_base={style_base}: a flow teacher has one transformer, that of teacher.base={base}"
        )
    settings = None if config is None else Source(config, "teacher.config", None, variant, local_files_only)
    found, loras = find_flow_config(source, settings), lora_files(lora, lora_strength)
    schedule = flow_schedule(shift)
    for file in loras:
        refuse_text_alone(inspect_lora(file.path))
    if found.distilled:
        logger.warning(
            "%s: is distilled to a few steps; its score is not that of the base that LoRAs are made for", source
        )

    family, torch_dtype = found.family, getattr(torch, dtype)
    if settings is None:
        parts, transformer = source, _part(source, "transformer", family.transformer, torch_dtype)
    else:
        parts, transformer = settings, load_transformer(source, settings, found, torch_dtype)
    reports = load_style_loras(transformer, (), loras, adapter_name=STYLE, use_text=False)
    if quantise is not None:
        quantise_transformer(transformer, quantise)
    vae = _part(parts, "vae", family.vae, torch.float32)
    return StableDiffusionTeacher(
        unet=transformer,
        schedule=schedule,
        latent=AutoencoderLatent(vae, patch=family.patch, gradient_checkpointing=gradient_checkpointing),
        prompts=_prompts(parts, found, torch_dtype),
        lora_reports=reports,
        call=partial(family.call, guidance=guidance),
    )


def flow_schedule(shift: float = 1.0) -> NoiseSchedule:
    """The grid of Stable Diffusion for a flow, shifted as in `NoiseSchedule.shifted`."""
    return NoiseSchedule(scaled_linear_betas(), "flow").shifted(shift)


def _part(source: Source, part: str, kind: Any, dtype: torch.dtype) -> Any:
    """A network of diffusers, all of whose weights are in the file."""
    model, info = local_first(
        source,
        part,
        lambda **where: kind.from_pretrained(
            source.location, variant=source.variant, torch_dtype=dtype, output_loading_info=True, **where
        ),
    )
    refuse_incomplete(info, source, part)
    return model


@no_weight_bars()
def _prompts(source: Source, config: FlowConfig, dtype: torch.dtype) -> FlowPrompts:
    encoders, tokenizers = [], []
    for part, kind in zip(text_parts(config.family), config.family.texts, strict=True):
        encoders.append(_text(source, part, kind, dtype))
        tokenizers.append(_tokenizer(source, part.replace("text_encoder", "tokenizer")))
    return FlowPrompts(config.family.embed, encoders, tokenizers)


def _text(source: Source, part: str, kind: Any, dtype: torch.dtype) -> Any:
    def load(**where: Any) -> Any:
        return kind.from_pretrained(source.location, variant=source.variant, dtype=dtype, **where)

    return local_first(source, part, load)


def _tokenizer(source: Source, part: str) -> Any:
    return local_first(source, part, lambda **where: AutoTokenizer.from_pretrained(source.location, **where))
