"""The timesteps t of a training iteration.

Every sampler is a pure function of (u, iteration, total): ``u`` holds uniform numbers in [0, 1), one a sample. For the
generator ``iteration`` and ``total`` count from the end of the warm-up, so narrowing starts with style matching; for
the fake score, which also learns in the warm-up, they count from the start of the run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

Per = Literal["sample", "batch"]
Grid = Literal["all", "odd"]


class Timesteps(Protocol):
    """u (B,) uniform in [0, 1) to t, long (B,); ``per`` says whether u is one number for the whole global batch."""

    @property
    def per(self) -> Per: ...

    def __call__(self, u: Tensor, iteration: int, total: int) -> Tensor: ...


def uniform_integers(u: Tensor, low: int, high: int) -> Tensor:
    """low .. high, both included, equally likely for u uniform in [0, 1): (B,) -> long (B,)."""
    count = high - low + 1
    # Rounding may carry u * count up to count itself.
    return low + (u * count).long().clamp(max=count - 1)


def narrowed(iteration: int, total: int, t_min: int, t_max: int) -> int:
    """The upper bound (1 - iteration / total) t_max, rounded down, never below t_min."""
    remaining = min(total - iteration, total)
    return max(t_min, remaining * t_max // max(total, 1))


def narrowed_index(iteration: int, total: int, low: int, count: int) -> int:
    """Last index of the authors' grid, max(int(count (1 - r)), low + 1) - 1, in their floating point."""
    ratio = min(max(iteration / max(total, 1), 0.0), 1.0)
    return max(int(count * (1 - ratio)), low + 1) - 1


def draw(u: Tensor, low: int, high: int, *, per: Per, grid: Grid) -> Tensor:
    """t between low and high, both included; the options are those of `Uniform`."""
    if per == "batch":
        u = u[:1].expand_as(u)
    if grid == "odd":
        return 2 * uniform_integers(u, low // 2, high // 2) + 1
    return uniform_integers(u, low, high)


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """t ~ U(t_min, t_max) at every iteration (the paper's "random t" row).

    Attributes:
        t_min, t_max: bounds, both included. The paper does not state them; the default is the 2 % to 98 % of SDS.
        per: ``sample`` one t for each sample, ``batch`` one for all: that of u[0]. (Give every process the u of
            position 0 to have one t in the whole global batch.)
        grid: ``all`` timesteps, or the ``odd`` ones, t = 2 k + 1.
    """

    t_min: int = 20
    t_max: int = 980
    per: Per = "sample"
    grid: Grid = "all"

    def bounds(self, iteration: int, total: int) -> tuple[int, int]:
        """Smallest and largest t that can be drawn."""
        return self.t_min, self.t_max

    def __call__(self, u: Tensor, iteration: int, total: int) -> Tensor:
        """(B,) uniform numbers -> long (B,)."""
        return draw(u, *self.bounds(iteration, total), per=self.per, grid=self.grid)


@dataclass(frozen=True, kw_only=True)
class Narrowing(Uniform):
    """Adaptive narrowing, t ~ U(t_min, (1 - i / I) t_max): coarse changes first, details at the end.

    With grid=odd k is drawn as in the authors' code (showlab/SMS, with t_min=21, t_max=499), from
    [k_min, max(int(k_count (1 - i / I)), k_min + 1)).
    """

    def bounds(self, iteration: int, total: int) -> tuple[int, int]:
        if self.grid == "odd":
            last = narrowed_index(iteration, total, self.t_min // 2, (self.t_max + 1) // 2)
            return self.t_min, 2 * last + 1
        return self.t_min, narrowed(iteration, total, self.t_min, self.t_max)


@dataclass(frozen=True, kw_only=True)
class Dropping(Uniform):
    """t ~ U(t_min, t_max), then from a share of the run on t ~ U(t_min, t_max_late) (ProlificDreamer).

    Attributes:
        t_max_late: upper bound afterwards, if t_max is not less.
        drop_at: share of the run, in [0, 1], after which it counts. The authors' code has step 5000 of 25000.
    """

    t_max_late: int = 500
    drop_at: float = 0.2

    def bounds(self, iteration: int, total: int) -> tuple[int, int]:
        return self.t_min, min(self.t_max, self.t_max_late) if iteration >= self.drop_at * total else self.t_max


@dataclass(frozen=True, kw_only=True)
class Annealing(Uniform):
    """t itself falls linearly from t_max (first iteration) to t_min (last), the paper's "linear t" row.

    It is the same for every sample, whatever ``per`` says.
    """

    def bounds(self, iteration: int, total: int) -> tuple[int, int]:
        progress = min(max(iteration, 0) / max(total - 1, 1), 1.0)
        t = round(self.t_max - progress * (self.t_max - self.t_min))
        t = t // 2 * 2 + 1 if self.grid == "odd" else t
        return t, t
