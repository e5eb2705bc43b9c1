from __future__ import annotations

import os
import signal
import stat
from pathlib import Path

import pytest

from smsff.errors import UserError
from smsff.training import slurm
from smsff.training.launch import check_processes

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
    assert slurm.is_main_process()
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert not slurm.is_main_process()
    monkeypatch.delenv("SLURM_NTASKS")
    assert slurm.is_main_process()
    assert not slurm.started_again()


def test_requeueing_asks_for_this_job_and_reports_failures(
    job: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def said() -> str:
        slurm.requeue(signal.SIGUSR1)
        return capfd.readouterr().err

    monkeypatch.setenv("PATH", str(tmp_path))
    assert "scontrol" in said()  # there is no such command
    assert not slurm.evicted(signal.SIGTERM)
    assert "scontrol" in capfd.readouterr().err
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    scontrol(tmp_path, f'echo "$@" > {tmp_path}/asked')
    assert said() == "SIGUSR1: job 17 requeued\n"
    assert (tmp_path / "asked").read_text() == "requeue 17\n"
    scontrol(tmp_path, "echo no such job >&2; exit 1")
    assert said() == "SIGUSR1: job 17 not requeued: no such job\n"
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setattr(slurm, "TURN", 0.01)
    assert said() == ""
    scontrol(tmp_path, "")
    assert said() == "SIGUSR1: job 17 requeued\n"  # the first process has not asked


@pytest.mark.parametrize(
    ("told", "evicted"),
    [
        ("JobState=RUNNING StartTime=2026-11-29T10:00:00 PreemptTime=2026-11-29T10:00:09", True),
        ("JobState=RUNNING StartTime=2026-11-29T10:00:09 PreemptTime=2026-11-29T10:00:00", False),  # an earlier time
        ("JobState=RUNNING StartTime=2026-11-29T10:00:00 PreemptTime=None", False),
        ("JobState=CANCELLED StartTime=2026-11-29T10:00:00 PreemptTime=2026-11-29T10:00:09", False),
        ("JobState=RUNNING StartTime=2026-11-29T10:00:00", False),
        ("", False),
    ],
)
def test_sigterm_is_an_eviction_only_where_slurm_says_so(
    job: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, evicted: bool
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    scontrol(tmp_path, f"echo JobId=17 {told}")
    assert slurm.evicted(signal.SIGTERM) is evicted
    assert not slurm.evicted(signal.SIGINT)
    assert slurm.evicted(signal.SIGUSR1)
    assert slurm.evicted(signal.SIGUSR2)
    monkeypatch.delenv("SLURM_NTASKS")
    assert not slurm.evicted(signal.SIGUSR1)


@pytest.mark.parametrize(("devices", "tasks"), [(1, 2), (2, 1), (2, 3), ([0, 1], 3), ("0,1", 1)])
def test_other_processes_than_the_configuration_wants_are_refused(
    job: None, monkeypatch: pytest.MonkeyPatch, devices: object, tasks: int
) -> None:
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE", raising=False)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", str(tasks))
    with pytest.raises(UserError, match=f"srun has started {tasks}"):
        check_processes({"devices": devices, "num_nodes": 1}, sweep=False)
    check_processes({"devices": tasks, "num_nodes": 1}, sweep=False)
    check_processes({"devices": -1, "num_nodes": 1}, sweep=False)
    monkeypatch.delenv("SLURM_NTASKS")
    check_processes({"devices": devices, "num_nodes": 1}, sweep=False)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", str(tasks))
    with pytest.raises(UserError, match=f"torchrun has started {tasks}"):
        check_processes({"devices": devices, "num_nodes": 1}, sweep=False)
    with pytest.raises(UserError, match="-m: start a sweep without torchrun"):
        check_processes({"devices": tasks, "num_nodes": 1}, sweep=True)


def test_processes_of_torchrun_name_one_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert slurm.run_name() == slurm.run_name()
    assert not slurm.started_again()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert slurm.started_again()
