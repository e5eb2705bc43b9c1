"""The LoRA of one exact style, by the module of ``train.py experiment=style_lora``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from smsff.embedded import teacher as embedded
from smsff.embedded.fit import fit_style_lora
from smsff.embedded.recipe.bank import Bank, loose_style
from smsff.embedded.recipe.base import CROP, GAMMA
from smsff.embedded.style_bank import StyleBank
from smsff.style_lora.adapter import LoraOptions
from smsff.style_lora.module import HeldOutLoss, Samples, StyleLora
from smsff.style_lora.objective import PowerTimesteps, StyleLoss
from smsff.style_lora.prompts import TriggerPrompts
from smsff.teacher.lora.write import save_style_lora
from smsff.teacher.stable_diffusion import STYLE, load_stable_diffusion
from smsff.training.optimizer import GroupOptions

PAIRED = 0.5
"""Share of a LoRA's samples that are loose pairs of its kind, as prior preservation: on pictures in the style alone,
"target = input" is the easiest answer, and the way to the style is unlearned within 400 steps."""
PRECISION = "bf16-mixed"


def style_lora(base: Path, style: str, *, steps: int, rank: int, seed: int) -> StyleLora:
    """The training of one LoRA; its prompt is the one under which the base knows the style's kind."""
    rate = GroupOptions(lr=1.5e-3, betas=(0.9, 0.99), eps=1e-8, clip_norm=1.0, schedule="cosine", warmup_steps=30)
    return StyleLora(
        teacher=load_stable_diffusion(base=str(base), gradient_checkpointing=False),
        lora=LoraOptions(rank=rank, alpha=rank, target_modules=embedded.LORA_TARGETS, merged=True, seed=seed),
        prompts=TriggerPrompts(trigger=embedded.PROMPTS[style][0], template="{trigger}", prompt_dropout=0),
        timesteps=PowerTimesteps(t_min=5, t_max=449, power=1.5),
        loss=StyleLoss(min_snr_gamma=GAMMA, degraded_gamma=GAMMA),
        unet_options=rate,
        text_options=rate,
        steps=steps,
        seed=seed,
        held_out=HeldOutLoss(bands=(0, 100, 200, 450), draws=2, batch=16),
        samples=Samples(t0=300, steps=10),
    )


def train_style(
    base: Path, style: str, exact: Bank, pairs: Bank, *, steps: int, batch: int, rank: int, seed: int, work: Path
) -> None:
    """Train one LoRA and save it in half precision to ``<work>/loras/<style>.safetensors``, unless it is there.

    Args:
        base: Folder of the finished base.
        exact: The style's pictures, by its name.
        pairs: ``photo`` and ``loose`` of its kind alone.
        steps, batch, rank, seed: Of the training.
        work: Its checkpoint lies in ``<work>/styles/<style>``.
    """
    out = work / "loras" / f"{style}.safetensors"
    if out.exists():
        return
    module = style_lora(base, style, steps=steps, rank=rank, seed=seed)
    data = StyleBank(
        exact[style],
        pairs=(pairs["photo"], pairs["loose"]),
        paired=PAIRED,
        restyle=partial(loose_style, kind=style),
        resolution=2 * CROP,
        margin=8,
        batch_size=batch,
        steps=steps,
        seed=seed,
    )
    fit_style_lora(module, data, folder=work / "styles" / style, precision=PRECISION)
    save_style_lora(
        out,
        unet=module.teacher.unet,
        adapter_name=STYLE,
        format="diffusers",
        dtype=torch.float16,
        metadata={"modelspec.title": style, "modelspec.trigger_phrase": module.prompts.trigger},
    )
