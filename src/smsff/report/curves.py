"""Curves as vector graphics: points, ticks and labels; the page's template draws them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from smsff.report.content import Curve

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 52, 8, 8, 24
MOST_POINTS = 400
LOG_RATIO = 50
"""Axes of positive values that span more than this factor are logarithmic."""
COLOURS = 8


@dataclass(frozen=True)
class Line:
    """One run's curve: index of its colour, name, points of the polyline, lowest and last value in words."""

    colour: int
    name: str
    points: str
    last: str
    low: str


@dataclass(frozen=True)
class Chart:
    """One figure over the steps, of all runs that logged it. Ticks are (position in pixels, label)."""

    title: str
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    logarithmic: bool


def thin(curve: Curve, most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most about `most` points: of each stretch its lowest and its highest value, so that no spike is lost."""
    if len(curve) <= most:
        return list(curve)
    size = math.ceil(2 * len(curve) / most)
    kept: list[tuple[float, float]] = []
    for start in range(0, len(curve), size):
        stretch = curve[start : start + size]
        kept += sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])})
    return kept


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within [low, high], about `count` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next((m * power for m in (1, 2, 5) if m * power >= raw), 10 * power)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def label(value: float) -> str:
    """A number in few characters."""
    if value == 0:
        return "0"
    if abs(value) >= 1e5 or abs(value) < 1e-3:
        mantissa, exponent = f"{value:.3g}".split("e") if "e" in f"{value:.3g}" else f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}"


def charts(curves: Mapping[str, Mapping[str, Curve]], names: Sequence[str]) -> list[Chart]:
    """A chart for each figure of `curves` (figure -> run -> points); a run's place in `names` decides its colour."""
    return [_chart(figure, by_run, names) for figure, by_run in curves.items()]


def _chart(title: str, by_run: Mapping[str, Curve], names: Sequence[str]) -> Chart:
    thinned = {name: thin(curve) for name, curve in by_run.items()}
    steps = [step for curve in thinned.values() for step, _ in curve]
    values = [value for curve in thinned.values() for _, value in curve]
    logarithmic = min(values) > 0 and max(values) / min(values) > LOG_RATIO

    def height(value: float) -> float:
        return math.log10(value) if logarithmic else value

    x = _Scale(min(steps), max(steps), LEFT, WIDTH - RIGHT)
    y = _Scale(height(min(values)), height(max(values)), HEIGHT - BOTTOM, TOP, margin=0.04)
    if logarithmic:
        decades = nice_ticks(y.low, y.high)
        y_ticks = [(y(d), label(10**d)) for d in decades if d == round(d) or len(decades) < 3]
    else:
        y_ticks = [(y(tick), label(tick)) for tick in nice_ticks(y.low, y.high)]
    lines = tuple(
        Line(
            colour=names.index(name) % COLOURS,
            name=name,
            points=" ".join(f"{x(step):.1f},{y(height(value)):.1f}" for step, value in curve),
            last=label(by_run[name][-1][1]),
            low=label(min(value for _, value in by_run[name])),
        )
        for name, curve in thinned.items()
    )
    # the end of the axis is taken by its name
    x_ticks = tuple((x(tick), label(tick)) for tick in nice_ticks(x.low, x.high) if x(tick) < WIDTH - RIGHT - 36)
    return Chart(title, lines, x_ticks, tuple(y_ticks), logarithmic)


class _Scale:
    """Values to pixels."""

    def __init__(self, low: float, high: float, start: float, end: float, *, margin: float = 0.0) -> None:
        if high == low:
            low, high = low - (abs(low) or 1) * 0.1, high + (abs(high) or 1) * 0.1
        extra = margin * (high - low)
        self.low, self.high, self.start, self.end = low - extra, high + extra, start, end

    def __call__(self, value: float) -> float:
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)
