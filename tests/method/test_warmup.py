from __future__ import annotations

import pytest
import torch

from smsff.method.warmup import ReconstructionWarmup


def draw(seed: int) -> torch.Tensor:
    return torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_switches_exactly_at_steps() -> None:
    warmup = ReconstructionWarmup(steps=3)
    assert [warmup.active(i) for i in range(5)] == [True, True, True, False, False]
    assert not ReconstructionWarmup(steps=0).active(0)


@pytest.mark.parametrize(("loss", "power"), [("l1", 1), ("l2", 2)])
def test_loss_of_each_sample(loss: str, power: int) -> None:
    warmup = ReconstructionWarmup(steps=1, loss=loss)  # type: ignore[arg-type]
    x, y = draw(0), draw(1).requires_grad_()
    value = warmup.loss(y, x)
    assert value.dtype == torch.float64
    torch.testing.assert_close(value, torch.stack([((y[i] - x[i]).abs() ** power).mean() for i in range(2)]))
    (gradient,) = torch.autograd.grad(value.sum(), y)
    assert (gradient != 0).all()
    assert torch.equal(warmup.loss(x, x), torch.zeros(2, dtype=torch.float64))
