"""Several processes: one that dies or hangs ends all with the cause, and a run may change their number."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from breakers import HangingDisk
from conftest import Record, errors, one_sentence
from runner import Training
from same_run import assert_bit_equal, content, in_both, losses

pytestmark = pytest.mark.faults

TWO = ["trainer.devices=2", "trainer.strategy=ddp"]


def descendants(pid: int) -> list[int]:
    """All processes below one, the oldest first."""
    found, last = [pid], 0
    while last < len(found):
        for task in Path("/proc").glob(f"{found[last]}/task/*/children"):
            found += [int(word) for word in task.read_text().split()]
        last += 1
    return found[1:]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(processes: list[int], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(map(alive, processes)):
        time.sleep(0.1)
    assert not any(map(alive, processes))


def begun(folder: Path) -> tuple[Training, int]:
    """A run of two processes that is under way, and its process_timeout: longer where 45 s are too short to start."""
    for timeout in (45, 180, 900):
        words = [f"process_timeout={timeout}", "steps=100000", "callbacks.progress.every=50"]
        training = Training(folder, *TWO, *words)
        if training.wait_for(lambda: training.steps >= 10, seconds=1000):  # noqa: B023
            return training, timeout
        assert "clients joined" in training.text(), training.text()
        shutil.rmtree(folder)
        training.output.unlink()
    raise AssertionError("the second process did not start within 900 s")


@pytest.mark.parametrize("victim", ["child", "main"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_process_ends_all(victim: str, number: signal.Signals, tmp_path: Path, record: Record) -> None:
    training, timeout = begun(tmp_path / "run")
    assert training.process.pid is not None
    (child, *_) = descendants(training.process.pid)
    os.kill(child if victim == "child" else training.process.pid, number)
    status = training.ended(seconds=timeout + 105)
    wait_until_gone([child], 300)
    said = errors(training)
    assert status == (4 if victim == "child" else -signal.SIGKILL), training.text()
    assert said, training.text()
    assert all("ckpt_path=last" in line for line in said)
    if victim == "child" and number == signal.SIGKILL:
        assert "process 1 of this run was ended by SIGKILL" in said[0]
    elif number == signal.SIGSTOP:
        assert f"process_timeout={timeout}" in said[0]
    assert "Traceback" not in training.text()
    record(
        f"The {'first' if victim == 'main' else 'second'} of two processes is killed or stopped (SIGSTOP)",
        happened=f"all end with the cause, status 4{' of those left' if victim == 'main' else ''}",
        lost="steps",
    )


@pytest.mark.parametrize("fault", ["killed", "hanging"])
def test_a_lost_loader_worker_ends_the_run(fault: str, whole: Path, tmp_path: Path, record: Record) -> None:
    words = ["data.num_workers=1", "data.cache_mb=0", "data.worker_timeout=40"]
    switch = tmp_path / "hang"
    training = Training(tmp_path / "run", *words, breaker=HangingDisk(switch), environment={"FAULT_SLEEP": "0.2"})
    assert training.wait_for(lambda: training.steps >= 10), training.text()
    assert training.process.pid is not None
    workers = descendants(training.process.pid)
    if fault == "killed":
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        cause = "a worker of data.num_workers=1 was killed"
    else:
        switch.touch()
        cause = "a worker of data.num_workers=1 gave no batch for data.worker_timeout=40 s"
    assert cause in one_sentence(training, 4)
    wait_until_gone(workers, 300)
    switch.unlink(missing_ok=True)
    again = Training(tmp_path / "run", *words, "ckpt_path=last")
    assert again.ended() == 0, again.text()
    assert_bit_equal(tmp_path / "run", whole)
    record(
        "A loader worker is killed or waits for a disk that does not answer",
        happened="ends with the cause, status 4; resumes",
        lost="steps",
    )


def test_a_number_that_is_not_finite_on_one_process_skips_the_step_on_all(tmp_path: Path, record: Record) -> None:
    common = ["steps=20", "trainer.precision=64-true", "callbacks.progress.every=20"]
    bad = {"FAULT_NAN": "style:5:6"}
    one = Training(tmp_path / "one", *common, "data.batch_size=4", environment=bad)
    two = Training(tmp_path / "two", *common, *TWO, "data.batch_size=2", environment={**bad, "FAULT_RANK": "1"})
    assert one.ended() == two.ended() == 0, one.text() + two.text()
    mine, theirs = content(tmp_path / "two"), content(tmp_path / "one")
    assert mine["bad_steps"] == theirs["bad_steps"] == {"in_a_row": 0, "total": 2}
    for name, value in theirs["state_dict"].items():
        assert torch.isfinite(value.double()).all(), name
        assert (mine["state_dict"][name] - value).abs().max() <= 1e-5 * value.abs().max().clamp(min=1), name
    record(
        "NaN on one of two processes",
        happened="skips the step on both, as one process would",
        lost="the skipped steps",
    )


def test_one_process_then_two_then_one_is_the_run_of_one(tmp_path: Path, record: Record) -> None:
    common = ["steps=60", "trainer.precision=64-true", "callbacks.progress.every=20"]
    reference = Training(tmp_path / "whole", *common, "data.batch_size=4")
    parts = [
        ["data.batch_size=4"],
        [*TWO, "data.batch_size=2", "ckpt_path=last"],
        ["data.batch_size=4", "ckpt_path=last"],
    ]
    for part, until in zip(parts, (15, 35, None), strict=True):
        training = Training(tmp_path / "run", *common, *part, environment={"FAULT_SLEEP": "0.05"})
        if until is None:
            assert training.ended() == 0, training.text()
            continue
        assert training.wait_for(lambda: max(losses(tmp_path / "run"), default=0) >= until), training.text()  # noqa: B023
        training.send(signal.SIGTERM)
        assert training.ended() == 143, training.text()
        assert "data.batch_size:" not in training.text()  # the global batch is the same
    assert reference.ended() == 0
    expected, found = losses(tmp_path / "whole"), losses(tmp_path / "run")
    assert list(expected) == list(found) == list(range(60))
    pairs = [(float(mine), float(theirs)) for _, mine, theirs in in_both(found, expected)]
    assert len(pairs) > 60 * 5
    worst = max(abs(mine - theirs) / max(1.0, abs(theirs)) for mine, theirs in pairs)
    assert worst < 1e-5
    record(
        "1 process, then 2, then 1",
        happened=f"logs all 60 steps as one process would, within {worst:.0e}",
        lost="nothing",
    )
