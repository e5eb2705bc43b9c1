"""Whether two runs are the same: weights, optimizer, counters and logged figures, bit for bit."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch


def content(run: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return loaded


SOMETIMES = {
    "grad_norm_fake", "reconstruction", "fake", "matching", "spectrum", "relevance", "gradient", "t_min", "t_mean",
    "t_max",
}  # fmt: skip
"""Figures that not every step has: Lightning repeats their last value, but not across a resume."""


def losses(run: Path) -> dict[int, dict[str, str]]:
    """All logged figures of the training by step, over all parts of a run; a step done twice counts as done last.

    Without the clock.
    """
    rows: dict[int, dict[str, str]] = {}
    for path in sorted(run.glob("csv/version_*/metrics.csv"), key=lambda path: int(path.parent.name[8:])):
        with path.open() as file:
            for row in csv.DictReader(file):
                if row.get("train/loss"):
                    kept = {k: v for k, v in row.items() if k.startswith("train/") and v}
                    kept.pop("train/images_per_second", None)
                    rows[int(row["step"])] = kept
    return rows


def in_both(mine: dict[int, dict[str, str]], theirs: dict[int, dict[str, str]]) -> Iterator[tuple[str, str, str]]:
    """Name and the two values of every figure that both of two logs have, after a look at what only one of them has."""
    assert list(mine) == list(theirs)
    for step, row in theirs.items():
        one_sided = {name.removeprefix("train/") for name in row.keys() ^ mine[step].keys()}
        assert one_sided <= SOMETIMES, (step, one_sided)
        yield from ((f"{name} of step {step}", mine[step][name], row[name]) for name in row.keys() & mine[step].keys())


def difference(a: Any, b: Any, where: str = "") -> str | None:
    """The first place where two trees of containers and tensors differ in a single bit."""
    if type(a) is not type(b):
        return f"{where}: {type(a)} and {type(b)}"
    if isinstance(a, torch.Tensor):
        alike = a.shape == b.shape and a.dtype == b.dtype
        same = alike and torch.equal(*(one.reshape(-1).view(torch.uint8) for one in (a, b)))
        return None if same else where
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return f"{where}: other keys {sorted(set(map(str, a)) ^ set(map(str, b)))[:3]}"
        return next(filter(None, (difference(a[key], b[key], f"{where}.{key}") for key in a)), None)
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return f"{where}: {len(a)} and {len(b)} items"
        pairs = zip(a, b, strict=True)
        return next(filter(None, (difference(x, y, f"{where}.{i}") for i, (x, y) in enumerate(pairs))), None)
    return None if a == b else f"{where}: {a} and {b}"


PARTS = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "bad_steps", "warmup")


def assert_bit_equal(run: Path, reference: Path, *, seen: bool = True) -> None:
    """Weights, average, optimizer, schedules, counters and every logged figure."""
    mine, theirs = content(run), content(reference)
    assert difference({p: mine[p] for p in PARTS}, {p: theirs[p] for p in PARTS}) is None
    assert [one for one in in_both(losses(run), losses(reference)) if one[1] != one[2]] == []
    if seen:
        counts = [json.loads((one / "metrics.json").read_text()) for one in (run, reference)]
        assert counts[0]["images_seen"] == counts[1]["images_seen"]
        assert counts[0]["status"] == counts[1]["status"] == "finished"
