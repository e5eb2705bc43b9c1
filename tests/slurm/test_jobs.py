"""What docs/reference/reliability.md promises of Slurm, with a real one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import HERE, TRAIN, Job, call, steps, train
from same_run import assert_bit_equal, in_both, losses

pytestmark = pytest.mark.slurm

SLOW = 0.05
"""Seconds by which a forward pass takes longer, so that a signal comes before the end."""


@pytest.mark.parametrize("nodes", [1, 2])
def test_two_processes_train_as_one(whole: Path, tmp_path: Path, nodes: int) -> None:
    words = ["data.batch_size=1", f"trainer.devices={2 // nodes}", f"trainer.num_nodes={nodes}"]
    job = Job(tmp_path, train("run", *words), f"--nodes={nodes}", "--ntasks=2")
    assert job.ended() == ("COMPLETED", 0), job.text()
    for name, mine, theirs in in_both(losses(tmp_path / "run"), losses(whole)):
        assert float(mine) == pytest.approx(float(theirs), abs=1e-5, rel=1e-5), name
    assert "Traceback" not in job.text()


def test_the_signal_before_the_time_limit_saves_and_requeues(whole: Path, tmp_path: Path) -> None:
    script = f'[ "$SLURM_RESTART_COUNT" ] && export FAULT_SLEEP=0\n{train("")}'  # slow until the signal is there
    job = Job(tmp_path, script, "--time=60", "--signal=SIGUSR1@110", "--requeue", slower=3)
    run = tmp_path / f"outputs/slurm_{job.number}_0"
    job.wait_for(lambda: steps(run) >= 8)
    hours, minutes, _ = map(int, job.facts["RunTime"].split(":"))
    call("scontrol", "update", f"JobId={job.number}", f"TimeLimit={60 * hours + minutes + 2}")
    job.wait_for(lambda: job.restarts == 1)
    call("scontrol", "update", f"JobId={job.number}", "TimeLimit=60")
    assert job.ended() == ("COMPLETED", 0), job.text()
    assert job.restarts == 1
    assert_bit_equal(run, whole)


@pytest.mark.parametrize("tasks", [1, 2])
def test_a_signal_before_the_first_step_requeues(tmp_path: Path, tasks: int) -> None:
    words = ["data.batch_size=1", f"trainer.devices={tasks}", "steps=8"]
    job = Job(tmp_path, train("run", *words, tasks="--kill-on-bad-exit=1"), f"--ntasks={tasks}")
    job.wait_for(lambda: importing(tmp_path) == tasks)
    job.signal("USR1")
    assert job.ended() == ("COMPLETED", 0), job.text()
    assert job.restarts == 1
    assert f"SIGUSR1: job {job.number} requeued" in job.text()


def importing(folder: Path) -> int:
    """How many trainings of this folder have come to their slow imports: their handlers are in place."""
    found = 0
    for one in Path("/proc").glob("[0-9]*"):
        try:
            here = (one / "cwd").resolve() == folder and (one / "comm").read_text().startswith("python")
            found += here and "_yaml" in (one / "maps").read_text()
        except OSError:
            continue
    return found


@pytest.mark.parametrize(("state", "tasks"), [("CANCELLED", 1), ("CANCELLED", 2), ("TIMEOUT", 1)])
def test_cancelled_it_ends_saved_and_the_same_command_goes_on(
    whole: Path, tmp_path: Path, state: str, tasks: int
) -> None:
    words = [f"data.batch_size={2 // tasks}", f"trainer.devices={tasks}", "checkpoint_every=1000"]
    run = tmp_path / "run"
    job = Job(tmp_path, train("run", *words), f"--ntasks={tasks}", slower=SLOW if state == "CANCELLED" else 4)
    job.wait_for(lambda: steps(run) >= 8)
    if state == "CANCELLED":
        call("scancel", job.number)
    else:
        call("scontrol", "update", f"JobId={job.number}", "TimeLimit=1")
    assert job.ended()[0] == state, job.text()
    assert "Traceback" not in job.text()
    assert "requeued" not in job.text()
    assert (run / "checkpoints/last.ckpt").exists(), "there are no regular ones"
    again = Job(tmp_path, train("run", "ckpt_path=last"), "--ntasks=1")
    assert again.ended() == ("COMPLETED", 0), again.text()
    assert (again.restarts, job.restarts) == (0, 0)
    if tasks == 1:
        assert_bit_equal(run, whole)


@pytest.mark.parametrize("partition", ["low", "low0"], ids=["60 s of grace", "no grace"])
def test_a_job_that_gives_way_goes_on_and_cancelled_later_it_ends(whole: Path, tmp_path: Path, partition: str) -> None:
    job = Job(tmp_path, train(""), f"--partition={partition}", slower=SLOW)
    run = tmp_path / f"outputs/slurm_{job.number}_0"
    job.wait_for(lambda: steps(run) >= 8)
    call("srun", "--partition=main", "--nodes=2", "--exclusive", "true")
    if partition == "low":
        job.wait_for(lambda: job.restarts == 1 and len(list(run.glob("csv/version_*"))) == 2 and steps(run) >= 2)
        call("scancel", job.number)
        assert job.ended()[0] == "CANCELLED", job.text()
        call("scontrol", "requeue", job.number)
        job.wait_for(lambda: job.restarts == 2)
    assert job.ended() == ("COMPLETED", 0), job.text()
    assert job.restarts == (2 if partition == "low" else 1)
    assert_bit_equal(run, whole)
    assert "Traceback" not in job.text()


def slowly(script: str) -> str:
    return script.replace(TRAIN[0], f"{TRAIN[0]}' '{HERE / 'slow_save.py'}", 1)


@pytest.mark.parametrize(("name", "saved"), [("USR1", False), ("TERM", True)])
def test_a_signal_after_the_last_step_changes_nothing(whole: Path, tmp_path: Path, name: str, saved: bool) -> None:
    run = tmp_path / "run"
    job = Job(tmp_path, slowly(train("run", "sample_every=1000")))
    job.wait_for((tmp_path / "writing").exists if saved else lambda: steps(run) == 40)
    job.signal(name)
    assert job.ended() == ("COMPLETED", 0), job.text()
    assert job.restarts == 0
    assert f"SIG{name}: " in job.text()
    assert "requeued" not in job.text()
    assert json.loads((run / "metrics.json").read_text())["status"] == "finished"
    assert len(list(run.glob("samples/*000040*"))) == 1
    assert_bit_equal(run, whole)


def test_without_scontrol_the_run_says_so_and_the_script_requeues(whole: Path, tmp_path: Path) -> None:
    command = train("", tasks="env PATH=/nowhere")
    job = Job(tmp_path, f"{command} || {{ [ $? = 138 ] && scontrol requeue $SLURM_JOB_ID; }}", slower=SLOW)
    run = tmp_path / f"outputs/slurm_{job.number}_0"
    job.wait_for(lambda: steps(run) >= 8)
    assert "there is no scontrol here" in job.text()
    job.signal("USR1")
    assert job.ended() == ("COMPLETED", 0), job.text()
    assert job.restarts == 1
    assert f"SIGUSR1: job {job.number} not requeued" in job.text()
    assert_bit_equal(run, whole)
    assert "Traceback" not in job.text()


def test_a_signal_during_a_save_and_a_requeue_by_hand(whole: Path, tmp_path: Path) -> None:
    job = Job(tmp_path, slowly(train("")))
    run = tmp_path / f"outputs/slurm_{job.number}_0"
    job.wait_for((tmp_path / "saving").exists)
    job.signal("USR1")
    job.wait_for(lambda: job.restarts == 1 and len(list(run.glob("csv/version_*"))) == 2 and steps(run) >= 4)
    call("scontrol", "requeue", job.number)
    assert job.ended() == ("COMPLETED", 0), job.text()
    assert job.restarts == 2
    assert_bit_equal(run, whole)


def test_steps_of_a_job_and_tasks_of_an_array_have_folders_of_their_own(whole: Path, tmp_path: Path) -> None:
    job = Job(tmp_path, f"{train('')}\n{train('', 'seed=1')}", "--array=3", slower=SLOW)
    first, second = (tmp_path / f"outputs/slurm_{job.number}_3_{step}" for step in (0, 1))
    job.wait_for(lambda: steps(second) >= 8)
    ended = (first / "metrics.json").stat().st_mtime
    job.signal("USR1")
    assert job.ended() == ("COMPLETED", 0), job.text()
    assert job.restarts == 1
    assert_bit_equal(first, whole)
    assert (first / "metrics.json").stat().st_mtime == ended, "it was finished"
    assert len(list(second.glob("csv/version_*"))) == 2
    assert sorted(losses(second)) == sorted(losses(whole))
    assert losses(second) != losses(whole)


def test_two_evicted_processes_go_on_and_a_killed_one_fails_the_job(whole: Path, tmp_path: Path) -> None:
    words = ["data.batch_size=1", "trainer.devices=2"]
    job = Job(tmp_path, train("", *words, tasks="--kill-on-bad-exit=1"), "--ntasks=2", slower=SLOW)
    run = tmp_path / f"outputs/slurm_{job.number}_0"
    job.wait_for(lambda: steps(run) >= 8)
    job.signal("USR1")
    job.wait_for(lambda: job.restarts == 1 and len(list(run.glob("csv/version_*"))) == 2 and steps(run) >= 4)
    assert f"SIGUSR1: job {job.number} requeued" in job.text()
    call("scancel", "--signal=KILL", f"{job.number}.0")
    assert job.ended()[0] == "FAILED", job.text()
    call("scontrol", "requeue", job.number)
    job.wait_for(lambda: job.restarts == 2)
    assert job.ended() == ("COMPLETED", 0), job.text()
    for name, mine, theirs in in_both(losses(run), losses(whole)):
        assert float(mine) == pytest.approx(float(theirs), abs=1e-5, rel=1e-5), name


@pytest.mark.parametrize(
    ("devices", "nodes", "options"), [(1, 1, ["--ntasks-per-node=2"]), (2, 2, ["--nodes=2", "--ntasks=2"])]
)
def test_other_processes_than_the_configuration_wants_are_refused(
    tmp_path: Path, devices: int, nodes: int, options: list[str]
) -> None:
    words = [f"trainer.devices={devices}", f"trainer.num_nodes={nodes}", "data.batch_size=1"]
    job = Job(tmp_path, train("run", *words), *options)
    assert job.ended() == ("FAILED", 2), job.text()
    (message,) = [line for line in job.text().splitlines() if line.startswith("error: ")]
    assert f"trainer.devices={devices}" in message
    assert "Traceback" not in job.text()
    assert not list((tmp_path / "run").glob("checkpoints/*"))
