"""Delta denoising score (Hertz et al. 2023).

    g = w(t) (eps_style(z_t) - eps_source(z_src_t)),        the same noise and t in both

What the model gets wrong at the result it gets wrong at the source too; the difference leaves what the prompts (and
here the style LoRA) change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from smsff.method.gradient import GradientWeight, Noised, Scores, gradient_weight

Reference = Literal["base", "style"]


def edit_direction(
    scores: Scores, at: Noised, *, reference: Reference, style_scale: float, source_scale: float
) -> Tensor:
    """eps_style(z_t; style prompt) - eps_reference(z_src_t; source prompt), (B, C, h, w)."""
    source = scores.base if reference == "base" else scores.style_source
    return scores.style(at.z_t, at.t, scale=style_scale) - source(at.z_src_t, at.t, scale=source_scale)


@dataclass(frozen=True, kw_only=True)
class DeltaDenoising:
    """
    Attributes:
        weight: w(t), see `gradient_weight`.
        style_guidance, source_guidance: Guidance scales of the two predictions; the source has one for both.
        reference: Which model sees the source. The publication has one model and two prompts, which is ``style``; with
            ``base`` the style LoRA is in the difference too.
    """

    needs_fake: ClassVar[bool] = False

    weight: GradientWeight = "uniform"
    style_guidance: float = 7.5
    source_guidance: float = 7.5
    reference: Reference = "base"

    @torch.no_grad()
    def gradient(self, scores: Scores, at: Noised) -> Tensor:
        """g, (B, C, h, w)."""
        difference = edit_direction(
            scores,
            at,
            reference=self.reference,
            style_scale=self.style_guidance,
            source_scale=self.source_guidance,
        )
        return (gradient_weight(self.weight, at.schedule, at.t) * difference).to(difference.dtype)
