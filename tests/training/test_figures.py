from __future__ import annotations

import pytest
import torch

from smsff.training.figures import of_whole_batch


def test_figures_of_two_shares_are_those_of_the_whole() -> None:
    batch = torch.randn(8, 3, dtype=torch.float64)

    def figures(x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": x.mean(), "t_min": x.min(), "t_max": x.max(), "gradient": x.square().mean().sqrt()}

    shares = [torch.stack(list(figures(part).values())) for part in batch.chunk(2)]
    whole = of_whole_batch(figures(batch[:4]), lambda mine: torch.stack(shares))
    for name, value in figures(batch).items():
        assert whole[name].item() == pytest.approx(value.item(), rel=1e-6), name


def test_alone_nothing_changes() -> None:
    figures = {"loss": torch.tensor(0.1), "t_min": torch.tensor(7)}
    assert of_whole_batch(figures, lambda mine: mine) == {"loss": torch.tensor(0.1), "t_min": torch.tensor(7.0)}
