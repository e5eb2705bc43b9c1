"""Sweeps and studies whose jobs are Slurm's: ended, killed, and gone on with by the same command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import TRAIN, call, steps, until
from same_run import assert_bit_equal

pytestmark = pytest.mark.slurm


class Command:
    """``train.py -m hydra/launcher=slurm`` in a folder of its own."""

    def __init__(self, folder: Path, *words: str, slower: float = 0.0) -> None:
        folder.mkdir(exist_ok=True)
        self.output, self.name = folder / "command.out", folder.name
        command = [*TRAIN, "-m", "hydra/launcher=slurm", "ckpt_path=last", "run_dir=sweep", *words]
        command.append(f"hydra.launcher.name={self.name}")
        with self.output.open("a") as file:
            self.process = subprocess.Popen(
                command, cwd=folder, stdout=file, stderr=file, env=os.environ | {"FAULT_SLEEP": str(slower)}
            )

    def ended(self) -> int:
        until(lambda: self.process.poll() is not None, self.output.read_text)
        return self.process.returncode

    def kill(self) -> None:
        """The command by SIGKILL, its jobs by scancel."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        call("scancel", f"--name={self.name}")
        until(lambda: not call("squeue", "--noheader", f"--name={self.name}"), lambda: call("squeue"))


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_a_sweep_that_was_killed_goes_on_job_by_job(whole: Path, tmp_path: Path) -> None:
    values = ["seed=0,1", "data.batch_size=2,1"]
    first = Command(tmp_path, *values, "hydra.launcher.array_parallelism=2", slower=0.05)
    folders = [tmp_path / "sweep" / str(number) for number in range(4)]
    until(lambda: steps(folders[2]) >= 4 or steps(folders[3]) >= 4, first.output.read_text)
    first.kill()
    ended = {path: path.stat().st_mtime for path in (tmp_path / "sweep").glob("*/checkpoints/last.ckpt")}
    done = [one for one in folders if (one / "metrics.json").exists() and read(one / "metrics.json")["steps"] == 40]
    assert 0 < len(done) < 4
    again = Command(tmp_path, *values)
    assert again.ended() == 0, again.output.read_text()
    assert [read(one / "metrics.json")["status"] for one in folders] == ["finished"] * 4
    assert_bit_equal(folders[0], whole)
    for one in done:
        last = one / "checkpoints" / "last.ckpt"
        assert last.stat().st_mtime == ended[last], "it was finished"


def test_a_sweep_has_the_status_of_its_first_fault_and_an_evicted_job_goes_on(whole: Path, tmp_path: Path) -> None:
    command = Command(tmp_path, "seed=0,-1", "steps=40", slower=0.05)
    until(lambda: steps(tmp_path / "sweep/0") >= 8, command.output.read_text)
    (job,) = {
        line.split("_")[0]
        for line in call("squeue", "--noheader", "--array", "--format=%i", f"--name={command.name}").split()
    }
    call("scancel", "--signal=USR2", f"{job}_0")
    assert command.ended() == 2
    assert "seed=-1" in command.output.read_text()
    assert_bit_equal(tmp_path / "sweep/0", whole)
    assert len(list((tmp_path / "sweep/0").glob("csv/version_*"))) == 2


@pytest.mark.parametrize(("path", "reason"), [("/usr/bin:/bin", "srun"), ("", "partition")], ids=["no srun", "refused"])
def test_a_sweep_that_slurm_does_not_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, reason: str
) -> None:
    monkeypatch.setenv("PATH", path or os.environ["PATH"])
    command = Command(tmp_path, "seed=0,1", "hydra.launcher.partition=nowhere")
    assert command.ended() == 2
    assert "error: hydra/launcher" in command.output.read_text()
    assert reason in command.output.read_text()
    assert "Traceback" not in command.output.read_text()


def test_a_sweep_with_a_cancelled_job_ends_where_slurm_keeps_accounts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = r"s/^JobId=\S* ArrayJobId=(\S*) ArrayTaskId=(\S*) .* JobState=(\S*).*/\1_\2|\3|node1/p"
    accounts = tmp_path / "sacct"  # this Slurm has none: told by what it still knows
    accounts.write_text(f"#!/bin/sh\necho 'JobID|State|NodeList'\nscontrol --oneliner show job | sed -nE '{told}'\n")
    accounts.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    command = Command(tmp_path / "cancelled", "seed=0,1", slower=0.5)
    until(lambda: steps(tmp_path / "cancelled/sweep/0") >= 2, command.output.read_text)
    call("scancel", f"--name={command.name}")
    assert command.ended() == 4, command.output.read_text()
    assert "CANCELLED" in command.output.read_text()
    assert "Traceback" not in command.output.read_text()


def test_a_study_that_was_killed_goes_on(tmp_path: Path) -> None:
    space = [
        "hydra/sweeper=optuna",
        "hydra/sweeper/params=objective",
        "hydra.sweeper.n_trials=4",
        "hydra.sweeper.n_jobs=2",
    ]
    words = [*space, "returns=train/matching", "steps=8", "trainer.devices=2", "data.batch_size=1"]
    first = Command(tmp_path, *words, slower=0.05)
    until(lambda: steps(tmp_path / "sweep/2") >= 2, first.output.read_text)
    first.kill()
    half = read(tmp_path / "sweep/study.json")
    assert [trial["state"] for trial in half["trials"]] == ["COMPLETE"] * 2
    again = Command(tmp_path, *words)
    assert again.ended() == 0, again.output.read_text()
    trials = read(tmp_path / "sweep/study.json")["trials"]
    assert trials[:2] == half["trials"]
    assert [trial["state"] for trial in trials] == ["COMPLETE"] * 4
    for trial in trials:
        metrics = read(tmp_path / f"sweep/{trial['number']}/metrics.json")
        assert (metrics["status"], metrics["figures"]["train/matching"]) == ("finished", trial["value"])
    assert read(tmp_path / "sweep/study.json")["best"] == min(trials, key=lambda one: one["value"])["number"]
