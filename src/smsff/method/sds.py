"""Score distillation sampling (Poole et al. 2022, DreamFusion).

    g = w(t) (eps_style(z_t) - noise)

The noise stands where the other objectives have a model of the generator's output. It is the prediction of a model that
knows the output exactly, each single picture of it: g therefore pulls each picture to a mode of the style.
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
class ScoreDistillation:
    """
    Attributes:
        lambda_freq: Weight of the spectrum term, which the source does not have.
        weight: w(t), see `gradient_weight`.
        style_guidance: Guidance scale, 1 = conditional only. The 100 of DreamFusion and threestudio is a 101 here: they
            write cond + 100 (cond - uncond).

    Raises:
        UserError: unknown weight, negative scale or negative lambda_freq.
    """

    needs_fake: ClassVar[bool] = False

    lambda_freq: float
    weight: GradientWeight = "sigma2"
    style_guidance: float = 101.0

    def __post_init__(self) -> None:
        check_choice(self, "weight", GradientWeight)
        check_not_negative(self, "lambda_freq", "style_guidance")

    @torch.no_grad()
    def gradient(self, scores: Scores, at: Noised) -> Tensor:
        """g, (B, C, h, w)."""
        eps_style = scores.style(at.z_t, at.t, scale=self.style_guidance)
        g = gradient_weight(self.weight, at.schedule, at.t) * (eps_style - at.noise)
        return g.to(eps_style.dtype)
