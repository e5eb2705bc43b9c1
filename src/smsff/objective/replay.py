"""Targets of earlier steps, learned again: several generator updates for one question to the scores.

A step of score distillation asks large networks where the picture should move, y - step, and then moves the
generator's weights once. A generator cannot follow in one update: it first does what is easy, a change at every edge,
say, and while it learns to tell edges apart the fake score has seen the wrong pictures. So what was asked for in the
last steps is kept, and between two evaluations of the scores the generator learns it again:

    L = 1/2 mean |G(x_i) - target_i|^2,    target_i = sg(G(x_i) - omega step_i) as it was when the scores were asked

At the moment when it is stored, a target gives the gradient of the step itself, times omega. Later it also says how
much of the step has been made, so nothing is made twice. (Ours; fitted value iteration does so with its targets.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from smsff.errors import UserError


class Replay:
    """A ring of the newest (x, target), the same on every process.

    Args:
        every: Optimizer steps for one evaluation of the scores; 1 keeps nothing.
        size: Pictures that are kept; at least those of one step of all processes.
        draws: Stored pictures for each sample of the batch, in a step that asks no score.
        relaxation: omega: how much of a step a target asks for.
        hold: Optimizer steps of a generation, in which the scores are asked about a generator that stands still; 1 asks
            about the generator as it is, and so does every = 1.

    Raises:
        UserError: a number below 1, or a relaxation that is not above 0.
    """

    def __init__(
        self, *, every: int = 1, size: int = 256, draws: int = 2, relaxation: float = 1.0, hold: int = 1
    ) -> None:
        for name, value in (("every", every), ("size", size), ("draws", draws), ("hold", hold)):
            if value < 1:
                raise UserError(f"replay.{name}={value} must be at least 1")
        if not 0 < relaxation < math.inf:
            raise UserError(f"replay.relaxation={relaxation} must be a finite number above 0")
        self.every, self.size, self.draws, self.relaxation, self.hold = every, size, draws, relaxation, hold
        self.count = 0
        self._kept: dict[str, Tensor] = {}

    @property
    def holds(self) -> bool:
        """Whether there are generations."""
        return self.every > 1 and self.hold > 1

    def asks(self, step: int) -> bool:
        """Whether the scores are asked in this step, counted from the end of the warm-up."""
        return step % self.every == 0 or self.count == 0

    def put(self, x: Tensor, target: Tensor, offset: Tensor) -> None:
        """Keep what the scores said.

        Args:
            x: Sources (B, 3, H, W) in [-1, 1], of one size throughout a run.
            target: Pictures (B, 3, H, W) that G(x), moved by `offset`, ought to become. One that is not finite is kept
                without weight.
            offset: (B, 2), see `translate`.

        Raises:
            UserError: more pictures at once than `size`, or pictures of another size than before.
        """
        if self.every == 1:
            return
        half = target.to(torch.float16)
        fine = torch.isfinite(half).flatten(1).all(1)
        new = {
            "x": x.to(torch.float16),
            "target": torch.where(fine[:, None, None, None], half, 0),
            "weight": fine.float(),
            "offset": offset,
        }
        if len(x) > self.size:
            raise UserError(f"replay.size={self.size} must be at least the {len(x)} pictures of one step")
        if not self._kept:
            self._kept = {name: value.new_zeros((self.size, *value.shape[1:])) for name, value in new.items()}
        if self._kept["x"].shape[1:] != x.shape[1:]:
            raise UserError(
                f"replay.every={self.every}: pictures of {tuple(x.shape[2:])} and {tuple(self._kept['x'].shape[2:])} "
                "pixels cannot be kept together; set replay.every=1 for sources of several sizes"
            )
        start = self.count % self.size
        first = min(len(x), self.size - start)  # the ring ends, and begins again
        for name, value in new.items():
            kept = self._kept[name]
            kept[start : start + first] = value[:first].to(kept)
            kept[: len(x) - first] = value[first:].to(kept)
        self.count += len(x)

    def draw(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sources (N, 3, H, W), targets, weights (N,) 0 or 1 and offsets (N, 2) for u (N,) uniform in [0, 1)."""
        index = (u * min(self.count, self.size)).long()
        drawn = {name: kept[index.to(kept.device)] for name, kept in self._kept.items()}
        return drawn["x"].float(), drawn["target"].float(), drawn["weight"], drawn["offset"]

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint; empty if nothing is kept."""
        filled = min(self.count, self.size)
        return {"count": self.count, **{name: kept[:filled].cpu() for name, kept in self._kept.items()}}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on where `state_dict` was taken; with another `size` the store begins anew."""
        filled = min(state["count"], self.size)
        self.count, self._kept = 0, {}
        if self.every == 1 or "x" not in state or len(state["x"]) != filled:
            return
        self.count = state["count"]
        for name in ("x", "target", "weight", "offset"):
            place = torch.device("cpu") if name == "offset" else device
            kept = torch.zeros((self.size, *state[name].shape[1:]), dtype=state[name].dtype, device=place)
            kept[:filled] = state[name]
            self._kept[name] = kept
