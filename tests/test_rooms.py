"""The rooms of the package and the arrows between them: who may import whom."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "smsff"


def arrows() -> dict[str, set[str]]:
    """The rooms that each room imports from; a file of the ground floor is a room of its own."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in SOURCE.rglob("*.py"):
        room = path.relative_to(SOURCE).with_suffix("").parts[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                first, _, rest = name.partition(".")
                if first == "smsff" and rest and rest.split(".")[0] != room:
                    found[room].add(rest.split(".")[0])
    return found


def test_nothing_imports_what_serves_the_embedded_teacher_alone() -> None:
    assert {room for room, others in arrows().items() if "embedded" in others} == set()


def test_the_method_and_the_teacher_do_not_know_what_is_built_on_them() -> None:
    above = {"build", "cli", "config", "embedded", "metrics", "report", "style_lora", "stylize", "weights"}
    found = arrows()
    assert not found["method"] & above
    assert not found["teacher"] & above
    assert found["generator"] <= {"errors"}
    assert {room for room, others in found.items() if "baselines" in others} <= {"cli", "compare"}
    assert not found["baselines"] & {"cli", "compare", "embedded", "metrics", "report", "style_lora", "stylize"}
    assert not found["data"] & (above | {"method", "teacher", "training"})
