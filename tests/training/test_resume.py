"""A killed run goes on as if nothing had happened: weights, losses and optimizer state equal to the bit."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train import NETWORK, command, configuration, finished, tiny, train_script  # noqa: F401

STEPS = 24


def same(a: Any, b: Any, where: str = "") -> None:
    """Fail at the first place where two trees of containers and tensors differ in a single bit."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for index, (one, other) in enumerate(zip(a, b, strict=True)):
            same(one, other, f"{where}.{index}")
    else:
        assert a == b, where


def losses(run: Path) -> dict[int, dict[str, str]]:
    """Logged losses by step, over all parts of a run; a step that was done twice counts as done last."""
    rows: dict[int, dict[str, str]] = {}
    for path in sorted(run.glob("csv/version_*/metrics.csv")):
        with path.open() as file:
            for row in csv.DictReader(file):
                if row.get("train/loss"):
                    names = ("train/loss", "train/fake", "train/matching", "train/grad_norm_generator")
                    rows[int(row["step"])] = {name: row.get(name, "") for name in names}
    return rows


@pytest.mark.slow  # tests/faults kills runs on a closed-form teacher in the everyday suite
def test_sigkill_at_a_random_step_then_resume_is_bit_equal(tiny: list[str], tmp_path: Path) -> None:  # noqa: F811
    options = [*tiny, *NETWORK, f"steps={STEPS}", "checkpoint_every=3", "sample_every=7", "fake_draws=2"]
    options += ["data.num_workers=1", "warmup.steps=5"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"

    process = command(*options, f"run_dir={broken}", cwd=tmp_path)
    assert process.stdout is not None
    wanted = random.randint(4, STEPS // 2)  # far from the end: on a busy machine the kill comes some steps later
    while f"step {wanted}/" not in process.stdout.readline():
        assert process.poll() is None
    process.kill()
    process.communicate()
    reached = torch.load(broken / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert 0 < reached < STEPS

    finished(command(*options, f"run_dir={broken}", "ckpt_path=last", cwd=tmp_path))
    train_script.train(configuration(*options, f"run_dir={whole}"))

    a, b = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (whole, broken))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        same(a[part], b[part], part)
    expected, found = losses(whole), losses(broken)
    assert len(expected) == STEPS
    for step in range(reached, STEPS):
        # In steps that ask no score the log repeats the last matching loss, which a run that goes on did not see.
        known = {name: value for name, value in found[step].items() if value or name != "train/matching"}
        assert known.items() <= expected[step].items()
    assert found[STEPS - 1]["train/matching"] == expected[STEPS - 1]["train/matching"] != ""
