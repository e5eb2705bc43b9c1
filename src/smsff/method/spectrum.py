"""Progressive spectrum regularisation: the result keeps the low frequencies of the source.

    L_freq = || LPF(DCT z, thld(t)) - LPF(DCT z_src, thld(t)) ||^2

Late in training t is small and only the coarsest frequencies are held; early, at large t, nearly all of them.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from smsff.training.speed import without_autocast

SpectrumNorm = Literal["l2", "l1"]
Cutoff = Literal["exact", "last_axis"]


@lru_cache(maxsize=64)
def dct_matrix(n: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Orthonormal DCT-II matrix (n, n): row k is the k-th cosine. Built in float64, then rounded to dtype."""
    # The cache outlives the caller: a matrix made under inference_mode could never be used by autograd afterwards.
    with torch.inference_mode(False):
        index = torch.arange(n, dtype=torch.float64, device="cpu")
        matrix = torch.cos(math.pi / n * index[:, None] * (index + 0.5)) * math.sqrt(2 / n)
        matrix[0] = math.sqrt(1 / n)
        return matrix.to(dtype).to(device)


def dct_2d(x: Tensor) -> Tensor:
    """Orthonormal 2-D DCT-II over the last two axes, any sizes; keeps shape and dtype (16 bits: done in float32)."""
    work = x if x.dtype in (torch.float32, torch.float64) else x.float()
    rows = dct_matrix(x.shape[-2], x.device, work.dtype)
    columns = dct_matrix(x.shape[-1], x.device, work.dtype)
    with without_autocast(x.device):  # it would run these two products in 16 bits
        return (rows @ work @ columns.mT).to(x.dtype)


def low_pass_mask(t: Tensor, height: int, width: int, *, t_scale: int = 1000, cutoff: Cutoff = "exact") -> Tensor:
    """Which coefficients (u, v) each sample keeps: u + v <= t / t_scale (height + width - 2).

    Args:
        t: long (B,), >= 0. From t = t_scale on everything is kept; at t = 0 only the mean.
        cutoff: ``exact`` compares integers. ``last_axis`` is the authors' code (showlab/SMS), which takes the last axis
            twice and truncates a float32: the same on squares up to rounding, too low on portraits, too high on
            landscapes (where their code stops with an assertion).

    Returns:
        Boolean (B, 1, height, width).
    """
    order = torch.arange(height, device=t.device)[:, None] + torch.arange(width, device=t.device)
    t = t.view(-1, 1, 1, 1)
    if cutoff == "exact":
        return order * t_scale <= t * (height + width - 2)
    return order <= (t.float() / t_scale * (2 * width - 2)).long()


class SpectrumRegularizer:
    """lambda times the difference of the low-passed spectra, mean over *all* coefficients of a sample, kept or not.

    Args:
        lambda_freq: lambda. It is only meaningful beside the size of g, hence beside ``objective.weight`` and
            ``objective.normalize``: the posterior variance is about 1e-3, DMD's normaliser makes g of order 1.
        norm: ``l2`` squared difference (the paper), ``l1`` absolute difference (the authors' code).
        t_scale: the timestep from which on all frequencies are kept (the authors' code: 500).
        cutoff: see `low_pass_mask`.
    """

    def __init__(
        self, *, lambda_freq: float = 1.0, norm: SpectrumNorm = "l2", t_scale: int = 1000, cutoff: Cutoff = "exact"
    ) -> None:
        self.lambda_freq = lambda_freq
        self.norm = norm
        self.t_scale = t_scale
        self.cutoff: Cutoff = cutoff

    def __call__(self, z: Tensor, z_src: Tensor, t: Tensor) -> Tensor:
        """(B,), differentiable in z alone; z, z_src (B, C, h, w), t long (B,)."""
        mask = low_pass_mask(t, z.shape[-2], z.shape[-1], t_scale=self.t_scale, cutoff=self.cutoff)
        work = torch.promote_types(z.dtype, torch.float32)
        # The transform and the filter are linear: one transform of the difference is enough.
        difference = (mask * dct_2d(z.to(work) - z_src.detach().to(work))).flatten(1)
        return self.lambda_freq * (difference.abs() if self.norm == "l1" else difference**2).mean(1)


class NoRegularizer:
    """The ablation without the spectrum term."""

    def __call__(self, z: Tensor, z_src: Tensor, t: Tensor) -> Tensor:
        """Zeros (B,)."""
        return z.new_zeros(len(z))
