"""The teacher: a frozen diffusion model and the same model in the wanted style; Stable Diffusion's is loaded here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.func import functional_call

from smsff.errors import UserError
from smsff.method.schedule import NoiseSchedule
from smsff.teacher.base.components import (
    UNetPrediction,
    build_schedule,
    find_config,
    load_text,
    load_unet,
    load_vae,
    settle_prediction,
)
from smsff.teacher.base.pipeline_config import FAMILY_NAMES, PipelineConfig
from smsff.teacher.base.skeleton import network_sizes, networks
from smsff.teacher.base.source import Source
from smsff.teacher.condition import Condition
from smsff.teacher.flow.prompts import FlowPrompts
from smsff.teacher.latent import AutoencoderLatent
from smsff.teacher.lora.formats import find_lora_file
from smsff.teacher.lora.inspect import inspect_lora, refuse_other_base, refuse_text_alone
from smsff.teacher.lora.load import LoraFile, LoraReport, load_style_loras
from smsff.teacher.lora.switch import AdapterSwitch
from smsff.teacher.prompts import PromptEncoder
from smsff.training.speed import to_device, without_autocast

Precision = Literal["float32", "bfloat16", "float16"]

logger = logging.getLogger(__name__)

STYLE = "style"


class StableDiffusionTeacher(nn.Module):
    """A `Teacher` of networks with adapters. Everything is frozen and in evaluation mode, and stays so.

    One U-Net serves every score: without adapters the base, with `style` the style, and with the adapter of
    `LoraFakeScore` the fake. A style with another base model has a second U-Net, `style_unet`, and its own text
    encoder; the two models share latent space and noise levels, but what they predict (eps or v) may differ.

    The networks are U-Nets, or the transformer of a flow (`smsff.teacher.flow`), which `call` then calls.

    Attributes:
        unet: the base's network; adapters are switched off except within `using` (and so within the scores).
        schedule, latent: noise schedule and `LatentCoder` of the base.
        style_schedule: that of `style_unet`, for its prediction type.
        lora_reports: what was loaded from each LoRA file.
        has_style: whether there is a style at all (a LoRA or a second model).
        adapters: the switch of `unet`; to be refreshed by whoever adds an adapter.
        call: of a flow, (transformer, z_s, s, condition) to a prediction of noise - z; None of U-Nets.
    """

    def __init__(
        self,
        *,
        unet: Any,
        schedule: NoiseSchedule,
        latent: AutoencoderLatent,
        prompts: PromptEncoder | FlowPrompts,
        style_unet: UNet2DConditionModel | None = None,
        style_prompts: PromptEncoder | None = None,
        style_schedule: NoiseSchedule | None = None,
        lora_reports: Sequence[LoraReport] = (),
        call: Callable[[Any, Tensor, Tensor, Condition], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.call = call
        self.unet = unet
        self.style_unet = style_unet
        self.schedule = schedule
        self.latent = latent
        self.prompts = prompts
        self.style_prompts = style_prompts
        self.style_schedule = style_schedule or schedule
        self.lora_reports = tuple(lora_reports)
        self.has_style = style_unet is not None or bool(lora_reports)
        self.adapters = AdapterSwitch(unet)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> StableDiffusionTeacher:
        """Never leaves evaluation mode, whatever the training loop asks for."""
        return super().train(False)

    def using(self, adapter: str | None) -> AbstractContextManager[None]:
        """Within the context `unet` applies this adapter alone (None: no adapter); restored on exit."""
        return self.adapters.using(adapter)

    @torch.no_grad()
    def base(self, z_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Noise prediction of the un-adapted model: z_t (B, C, h, w), t (B,), cond of B rows to (B, C, h, w)."""
        with self.using(None):
            return self.predict(self.unet, z_t, t, cond)

    @torch.no_grad()
    def style(self, z_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Noise prediction of the model in the style, shapes as `base`."""
        if not self.has_style:
            raise UserError("the teacher has no style: set teacher.lora (or teacher.style_base)")
        if self.style_unet is not None:
            return self.predict(self.style_unet, z_t, t, cond)
        with self.using(STYLE):
            return self.predict(self.unet, z_t, t, cond)

    def predict(self, unet: nn.Module, z_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """eps, at least float32, by `unet` as its adapters stand; the network runs in its own dtype."""
        output = self.output(unet, z_t, t, cond)
        schedule = self.style_schedule if unet is self.style_unet else self.schedule
        return schedule.eps_from_prediction(output, z_t.to(output.dtype), t)

    def output(
        self,
        unet: nn.Module,
        z_t: Tensor,
        t: Tensor,
        cond: Condition,
        *,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """The network's own prediction, by ``schedule.prediction_type``; otherwise as `predict`.

        A network in 16 bits runs outside of autocast: it would take every normalisation to float32 and back.

        Args:
            weights: used in this call instead of the parameters of these names; of a U-Net.
        """
        dtype = _frozen_dtype(unet)
        inexact = without_autocast(z_t.device) if dtype.itemsize == 2 else nullcontext()
        if self.call is not None:
            z_s, s = self.schedule.network_input(z_t, t), self.schedule.flow_time(t)
            with inexact:
                output = self.call(unet, z_s.to(dtype), s, cond.to(dtype))
            return output.to(torch.promote_types(dtype, torch.float32))
        options: dict[str, Any] = {"encoder_hidden_states": cond.tokens.to(dtype), "return_dict": False}
        if cond.pooled is not None:
            options["added_cond_kwargs"] = {"text_embeds": cond.pooled.to(dtype), "time_ids": self.time_ids(z_t)}
        inputs = (z_t.to(dtype), t)
        with inexact:
            if weights is None:
                output = unet(*inputs, **options)[0]
            else:
                output = functional_call(unet, dict(weights), inputs, options, tie_weights=False)[0]
        return output.to(torch.promote_types(dtype, torch.float32))

    def time_ids(self, z_t: Tensor) -> Tensor:
        """SDXL's size conditions (B, 6) in pixels: original size, crop and target size of a picture that is shown whole
        at the size at which it is worked on."""
        height, width = (side * self.latent.downscale for side in z_t.shape[-2:])
        ids = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32)
        return to_device(ids, z_t.device).expand(len(z_t), 6)

    def encode_prompts(self, prompts: Sequence[str], *, style: bool = False) -> Condition:
        """Prompt embeddings, one row a prompt, in float32; each prompt is encoded once and cached.

        Args:
            style: embeddings for the style score: by the text part of the style LoRA where it has one, and by the text
                encoder of the style's own base model where that differs.
        """
        device = self.schedule.betas.device
        if not style:
            return self.prompts.encode(prompts, device=device)
        adapter = STYLE if any(report.adapts_text for report in self.lora_reports) else None
        return (self.style_prompts or self.prompts).encode(prompts, device=device, adapter=adapter)

    def drop_text_encoder(self) -> None:
        """Free the text encoders; prompts encoded before stay available, others raise a UserError from then on."""
        self.prompts.drop()
        if self.style_prompts is not None:
            self.style_prompts.drop()


def load_stable_diffusion(
    *,
    base: str,
    lora: str | Sequence[Mapping[str, Any]] | None = None,
    style_base: str | None = None,
    lora_strength: float = 1.0,
    lora_text: bool = True,
    config: str | None = None,
    vae: str | None = None,
    prediction_type: UNetPrediction | None = None,
    dtype: Precision = "float32",
    gradient_checkpointing: bool = True,
    revision: str | None = None,
    variant: str | None = None,
    local_files_only: bool = False,
) -> StableDiffusionTeacher:
    """Load a teacher; the arguments are the keys of ``teacher`` (docs/reference/keys.md).

    What is missing or wrong is found before anything large is read. The auto-encoder, which may overflow in float16,
    and the text encoders stay in float32.

    Raises:
        UserError: for missing files, another architecture, or a LoRA that does not fit; the message names the key.
    """
    source = Source(base, "teacher.base", revision, variant, local_files_only)
    other = _second_source(source, style_base)
    settings = None if config is None else Source(config, "teacher.config", None, None, local_files_only)
    own = None if vae is None else Source(vae, "teacher.vae", None, None, local_files_only)
    configs = [(source, find_config(source, settings, vae=own))]
    if other is not None:
        configs.append((other, find_config(other, settings, own_vae=False)))
    configs = settle_prediction(configs, prediction_type)
    loras = lora_files(lora, lora_strength)
    for file in loras:
        info = inspect_lora(file.path)
        refuse_other_base(info, configs[-1][1].unet, key=configs[-1][0].key)
        refuse_text_alone(info)
    schedules = [build_schedule(config) for _, config in configs]
    if other is not None:
        _check_together(other, configs[0][1], configs[1][1], schedules[0], schedules[1])

    for one, settled in configs:
        found = networks(settled, dtype=dtype, vae=one is source)
        logger.info("%s (%s): %s", one, FAMILY_NAMES[settled.family], network_sizes(found))
    loaded = [_load_network(one, config, settings, getattr(torch, dtype)) for one, config in configs]
    (unet, prompts), (style_unet, style_prompts) = loaded[0], loaded[-1]
    autoencoder = load_vae(own or source, configs[0][1], alone=own is not None)
    reports = load_style_loras(style_unet, style_prompts.encoders, loras, adapter_name=STYLE, use_text=lora_text)
    style_prompts.refresh()
    return StableDiffusionTeacher(
        unet=unet,
        schedule=schedules[0],
        latent=AutoencoderLatent(autoencoder, gradient_checkpointing=gradient_checkpointing),
        prompts=prompts,
        style_unet=None if other is None else style_unet,
        style_prompts=None if other is None else style_prompts,
        style_schedule=schedules[-1],
        lora_reports=reports,
    )


def lora_files(lora: str | Sequence[Mapping[str, Any]] | None, strength: float) -> tuple[LoraFile, ...]:
    """``teacher.lora`` as files that exist, each with its own factor times `strength`.

    Raises:
        UserError: for a missing file, and for an entry of a list that is not {path, strength}.
    """
    if lora is None:
        return ()
    if isinstance(lora, str):
        return (LoraFile(find_lora_file(lora), strength),)
    for entry in lora:
        if not isinstance(entry, Mapping) or "path" not in entry or entry.keys() - {"path", "strength"}:
            raise UserError(f"teacher.lora: each of several LoRAs is {{path: FILE, strength: NUMBER}}, not {entry}")
    return tuple(LoraFile(find_lora_file(one["path"]), strength * float(one.get("strength", 1.0))) for one in lora)


def _load_network(
    source: Source, config: PipelineConfig, settings: Source | None, dtype: torch.dtype
) -> tuple[UNet2DConditionModel, PromptEncoder]:
    """The U-Net and what makes its conditions."""
    encoders, tokenizers = load_text(source, config, settings)
    prompts = PromptEncoder(encoders, tokenizers, empty_is_zero=config.empty_is_zero)
    return load_unet(source, config, dtype), prompts


def _second_source(source: Source, style_base: str | None) -> Source | None:
    """The style's own base, None where it is the base: no second U-Net is loaded for the same weights."""
    if style_base is None:
        return None
    other = Source(style_base, "teacher.style_base", None, source.variant, source.local_files_only)
    return None if source.same_as(other) else other


def _check_together(
    other: Source, base: PipelineConfig, style: PipelineConfig, schedule: NoiseSchedule, style_schedule: NoiseSchedule
) -> None:
    """Scores can be subtracted only where z_t means the same."""
    if style.unet["in_channels"] != base.unet["in_channels"] or style.downscale != base.downscale:
        raise UserError(
            f"{other}: works on latents of {style.unet['in_channels']} channels at 1/{style.downscale}, teacher.base "
            f"on {base.unet['in_channels']} at 1/{base.downscale}; the two must share one latent space"
        )
    if (style.family == "sdxl") != (base.family == "sdxl"):
        names = FAMILY_NAMES[style.family], FAMILY_NAMES[base.family]
        raise UserError(
            f"{other}: is {names[0]} and teacher.base is {names[1]}, whose latents differ; the two must share one "
            "latent space"
        )
    same = style_schedule.num_steps == schedule.num_steps
    if not same or not torch.allclose(style_schedule.betas, schedule.betas):
        raise UserError(f"{other}: its noise levels differ from those of teacher.base")


def _frozen_dtype(unet: nn.Module) -> torch.dtype:
    """The dtype of the frozen weights; adapters may be wider."""
    return next(parameter.dtype for name, parameter in unet.named_parameters() if ".lora_" not in name)
