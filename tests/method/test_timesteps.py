from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from smsff.method.timesteps import Annealing, Dropping, Narrowing, Uniform, uniform_integers

TOTAL = 500


def grid_u(count: int = 20_000) -> Tensor:
    """Every part of [0, 1), the largest float32 below 1 included."""
    return torch.cat([torch.arange(count) / count, torch.tensor([1 - 2**-24])])


def test_uniform_integers_are_equally_likely_and_inside() -> None:
    counts = Counter(uniform_integers(torch.arange(1000) / 1000, 3, 6).tolist())
    assert counts == {3: 250, 4: 250, 5: 250, 6: 250}
    assert uniform_integers(torch.tensor([0.0, 1 - 2**-24]), 7, 7).tolist() == [7, 7]
    largest = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0)).view(1)
    assert all(uniform_integers(largest, 20, high).item() <= high for high in range(20, 2000))


@pytest.mark.parametrize(("iteration", "upper"), [(0, 980), (250, 490), (400, 196), (489, 21), (490, 20), (499, 20)])
def test_narrowing_bounds(iteration: int, upper: int) -> None:
    """(1 - i / I) t_max, never below t_min; both bounds are reached."""
    sampler = Narrowing(t_min=20, t_max=980)
    assert sampler.bounds(iteration, TOTAL) == (20, upper)
    t = sampler(grid_u(), iteration, TOTAL)
    assert t.dtype == torch.long
    assert (t.min().item(), t.max().item()) == (20, upper)


def test_narrowing_outside_the_run_stays_inside_the_bounds() -> None:
    sampler = Narrowing(t_min=20, t_max=980)
    assert sampler.bounds(-5, TOTAL) == (20, 980)
    assert sampler.bounds(TOTAL + 5, TOTAL) == (20, 20)


def test_narrowing_never_widens() -> None:
    upper = [Narrowing().bounds(i, TOTAL)[1] for i in range(TOTAL)]
    assert all(later <= earlier for earlier, later in pairwise(upper))


@pytest.mark.parametrize(("iteration", "last"), [(0, 249), (250, 124), (477, 10), (478, 10), (499, 10)])
def test_official_grid(iteration: int, last: int) -> None:
    """k in [10, max(int(250 (1 - r)), 11)), t = 2 k + 1."""
    sampler = Narrowing(t_min=21, t_max=499, grid="odd")
    assert sampler.bounds(iteration, TOTAL) == (21, 2 * last + 1)
    assert set(sampler(grid_u(), iteration, TOTAL).tolist()) == set(range(21, 2 * last + 2, 2))


@pytest.mark.parametrize("iteration", [0, 250, 499])
def test_uniform_is_the_same_at_every_iteration(iteration: int) -> None:
    t = Uniform(t_min=20, t_max=980)(grid_u(), iteration, TOTAL)
    assert set(t.tolist()) == set(range(20, 981))
    odd = Uniform(t_min=21, t_max=499, grid="odd")(grid_u(), iteration, TOTAL)
    assert set(odd.tolist()) == set(range(21, 500, 2))


@pytest.mark.parametrize(("iteration", "expected"), [(0, 980), (50, 500), (100, 20), (110, 20), (-3, 980)])
def test_annealing_falls_linearly(iteration: int, expected: int) -> None:
    sampler = Annealing(t_min=20, t_max=980)
    assert sampler(torch.rand(3), iteration, 101).tolist() == [expected] * 3
    assert sampler.bounds(iteration, 101) == (expected, expected)
    assert Annealing().bounds(0, 1) == (980, 980)


@pytest.mark.parametrize("make", [Narrowing, Uniform])
def test_one_t_for_each_sample_or_for_the_batch(make: type[Narrowing] | type[Uniform]) -> None:
    u = torch.tensor([0.1, 0.5, 0.9])
    assert len(set(make(per="sample")(u, 0, TOTAL).tolist())) == 3
    together = make(per="batch")(u, 0, TOTAL)
    assert together.tolist() == [make()(u[:1], 0, TOTAL).item()] * 3


@pytest.mark.parametrize("sampler", [Narrowing(), Uniform(), Annealing(), Narrowing(t_min=21, t_max=499, grid="odd")])
def test_pure_in_its_arguments(sampler: Narrowing | Uniform | Annealing) -> None:
    """The same whatever was drawn before, from any generator; and a sample's t does not depend on its neighbours."""
    u = torch.rand(4, generator=torch.Generator().manual_seed(0))
    first = sampler(u, 37, TOTAL)
    torch.rand(11)
    sampler(torch.rand(2), 400, TOTAL)
    assert torch.equal(sampler(u, 37, TOTAL), first)
    assert torch.equal(sampler(u[2:], 37, TOTAL), first[2:])


def test_runs_without_reading_values_back() -> None:
    u = torch.empty(3, device="meta")
    for sampler in (Narrowing(), Uniform(per="batch"), Annealing()):
        assert sampler(u, 1, TOTAL).shape == (3,)


@pytest.mark.parametrize(("iteration", "upper"), [(0, 980), (99, 980), (100, 500), (499, 500)])
def test_dropping_bounds(iteration: int, upper: int) -> None:
    sampler = Dropping(t_min=20, t_max=980, t_max_late=500, drop_at=0.2)
    assert sampler.bounds(iteration, TOTAL) == (20, upper)
    t = sampler(grid_u(), iteration, TOTAL)
    assert (t.min().item(), t.max().item()) == (20, upper)


def test_dropping_takes_the_options_of_the_others() -> None:
    sampler = Dropping(t_min=21, t_max=99, t_max_late=41, grid="odd", per="batch")
    assert set(sampler(torch.tensor([0.5, 0.1]), 0, TOTAL).tolist()) == {61}
    each = Dropping(t_min=21, t_max=99, t_max_late=41, grid="odd")
    assert set(each(grid_u(), TOTAL, TOTAL).tolist()) == set(range(21, 42, 2))
