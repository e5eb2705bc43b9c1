from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from smsff.training import slurm
from smsff.training.launch import is_main_process

VARIABLES = {"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "17", "SLURM_STEP_ID": "0"}


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)


def scontrol(folder: Path, script: str) -> None:
    path = folder / "scontrol"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)


def test_a_run_has_the_name_of_its_job_or_of_the_time(job: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert slurm.run_name() == "slurm_17_0"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "9")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert slurm.run_name() == "slurm_9_3_0"
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    assert slurm.run_name().startswith("20")
    monkeypatch.delenv("SLURM_NTASKS")
    assert slurm.run_name().startswith("20")


def test_a_job_knows_whether_it_was_started_before_and_who_is_first(job: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not slurm.started_again()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert slurm.started_again()
    assert is_main_process()
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert not is_main_process()
    monkeypatch.delenv("SLURM_NTASKS")
    assert is_main_process()
    assert not slurm.started_again()


def test_requeueing_asks_for_this_job_and_reports_failures(
    job: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "scontrol requeue 17" in str(slurm.requeue())  # there is no such command
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    scontrol(tmp_path, f'echo "$@" > {tmp_path}/asked')
    assert slurm.requeue() is None
    assert (tmp_path / "asked").read_text() == "requeue 17\n"
    scontrol(tmp_path, "echo no such job >&2; exit 1")
    assert str(slurm.requeue()).endswith("no such job")
