"""Steps whose numbers are not finite: skipped on every process alike, counted, and traced to where they began.

Nothing here waits for the device. Whether a step counts is decided there, as GradScaler does it: the fused AdamW leaves
parameters and state alone where ``found_inf`` is 1. With several processes the averaged gradients tell everybody, for
one NaN makes the average NaN. What happened is looked at one step later on a GPU, when its figures have arrived.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


@dataclass
class Evidence:
    """What is known of one micro-batch of B samples.

    Attributes:
        index: (B,), the images in the training set.
        stages: In the order of the computation, which samples were not finite, (B,) bool.
        times: The t that were drawn, by name, (B,) or a multiple.
    """

    iteration: int
    index: Tensor
    stages: dict[str, Tensor] = field(default_factory=dict)
    times: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of one optimizer step.

    Attributes:
        step: Optimizer steps done before it.
        in_a_row: Skipped steps up to this one without a good one between them.
        total: Skipped steps of the run.
        norms: Gradient norms by group, before clipping.
        batches: Its micro-batches.
    """

    step: int
    skipped: bool
    in_a_row: int
    total: int
    norms: dict[str, float]
    batches: Sequence[Evidence]


def nonfinite(x: Tensor) -> Tensor:
    """Which samples of (B, ...) hold a NaN or an Inf, (B,) bool; three kernels and nothing of the size of x."""
    x = x.detach()
    size = x.abs() if x.ndim == 1 else torch.linalg.vector_norm(x.flatten(1), ord=math.inf, dim=1)
    return ~(size < math.inf)


def all_nan_unless_finite(loss: Tensor) -> Tensor:
    """The loss, its gradients all NaN if it is not finite: so that all processes learn of it through their average."""
    return loss * torch.where(torch.isfinite(loss.detach()), 1.0, torch.nan).to(loss)


class StepGuard:
    """Decides for each optimizer step whether it counts, and keeps the evidence until its outcome is known.

    Attributes:
        found_inf: () float32, 1 if the current step is skipped; for the optimizer and whatever follows the step.
    """

    def __init__(self) -> None:
        self.found_inf: Tensor | None = None
        self._batches: list[Evidence] = []
        self._counts: Tensor | None = None  # (2,): in a row, total
        self._start = (0, 0)
        self._waiting: deque[tuple[int, Tensor, list[str], list[Evidence], torch.cuda.Event | None]] = deque()

    def see(self, batch: Mapping[str, Any], stages: Mapping[str, Tensor], times: Mapping[str, Tensor]) -> None:
        """Note what a micro-batch has computed; `stages`: tensors (B, ...) in the order in which they were computed."""
        flags = {name: nonfinite(x) for name, x in stages.items()}
        self._batches.append(Evidence(int(batch["iteration"][0]), batch["index"], flags, dict(times)))

    def decide(self, optimizer: Optimizer, norms: Mapping[str, Tensor], *, step: int) -> None:
        """Tell a fused optimizer whether the step that it is about to make counts.

        `norms`: gradient norm of every group, (); a NaN or Inf in any gradient shows in them.
        """
        figures = torch.stack([norm.detach() for norm in norms.values()])
        bad = (~torch.isfinite(figures)).any().float()
        self.found_inf = optimizer.found_inf = bad  # type: ignore[attr-defined]
        if self._counts is None:
            self._counts = torch.tensor(self._start, dtype=torch.float32, device=figures.device)
        in_a_row, total = self._counts
        self._counts = torch.stack([(in_a_row + 1) * bad, total + bad])
        report = torch.cat([bad[None], self._counts, figures])
        event = None
        if report.is_cuda:  # the copy arrives while the next step is computed
            report = report.to("cpu", non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._waiting.append((step, report, list(norms), self._batches, event))
        self._batches = []

    def outcomes(self, *, wait: bool = False) -> list[Outcome]:
        """The steps whose outcome is known and has not been given yet.

        Args:
            wait: Those of the last step too; else that one is left for the next call where it would cost waiting.
        """
        known = []
        while self._waiting and (wait or len(self._waiting) > 1 or self._waiting[0][4] is None):
            step, report, names, batches, event = self._waiting.popleft()
            if event is not None:
                event.synchronize()
            bad, in_a_row, total, *norms = report.tolist()
            figures = dict(zip(names, norms, strict=True))
            known.append(Outcome(step, bool(bad), int(in_a_row), int(total), figures, batches))
        return known

    def state_dict(self) -> dict[str, int]:
        in_a_row, total = self._start if self._counts is None else map(int, self._counts.tolist())
        return {"in_a_row": in_a_row, "total": total}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self._start, self._counts = (state["in_a_row"], state["total"]), None


def origin(batches: Sequence[Evidence]) -> tuple[str | None, list[int], list[Evidence]]:
    """Where the first number that was not finite came up: the stage, the images, and the micro-batches with one.

    The stage is None if everything up to the losses was finite here: then it was the backward pass, or another process.
    """
    guilty = [one for one in batches if any(bool(flags.any()) for flags in one.stages.values())]
    for one in guilty:
        for name, flags in one.stages.items():
            if bool(flags.any()):
                return name, one.index[flags.to(one.index.device)].tolist(), guilty
    return None, [int(i) for one in batches for i in one.index.tolist()], []
