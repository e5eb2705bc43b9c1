"""The style matching objective.

    g = R * w(t) * (eps_style(z_t) - eps_fake(z_t)),        L = 1/2 mean |z - sg(z - g)|^2 + lambda L_freq

The style is the *difference* of two scores at the same noised output: that of the style model and that of a model which
tracks the generator's own output. The difference vanishes when the generator's output has the style's distribution.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from smsff.errors import UserError
from smsff.teacher.schedule import NoiseSchedule

GradientWeight = Literal["uniform", "sigma2", "sqrt_alpha_bar_sigma2", "posterior_variance", "x0"]


def gradient_weight(kind: GradientWeight, schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """w(t), (B, 1, 1, 1), for t long (B,).

    - ``uniform``: 1 (DDS).
    - ``sigma2``: 1 - ab_t (SDS, VSD; the weight of DreamFusion).
    - ``sqrt_alpha_bar_sigma2``: sqrt(ab_t) (1 - ab_t) (Fantasia3D).
    - ``posterior_variance``: beta_t (1 - ab_{t-2}) / (1 - ab_t), the authors' code (showlab/SMS).
    - ``x0``: sqrt((1 - ab_t) / ab_t), which makes g the difference of the two clean latents, fake minus style; with
      the normaliser this is DMD.
    """
    alpha_bar = schedule.alpha_bar(t)
    if kind == "sigma2":
        return 1 - alpha_bar
    if kind == "sqrt_alpha_bar_sigma2":
        return alpha_bar.sqrt() * (1 - alpha_bar)
    if kind == "posterior_variance":
        return schedule.posterior_variance(t, stride=2)
    if kind == "x0":
        return ((1 - alpha_bar) / alpha_bar).sqrt()
    return torch.ones_like(alpha_bar)


def dmd_normalizer(z: Tensor, x0_style: Tensor) -> Tensor:
    """mean |z - x0_style| of each sample, (B, 1, 1, 1), at least 1e-6: how far the style model wants to go (DMD)."""
    return (z - x0_style).abs().mean((1, 2, 3), keepdim=True).clamp(min=1e-6)


def latent_surrogate(z: Tensor, g: Tensor) -> Tensor:
    """1/2 mean |z - sg(z - g)|^2 of each sample, (B,); its gradient with respect to z is g / N, N elements a sample."""
    # z - sg(z - g) is exactly g in value; written as (z - sg(z)) + g it is so in floating point too, where subtracting
    # a g of 1e-5 from a z of 1 and adding it again would lose most of its digits.
    return 0.5 * ((z - z.detach() + g.detach()) ** 2).flatten(1).mean(1)


class StyleMatchingObjective:
    """Options of the objective; the scores are evaluated by the caller.

    Args:
        weight: w(t), see `gradient_weight`.
        style_guidance, fake_guidance: guidance scales of the two predictions (1 = conditional only; the authors' code
            uses 4.5 for both). Applied by the caller with `smsff.teacher.score.guided`.
        lambda_freq: weight of the spectrum term. It is only meaningful beside the size of g, hence beside ``weight``
            and ``normalize``: the posterior variance is about 1e-3, DMD's normaliser makes g of order 1.
        normalize: divide g of each sample by `dmd_normalizer`, so that its size does not depend on t and content.

    Raises:
        UserError: unknown weight, negative scale or negative lambda_freq.
    """

    def __init__(
        self,
        *,
        lambda_freq: float,
        weight: GradientWeight = "sigma2",
        style_guidance: float = 1.0,
        fake_guidance: float = 1.0,
        normalize: bool = False,
    ) -> None:
        if weight not in get_args(GradientWeight):
            raise UserError(f"objective.weight={weight!r} is not one of {', '.join(get_args(GradientWeight))}")
        options = {"lambda_freq": lambda_freq, "style_guidance": style_guidance, "fake_guidance": fake_guidance}
        for name, value in options.items():
            if value < 0:
                raise UserError(f"objective.{name}={value} must not be negative")
        self.lambda_freq = lambda_freq
        self.weight: GradientWeight = weight
        self.style_guidance = style_guidance
        self.fake_guidance = fake_guidance
        self.normalize = normalize

    @torch.no_grad()
    def gradient(
        self,
        eps_style: Tensor,
        eps_fake: Tensor,
        *,
        t: Tensor,
        schedule: NoiseSchedule,
        relevance: Tensor,
        z: Tensor | None = None,
        z_t: Tensor | None = None,
    ) -> Tensor:
        """g = R * w(t) * (eps_style - eps_fake), (B, C, h, w), without gradient; z moves along -g.

        Args:
            eps_style, eps_fake: guided predictions at the same z_t, (B, C, h, w); t: long (B,).
            relevance: (B, 1, h, w).
            z, z_t: the clean and the noised latent; only used, and then required, with ``normalize``.
        """
        g = relevance * gradient_weight(self.weight, schedule, t) * (eps_style - eps_fake)
        if self.normalize:
            if z is None or z_t is None:
                raise ValueError("normalize needs z and z_t")
            g = g / dmd_normalizer(z, schedule.x0_from_eps(z_t, eps_style, t))
        return g.to(eps_style.dtype)

    def loss(self, z: Tensor, g: Tensor, spectrum: Tensor) -> Tensor:
        """Total of each sample, (B,): `latent_surrogate` plus lambda_freq times the spectrum term (B,)."""
        return latent_surrogate(z, g) + self.lambda_freq * spectrum
