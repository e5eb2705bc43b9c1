"""SIGKILL at any moment: no run is lost, and its end is that of a run to which nothing happened, bit for bit."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import pytest
from breakers import KillWhileSaving
from conftest import Record
from runner import Training, struck
from same_run import assert_bit_equal, content

STEPS = 40
SAVES = 10
STAGES = ["write"] * 12 + ["fsync", "link", "link", "rename", "rename", "renamed", "renamed", "write"]
HAPPENED = "resumes"
LOST = "steps"


def beyond(count: int, *, everyday: int) -> list[object]:
    """Seeds; all but the first ones are left to ``make test-faults``."""
    return [seed if seed < everyday else pytest.param(seed, marks=pytest.mark.faults) for seed in range(count)]


def resumed(folder: Path, *overrides: str) -> Training:
    training = Training(folder, "ckpt_path=last", *overrides)
    assert training.ended() == 0, training.text()
    return training


@pytest.mark.parametrize("seed", beyond(30, everyday=1))
def test_killed_at_a_random_moment(seed: int, whole: Path, tmp_path: Path, record: Record) -> None:
    draw, run, workers = random.Random(seed), tmp_path / "run", f"data.num_workers={seed % 3}"
    if seed % 10 == 9:  # anywhere in the start, perhaps before the first checkpoint
        begun = (run / "config.yaml").exists
        training = struck(signal.SIGKILL, run, workers, at=lambda _: begun(), pause=draw.uniform(0, 1))
    else:
        wanted = draw.randrange(1, STEPS - 5)
        training = struck(signal.SIGKILL, run, workers, at=lambda one: one.steps >= wanted, pause=draw.uniform(0, 0.1))
    assert training.ended() == -signal.SIGKILL, training.text()
    resumed(tmp_path / "run", f"data.num_workers={(seed + 1) % 3}")
    assert_bit_equal(tmp_path / "run", whole)
    record("SIGKILL at a random moment", happened=HAPPENED, lost=LOST)


@pytest.mark.parametrize("seed", beyond(20, everyday=1))
def test_killed_while_a_checkpoint_is_written(seed: int, whole: Path, tmp_path: Path, record: Record) -> None:
    draw = random.Random(1000 + seed)
    breaker = KillWhileSaving(draw.randrange(2, SAVES + 1), STAGES[seed], draw.random())
    training = Training(tmp_path / "run", breaker=breaker)
    assert training.ended() == -signal.SIGKILL, training.text()
    again = resumed(tmp_path / "run")
    assert "passed over" not in again.text()  # the half-written file never had the name of a checkpoint
    assert_bit_equal(tmp_path / "run", whole)
    assert not list((tmp_path / "run").rglob("*.part"))
    record("SIGKILL while a checkpoint is written", happened=HAPPENED, lost=LOST)


@pytest.mark.faults
def test_killed_again_and_again(whole: Path, tmp_path: Path, record: Record) -> None:
    draw = random.Random(0)
    for turn in range(6):
        again = "ckpt_path=last" if turn else "ckpt_path=null"
        training = Training(tmp_path / "run", again, environment={"FAULT_SLEEP": "0.05"})
        assert training.wait_for(lambda: training.steps >= 5), training.text()  # noqa: B023
        time.sleep(draw.uniform(0, 0.1))
        training.send(signal.SIGKILL)
        assert training.ended() == -signal.SIGKILL, training.text()
        record("SIGKILL at a random moment", happened=HAPPENED, lost=LOST)
    resumed(tmp_path / "run")
    assert_bit_equal(tmp_path / "run", whole)


@pytest.mark.parametrize(
    ("number", "workers"),
    [
        (signal.SIGTERM, 0),
        pytest.param(signal.SIGTERM, 2, marks=pytest.mark.faults),
        (signal.SIGINT, 0),
        pytest.param(signal.SIGINT, 1, marks=pytest.mark.faults),
        pytest.param(signal.SIGUSR1, 0, marks=pytest.mark.faults),
    ],
)
def test_a_signal_ends_the_run_at_the_end_of_the_step(
    number: signal.Signals, workers: int, whole: Path, tmp_path: Path, record: Record
) -> None:
    training = struck(number, tmp_path / "run", f"data.num_workers={workers}", at=lambda one: one.steps >= 10)
    assert training.ended() == 128 + number, training.text()
    assert "Traceback" not in training.text()
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["status"] == "interrupted"
    assert metrics["steps"] == content(tmp_path / "run")["global_step"] >= 10
    resumed(tmp_path / "run")
    assert_bit_equal(tmp_path / "run", whole)
    record(
        "SIGTERM, SIGINT or SIGUSR1",
        happened="finishes the step, saves, status 143, 130 or 138; resumes",
        lost="nothing",
    )


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_accumulated_steps_are_never_cut_in_the_middle(number: signal.Signals, tmp_path: Path, record: Record) -> None:
    options = ["trainer.accumulate_grad_batches=3", "steps=15"]
    reference = Training(tmp_path / "whole", *options)
    training = struck(number, tmp_path / "run", *options, at=lambda one: one.steps >= 6, pause=0.05)
    assert training.ended() == (-9 if number == signal.SIGKILL else 143), training.text()
    assert reference.ended() == 0
    resumed(tmp_path / "run", *options)
    assert_bit_equal(tmp_path / "run", tmp_path / "whole")
    record("SIGKILL or SIGTERM within an accumulated step", happened=HAPPENED, lost=LOST)
