from __future__ import annotations

import pytest
import torch

from smsff.method.relevance import SemanticRelevance, UniformRelevance, minmax, relevance_map

SHAPE = (3, 4, 5, 7)


def draw(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_order_of_mean_and_absolute_value() -> None:
    """Channels +1 and -1: their sizes average to 1, their signed mean is 0."""
    edit = torch.tensor([1.0, -1.0]).view(1, 2, 1, 1).expand(1, 2, 2, 3)
    null = torch.zeros_like(edit)
    torch.testing.assert_close(relevance_map(edit, null, "mean_abs"), torch.ones(1, 1, 2, 3))
    torch.testing.assert_close(relevance_map(edit, null, "abs_mean"), torch.zeros(1, 1, 2, 3))
    torch.testing.assert_close(relevance_map(-2 * edit[:, :1], null[:, :1], "abs_mean"), torch.full((1, 1, 2, 3), 2.0))


@pytest.mark.parametrize("reduce", ["mean_abs", "abs_mean"])
def test_each_sample_spans_zero_to_one_whatever_its_scale(reduce: str) -> None:
    relevance = SemanticRelevance(reduce=reduce)  # type: ignore[arg-type]
    edit, null = draw(0), draw(1)
    result = relevance(edit, null)
    assert result.shape == (3, 1, 5, 7)
    assert result.dtype == torch.float64
    for sample in result:
        assert sample.min() == 0
        assert sample.max() == 1
    scale = torch.tensor([1.0, 10.0, 1e-6], dtype=torch.float64).view(-1, 1, 1, 1)
    torch.testing.assert_close(relevance(scale * edit, scale * null), result)


def test_order_of_positions_is_kept() -> None:
    raw = relevance_map(draw(0), draw(1))
    stretched = minmax(raw)
    assert torch.equal(raw.flatten(1).argsort(1), stretched.flatten(1).argsort(1))


def test_mean_normalisation_keeps_the_average_gradient() -> None:
    edit, null = draw(0), draw(1)
    plain = SemanticRelevance()(edit, null)
    scaled = SemanticRelevance(normalize="minmax_mean")(edit, null)
    torch.testing.assert_close(scaled.mean((1, 2, 3)), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(scaled * plain.mean((1, 2, 3), keepdim=True), plain)


@pytest.mark.parametrize("normalize", ["minmax", "minmax_mean"])
def test_flat_sample_is_one_beside_others_that_are_not(normalize: str) -> None:
    edit, null = draw(0), draw(1)
    edit[1] = null[1]
    result = SemanticRelevance(normalize=normalize)(edit, null)  # type: ignore[arg-type]
    assert torch.equal(result[1], torch.ones(1, 5, 7, dtype=torch.float64))
    assert result.isfinite().all()
    assert result[0].min() == 0


def test_carries_no_gradient() -> None:
    edit = draw(0).requires_grad_()
    assert not SemanticRelevance()(edit, draw(1)).requires_grad


def test_uniform() -> None:
    result = UniformRelevance()(draw(0), draw(1))
    assert torch.equal(result, torch.ones(3, 1, 5, 7, dtype=torch.float64))
    assert not UniformRelevance.needs_scores
    assert SemanticRelevance.needs_scores


def test_runs_without_reading_values_back() -> None:
    """On the meta device any look at a value raises, as a host sync would on a GPU."""
    eps = torch.empty(SHAPE, device="meta")
    assert SemanticRelevance(normalize="minmax_mean")(eps, eps).shape == (3, 1, 5, 7)
