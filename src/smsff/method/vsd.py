"""Variational score distillation (Wang et al. 2023, ProlificDreamer).

    g = w(t) (eps_style(z_t) - eps_fake(z_t))

The formula is style matching's without its relevance map and spectrum term; the settings are others: guidance on the
style model alone, the full range of t, and both models under the prompt of the wanted result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from smsff.method.gradient import (
    GradientWeight,
    Noised,
    Scores,
    check_choice,
    check_not_negative,
    gradient_weight,
)


@dataclass(frozen=True, kw_only=True)
class VariationalDistillation:
    """
    Attributes:
        lambda_freq: Weight of the spectrum term, which the source does not have.
        weight: w(t), see `gradient_weight`.
        style_guidance, fake_guidance: Guidance scales of the two predictions. The source has none on the fake.

    Raises:
        UserError: unknown weight, negative scale or negative lambda_freq.
    """

    needs_fake: ClassVar[bool] = True

    lambda_freq: float
    weight: GradientWeight = "sigma2"
    style_guidance: float = 7.5
    fake_guidance: float = 1.0

    def __post_init__(self) -> None:
        check_choice(self, "weight", GradientWeight)
        check_not_negative(self, "lambda_freq", "style_guidance", "fake_guidance")

    @torch.no_grad()
    def gradient(self, scores: Scores, at: Noised) -> Tensor:
        """g, (B, C, h, w)."""
        eps_style = scores.style(at.z_t, at.t, scale=self.style_guidance)
        eps_fake = scores.fake(at.z_t, at.t, scale=self.fake_guidance)
        return (gradient_weight(self.weight, at.schedule, at.t) * (eps_style - eps_fake)).to(eps_style.dtype)
