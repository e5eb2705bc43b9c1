"""What the machine does to a run: want of memory, numbers that are not finite, no rights, silent servers, evictions."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from conftest import Record, one_sentence
from runner import ROOT, Training
from same_run import assert_bit_equal, content

pytestmark = pytest.mark.faults


def test_a_second_run_in_the_folder(whole: Path, tmp_path: Path, record: Record) -> None:
    first = Training(tmp_path / "run", environment={"FAULT_SLEEP": "0.1"})
    assert first.wait_for((tmp_path / "run" / "checkpoints" / "last.ckpt").exists), first.text()
    first.output = tmp_path / "run.out"
    second = Training(tmp_path / "run", "ckpt_path=last")
    assert second.ended() == 2, second.text()
    assert f"is in use by process {first.process.pid}" in second.text()
    assert first.ended() == 0, first.text()
    assert_bit_equal(tmp_path / "run", whole)
    record(
        "A second run in the same folder",
        happened="status 2, naming the first, which goes on",
        lost="nothing",
    )


def test_no_right_to_write(tmp_path: Path, record: Record) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o555)
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o755)
    (tmp_path / "run.out").touch(mode=0o666)
    user = 65534 if os.getuid() == 0 else None
    if user and not all(path.stat().st_mode & 0o001 for path in ROOT.parents):
        pytest.skip("this checkout is in a folder that other users cannot enter")
    training = Training(tmp_path / "run", f"hydra.run.dir={folder}/run", user=user)
    message = one_sentence(training, 2)
    assert "locked/run cannot be written: Permission denied" in message
    record("No right to write into the folder", happened="status 2", lost="nothing")


def test_want_of_memory(tmp_path: Path, record: Record) -> None:
    message = one_sentence(Training(tmp_path / "run", environment={"FAULT_MEMORY": "3"}), 5)
    assert "the memory of this machine is not enough (4194304.00 GiB more were wanted)" in message
    assert "data.batch_size=1 trainer.accumulate_grad_batches=2" in message
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["status"] == "failed"
    again = Training(tmp_path / "run", "ckpt_path=last")
    assert again.ended() == 0, again.text()
    record(
        "Not enough memory in a step",
        happened="status 5, with what to change and by how much",
        lost="steps",
    )


def test_one_number_that_is_not_finite(whole: Path, tmp_path: Path, record: Record) -> None:
    bad = {"FAULT_NAN": "style:10:11"}
    reference = Training(tmp_path / "whole", environment=bad)
    training = Training(tmp_path / "run", environment={**bad, "FAULT_SLEEP": "0.02"})
    assert training.wait_for(lambda: training.steps >= 20), training.text()
    training.send(signal.SIGKILL)
    training.ended()
    again = Training(tmp_path / "run", "ckpt_path=last")
    assert again.ended() == 0, again.text()
    assert reference.ended() == 0, reference.text()
    text = reference.text()
    assert "step 13 skipped (1 so far): NaN or Inf in the style score" in text
    assert "step 14 skipped (2 so far)" in text
    assert ".jpg" in text.partition("step 13 skipped")[2].splitlines()[0]
    assert content(tmp_path / "whole")["bad_steps"] == {"in_a_row": 0, "total": 2}
    assert json.loads((tmp_path / "whole" / "metrics.json").read_text())["skipped_steps"] == 2
    for value in content(tmp_path / "whole")["state_dict"].values():
        assert torch.isfinite(value.double()).all()
    assert_bit_equal(tmp_path / "run", tmp_path / "whole")
    record(
        "NaN in a score, for two steps",
        happened="skips both, names t and images; resumes",
        lost="the skipped steps",
    )


def test_numbers_that_stay_not_finite(tmp_path: Path, record: Record) -> None:
    limit, last = 5, 17
    training = Training(tmp_path / "run", f"max_bad_steps={limit}", environment={"FAULT_NAN": "style:10:1000"})
    message = one_sentence(training, 1)
    assert f"max_bad_steps: {limit} steps in a row had NaN or Inf, the last in the style score" in message
    report = json.loads((tmp_path / "run" / "bad_steps.json").read_text())
    assert report["step"] == last
    assert len(report["steps"]) == limit
    assert all(step["stage"] == "style_score" and step["times"]["t"] for step in report["steps"])
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["status"] == "failed"
    saved = content(tmp_path / "run")
    assert saved["global_step"] == last + 1
    assert saved["bad_steps"] == {"in_a_row": limit, "total": limit}
    again = Training(tmp_path / "run", "ckpt_path=last")
    assert again.ended() == 0, again.text()
    record(
        "NaN in every step",
        happened="checkpoint and `bad_steps.json` after `max_bad_steps`, status 1",
        lost="nothing",
    )


def test_a_sweep_goes_on_after_a_fault_and_ends_with_its_status(tmp_path: Path, record: Record) -> None:
    sweep = ["hydra.mode=MULTIRUN", "max_bad_steps=5,1000"]
    training = Training(tmp_path / "sweep", *sweep, environment={"FAULT_NAN": "style:10:16"})
    assert "max_bad_steps: 5 steps in a row had NaN or Inf" in one_sentence(training, 1)
    summaries = [json.loads((tmp_path / "sweep" / job / "metrics.json").read_text()) for job in "01"]
    assert [summary["status"] for summary in summaries] == ["failed", "finished"]
    assert [summary["skipped_steps"] for summary in summaries] == [5, 7]
    record(
        "A fault in the first job of a sweep",
        happened="does the other job; status of the fault",
        lost="the first job, until resumed",
    )


@pytest.mark.parametrize("server", ["closed", "silent"])
def test_weights_and_biases_cannot_be_reached(server: str, whole: Path, tmp_path: Path, record: Record) -> None:
    pytest.importorskip("wandb")
    import socket

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if server == "silent":  # takes the connection and never answers
            listening.listen()
        environment = {
            "WANDB_API_KEY": "0" * 40,
            "WANDB_BASE_URL": f"http://127.0.0.1:{listening.getsockname()[1]}",
            "HOME": str(tmp_path),
        }
        training = Training(tmp_path / "run", "logger=wandb", environment=environment)
        assert training.ended() == 0, training.text()
    assert "cannot be reached" in training.text()
    assert "wandb sync" in training.text()
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))
    mine, theirs = content(tmp_path / "run")["state_dict"], content(whole)["state_dict"]
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    record(
        "Weights & Biases cannot be reached",
        happened="says so, logs offline for `wandb sync`",
        lost="nothing",
    )


def test_a_slurm_job_that_is_evicted(whole: Path, tmp_path: Path, record: Record) -> None:
    folder, asked = tmp_path / "bin", tmp_path / "asked"
    folder.mkdir()
    (folder / "scontrol").write_text(f'#!/bin/sh\n[ "$1" = show ] || echo "$@" >> {asked}\n')
    (folder / "scontrol").chmod(0o755)
    job = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS": "1",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
        "SLURM_NNODES": "1",
        "SLURM_STEP_ID": "0",
    }
    for turn, (number, status) in enumerate([(signal.SIGUSR1, 138), (signal.SIGTERM, 143)]):
        training = Training(tmp_path / "run", environment={**job, "SLURM_RESTART_COUNT": str(turn)})
        assert training.wait_for(lambda: training.steps >= 8), training.text()  # noqa: B023
        training.send(number)
        assert training.ended() == status, training.text()
        assert asked.read_text() == "requeue 4711\n"  # for the first signal alone
        assert not list((tmp_path / "run").rglob("hpc_ckpt*"))
    last = Training(tmp_path / "run", environment={**job, "SLURM_RESTART_COUNT": "2"})  # the same command again
    assert last.ended() == 0, last.text()
    assert_bit_equal(tmp_path / "run", whole)
    record(
        "Slurm evicts the job (SIGUSR1, SIGTERM)",
        happened="finishes the step, saves, requeues if SIGUSR1; resumes",
        lost="nothing",
    )
