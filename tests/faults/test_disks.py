"""Disks that are full or become so under a run: nothing that was written is lost, and the run goes on or says why."""

from __future__ import annotations

import contextlib
import mmap
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from breakers import FullDisk
from conftest import Record, one_sentence
from runner import Training
from same_run import assert_bit_equal, content, losses

pytestmark = pytest.mark.faults


@contextlib.contextmanager
def disk_at(folder: Path, *, megabytes: int) -> Iterator[Path]:
    """A tmpfs at a folder; only root can make one."""
    folder.mkdir(parents=True)
    size = f"size={megabytes}m"
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", folder], capture_output=True)
    if made.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with disk_at(
        tmp_path / "run" / "checkpoints", megabytes=16
    ) as folder:  # a checkpoint has 2 MB, most of it what is learned again
        yield folder


def fill(folder: Path) -> Path:
    """Take all the room there is."""
    path = folder / "filler"
    for _ in range(5):  # a checkpoint that is just being written leaves room behind
        time.sleep(0.05)
        with contextlib.suppress(OSError), path.open("ab", buffering=0) as file:
            while file.write(b"0" * 4096):
                pass
    return path


def test_a_disk_that_fills_up_under_the_checkpoints(
    small_disk: Path, whole: Path, tmp_path: Path, record: Record
) -> None:
    training = Training(tmp_path / "run", "checkpoint_keep=0", environment={"FAULT_SLEEP": "0.02"})
    assert training.wait_for((small_disk / "last.ckpt").exists), training.text()
    filler = fill(small_disk)
    message = one_sentence(training, 3)
    assert "the last checkpoint" in message
    assert "No space left on device" in message
    assert "make room and go on with ckpt_path=last" in message
    assert "could not be written" in training.text()
    stands = content(tmp_path / "run")["global_step"]
    assert 0 < stands < 40
    assert f"the checkpoint of step {stands} stands" in message
    assert len(losses(tmp_path / "run")) >= 39  # it had gone on to its last step
    filler.unlink()
    again = Training(tmp_path / "run", "ckpt_path=last", "checkpoint_keep=0")
    assert again.ended() == 0, again.text()
    assert_bit_equal(tmp_path / "run", whole)
    record(
        "The disk of the checkpoints stays full",
        happened="warns, trains to the last step, tries three times, status 3; resumes when there is room",
        lost="steps",
    )


def test_a_disk_that_is_full_for_a_while(small_disk: Path, whole: Path, tmp_path: Path, record: Record) -> None:
    training = Training(tmp_path / "run", "checkpoint_keep=0", environment={"FAULT_SLEEP": "0.02"})
    assert training.wait_for((small_disk / "last.ckpt").exists), training.text()
    filler = fill(small_disk)
    assert training.wait_for(lambda: "could not be written" in training.text()), training.text()
    filler.unlink()
    assert training.ended() == 0, training.text()
    assert_bit_equal(tmp_path / "run", whole)
    record(
        "The disk of the checkpoints is full for a while",
        happened="warns, keeps the former checkpoint; the next one succeeds",
        lost="nothing",
    )


def test_a_limit_on_the_size_of_files(tmp_path: Path, record: Record) -> None:
    message = one_sentence(Training(tmp_path / "run", "sample_every=1000", breaker=limit_files), 3)
    assert "File too large" in message
    assert "there is no earlier one" in message
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    record(
        "No file may be larger than 20 kB (RLIMIT_FSIZE)",
        happened="warns, status 3",
        lost="the run",
    )


def limit_files() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


@pytest.mark.parametrize("what", ["csv", "samples", "metrics.json"])
def test_no_room_for_what_a_run_can_do_without(what: str, whole: Path, tmp_path: Path, record: Record) -> None:
    switch = tmp_path / "full"
    disk = FullDisk(("run/metrics.part" if what == "metrics.json" else f"run/{what}",), switch, after=100)
    training = Training(tmp_path / "run", breaker=disk, environment={"FAULT_SLEEP": "0.02"})
    assert training.wait_for(lambda: training.steps >= 8), training.text()
    switch.touch()
    if what == "csv":
        assert training.wait_for(lambda: "the log of TableLogger could not be written" in training.text())
        switch.unlink()
    assert training.ended() == 0, training.text()
    assert "No space left on device; the training goes on" in training.text()
    assert_bit_equal(tmp_path / "run", whole, seen=what != "metrics.json")
    assert not list((tmp_path / "run").rglob("*.part"))
    if what == "csv":
        record("No room while writing csv", happened="warns, writes the rows later", lost="nothing")
    else:
        record("No room while writing samples or metrics.json", happened="warns, status 0", lost="those of that time")


def test_a_disk_that_is_full_for_the_whole_run_folder(whole: Path, tmp_path: Path, record: Record) -> None:
    """Log, pictures, summary and checkpoints at once, on a real disk."""
    with disk_at(tmp_path / "run", megabytes=16):
        training = Training(tmp_path / "run", environment={"FAULT_SLEEP": "0.05"})
        saved = tmp_path / "run" / "checkpoints" / "last.ckpt"
        assert training.wait_for(saved.exists), training.text()
        with (tmp_path / "run" / "train.log").open("a") as log:  # to the end of its page, else its next lines find room
            log.write("\n" * (-log.tell() % mmap.PAGESIZE))
        filler = fill(tmp_path / "run")
        for what in ("TableLogger could not be written", "last.ckpt could not be written"):
            assert training.wait_for(lambda: what in training.text()), training.text()  # noqa: B023
        filler.unlink()
        assert training.ended() == 0, training.text()
        assert "train.log could not be written" in training.text()
        assert "Traceback" not in training.text()
        assert_bit_equal(tmp_path / "run", whole)
    record(
        "The disk of the whole run folder is full for a while",
        happened="warns for each file; no row of the log is lost",
        lost="samples of that time",
    )
