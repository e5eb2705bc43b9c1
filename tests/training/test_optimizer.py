from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from smsff.training.optimizer import GroupOptions, build_optimizer, build_schedule, clip_groups


def groups(**options: object) -> torch.optim.AdamW:
    a, b = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(3))
    second = GroupOptions(lr=0.5)
    return build_optimizer({"generator": ([a], GroupOptions(lr=0.1, **options)), "fake": ([b], second)})  # type: ignore[arg-type]


def test_each_group_is_clipped_by_its_own_norm_and_the_norms_before_are_returned() -> None:
    optimizer = groups(clip_norm=1.0)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.full_like(parameter, 3.0)
    norms = clip_groups(optimizer)
    assert norms["generator"].item() == pytest.approx(6.0)
    assert norms["fake"].item() == pytest.approx(3 * math.sqrt(3))
    first, second = (group["params"][0].grad for group in optimizer.param_groups)
    assert first.norm().item() == pytest.approx(1.0, abs=1e-5)
    assert torch.equal(second, torch.full((3,), 3.0))  # null: not clipped


def test_two_groups_equal_two_optimizers() -> None:
    optimizer = groups(weight_decay=0.1, betas=(0.5, 0.9))
    own = [group["params"][0] for group in optimizer.param_groups]
    other = [parameter.detach().clone().requires_grad_() for parameter in own]
    apart = [
        torch.optim.AdamW([other[0]], lr=0.1, betas=(0.5, 0.9), eps=1e-15, weight_decay=0.1, fused=True),
        torch.optim.AdamW([other[1]], lr=0.5, eps=1e-15, weight_decay=0.0, fused=True),
    ]
    for step in range(3):
        for mine, theirs in zip(own, other, strict=True):
            mine.grad = torch.arange(len(mine)) - 1.0 + step
            theirs.grad = mine.grad.clone()
        optimizer.step()
        for one in apart:
            one.step()
    for mine, theirs in zip(own, other, strict=True):
        assert torch.equal(mine, theirs)


def test_rate_rises_linearly_from_zero_then_falls_as_a_cosine_to_the_horizon() -> None:
    options = GroupOptions(lr=1.0, schedule="cosine", horizon=1.5, warmup_steps=100)
    assert [options.lr_factor(step, 500) for step in (0, 50, 100)] == [0.0, 0.5, 1.0]
    assert options.lr_factor(425, 500) == pytest.approx(0.5)
    assert options.lr_factor(750, 500) == pytest.approx(0.0)
    assert options.lr_factor(500, 500) == pytest.approx(0.5 * (1 + math.cos(math.pi * 400 / 650)))


def test_groups_have_schedules_of_their_own() -> None:
    optimizer = groups(schedule="cosine")
    schedule = build_schedule(optimizer, [GroupOptions(lr=0.1, schedule="cosine"), GroupOptions(lr=0.5)], total=10)
    for _ in range(5):
        optimizer.step()
        schedule.step()
    assert schedule.get_last_lr() == pytest.approx([0.05, 0.5])
