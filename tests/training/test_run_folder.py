from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from smsff.errors import UserError
from smsff.training import resume
from smsff.training.checkpoints import write_checkpoint
from smsff.training.run_folder import checkpoint_for, claimed, run_lock

fork = multiprocessing.get_context("fork")


def configuration(run_dir: Path, ckpt_path: str | None = None) -> Any:
    return OmegaConf.create({"run_dir": str(run_dir), "ckpt_path": ckpt_path})


def checkpoint(path: Path, config: dict[str, Any] | None = None, step: int = 1) -> Path:
    write_checkpoint({"global_step": step, "hyper_parameters": {"config": config or {}}}, path)
    return path


def hold(folder: Path, ready: Any, child: bool) -> None:
    with run_lock(folder):
        worker = os.fork() if child else 0  # as a loader worker: it has the file too, and outlives us
        if child and worker == 0:
            signal.pause()
        ready.send((os.getpid(), worker))
        signal.pause()


@pytest.mark.parametrize("child", [False, True])
def test_a_folder_has_one_run_and_a_killed_one_does_not_block_it(tmp_path: Path, child: bool) -> None:
    ours, theirs = fork.Pipe()
    process = fork.Process(target=hold, args=(tmp_path, theirs, child))
    process.start()
    pid, worker = ours.recv()
    with pytest.raises(UserError, match=rf"run_dir: .* is in use by process {pid} on "), run_lock(tmp_path):
        pass
    process.kill()
    process.join()
    with run_lock(tmp_path):
        assert f"process {os.getpid()}" in (tmp_path / ".lock").read_text()
    if worker:
        os.kill(worker, signal.SIGKILL)


def test_where_there_are_no_locks_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import fcntl

    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    with run_lock(tmp_path):
        pass


def test_another_run_is_left_alone_and_ones_own_goes_on(tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    with claimed(configuration(run), run):
        pass
    assert (run / "config.yaml").is_file()
    with pytest.raises(UserError, match="already holds a run"), claimed(configuration(run), run):
        pass
    elsewhere = checkpoint(other / "checkpoints" / "last.ckpt")
    with pytest.raises(UserError, match="holds a run"), claimed(configuration(run, str(elsewhere)), run):
        pass
    with claimed(configuration(run, "last"), run):
        pass
    own = checkpoint(run / "checkpoints" / "last.ckpt")
    with claimed(configuration(run, str(own)), run):
        pass
    assert sorted(path.name for path in run.glob("*.yaml")) == [
        "config.yaml",
        "config_resumed_1.yaml",
        "config_resumed_2.yaml",
    ]


def test_a_run_lost_before_its_first_checkpoint_begins_again_and_takes_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    beside = checkpoint(tmp_path / "other" / "checkpoints" / "last.ckpt")
    assert checkpoint_for("last", run) == beside  # a new folder goes on from the run beside it
    with claimed(configuration(run), run):
        pass
    with caplog.at_level(logging.WARNING):
        assert checkpoint_for("last", run) is None
    assert "no checkpoint yet; starting from the beginning" in caplog.text
    own = checkpoint(run / "checkpoints" / "last.ckpt")
    assert checkpoint_for("last", run) == own
    assert checkpoint_for(None, run) is None


def test_a_job_that_slurm_starts_again_goes_on_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    for name, value in {"SLURM_NTASKS": "1", "SLURM_JOB_ID": "5", "SLURM_RESTART_COUNT": "2"}.items():
        monkeypatch.setenv(name, value)
    assert checkpoint_for(None, run) is None
    for _ in range(2):
        with claimed(configuration(run), run):
            pass
    own = checkpoint(run / "checkpoints" / "last.ckpt")
    assert checkpoint_for(None, run) == own


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = tmp_path / "file" / "run"
    message = r"run_dir: .*file/run cannot be written: Not a directory"
    with pytest.raises(UserError, match=message), claimed(configuration(run), run):
        pass


CONFIG: dict[str, Any] = {
    "task": "style_matching",
    "seed": 0,
    "steps": 10,
    "run_dir": "a",
    "generator": {"_target_": "x.UNet", "widths": [8, 8]},
    "fake_score": {"_target_": "x.Lora", "rank": 4, "loss_weight": "uniform"},
    "optimizer": {"generator": {"lr": 0.1, "schedule": "cosine"}},
    "data": {"batch_size": 4, "num_workers": 0},
    "trainer": {"devices": 1},
}


def changed(**changes: Any) -> dict[str, Any]:
    plain = {name: dict(node) if isinstance(node, dict) else node for name, node in CONFIG.items()}
    for key, value in changes.items():
        group, _, name = key.partition("__")
        if name:
            plain[group][name] = value
        else:
            plain[group] = value
    return plain


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("generator___target_", "x.ResNet"),
        ("generator__widths", [8, 16]),
        ("fake_score__rank", 8),
        ("fake_score__target_modules", ["to_q"]),
        ("task", "style_lora"),
    ],
)
def test_another_network_is_refused_by_name(tmp_path: Path, key: str, value: Any) -> None:
    path = checkpoint(tmp_path / "a.ckpt", CONFIG)
    with pytest.raises(UserError, match=rf"^{key.replace('__', '.', 1)}=.*contradicts ckpt_path=.*a\.ckpt"):
        resume.check(path, changed(**{key: value}))


def test_what_changes_nothing_is_passed_and_what_changes_the_training_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = checkpoint(tmp_path / "a.ckpt", CONFIG)
    with caplog.at_level(logging.WARNING):
        resume.check(path, changed())
        resume.check(
            path, changed(run_dir="b", trainer={"devices": 8}, data={"batch_size": 2, "num_workers": 3}, new=1)
        )
        assert not caplog.text
        resume.check(path, changed(seed=1, steps=20))
        assert "from here on another training: seed 0 -> 1, steps 10 -> 20" in caplog.text
        caplog.clear()
        resume.check(path, changed(optimizer={"generator": {"lr": 0.2, "schedule": "cosine"}}))
    assert "the checkpoint's value stays: optimizer.generator.lr 0.1 -> 0.2" in caplog.text


def test_at_its_end_a_run_says_so_and_a_shorter_one_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = checkpoint(tmp_path / "a.ckpt", CONFIG, step=10)
    with caplog.at_level(logging.WARNING):
        resume.check(path, changed(steps=11))
        assert "raise steps" not in caplog.text
        resume.check(path, changed())
    assert "all steps=10 are done; raise steps" in caplog.text
    with pytest.raises(UserError, match=r"^steps=9: ckpt_path=.*a\.ckpt has 10 steps already; raise steps above 10"):
        resume.check(path, changed(steps=9))


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    write_checkpoint({"global_step": 1, "state_dict": {}}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="not a checkpoint of an smsff training run"):
        resume.check(tmp_path / "a.ckpt", CONFIG)
