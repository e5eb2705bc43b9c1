"""The loss that keeps the fake score up to date with the generator's output."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

DenoisingWeight = Literal["uniform", "alpha_bar_squared", "velocity"]


def denoising_weight(kind: DenoisingWeight, alpha_bar: Tensor) -> Tensor:
    """Weight of the squared error at each timestep, in the shape of alpha_bar.

    ``uniform`` is 1 (VSD, DMD2). ``alpha_bar_squared`` is the authors' code (showlab/SMS), which multiplies prediction
    and noise by alpha bar before the squared error; it all but ignores large t (6e-5 at t = 957). ``velocity`` makes it
    the squared error of a flow's own prediction noise - z: 1 / (1 - s)^2 with s / (1 - s) = sqrt((1 - ab) / ab).
    """
    if kind == "velocity":
        return (1 + ((1 - alpha_bar) / alpha_bar).sqrt()) ** 2
    return torch.ones_like(alpha_bar) if kind == "uniform" else alpha_bar**2


def denoising_loss(eps_pred: Tensor, noise: Tensor, weight: Tensor) -> Tensor:
    """weight * |eps_pred - noise|^2, mean over the elements of each sample.

    Args:
        eps_pred, noise: (B, C, h, w).
        weight: (B, 1, 1, 1).

    Returns:
        (B,), differentiable in eps_pred.
    """
    return (weight * (eps_pred - noise) ** 2).flatten(1).mean(1)
