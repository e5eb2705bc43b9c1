from __future__ import annotations

import pytest
import torch
from torch import Tensor

from smsff.method.schedule import cfg
from smsff.teacher.condition import Condition
from smsff.teacher.score import guided


class Recorder:
    """A score that depends on all of its inputs and counts the samples of each call."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, z_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        self.batches.append(len(z_t))
        return z_t * t.view(-1, 1, 1, 1) + cond.tokens.sum((1, 2)).view(-1, 1, 1, 1) ** 2


def inputs() -> tuple[Tensor, Tensor, Condition, Condition]:
    generator = torch.Generator().manual_seed(0)
    z_t = torch.randn(3, 2, 4, 6, generator=generator, dtype=torch.float64)
    cond, uncond = torch.randn(2, 3, 5, 2, generator=generator, dtype=torch.float64)
    return z_t, torch.tensor([1, 20, 300]), Condition(cond), Condition(uncond)


def test_scale_one_is_one_conditional_call() -> None:
    z_t, t, cond, _ = inputs()
    score = Recorder()
    # The unconditional embedding is not even looked at.
    result = guided(score, z_t, t, cond, cond.map(lambda x: torch.full_like(x, torch.nan)), 1.0)
    assert score.batches == [3]
    torch.testing.assert_close(result, Recorder()(z_t, t, cond))


@pytest.mark.parametrize("scale", [0.0, 4.5])
def test_other_scales_are_one_double_call(scale: float) -> None:
    z_t, t, cond, uncond = inputs()
    score = Recorder()
    result = guided(score, z_t, t, cond, uncond, scale)
    assert score.batches == [6]
    torch.testing.assert_close(result, cfg(score(z_t, t, cond), score(z_t, t, uncond), scale))


def test_one_empty_prompt_serves_the_batch() -> None:
    z_t, t, cond, uncond = inputs()
    one = guided(Recorder(), z_t, t, cond, uncond[:1], 2.0)
    torch.testing.assert_close(one, guided(Recorder(), z_t, t, cond, uncond[:1].repeat(3), 2.0))
