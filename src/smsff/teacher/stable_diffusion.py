"""The teacher: a frozen Stable-Diffusion-1.x model, and the same model in the wanted style."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Literal, get_args

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from smsff.errors import UserError
from smsff.teacher.components import Source, check_source, load_schedule, load_text, load_unet, load_vae
from smsff.teacher.latent import AutoencoderLatent
from smsff.teacher.lora import AdapterSwitch, LoraReport, find_lora_file, load_style_lora
from smsff.teacher.prompts import PromptEncoder
from smsff.teacher.schedule import NoiseSchedule

Precision = Literal["float32", "bfloat16", "float16"]

STYLE = "style"


class StableDiffusionTeacher(nn.Module):
    """A `Teacher` of U-Nets with adapters. Everything is frozen and in evaluation mode, and stays so.

    When the style's base model is the base itself, one U-Net serves every score: without adapters it is the base, with
    `style` the style, and with the adapter that `LoraFakeScore` adds the fake. When they differ, `style_unet` is a
    second U-Net, and the prompts of the style score go through that model's own text encoder. Both models have to share
    one latent space and one noise schedule; the base's auto-encoder and schedule are used.

    Attributes:
        unet: the base's U-Net; adapters are switched off except within `using` (and so within the scores).
        schedule, latent: noise schedule and `LatentCoder` of the base.
        lora_report: what was loaded from the LoRA file; None without one.
        has_style: whether there is a style at all (a LoRA or a second model).
    """

    def __init__(
        self,
        *,
        unet: UNet2DConditionModel,
        schedule: NoiseSchedule,
        latent: AutoencoderLatent,
        prompts: PromptEncoder,
        style_unet: UNet2DConditionModel | None = None,
        style_prompts: PromptEncoder | None = None,
        lora_report: LoraReport | None = None,
    ) -> None:
        super().__init__()
        self.unet = unet
        self.style_unet = style_unet
        self.schedule = schedule
        self.latent = latent
        self.prompts = prompts
        self.style_prompts = style_prompts
        self.lora_report = lora_report
        self.has_style = style_unet is not None or lora_report is not None
        self._switch = AdapterSwitch(unet)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> StableDiffusionTeacher:
        """Never leaves evaluation mode, whatever the training loop asks for."""
        return super().train(False)

    @property
    def adapters(self) -> AdapterSwitch:
        """The switch of `unet`; to be refreshed by whoever adds an adapter."""
        return self._switch

    def using(self, adapter: str | None) -> AbstractContextManager[None]:
        """Within the context `unet` applies this adapter alone (None: no adapter); restored on exit."""
        return self._switch.using(adapter)

    @torch.no_grad()
    def base(self, z_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """Noise prediction of the un-adapted model: z_t (B, C, h, w), t (B,), cond (B, L, D) to (B, C, h, w)."""
        with self.using(None):
            return self.predict(self.unet, z_t, t, cond)

    @torch.no_grad()
    def style(self, z_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """Noise prediction of the model in the style, shapes as `base`."""
        if not self.has_style:
            raise UserError("the teacher has no style: set teacher.lora (or teacher.style_base)")
        if self.style_unet is not None:
            return self.predict(self.style_unet, z_t, t, cond)
        with self.using(STYLE):
            return self.predict(self.unet, z_t, t, cond)

    def predict(self, unet: nn.Module, z_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """eps, at least float32, by `unet` as its adapters stand; the network runs in its own dtype."""
        dtype = _frozen_dtype(unet)
        output = unet(z_t.to(dtype), t, encoder_hidden_states=cond.to(dtype), return_dict=False)[0]
        wide = torch.promote_types(dtype, torch.float32)
        return self.schedule.eps_from_prediction(output.to(wide), z_t.to(wide), t)

    def encode_prompts(self, prompts: Sequence[str], *, style: bool = False) -> Tensor:
        """Prompt embeddings (N, L, D) in float32, each prompt encoded once and cached.

        Args:
            style: embeddings for the style score: by the text part of the style LoRA where it has one, and by the text
                encoder of the style's own base model where that differs. The same as without where neither is so.
        """
        device = self.schedule.betas.device
        if not style:
            return self.prompts.encode(prompts, device=device)
        adapter = STYLE if self.lora_report is not None and self.lora_report.adapts_text else None
        return (self.style_prompts or self.prompts).encode(prompts, device=device, adapter=adapter)

    def drop_text_encoder(self) -> None:
        """Free the text encoders; prompts encoded before stay available, others raise a UserError from then on."""
        self.prompts.drop()
        if self.style_prompts is not None:
            self.style_prompts.drop()


def load_stable_diffusion(
    *,
    base: str,
    lora: str | None,
    style_base: str | None = None,
    lora_strength: float = 1.0,
    dtype: Precision = "float32",
    gradient_checkpointing: bool = True,
    revision: str | None = None,
    variant: str | None = None,
    local_files_only: bool = False,
) -> StableDiffusionTeacher:
    """Load a teacher. What is missing or wrong is found before anything large is read.

    Args:
        base: folder (layout of diffusers) or hub id of the base model, for the base and the fake score.
        lora: file of the style LoRA; None for a style that is a whole model (`style_base`).
        style_base: the model that the LoRA was made for, if it is another one than `base`.
        lora_strength: factor on the LoRA.
        dtype: of the frozen U-Nets. The auto-encoder stays in float32 (Stable Diffusion's overflows in float16), and so
            does the text encoder, which runs once.
        gradient_checkpointing: recompute the image encoder's activations in the backward pass.
        revision, variant: branch and file variant (such as ``fp16``) on the hub; the variant of folders too.
        local_files_only: never ask the hub.

    Raises:
        UserError: for missing files, another architecture, or a LoRA that does not fit; the message names the key.
    """
    if dtype not in get_args(Precision):
        raise UserError(f"teacher.dtype={dtype!r} is not one of {', '.join(get_args(Precision))}")
    torch_dtype: torch.dtype = getattr(torch, dtype)
    source = Source(base, "teacher.base", revision, variant, local_files_only)
    other = _second_source(source, style_base)
    check_source(source)
    if other is not None:
        check_source(other)
    lora_file = None if lora is None else find_lora_file(lora)

    schedule = load_schedule(source)
    unet = load_unet(source, torch_dtype)
    vae = load_vae(source)
    text_encoder, tokenizer = load_text(source)
    _check_fit(source, unet, vae.config.latent_channels, text_encoder.config.hidden_size)
    style_unet, style_text, style_tokenizer = None, text_encoder, tokenizer
    if other is not None:
        style_unet = load_unet(other, torch_dtype)
        style_text, style_tokenizer = load_text(other)
        _check_fit(other, style_unet, vae.config.latent_channels, style_text.config.hidden_size)
        _check_same_schedule(other, schedule)
    report = None
    if lora_file is not None:
        styled = unet if style_unet is None else style_unet
        report = load_style_lora(styled, style_text, lora_file, adapter_name=STYLE, strength=lora_strength)
    return StableDiffusionTeacher(
        unet=unet,
        schedule=schedule,
        latent=AutoencoderLatent(vae, gradient_checkpointing=gradient_checkpointing),
        prompts=PromptEncoder(text_encoder, tokenizer),
        style_unet=style_unet,
        style_prompts=None if other is None else PromptEncoder(style_text, style_tokenizer),
        lora_report=report,
    )


def _second_source(source: Source, style_base: str | None) -> Source | None:
    """The style's own base, None where it is the base: no second U-Net is loaded for the same weights."""
    if style_base is None or style_base == source.name:
        return None
    other = Source(style_base, "teacher.style_base", None, source.variant, source.local_files_only)
    same = source.folder is not None and other.folder is not None and source.folder.resolve() == other.folder.resolve()
    return None if same else other


def _check_fit(source: Source, unet: UNet2DConditionModel, latent_channels: int, text_width: int) -> None:
    config = unet.config
    if config.in_channels != latent_channels:
        raise UserError(
            f"{source}: the U-Net works on {config.in_channels} channels and the auto-encoder gives "
            f"{latent_channels}; they do not belong together"
        )
    if config.cross_attention_dim != text_width:
        raise UserError(
            f"{source}: the U-Net expects prompts of width {config.cross_attention_dim} and the text encoder gives "
            f"{text_width}; they do not belong together"
        )


def _check_same_schedule(other: Source, schedule: NoiseSchedule) -> None:
    """Scores can be subtracted only where z_t means the same; the prediction types have to agree as well."""
    theirs = load_schedule(other)
    same = theirs.num_steps == schedule.num_steps and torch.allclose(theirs.betas, schedule.betas)
    if not same or theirs.prediction_type != schedule.prediction_type:
        raise UserError(f"{other}: its noise schedule or prediction type differs from that of teacher.base")


def _frozen_dtype(unet: nn.Module) -> torch.dtype:
    """The dtype of the frozen weights; adapters may be wider."""
    return next(parameter.dtype for name, parameter in unet.named_parameters() if ".lora_" not in name)
