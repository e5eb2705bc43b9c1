"""Latents and Gaussian scores in float64, for gradients whose closed form is known."""

from __future__ import annotations

import torch
from gaussian import gaussian_eps
from torch import Tensor

from smsff.method.gradient import Predict
from smsff.method.schedule import NoiseSchedule

SHAPE = (3, 4, 5, 7)


def draw(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(schedule: NoiseSchedule, mean: float | Tensor, std: float) -> Predict:
    """The exact prediction for data N(mean, std^2)."""
    return lambda z_t, t, *, scale: gaussian_eps(z_t, schedule.alpha_bar(t), mean, std)
