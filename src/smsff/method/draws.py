"""The random numbers of one batch, as a pure function of (seed, iteration, position in the global batch)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from smsff.randomness import keyed_rand, keyed_randn
from smsff.training.speed import to_device


@dataclass(frozen=True)
class Draws:
    """Draws for the samples at ``positions`` of the global batch, on the device and in the dtype of ``like``."""

    seed: int
    iteration: int
    positions: Sequence[int]
    like: Tensor

    @classmethod
    def of(cls, batch: Mapping[str, Any], seed: int) -> Draws:
        return cls(seed, int(batch["iteration"][0]), batch["position"].tolist(), like=batch["image"])

    def uniform(self, stream: str, *, per: str = "sample") -> Tensor:
        """(B,) in [0, 1); with per="batch" the same number for the whole global batch."""
        positions = self.positions if per == "sample" else [0] * len(self.positions)
        return to_device(keyed_rand(self.seed, stream, self.iteration, positions), self.like.device)

    def normal(self, stream: str, shape: tuple[int, ...]) -> Tensor:
        """(B, *shape)."""
        draws = keyed_randn(self.seed, stream, self.iteration, self.positions, shape)
        return to_device(draws, self.like.device).to(self.like.dtype)

    def offset(self, below: int) -> Tensor:
        """Offsets (B, 2) in pixels, 0 <= offset < `below`, on the CPU, where pictures are cut."""
        sides = [keyed_rand(self.seed, f"grid/{side}", self.iteration, self.positions) for side in ("y", "x")]
        return (torch.stack(sides, dim=1) * below).long()
