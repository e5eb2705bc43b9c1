from __future__ import annotations

import math
from pathlib import Path

import pytest

from smsff.metrics.figures import GROUPS, KINDS, NETWORKS, Figure, as_json, mean_figure, spell, warning
from smsff.metrics.networks import PUBLISHED


def test_mean_and_standard_error() -> None:
    figure = mean_figure([1.0, 2.0, 3.0, 6.0])
    assert figure.value == 3
    assert figure.error == pytest.approx(math.sqrt(14 / 3 / 4))
    assert mean_figure([5.0]).error is None


def test_every_figure_warns_below_its_number_and_not_from_it_on() -> None:
    for name, kind in KINDS.items():
        assert warning(name, Figure(value=1.0, count=kind.reliable - 1))
        assert warning(name, Figure(value=1.0, count=kind.reliable)) is None
    assert "n = 50,000 against 40, at least" in (warning("fid", Figure(value=3.0, count=50_000, references=40)) or "")
    assert warning("fid", Figure(value=3.0, count=10_000, references=10_000)) is None


def test_a_number_that_is_none_warns_and_is_null_in_json() -> None:
    figure = Figure(value=math.inf, count=10**6)
    assert "not a finite number" in (warning("fid", figure) or "")
    assert as_json({"fid": figure})["fid"]["value"] is None
    assert [spell("fid", None), spell("fid", 12.3456)] == ["not finite", "12.35"]
    assert spell("lpips", 0.12345, 0.001) == "0.1235 ± 0.0010"


def test_every_group_names_networks_that_exist() -> None:
    assert set(NETWORKS) == set(GROUPS)
    assert {key for keys in NETWORKS.values() for key in keys} == set(PUBLISHED)


def test_the_documentation_lists_every_figure_and_network() -> None:
    text = (Path(__file__).parents[2] / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    for name, kind in KINDS.items():
        if kind.group == "truth":
            assert f"`truth` | | `smsff.metrics.known_style` | {kind.reliable} |" in text
            continue
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {kind.title} | `{kind.group}` |")]
        assert line.split("|")[3].strip() == kind.better, name
        assert line.split("|")[-2].strip() == f"{kind.reliable:,}", name
    for key, file in PUBLISHED.items():
        assert f"| `{key}` | `{file.name}` |" in text
        assert file.sha256 is None or f"`{file.sha256[:12]}…`" in text
