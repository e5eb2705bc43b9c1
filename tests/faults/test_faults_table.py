from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from table import insert

ROOT = Path(__file__).parents[2]
FAULT = {"injected": 3, "as_promised": 3, "happened": "it goes on", "lost": "nothing"}
OUTCOMES = {"injected": 10_000, "accepted": 9, "refused": 9_990, "error": 1, "crashed": 0, "hung": 0, "outside": 0}


def test_the_tables_take_the_place_of_the_old_ones(tmp_path: Path) -> None:
    faults, fuzz = (f"<!-- {name}: begin -->\nold\n<!-- {name}: end -->" for name in ("faults", "fuzz"))
    (tmp_path / "page.md").write_text(f"above\n{faults}\nbetween\n{fuzz}\nbelow\n")
    (tmp_path / "faults.json").write_text(json.dumps({"A kill": FAULT}))
    (tmp_path / "fuzz.json").write_text(json.dumps({"image": {**OUTCOMES, "seconds": 3}}))
    files = [str(tmp_path / name) for name in ("faults.json", "fuzz.json", "page.md")]
    results = []
    for _ in range(2):
        subprocess.run([sys.executable, Path(__file__).parent / "table.py", *files], check=True)
        results.append((tmp_path / "page.md").read_text())
    lines = results[0].splitlines()
    assert "| A kill | 3 | 3 | it goes on | nothing |" in lines
    assert lines[lines.index("| Fault | Injected | As promised | What happened | What was lost |") + 1] == (
        "|---|---:|---:|---|---|"
    )
    assert "| Image files | 10,000 | 9 | 9,990 | 1 | 0 | 0 | 0 |" in lines
    assert "old" not in results[0]
    assert results[0] == results[1]
    assert (lines[0], lines[-1]) == ("above", "below")
    with pytest.raises(ValueError, match=r"fuzz: begin.*missing"):
        insert("no marks", "fuzz", "x")


def test_the_tests_that_the_page_names_exist() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "reference" / "reliability.md").read_text())
    assert len(named) > 30
    for path, name in named:
        module = ast.parse((ROOT / path).read_text())
        assert name in {node.name for node in module.body if isinstance(node, ast.FunctionDef)}, f"{path}::{name}"
