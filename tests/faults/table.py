"""Puts the counts of ``make test-faults`` into a document: ``table.py FAULTS.json FUZZ.json DOCUMENT.md``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

Counts = dict[str, dict[str, Any]]

FAULTS = {
    "injected": "Injected",
    "as_promised": "As promised",
    "happened": "What happened",
    "lost": "What was lost",
}
FUZZ = {
    "injected": "Cases",
    "accepted": "Good enough to use",
    "refused": "Refused in one sentence",
    "error": "Tracebacks",
    "crashed": "Crashes",
    "hung": "Hangs",
    "outside": "Written elsewhere, or programs started",
}
KINDS = {
    "image": "Image files",
    "config": "Configurations",
    "lora": "LoRA files",
    "lora_header": "Settings in the headers of LoRA files",
    "model": "Model folders, safetensors and ONNX",
}


def table(counts: Counts, columns: dict[str, str], first: str) -> str:
    """Markdown, one row for each kind; columns by key in the counts."""
    kinds = next(iter(counts.values()), {})
    rule = "".join("---:|" if isinstance(kinds.get(key), int) else "---|" for key in columns)
    rows = [f"| {first} | {' | '.join(columns.values())} |", f"|---|{rule}"]
    for name, row in counts.items():
        figures = (f"{row[key]:,}" if isinstance(row[key], int) else row[key] for key in columns)
        rows.append(f"| {KINDS.get(name, name)} | {' | '.join(figures)} |")
    return "\n".join(rows)


def insert(text: str, name: str, new: str) -> str:
    """The document with the table between the two marks of its name.

    Raises:
        ValueError: there are no marks.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"{begin} and {end} are missing")
    return f"{before}{begin}\n\n{new}\n\n{end}{after}"


def main() -> None:
    faults, fuzz, document = map(Path, sys.argv[1:])
    text = insert(document.read_text(), "faults", table(json.loads(faults.read_text()), FAULTS, "Fault"))
    counts = json.loads(fuzz.read_text())
    known = {kind: counts[kind] for kind in KINDS if kind in counts}
    document.write_text(insert(text, "fuzz", table(known, FUZZ, "What was fuzzed")))


if __name__ == "__main__":
    main()
