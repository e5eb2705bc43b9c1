"""Style matching.

    g = w(t) (eps_style(z_t) - eps_fake(z_t))

The style is the *difference* of two scores at the same noised output: that of the style model and that of a model which
tracks the generator's own output. The difference vanishes when the generator's output has the style's distribution.
The paper multiplies g by the relevance map (`relevance.py`) and holds on to the source by the spectrum (`spectrum.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from smsff.method.dmd import dmd_normalizer
from smsff.method.gradient import (
    GradientWeight,
    Noised,
    Scores,
    check_choice,
    check_not_negative,
    gradient_weight,
)


@dataclass(frozen=True, kw_only=True)
class StyleMatchingObjective:
    """
    Attributes:
        lambda_freq: Weight of the spectrum term. It is only meaningful beside the size of g, hence beside ``weight``
            and ``normalize``: the posterior variance is about 1e-3, DMD's normaliser makes g of order 1.
        weight: w(t), see `gradient_weight`.
        style_guidance, fake_guidance: Guidance scales of the two predictions (1 = conditional only; the authors' code
            uses 4.5 for both).
        normalize: Divide g of each sample by `dmd_normalizer`, so that its size does not depend on t and content.

    Raises:
        UserError: unknown weight, negative scale or negative lambda_freq.
    """

    needs_fake: ClassVar[bool] = True

    lambda_freq: float
    weight: GradientWeight = "sigma2"
    style_guidance: float = 1.0
    fake_guidance: float = 1.0
    normalize: bool = False

    def __post_init__(self) -> None:
        check_choice(self, "weight", GradientWeight)
        check_not_negative(self, "lambda_freq", "style_guidance", "fake_guidance")

    @torch.no_grad()
    def gradient(self, scores: Scores, at: Noised) -> Tensor:
        """g, (B, C, h, w)."""
        eps_style = scores.style(at.z_t, at.t, scale=self.style_guidance)
        eps_fake = scores.fake(at.z_t, at.t, scale=self.fake_guidance)
        g = gradient_weight(self.weight, at.schedule, at.t) * (eps_style - eps_fake)
        if self.normalize:
            g = g / dmd_normalizer(at.z, at.schedule.x0_from_eps(at.z_t, eps_style, at.t))
        return g.to(eps_style.dtype)
