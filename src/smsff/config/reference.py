"""The reference of all keys, from the schema: ``python -m smsff.config.reference > docs/reference/keys.md``."""

from __future__ import annotations

import inspect
import pkgutil
import typing
from collections.abc import Iterable
from functools import reduce
from operator import or_
from typing import Any

from smsff.config.check import type_name
from smsff.config.schema import (
    ARGUMENTS,
    AnyTraining,
    BaselineConfig,
    Key,
    StyleLoraConfig,
    TrainConfig,
    Weight,
    fields,
)
from smsff.config.trust import TARGETS, matches

TITLE = """# Keys

Written by `python -m smsff.config.reference > docs/reference/keys.md` from `src/smsff/config/schema.py`.
`*` stands for any name; of a range, `[` and `]` are in it, `(` and `)` not.
`python train.py --cfg job` prints the values.
"""


def type_of(key: str) -> str:
    """The types that the constructors of a node give to its key; empty if none of smsff has it."""
    place, _, name = key.rpartition(".")
    targets = [one for known, names in TARGETS.items() if matches(known, place) for one in names]
    found: dict[Any, None] = {}
    for target in map(pkgutil.resolve_name, (one for one in targets if one.startswith("smsff."))):
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
        if name in hints:
            found[hints[name]] = None
    return type_name(reduce(or_, found)) if found else ""


def table(title: str, keys: Iterable[tuple[str, str, Key]]) -> str:
    """A section with a Markdown table of keys: name, type, entry."""
    rows = [
        f"| `{name}` | {kind} | {entry.range.interval if entry.range else ''} | {entry.text} |"
        for name, kind, entry in keys
    ]
    return "\n".join([f"\n## {title}\n", "| key | type | range | meaning |", "|---|---|---|---|", *rows, ""])


def reference() -> str:
    """The text of docs/reference/keys.md."""
    sections, common = [TITLE], fields(AnyTraining)
    for title, nodes in (
        ("Every training", common),
        ("task=style_matching", fields(TrainConfig)),
        ("task=style_lora", fields(StyleLoraConfig)),
        ("smsff baseline", fields(BaselineConfig)),
        ("weights", fields(Weight, "weights.*.")),
    ):
        own = {name: node for name, node in nodes.items() if nodes is common or name not in common}
        sections.append(table(title, ((name, type_name(kind), key) for name, (kind, key) in own.items())))
    sections.append(table("Arguments of the nodes", ((name, type_of(name), key) for name, key in ARGUMENTS.items())))
    return "".join(sections)


if __name__ == "__main__":
    print(reference(), end="")
