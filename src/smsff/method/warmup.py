"""Reconstruction warm-up: the generator first learns to return its input."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Literal

from torch import Tensor

ReconstructionLoss = Literal["l1", "l2"]

log = logging.getLogger(__name__)


def reconstruction_loss(y: Tensor, x: Tensor, norm: ReconstructionLoss = "l1") -> Tensor:
    """mean |y - x| or mean (y - x)^2 over the elements of each sample: (B, ...) -> (B,)."""
    difference = (y - x).flatten(1)
    return difference.abs().mean(1) if norm == "l1" else (difference**2).mean(1)


class ReconstructionWarmup:
    """Reconstruction in iterations 0 .. steps - 1, style matching from iteration ``steps`` on.

    The paper states neither the length nor the norm. A generator that starts as the identity needs few steps or none;
    one that starts from noise needs as many as it takes to reach a small error, which ``until`` says.

    Args:
        steps: Iterations; with ``until`` the most of them.
        loss: l1, l2.
        until: The warm-up ends sooner, once the loss averaged over the last iterations (a weight of 0.1 for the newest)
            is at most this; values lie in [-1, 1]. None: it lasts for ``steps``.

    Attributes:
        end: The iteration in which style matching begins; with ``until`` the latest, until the error is reached.
    """

    def __init__(self, *, steps: int, loss: ReconstructionLoss = "l1", until: float | None = None) -> None:
        self.steps, self.until = steps, until
        self.norm: ReconstructionLoss = loss
        self.end = steps
        self.error: float | None = None

    def active(self, iteration: int) -> bool:
        return iteration < self.end

    def loss(self, y: Tensor, x: Tensor) -> Tensor:
        """Reconstruction loss of each sample, (B,)."""
        return reconstruction_loss(y, x, self.norm)

    def update(self, loss: Tensor | None, iteration: int) -> None:
        """End the warm-up if the loss of this iteration, the mean of the whole global batch, makes the average small.

        `loss`: (); None in iterations after the warm-up.
        """
        if self.until is None or loss is None or not self.active(iteration):
            return
        error = float(loss.detach())
        self.error = error if self.error is None else 0.9 * self.error + 0.1 * error
        if self.error <= self.until:
            self.end = iteration + 1
            log.info("warmup.until=%g is reached after %d steps", self.until, self.end)
        elif iteration + 1 == self.steps:
            log.warning(
                "warmup.until=%g is not reached after warmup.steps=%d: %.3g", self.until, self.steps, self.error
            )

    def state_dict(self) -> dict[str, float | int | None]:
        return {"end": self.end, "error": self.error}

    def load_state_dict(self, state: Mapping[str, float | int | None]) -> None:
        if self.until is not None:  # else the configuration says when it ends
            end, self.error = state["end"], state["error"]
            self.end = self.steps if end is None else int(end)
