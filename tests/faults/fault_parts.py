"""Named by configurations of the fault tests instead of the real teacher: a step costs milliseconds, and can fail.

What is to fail stands in environment variables, so that the command is an ordinary one:
FAULT_NAN="style:first:last" puts NaN into the style score of sample 0 in these forward passes,
FAULT_RANK="n" does so on process n alone,
FAULT_MEMORY="n" asks for more memory than there is in the n-th, FAULT_SLEEP="seconds" makes every one slower.
"""

from __future__ import annotations

import os
import time
from typing import Any

import torch
from gaussian import GaussianFakeScore, GaussianScore, GaussianTeacher
from torch import Tensor

from smsff.teacher.condition import Condition


class FaultyScore(GaussianScore):
    """A Gaussian score that fails when it is told to."""

    passes = 0

    def forward(self, z_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        self.passes += 1
        time.sleep(float(os.environ.get("FAULT_SLEEP", 0)))
        if self.passes == int(os.environ.get("FAULT_MEMORY", -1)):
            torch.empty(1 << 50)
        eps = super().forward(z_t, t, cond)
        where, first, last = os.environ.get("FAULT_NAN", "none:0:0").split(":")
        here = os.environ.get("LOCAL_RANK", "0") == os.environ.get("FAULT_RANK", os.environ.get("LOCAL_RANK", "0"))
        if here and where == "style" and int(first) <= self.passes <= int(last):
            eps = eps.clone()
            eps[0, 0, 0, 0] = float("nan")
        return eps


def teacher(**options: Any) -> GaussianTeacher:
    """A Gaussian teacher in the place of a diffusion model."""
    built = GaussianTeacher()
    built.style = FaultyScore(built.schedule, mean=2.0, std=1.0)
    return built


def fake_score(teacher: GaussianTeacher, **options: Any) -> GaussianFakeScore:
    return GaussianFakeScore(teacher, std=1.0)
