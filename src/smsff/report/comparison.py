"""The results of ``smsff compare`` as tables and as part of a report."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smsff.atomic import write_atomically
from smsff.errors import UserError
from smsff.metrics.figures import KINDS
from smsff.report.content import Cell, Entry, Gallery, Heading, Source, Table
from smsff.report.tables import best_of
from smsff.report.text import listed, table_markdown

FILE = "results.json"
COSTS = {"seconds": ("seconds a picture", 1.0, 2), "memory": ("peak memory, GB", 1e-9, 2)}
"""Heading, unit and decimals."""
TEXT = (
    "Mean over the styles; ± is the standard deviation over seeds; in brackets the paper's own figure. Seconds: median "
    "over the photos; memory: of the process, or of the GPU where one computes. Highlighted: the methods; others are "
    "controls."
)


def read_comparison(folder: Path, name: str, share: int) -> Entry:
    """The tables and pictures of a comparison from its results.json.

    Raises:
        KeyError, TypeError, ValueError: the file holds something else.
    """
    content = json.loads((folder / FILE).read_text(encoding="utf-8"))
    entry = Entry(name=name, folder=folder, kind="comparison", tables=tables(content))
    entry.facts = [
        ("methods", str(len(content["rows"]))),
        ("styles", ", ".join(_styles(content))),
        ("photos", ", ".join(content["photos"])),
        ("seeds", str(len({one["seed"] for one in content["sets"]}))),
    ]
    entry.galleries = _galleries(content, folder)
    entry.messages = _messages(content)
    return entry


def write_comparison(content: Mapping[str, Any], out: Path) -> str:
    """Write results.json, table.md and report.html; returns the text of table.md.

    Raises:
        UserError: the folder cannot be written to.
    """
    from smsff.report.html import write_report  # it imports this module

    blocks = [f"# {content['title']}", *map(table_markdown, tables(content))]
    blocks += [f"**{heading}**\n\n" + "\n".join(f"- {line}" for line in lines) for heading, lines in _messages(content)]
    text = "\n\n".join(blocks) + "\n"
    try:
        write_atomically(out / FILE, lambda path: path.write_text(json.dumps(content, indent=1) + "\n"))
        write_atomically(out / "table.md", lambda path: path.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror})") from error
    write_report(out / "report.html", [out], title=content["title"])
    return text


def _styles(content: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(one["style"] for one in content["sets"]))


def _messages(content: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    rows = content["rows"].items()
    chosen = [
        f"{name}: {', '.join(f'{c} {_number(score, 2)}' for c, score in row['validation'].items())}; "
        f"{row['candidate']} was taken"
        for name, row in rows
        if row["validation"]
    ]
    found = {
        "Missing": [f"{name}: {reason}" for name, row in rows for reason in row["missing"]],
        "Composite of the candidates on the validation photos": chosen,
        "Notes": content["notes"],
        "Not measured": [f"{key}: {reason}" for key, reason in content["not_measured"].items()],
        "Left out": listed(content["left_out"]),
    }
    return [(heading, lines) for heading, lines in found.items() if lines]


def _number(value: float | None, decimals: int) -> str:
    return "–" if value is None else f"{value:.{decimals}f}"


def tables(content: Mapping[str, Any]) -> list[Table]:
    """One table of the mean over the styles, and one for each style if there are several."""
    styles = _styles(content)
    parts = [(content["title"] if len(styles) < 2 else f"Mean of {len(styles)} styles", styles)]
    return [_table(content, *part) for part in [*parts, *((style, [style]) for style in styles if len(styles) > 1)]]


def _table(content: Mapping[str, Any], title: str, styles: Sequence[str]) -> Table:
    """One row a method, by composite where it is measured; a row counts where it has all the styles."""
    keys = [
        key
        for key in KINDS
        if any(key in one["figures"] for one in content["sets"])
        or any(key in r["paper"] for r in content["rows"].values())
    ]
    rows: list[tuple[float, Heading, tuple[Cell, ...], bool]] = []
    for name, row in content["rows"].items():
        seeds = _by_seed([one for one in content["sets"] if one["row"] == name], styles)
        cells = [_figure(seeds, key, KINDS[key].decimals, row["paper"].get(key)) for key in keys]
        for key, (_, unit, decimals) in COSTS.items():
            values = [one[key] * unit for part in seeds for one in part if one[key] is not None]
            cells.append(Cell(text=_number(statistics.fmean(values) if values else None, decimals)))
        without = row["method"] in ("nothing", "pictures")
        state = "missing" if row["missing"] else "none needed" if without else "there"
        composite = cells[keys.index("composite")].value if "composite" in keys else None
        heading = Heading(title=name, note="; ".join(row["missing"]))
        rows.append((composite or float("inf"), heading, (*cells, Cell(text=state)), row["control"]))
    rows.sort(key=lambda item: item[0])
    methods = [i for i, row in enumerate(rows) if not row[3]]
    columns = [Heading(title=KINDS[key].title, better=KINDS[key].better) for key in keys]
    best = [best_of({(i, j): rows[i][2][j] for i in methods}, column.better) for j, column in enumerate(columns)]
    columns += [Heading(title=heading) for heading, _, _ in COSTS.values()] + [Heading(title="weights")]
    return Table(
        title=title,
        columns=tuple(columns),
        rows=tuple((heading, cells) for _, heading, cells, _ in rows),
        text=" ".join(filter(None, (content["note"], TEXT))),
        marked=frozenset(methods) if len(methods) < len(rows) else frozenset(),
        best=frozenset().union(*best),
    )


def _by_seed(sets: Sequence[Mapping[str, Any]], styles: Sequence[str]) -> list[list[Mapping[str, Any]]]:
    """For each seed that has all the styles its sets."""
    seeds = dict.fromkeys(one["seed"] for one in sets)
    parts = [[one for one in sets if one["seed"] == seed and one["style"] in styles] for seed in seeds]
    return [part for part in parts if len(part) == len(styles) > 0]


def _figure(seeds: Sequence[Sequence[Mapping[str, Any]]], key: str, decimals: int, paper: float | None) -> Cell:
    found = [[one["figures"].get(key, {}).get("value") for one in part] for part in seeds]
    values = [statistics.fmean(part) for part in found if None not in part]
    notes = [f"± {statistics.stdev(values):.{decimals}f}, {len(values)} seeds"] if len(values) > 1 else []
    notes += [] if paper is None else [f"({paper:.3f})"]
    value = statistics.fmean(values) if values else None
    return Cell(text=_number(value, decimals), value=value, note=" ".join(notes))


def _galleries(content: Mapping[str, Any], folder: Path) -> list[Gallery]:
    """For each style and photo: the photo, then every row's picture of its first seed, side by side."""
    found: dict[str, dict[str, Source]] = {}
    several = len(_styles(content)) > 1
    for record in content["records"]:
        if content["rows"][record["row"]]["method"] == "nothing":  # the photo again
            continue
        title = f"{record['style']}, {record['photo']}" if several else str(record["photo"])
        photo = Source(path=folder / content["photos"].get(record["photo"], ""), alt=f"{title}: photo")
        source = Source(path=folder / record["picture"], alt=f"{title}: {record['row']}")
        found.setdefault(title, {"photo": photo} if photo.path.is_file() else {}).setdefault(record["row"], source)
    return [Gallery(title=title, pictures=tuple(rows.items()), wide=True) for title, rows in found.items()]
