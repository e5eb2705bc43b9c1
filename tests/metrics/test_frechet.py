from __future__ import annotations

import itertools

import pytest
import torch
from scipy import linalg
from torch import Tensor
from torchmetrics.image.kid import poly_mmd

from smsff.errors import UserError
from smsff.metrics.frechet import FeatureSet, frechet_distance, kernel_distance


def feature_set(features: Tensor, *, kept: int = 2000, chunk: int = 7) -> FeatureSet:
    found = FeatureSet(width=features.shape[1], kept=kept)
    for part in features.split(chunk):
        found.update(part)
    return found


def with_moments(count: int, mean: Tensor, root: Tensor) -> Tensor:
    """Features whose sample mean and covariance are exactly `mean` and root root^T."""
    noise = torch.randn(count, len(mean), dtype=torch.float64)
    centred = noise - noise.mean(0)
    white = centred @ torch.linalg.inv(torch.linalg.cholesky(centred.T @ centred)).T
    return white * (count - 1) ** 0.5 @ root.T + mean


@pytest.mark.parametrize("kept", [2000, 5])
def test_frechet_distance_equals_the_closed_form_of_gaussians(kept: int) -> None:
    d = 6
    means = torch.randn(2, d, dtype=torch.float64)
    roots = torch.randn(2, d, d, dtype=torch.float64)
    a, b = (feature_set(with_moments(50, m, r), kept=kept) for m, r in zip(means, roots, strict=True))
    covariances = [(r @ r.T).numpy() for r in roots]
    trace = linalg.sqrtm(covariances[0] @ covariances[1]).real.trace()
    expected = (means[0] - means[1]).square().sum().item() + sum(c.trace() for c in covariances) - 2 * trace
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_fewer_images_than_features_give_the_exact_distance_from_features_and_from_moments() -> None:
    x, y = torch.randn(9, 40, dtype=torch.float64), 2 * torch.randn(12, 40, dtype=torch.float64) + 1
    centred = [(f - f.mean(0)) / (len(f) - 1) ** 0.5 for f in (x, y)]
    expected = (x.mean(0) - y.mean(0)).square().sum() + sum(c.square().sum() for c in centred)
    expected -= 2 * torch.linalg.svdvals(centred[0] @ centred[1].T).sum()
    assert frechet_distance(feature_set(x), feature_set(y)) == pytest.approx(expected.item(), rel=1e-12)
    from_moments = frechet_distance(feature_set(x, kept=3), feature_set(y, kept=3))
    assert from_moments == pytest.approx(expected.item(), rel=1e-10)


def test_equal_sets_are_at_distance_zero_and_a_shift_counts_as_its_square() -> None:
    x = torch.randn(30, 5, dtype=torch.float64)
    assert frechet_distance(feature_set(x), feature_set(x)) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(feature_set(x), feature_set(x + 2)) == pytest.approx(20, rel=1e-12)


def test_moments_lose_no_digits_to_a_large_mean_and_do_not_hang_on_the_batches() -> None:
    x = torch.randn(64, 4, dtype=torch.float64)
    far = feature_set(x + 1e6, kept=2)
    torch.testing.assert_close(far.covariance, x.T.cov(), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(far.mean, x.mean(0) + 1e6, rtol=1e-14, atol=0)
    torch.testing.assert_close(feature_set(x, chunk=1).covariance, feature_set(x, chunk=64).covariance)


def test_the_kept_features_are_a_uniform_draw_that_repeats() -> None:
    x = torch.arange(400.0).view(-1, 1)
    kept = torch.cat(feature_set(x, kept=100).kept)
    assert len(kept) == 100
    assert len(kept.unique()) == 100
    assert 170 < kept.mean() < 230  # 200 with a standard deviation of 10
    assert torch.equal(kept, torch.cat(feature_set(x, kept=100, chunk=33).kept))


@pytest.mark.parametrize("counts", [(8, 8), (7, 11)])
def test_kernel_distance_equals_the_sums_of_its_definition(counts: tuple[int, int]) -> None:
    x, y = (torch.randn(n, 5, dtype=torch.float64) + shift for n, shift in zip(counts, (0.0, 0.7), strict=True))

    def kernel(a: Tensor, b: Tensor) -> float:
        return float((a @ b / 5 + 1) ** 3)

    def value(x: list[Tensor], y: list[Tensor]) -> float:
        within = [sum(kernel(a, b) for a, b in itertools.permutations(s, 2)) / (len(s) * (len(s) - 1)) for s in (x, y)]
        return sum(within) - 2 * sum(kernel(a, b) for a in x for b in y) / (len(x) * len(y))

    found, error = kernel_distance(feature_set(x), feature_set(y))
    xs, ys = list(x), list(y)
    assert found == pytest.approx(value(xs, ys), rel=1e-12)
    jackknife = 0.0
    for parts in (
        [(xs[:i] + xs[i + 1 :], ys) for i in range(len(xs))],
        [(xs, ys[:i] + ys[i + 1 :]) for i in range(len(ys))],
    ):
        values = torch.tensor([value(*p) for p in parts], dtype=torch.float64)
        jackknife += (len(parts) - 1) / len(parts) * (values - values.mean()).square().sum().item()
    assert error == pytest.approx(jackknife**0.5, rel=1e-9)


def test_kernel_distance_agrees_with_torchmetrics_and_is_zero_on_average_for_one_distribution() -> None:
    x, y = torch.randn(2, 20, 6, dtype=torch.float64)
    assert kernel_distance(feature_set(x), feature_set(y))[0] == pytest.approx(poly_mmd(x, y).item(), rel=1e-10)
    draws = [kernel_distance(*(feature_set(f) for f in torch.randn(2, 20, 6, dtype=torch.float64))) for _ in range(60)]
    values = torch.tensor([value for value, _ in draws])
    assert abs(values.mean()) < 4 * values.std() / 60**0.5
    assert min(values) < 0


def test_too_few_images_are_refused() -> None:
    one, many = feature_set(torch.zeros(1, 3)), feature_set(torch.randn(5, 3))
    with pytest.raises(UserError, match="two images on each side, there are 1 and 5"):
        frechet_distance(one, many)
    with pytest.raises(UserError, match="three images"):
        kernel_distance(many, one)
