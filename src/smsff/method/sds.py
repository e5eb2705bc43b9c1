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

from smsff.method.gradient import GradientWeight, Noised, Scores, gradient_weight


@dataclass(frozen=True, kw_only=True)
class ScoreDistillation:
    """
    Attributes:
        weight: w(t), see `gradient_weight`.
        style_guidance: Guidance scale, 1 = conditional only. The 100 of DreamFusion and threestudio is a 101 here: they
            write cond + 100 (cond - uncond).
    """

    needs_fake: ClassVar[bool] = False

    weight: GradientWeight = "sigma2"
    style_guidance: float = 101.0

    @torch.no_grad()
    def gradient(self, scores: Scores, at: Noised) -> Tensor:
        """g, (B, C, h, w)."""
        eps_style = scores.style(at.z_t, at.t, scale=self.style_guidance)
        g = gradient_weight(self.weight, at.schedule, at.t) * (eps_style - at.noise)
        return g.to(eps_style.dtype)
