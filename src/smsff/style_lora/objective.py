"""The loss of a style LoRA: denoising, weighted by the signal-to-noise ratio.

With z_t = sqrt(ab_t) z' + sqrt(1 - ab_t) noise the network is asked for what separates z_t from the *styled* latent z:

    eps* = (z_t - sqrt(ab_t) z) / sqrt(1 - ab_t)        v* = (sqrt(ab_t) z_t - z) / sqrt(1 - ab_t)

and a flow, which takes z_s = (1 - s) z' + s noise, for (z_s - z) / s = eps* - z.

In an ordinary sample z' is z itself, and eps* is the noise. In a degraded one z' is z made to look like a photo: the
network learns to turn what is not in the style into what is, without a single pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from smsff.errors import UserError
from smsff.method.schedule import NoiseSchedule


def min_snr_weight(alpha_bar: Tensor, prediction_type: str, gamma: float | None) -> Tensor:
    """Weight of the squared error of the network's own prediction, in the shape of `alpha_bar`.

    Hang et al. 2023: the error of the clean latent counts min(SNR, gamma) with SNR = ab / (1 - ab). That is
    min(SNR, gamma) / SNR for the error of eps and min(SNR, gamma) / (SNR + 1) for that of v; for that of a flow
    s^2 min(SNR, gamma) = min((1 - s)^2, gamma s^2).

    Args:
        alpha_bar: ab_t in [0, 1).
        prediction_type: ``epsilon``, ``v_prediction`` or ``flow``.
        gamma: Their parameter, 5 in the paper; None weighs every t by 1.
    """
    if gamma is None:
        return torch.ones_like(alpha_bar)
    if prediction_type == "epsilon":
        return (gamma * (1 - alpha_bar) / alpha_bar).clamp(max=1)
    weight = torch.minimum(alpha_bar, gamma * (1 - alpha_bar))
    if prediction_type == "v_prediction":
        return weight
    return weight / (alpha_bar.sqrt() + (1 - alpha_bar).sqrt()) ** 2


def denoising_target(schedule: NoiseSchedule, z: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
    """What the network should answer at z_t if the clean latent is z: eps*, v* or eps* - z, shape of z.

    Args:
        z, z_t: (B, C, h, w), float32; z_t need not be made of z.
        t: long (B,).
    """
    ab = schedule.alpha_bar(t)
    if schedule.prediction_type != "v_prediction":
        eps = (z_t - ab.sqrt() * z) / (1 - ab).sqrt()
        return eps - z if schedule.prediction_type == "flow" else eps
    return (ab.sqrt() * z_t - z) / (1 - ab).sqrt()


@dataclass(frozen=True, kw_only=True)
class StyleLoss:
    """How samples are weighed: gamma of `min_snr_weight`, and the weight of the class pictures (Ruiz et al. 2023).

    The target of degraded samples differs from the noise by sqrt(SNR) (z' - z): without a bound of their own the
    smallest t would count for everything.
    """

    min_snr_gamma: float | None = 5.0
    degraded_gamma: float | None = 3.0
    prior_weight: float = 1.0

    def weight(self, schedule: NoiseSchedule, t: Tensor, degraded: Tensor) -> Tensor:
        """Weight of each sample's squared error, (B, 1, 1, 1); `degraded` is bool (B,)."""
        ab, kind = schedule.alpha_bar(t), schedule.prediction_type
        ordinary, bounded = (min_snr_weight(ab, kind, gamma) for gamma in (self.min_snr_gamma, self.degraded_gamma))
        return torch.where(degraded.view(-1, 1, 1, 1), bounded, ordinary)

    def total(self, losses: Tensor, count: int) -> Tensor:
        """Mean over the first `count` samples plus `prior_weight` times the mean over the rest, the class pictures."""
        style, prior = losses[:count], losses[count:]
        return style.mean() + self.prior_weight * prior.mean() if len(prior) else style.mean()


def weighted_error(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """weight * |prediction - target|^2, mean over the elements of each sample: (B, C, h, w) to (B,)."""
    return (weight * (prediction - target).square()).flatten(1).mean(1)


@dataclass(frozen=True, kw_only=True)
class PowerTimesteps:
    """t = t_min + floor((t_max + 1 - t_min) u^power) for u uniform: power 1 is uniform, above 1 prefers little noise.

    The share of draws below a fraction f of the range is f^(1 / power).
    """

    t_min: int = 0
    t_max: int = 999
    power: float = 1.0

    def __call__(self, u: Tensor) -> Tensor:
        """Uniform numbers (B,) in [0, 1) to long (B,)."""
        count = self.t_max + 1 - self.t_min
        return self.t_min + (count * u**self.power).long().clamp(max=count - 1)


def check_bands(edges: Sequence[int], num_steps: int) -> None:
    """Whether the edges of bands of t ascend from 0 or more to `num_steps` or less.

    Raises:
        UserError: they do not, or there are fewer than two.
    """
    ascending = len(edges) > 1 and all(a < b for a, b in pairwise(edges))
    if not ascending or edges[0] < 0 or edges[-1] > num_steps:
        raise UserError(f"held_out.bands={list(edges)}: ascending edges between 0 and {num_steps} are needed")
