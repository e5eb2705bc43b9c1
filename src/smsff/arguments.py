"""Types of command-line arguments: they name what is wrong with a number."""

from __future__ import annotations

import argparse
from collections.abc import Callable

MAX_STRENGTH = 1.5
"""Of `smsff stylize --strength`; the least is 0."""


def count(text: str) -> int:
    """A whole number from 0."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is less than 0")
    return number


def positive(text: str) -> int:
    """A whole number from 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def within(low: float, high: float, kind: Callable[[str], float] = float) -> Callable[[str], float]:
    """A number from `low` to `high`."""

    def number(text: str) -> float:
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not between {low:g} and {high:g}")
        return value

    return number
