"""What a report shows, before any of it becomes HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Curve = Sequence[tuple[float, float]]
"""Points (step, value) in ascending steps."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A picture on the disk, or the part of it in `box` (left, top, right, bottom in pixels).

    Attributes:
        alt: Its content in words, shown below it where there is no caption.
        wide: Whether it is a sheet of several pictures, which needs more pixels.
    """

    path: Path
    alt: str
    caption: str = ""
    box: tuple[int, int, int, int] | None = None
    wide: bool = False


@dataclass(frozen=True, kw_only=True)
class Slide:
    """Two pictures of one size, before and after."""

    name: str
    before: Source
    after: Source
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One entry of a table: text, a note on a second line, and a warning where the number is not reliable.

    `value` is the number for finding the best of a column; None if it takes no part.
    """

    text: str
    value: float | None = None
    note: str = ""
    warning: str = ""


@dataclass(frozen=True, kw_only=True)
class Heading:
    """Of a row or a column, and which direction of its numbers is better ("higher", "lower" or "" for neither).

    `note` is said below it.
    """

    title: str
    better: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows with a heading each.

    Attributes:
        words: Whether the cells hold words instead of numbers.
        marked: Rows that are the subject of the report, by index.
        best: Row and column of the numbers that are marked as the best of their kind.
    """

    title: str
    columns: tuple[Heading, ...]
    rows: tuple[tuple[Heading, tuple[Cell, ...]], ...]
    text: str = ""
    words: bool = False
    marked: frozenset[int] = frozenset()
    best: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Pictures beside each other, each with its label; `wide`: all in one line, which scrolls."""

    title: str
    pictures: tuple[tuple[str, Source], ...]
    wide: bool = False


@dataclass(kw_only=True)
class Entry:
    """What one folder has to show.

    Attributes:
        name: Short and different from those of the other folders.
        kind: "training run", "evaluation" or "comparison".
        settings: The configuration by dotted keys; `config` is its text.
        known_style: The style's name and the table of `smsff.metrics.table`, measured on the test photos.
        figures: Of an evaluation, as in evaluation.json.
        messages: What limits the figures: heading and lines.
    """

    name: str
    folder: Path
    kind: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    config: str = ""
    curves: dict[str, Curve] = field(default_factory=dict)
    slides: list[Slide] = field(default_factory=list)
    pictures: list[Source] = field(default_factory=list)
    known_style: tuple[str, Mapping[str, Mapping[str, Mapping[str, float]]]] | None = None
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    galleries: list[Gallery] = field(default_factory=list)
    messages: list[tuple[str, list[str]]] = field(default_factory=list)


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the indices below `count`, evenly, the first and the last among them."""
    if count <= most:
        return list(range(count))
    if most == 1:
        return [count - 1]
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]
