"""Style matching.

    g = w(t) (eps_style(z_t) - eps_fake(z_t))

The style is the *difference* of two scores at the same noised output: that of the style model and that of a model which
tracks the generator's own output. The difference vanishes when the generator's output has the style's distribution.
The paper multiplies g by the relevance map (`relevance.py`) and keeps the source's low frequencies (`spectrum.py`).

Two other objectives are this one with other settings (`conf/objective/vsd.yaml`, `dmd.yaml`):

- Variational score distillation (Wang et al. 2023, ProlificDreamer): w = 1 - ab_t, guidance on the style score alone,
  the full range of t, both models under the prompt of the wanted result.
- Distribution matching distillation (Yin et al. 2024, DMD and DMD2; the form of the published code):
  g = (x0_fake - x0_style) / mean |z - x0_style| with x0 = (z_t - sqrt(1 - ab_t) eps) / sqrt(ab_t), that is w of kind
  ``x0`` and ``normalize``. The difference is taken between the predictions: at large t the two x0 are huge and close.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from smsff.method.gradient import GradientWeight, Noised, Scores, gradient_weight


def dmd_normalizer(z: Tensor, x0_style: Tensor) -> Tensor:
    """mean |z - x0_style| of each sample, (B, 1, 1, 1), at least 1e-6: how far the style model wants to go."""
    return (z - x0_style).abs().mean((1, 2, 3), keepdim=True).clamp(min=1e-6)


@dataclass(frozen=True, kw_only=True)
class StyleMatchingObjective:
    """
    Attributes:
        weight: w(t), see `gradient_weight`.
        style_guidance, fake_guidance: Guidance scales of the two predictions (1 = conditional only; the authors' code
            uses 4.5 for both).
        normalize: Divide g of each sample by `dmd_normalizer`, so that its size does not depend on t and content.
    """

    needs_fake: ClassVar[bool] = True

    weight: GradientWeight = "sigma2"
    style_guidance: float = 1.0
    fake_guidance: float = 1.0
    normalize: bool = False

    @torch.no_grad()
    def gradient(self, scores: Scores, at: Noised) -> Tensor:
        """g, (B, C, h, w)."""
        eps_style = scores.style(at.z_t, at.t, scale=self.style_guidance)
        eps_fake = scores.fake(at.z_t, at.t, scale=self.fake_guidance)
        g = gradient_weight(self.weight, at.schedule, at.t) * (eps_style - eps_fake)
        if self.normalize:
            g = g / dmd_normalizer(at.z, at.schedule.x0_from_eps(at.z_t, eps_style, at.t))
        return g.to(eps_style.dtype)
