"""The tables of a report, from the entries' figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from smsff.metrics.figures import KINDS, counts, spell
from smsff.metrics.table import COLUMNS, OURS, ROWS
from smsff.report.content import Cell, Entry, Heading, Table

LOWER = ("style", "style_tone_free", "content", "content_tone_free")
MOST_SETTINGS = 40
NOT_SETTINGS = ("run_dir", "ckpt_path", "hydra", "logger.save_dir", "callbacks")


def best_of(cells: Mapping[tuple[int, int], Cell], better: str) -> set[tuple[int, int]]:
    """Places of the best number among some cells by their places; empty if there are no two different ones."""
    known = {place: cell.value for place, cell in cells.items() if cell.value is not None}
    if not better or len(set(known.values())) < 2:
        return set()
    best = (max if better == "higher" else min)(known.values())
    return {place for place, value in known.items() if value == best}


def evaluation_table(entries: Sequence[Entry]) -> Table | None:
    """One row a figure, one column an evaluation, with counts and warnings."""
    measured = [entry for entry in entries if entry.figures]
    names = [name for name in KINDS if any(name in entry.figures for entry in measured)]
    if not names:
        return None
    rows, best = [], set()
    for i, name in enumerate(names):
        cells = tuple(_figure_cell(entry, name) for entry in measured)
        rows.append((Heading(title=KINDS[name].title, better=KINDS[name].better), cells))
        best |= best_of({(i, j): cell for j, cell in enumerate(cells)}, KINDS[name].better)
    return Table(
        title="Figures of the evaluation" + ("s" if len(measured) > 1 else ""),
        columns=tuple(Heading(title=entry.name) for entry in measured),
        rows=tuple(rows),
        best=frozenset(best),
    )


def _figure_cell(entry: Entry, name: str) -> Cell:
    figure = entry.figures.get(name)
    if figure is None:
        return Cell(text="–")
    value, error = _finite(figure.get("value")), figure.get("standard_error")
    note = f"n = {counts(figure['count'], figure['references'])}"
    note += f", ± {error:.{KINDS[name].decimals}f}" if isinstance(error, float) else ""
    return Cell(text=spell(name, value), value=value, note=note, warning=str(figure.get("warning") or ""))


def known_style_tables(entries: Sequence[Entry]) -> list[Table]:
    """For each style: the controls, averaged over the runs, and every run's own row, means over the test photos."""
    by_style: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.known_style and all("mean" in photos for photos in entry.known_style[1].values()):
            by_style.setdefault(entry.known_style[0], []).append(entry)
    return [_known_style_table(style, runs) for style, runs in by_style.items()]


def _known_style_table(style: str, runs: Sequence[Entry]) -> Table:
    tables = [(entry.name, entry.known_style[1]) for entry in runs if entry.known_style]
    rows: list[tuple[Heading, tuple[Cell, ...]]] = []
    ours: set[int] = set()
    for row in ROWS:
        present = [(name, table[row]["mean"]) for name, table in tables if row in table]
        if row == OURS:
            ours = set(range(len(rows), len(rows) + len(present)))
            rows += [(Heading(title=name if len(runs) > 1 else OURS), _known_cells(mean)) for name, mean in present]
        elif present:
            means = {key: _mean([mean.get(key) for _, mean in present]) for key in COLUMNS}
            rows.append((Heading(title=row), _known_cells(means)))
    columns = tuple(
        Heading(title=heading, better="lower" if key in LOWER else "higher") for key, (heading, _) in COLUMNS.items()
    )
    best = [best_of({(i, j): rows[i][1][j] for i in ours}, column.better) for j, column in enumerate(columns)]
    photos = [photo for photo in next(iter(tables[0][1].values())) if photo != "mean"]
    return Table(
        title=f"Known style: {style}",
        columns=columns,
        rows=tuple(rows),
        text=f"Distances to the true stylization, mean of {len(photos)} photos that no training has seen "
        f"({', '.join(photos)})." + (" Controls: mean of the runs." if len(runs) > 1 else ""),
        marked=frozenset(ours),
        best=frozenset().union(*best),
    )


def _known_cells(figures: Mapping[str, object]) -> tuple[Cell, ...]:
    values = [(_finite(figures.get(key)), decimals) for key, (_, decimals) in COLUMNS.items()]
    return tuple(Cell(text="–" if v is None else f"{v:.{decimals}f}", value=v) for v, decimals in values)


def _mean(values: Sequence[object]) -> float | None:
    known = [value for value in map(_finite, values) if value is not None]
    return sum(known) / len(known) if known else None


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def settings_table(entries: Sequence[Entry]) -> Table | None:
    """The settings in which the training runs differ; the rows are the settings."""
    runs = [entry for entry in entries if entry.settings]
    keys = list(dict.fromkeys(key for entry in runs for key in entry.settings if not key.startswith(NOT_SETTINGS)))
    differing = [key for key in keys if len({entry.settings.get(key) for entry in runs}) > 1]
    if len(runs) < 2 or not differing:
        return None
    shown = differing[:MOST_SETTINGS]
    return Table(
        title="Settings that differ",
        words=True,
        columns=tuple(Heading(title=entry.name) for entry in runs),
        rows=tuple(
            (Heading(title=key), tuple(Cell(text=entry.settings.get(key, "–")) for entry in runs)) for key in shown
        ),
        text=f"The first {MOST_SETTINGS} of {len(differing)}." if len(differing) > MOST_SETTINGS else "",
    )
