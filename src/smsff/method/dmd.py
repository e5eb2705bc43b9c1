"""Distribution matching distillation (Yin et al. 2024, DMD and DMD2; the form of the published code).

    g = (x0_fake - x0_style) / mean |z - x0_style|,        x0 = (z_t - sqrt(1 - ab_t) eps) / sqrt(ab_t)

The difference of the clean latents that the two models see behind z_t, divided for each sample by how far the style
model wants to go, so that all t weigh alike. (DMD's text has one more factor sqrt(ab_t) than its code.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from smsff.method.gradient import Noised, Scores, check_not_negative, gradient_weight


def dmd_normalizer(z: Tensor, x0_style: Tensor) -> Tensor:
    """mean |z - x0_style| of each sample, (B, 1, 1, 1), at least 1e-6: how far the style model wants to go."""
    return (z - x0_style).abs().mean((1, 2, 3), keepdim=True).clamp(min=1e-6)


@dataclass(frozen=True, kw_only=True)
class DistributionMatching:
    """
    Attributes:
        lambda_freq: Weight of the spectrum term, which the source does not have; g is of order 1.
        style_guidance, fake_guidance: Guidance scales of the two predictions. The source has none on the fake.

    Raises:
        UserError: negative scale or negative lambda_freq.
    """

    needs_fake: ClassVar[bool] = True

    lambda_freq: float
    style_guidance: float = 1.75
    fake_guidance: float = 1.0

    def __post_init__(self) -> None:
        check_not_negative(self, "lambda_freq", "style_guidance", "fake_guidance")

    @torch.no_grad()
    def gradient(self, scores: Scores, at: Noised) -> Tensor:
        """g, (B, C, h, w)."""
        eps_style = scores.style(at.z_t, at.t, scale=self.style_guidance)
        eps_fake = scores.fake(at.z_t, at.t, scale=self.fake_guidance)
        # x0_fake - x0_style, from the predictions: at large t the two clean latents are huge and close to each other.
        difference = gradient_weight("x0", at.schedule, at.t) * (eps_style - eps_fake)
        x0_style = at.schedule.x0_from_eps(at.z_t, eps_style, at.t)
        return (difference / dmd_normalizer(at.z, x0_style)).to(eps_style.dtype)
