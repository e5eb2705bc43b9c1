from __future__ import annotations

import itertools
import math

import pytest

from smsff.report.curves import HEIGHT, LEFT, RIGHT, WIDTH, charts, label, nice_ticks, thin


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.5, 1]), (0.013, 0.047, [0.02, 0.03, 0.04]), (-3, 7, [0, 5]), (10, 200, [50, 100, 150, 200])],
)
def test_ticks_are_round_numbers_within_the_range(low: float, high: float, expected: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(expected)


def test_labels_are_short() -> None:
    values = (0, 1.5, 1234.5, 0.0012, 1.25e-5, 2e6, -3e-7)
    assert [label(v) for v in values] == ["0", "1.5", "1234", "0.0012", "1.25e-5", "2e6", "-3e-7"]


def test_thinning_keeps_every_spike() -> None:
    curve = [(float(i), 0.0) for i in range(10_000)]
    curve[7777] = (7777.0, 99.0)
    thinned = thin(curve)
    assert len(thinned) <= 401
    assert (7777.0, 99.0) in thinned
    assert thinned == sorted(thinned)
    assert thin(curve[:5]) == curve[:5]


def test_points_lie_in_the_frame_and_high_values_are_above() -> None:
    (chart,) = charts({"loss": {"a": [(0, 1.0), (50, 3.0), (100, 2.0)]}}, ["a"])
    points = [tuple(map(float, p.split(","))) for p in chart.lines[0].points.split()]
    assert points[0][0] == LEFT
    assert points[2][0] == WIDTH - RIGHT
    assert points[1][1] < points[2][1] < points[0][1] < HEIGHT
    assert not chart.logarithmic
    assert chart.lines[0].last == "2"
    assert chart.lines[0].low == "1"


def test_wide_ranges_are_logarithmic_and_constant_ones_do_not_divide_by_zero() -> None:
    (chart,) = charts({"lr": {"a": [(i, 10.0**-i) for i in range(5)]}}, ["a"])
    ys = [float(p.split(",")[1]) for p in chart.lines[0].points.split()]
    assert chart.logarithmic
    assert all(math.isclose(b - a, ys[1] - ys[0], abs_tol=0.2) for a, b in itertools.pairwise(ys))
    assert {text for _, text in chart.y_ticks} <= {"1", "0.1", "0.01", "0.001", "1e-4"}
    (flat,) = charts({"t": {"a": [(0, 5.0), (1, 5.0)], "b": [(0, 5.0), (1, 5.0)]}}, ["x", "a", "b"])
    assert [line.colour for line in flat.lines] == [1, 2]
    assert "nan" not in flat.lines[0].points
