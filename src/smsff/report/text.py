"""An evaluation as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from smsff.metrics.figures import counts, spell
from smsff.report.content import Table

ARROWS = {"higher": "↑", "lower": "↓"}
NAMED = 10
"""Most files that are named; of the others the number is said."""


def escape(text: object) -> str:
    """Text that Markdown shows as it is, on one line."""
    line = " ".join(str(text).split())
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>|#" else c for c in line)


def listed(entries: Mapping[str, str]) -> list[str]:
    """Files with the reason, the first of them; each line plain text."""
    lines = [reason if name in reason else f"{name}: {reason}" for name, reason in list(entries.items())[:NAMED]]
    return lines + ([f"and {len(entries) - NAMED:,} more"] if len(entries) > NAMED else [])


def grouped_warnings(figures: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(titles of figures, what makes all of these unreliable)."""
    titles: dict[str, list[str]] = {}
    for name, figure in figures.items():
        if figure.get("warning"):
            titles.setdefault(str(figure["warning"]), []).append(str(figure.get("title", name)))
    return [(", ".join(names), why) for why, names in titles.items()]


def evaluation_markdown(content: Mapping[str, Any]) -> str:
    """The figures with counts, warnings and everything that limits them."""
    sets = content["sets"]
    lines = [f"# Evaluation of {escape(sets['results']['folder'])}", ""]
    for name, entry in sets.items():
        if isinstance(entry, list):
            lines += [f"- against: {escape(folder)}" for folder in entry]
            continue
        digest = f", SHA-256 of the set `{entry['sha256']}`" if "sha256" in entry else ""
        lines.append(f"- {name}: {entry['images']:,} images, {escape(entry['folder'])}{digest}")
    if content["prompt"] is not None:
        lines.append(f"- prompt: {escape(content['prompt'])}")
    lines += ["", "| figure | value ± standard error | images |", "|---|---:|---:|"]
    for name, figure in content["figures"].items():
        value = spell(name, figure["value"], figure["standard_error"])
        title = f"{figure['title']} {ARROWS[figure['better']]}"
        images = counts(figure["count"], figure["references"])
        lines.append(f"| {title}{' (!)' if figure['warning'] else ''} | {value} | {images} |")
    warnings = [f"{titles}: {why}" for titles, why in grouped_warnings(content["figures"])]
    left_out = content["left_out"]
    lines += _section("(!) Not reliable", warnings)
    lines += _section("Notes", content["notes"])
    lines += _section("Not measured", [f"{name}: {reason}" for name, reason in content["not_measured"].items()])
    lines += _section(f"Left out, {len(left_out):,} files", listed(left_out))
    lines += ["", f"smsff {content['smsff']}, protocol {content['protocol']}."]
    return "\n".join(lines) + "\n"


def table_markdown(table: Table) -> str:
    """A table of the report; the best number of a column in bold."""
    head = [f"**{escape(table.title)}**", *(f"{c.title} {ARROWS.get(c.better, '')}".strip() for c in table.columns)]
    lines = [f"| {' | '.join(head)} |", "|---" + "|---:" * len(table.columns) + "|"]
    for i, (heading, cells) in enumerate(table.rows):
        words = [f"**{cell.text}**" if (i, j) in table.best else cell.text for j, cell in enumerate(cells)]
        noted = [" ".join(filter(None, (word, cell.note))) for word, cell in zip(words, cells, strict=True)]
        lines.append(f"| {escape(heading.title)} | {' | '.join(noted)} |")
    return "\n".join([*lines, "", table.text])


def _section(title: str, entries: Iterable[str]) -> list[str]:
    items = [f"- {escape(entry)}" for entry in entries]
    return ["", f"## {title}", "", *items] if items else []
