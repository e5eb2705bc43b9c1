"""The results of the benchmark on known styles (benchmarks/known_styles.py) as part of a report."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smsff.metrics.known_style import composite
from smsff.metrics.table import CEILING, COLUMNS, IMG2IMG, NOTHING, ONE_STEP, TONE_CURVE
from smsff.report.content import Cell, Entry, Gallery, Heading, Source, Table
from smsff.report.tables import best_of

FILE = "results.json"
CONTROLS = (NOTHING, TONE_CURVE, IMG2IMG, ONE_STEP, CEILING, "true style")
FIGURES = {
    "composite": ("composite", 2),
    "content_tone_free": ("content distance tone-free", 2),
    **COLUMNS,
}
SHEETS = {"distances.png": "content distance against style distance", "pictures.png": "the methods on the test photos"}

Values = Mapping[str, float]


def read_comparison(folder: Path, name: str, share: int) -> Entry:
    """The tables, plots and pictures of the benchmark from its results.json.

    Raises:
        KeyError, TypeError, ValueError: the file holds something else.
    """
    content = json.loads((folder / FILE).read_text(encoding="utf-8"))
    entry = Entry(name=name, folder=folder, kind="comparison")
    records = content["records"]
    styles = list(dict.fromkeys(record["style"] for record in records))
    parts = [(f"Mean of {len(styles)} styles", styles)] if len(styles) > 1 else []
    entry.tables = [_table(records, title, part) for title, part in [*parts, *((style, [style]) for style in styles)]]
    entry.facts = [
        ("methods", str(len({record["row"] for record in records}))),
        ("styles", ", ".join(styles)),
        ("photos", ", ".join(dict.fromkeys(str(record["photo"]) for record in records))),
        ("seeds", str(len({record["seed"] for record in records if record["seed"] is not None}))),
    ]
    entry.pictures = [
        Source(path=entry.folder / file, alt=alt, wide=True)
        for file, alt in SHEETS.items()
        if (entry.folder / file).is_file()
    ]
    entry.galleries = _galleries(records, entry.folder)
    if content.get("failed"):
        entry.messages.append(("Failed runs", [str(name) for name in content["failed"]]))
    return entry


def seed_means(records: Sequence[Mapping[str, Any]], row: str, style: str) -> dict[Any, dict[str, float]]:
    """Figures of a row on a style for each seed: mean over the photos, the composite from those means."""
    by_seed: dict[Any, list[Values]] = {}
    for record in records:
        if record["row"] == row and record["style"] == style:
            by_seed.setdefault(record["seed"], []).append(record["figures"])
    found = {}
    for seed, photos in by_seed.items():
        means = {key: statistics.fmean(photo[key] for photo in photos) for key in photos[0] if key in FIGURES}
        if {"content_tone_free", "style_tone_free"} <= means.keys():
            means["composite"] = composite(means)
        found[seed] = means
    return found


def _table(records: Sequence[Mapping[str, Any]], title: str, styles: Sequence[str]) -> Table:
    """Rows by their composite, with the standard deviation over the seeds that a row has on all the styles."""
    rows: list[tuple[Heading, tuple[Cell, ...]]] = []
    columns = tuple(
        Heading(title=heading, better="higher" if key.startswith(("psnr", "ssim")) else "lower")
        for key, (heading, _) in FIGURES.items()
    )
    for row in dict.fromkeys(record["row"] for record in records):
        parts = [seed_means(records, row, style) for style in styles]
        seeds = [seed for seed in parts[0] if all(seed in part for part in parts)]
        if seeds:
            rows.append((Heading(title=row), tuple(_cell(parts, seeds, key) for key in FIGURES)))
    rows.sort(key=lambda item: float("inf") if item[1][0].value is None else item[1][0].value)
    ours = [i for i, (heading, _) in enumerate(rows) if heading.title not in CONTROLS]
    best = [best_of({(i, j): rows[i][1][j] for i in ours}, column.better) for j, column in enumerate(columns)]
    return Table(
        title=title,
        columns=columns,
        rows=tuple(rows),
        text="Test photos; composite = (1 + content distance) (1 + style distance), tone-free, in grey levels; ± is "
        "the standard deviation over seeds. Highlighted: the methods; the other rows are controls.",
        marked=frozenset(ours),
        best=frozenset().union(*best),
    )


def _cell(parts: Sequence[Mapping[Any, Values]], seeds: Sequence[Any], key: str) -> Cell:
    if not all(key in part[seed] for part in parts for seed in seeds):
        return Cell(text="–")
    values = [statistics.fmean(part[seed][key] for part in parts) for seed in seeds]
    decimals, mean = FIGURES[key][1], statistics.fmean(values)
    note = f"± {statistics.stdev(values):.{decimals}f}, {len(values)} seeds" if len(values) > 1 else ""
    return Cell(text=f"{mean:.{decimals}f}", value=mean, note=note)


def _galleries(records: Sequence[Mapping[str, Any]], folder: Path) -> list[Gallery]:
    """For each style and photo, every row's picture of its first seed."""
    found: dict[str, dict[str, Source]] = {}
    for record in records:
        picture = record.get("picture")
        if picture and (folder / picture).is_file():
            title, row = f"{record['style']}, {record['photo']}", str(record["row"])
            source = Source(path=folder / picture, alt=f"{title}: {row}")
            found.setdefault(title, {}).setdefault(row, source)
    return [Gallery(title=title, pictures=tuple(rows.items())) for title, rows in found.items()]
