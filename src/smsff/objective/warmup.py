"""Reconstruction warm-up: the generator first learns to return its input."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from smsff.errors import UserError

ReconstructionLoss = Literal["l1", "l2"]


def reconstruction_loss(y: Tensor, x: Tensor, norm: ReconstructionLoss = "l1") -> Tensor:
    """mean |y - x| or mean (y - x)^2 over the elements of each sample: (B, ...) -> (B,)."""
    difference = (y - x).flatten(1)
    return difference.abs().mean(1) if norm == "l1" else (difference**2).mean(1)


class ReconstructionWarmup:
    """Reconstruction in iterations 0 .. steps - 1, style matching from iteration ``steps`` on.

    The paper states neither the length nor the norm. A generator that starts as the identity needs few steps or none.

    Raises:
        UserError: negative steps or an unknown norm.
    """

    def __init__(self, *, steps: int, loss: ReconstructionLoss = "l1") -> None:
        if steps < 0:
            raise UserError(f"warmup.steps={steps} must not be negative")
        if loss not in get_args(ReconstructionLoss):
            raise UserError(f"warmup.loss={loss!r} is not one of {', '.join(get_args(ReconstructionLoss))}")
        self.steps = steps
        self.norm: ReconstructionLoss = loss

    def active(self, iteration: int) -> bool:
        return iteration < self.steps

    def loss(self, y: Tensor, x: Tensor) -> Tensor:
        """Reconstruction loss of each sample, (B,)."""
        return reconstruction_loss(y, x, self.norm)
