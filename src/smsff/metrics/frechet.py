"""Frechet distance between two sets of features, and the Kernel Inception Distance, from one pass over each set."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from smsff.errors import UserError
from smsff.randomness import keyed_generator

KEPT = 2000
"""Most features of a set that are kept as they are (a uniform draw from all of them): 16 MB of 2048 float32 numbers."""


class FeatureSet:
    """Count, mean and covariance (float64) of a stream of features, and a uniform draw of at most `kept` of them.

    Memory does not grow with the number of features. Which ones are kept depends on the order of the stream and on
    `name` alone, so a result repeats.
    """

    def __init__(self, *, width: int, name: str = "", kept: int = KEPT) -> None:
        self.count = 0
        self.sum = torch.zeros(width, dtype=torch.float64)
        self.products = torch.zeros(width, width, dtype=torch.float64)
        self.limit = kept
        self.kept: list[Tensor] = []
        self._shift: Tensor | None = None
        self._generator = keyed_generator(0, f"features/{name}", 0, 0)

    def update(self, features: Tensor) -> None:
        """Add features (B, D)."""
        values = features.detach().double().cpu()
        if self._shift is None:  # products of numbers near zero lose no digits when the mean is taken off
            self._shift = values[0].clone()
        centred = values - self._shift
        self.sum += centred.sum(0)
        self.products += centred.T @ centred
        for row in features.detach().cpu():
            self.count += 1
            if len(self.kept) < self.limit:
                self.kept.append(row.clone())
                continue
            place = int(torch.randint(self.count, (), generator=self._generator))
            if place < self.limit:  # reservoir sampling (Vitter 1985, algorithm R)
                self.kept[place] = row.clone()

    @property
    def mean(self) -> Tensor:
        """(D,) float64."""
        assert self._shift is not None
        return self._shift + self.sum / self.count

    @property
    def covariance(self) -> Tensor:
        """(D, D) float64, divided by count - 1."""
        outer = torch.outer(self.sum, self.sum) / self.count
        return (self.products - outer) / (self.count - 1)

    def root(self) -> Tensor:
        """R of shape (D, rank) with R R^T = covariance, float64."""
        if self.count == len(self.kept) and self.count <= len(self.sum):
            features = torch.stack(self.kept).double()  # all of them: their differences are a root, and a small one
            return (features - self.mean).T / math.sqrt(self.count - 1)
        values, vectors = torch.linalg.eigh(self.covariance)
        above = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
        return vectors[:, above] * values[above].sqrt()


def frechet_distance(a: FeatureSet, b: FeatureSet) -> float:
    """|mean_a - mean_b|^2 + tr(C_a) + tr(C_b) - 2 tr((C_a C_b)^(1/2)) (Heusel et al. 2017).

    With C = R R^T the last trace is the sum of the singular values of R_a^T R_b. That needs no root of a product of two
    singular matrices, which is what fails or costs digits where there are fewer images than features.
    """
    if min(a.count, b.count) < 2:
        raise UserError(f"the Frechet distance needs two images on each side, there are {a.count} and {b.count}")
    roots = a.root(), b.root()
    trace = torch.linalg.svdvals(roots[0].T @ roots[1]).sum()
    distance = (a.mean - b.mean).square().sum() + sum(r.square().sum() for r in roots) - 2 * trace
    return max(0.0, distance.item())


def polynomial_kernel(x: Tensor, y: Tensor) -> Tensor:
    """k(x, y) = (x . y / D + 1)^3 for all pairs of (M, D) and (N, D)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def kernel_distance(a: FeatureSet, b: FeatureSet) -> tuple[float, float]:
    """KID (Binkowski et al. 2018), the unbiased estimate of the squared maximum mean discrepancy, with standard error.

    The full estimate over the kept features of both sets, where the authors average 100 subsets of 1,000: the same
    expectation, less noise, no random subsets. The standard error is that of the jackknife over both sets.
    """
    if min(a.count, b.count) < 3:
        raise UserError(f"KID needs three images on each side, there are {a.count} and {b.count}")
    x, y = (torch.stack(s.kept).double() for s in (a, b))
    m, n = len(x), len(y)
    k_xx, k_yy = (polynomial_kernel(s, s).fill_diagonal_(0) for s in (x, y))
    k_xy = polynomial_kernel(x, y)
    sums = k_xx.sum(), k_yy.sum(), k_xy.sum()

    def estimate(within_x: Tensor, within_y: Tensor, between: Tensor, m: int, n: int) -> Tensor:
        return within_x / (m * (m - 1)) + within_y / (n * (n - 1)) - 2 * between / (m * n)

    without_x = estimate(sums[0] - 2 * k_xx.sum(1), sums[1], sums[2] - k_xy.sum(1), m - 1, n)
    without_y = estimate(sums[0], sums[1] - 2 * k_yy.sum(1), sums[2] - k_xy.sum(0), m, n - 1)
    variance = sum((k - 1) / k * (w - w.mean()).square().sum() for k, w in ((m, without_x), (n, without_y)))
    return estimate(*sums, m, n).item(), math.sqrt(float(variance))
