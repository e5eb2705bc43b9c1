from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins.environments import SLURMEnvironment
from tiny import tiny_batch, tiny_fit, tiny_module
from torch.utils.data import DataLoader

from smsff.errors import RunError
from smsff.training import signals
from smsff.training.callbacks.checkpoint_io import SafeCheckpointIO
from smsff.training.callbacks.last_checkpoint import LastCheckpoint
from smsff.training.callbacks.summary import RunSummary


class SendAt(pl.Callback):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, step: int, number: signal.Signals) -> None:
        self.step, self.number, self.sent = step, number, False

    def on_before_backward(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and not self.sent:
            self.sent = True
            os.kill(os.getpid(), self.number)


def fit(callbacks: list[Any], steps: int = 6, **options: Any) -> pl.Trainer:
    return tiny_fit(tiny_module(), steps, callbacks, **options)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_the_step_is_finished_saved_and_the_run_stopped(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    stop, summary = LastCheckpoint(path=tmp_path / "last.ckpt"), RunSummary(path=tmp_path / "metrics.json")
    trainer = fit([SendAt(3, number), summary, stop])
    assert trainer.global_step == 4
    assert stop.received is number
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4
    assert json.loads((tmp_path / "metrics.json").read_text())["status"] == "interrupted"
    assert signal.getsignal(number) is before


def test_a_second_signal_stops_at_once() -> None:
    stop = LastCheckpoint(path="unused")
    stop._note(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        stop._note(signal.SIGINT, None)


def test_a_second_one_within_moments_is_the_same_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = LastCheckpoint(path="unused")
    stop._note(signal.SIGINT, None)
    stop._note(signal.SIGTERM, None)
    assert stop.received is signal.SIGINT
    monkeypatch.setattr("smsff.training.signals.SAME", 0.0)
    with pytest.raises(KeyboardInterrupt):
        stop._note(signal.SIGTERM, None)


@pytest.mark.parametrize("hook", ["on_before_backward", "on_train_end", "on_validation_batch_start"])
def test_in_and_after_the_last_step_a_signal_changes_nothing_and_ends_a_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hook: str
) -> None:
    for name, value in {"NTASKS": "1", "JOB_ID": "5", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    left: list[int] = []
    monkeypatch.setattr(signals, "leave", left.append)
    monkeypatch.setattr(signals, "SAME", 60.0)
    send, stop, module = pl.Callback(), LastCheckpoint(path=tmp_path / "last.ckpt"), tiny_module()
    pictures = {**tiny_batch(), "name": ["a"] * 4}

    def kill(trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step >= 5:
            os.kill(os.getpid(), signal.SIGTERM)

    setattr(send, hook, kill)
    before = {number: signal.getsignal(number) for number in signals.ENDING}
    try:
        signals.listen()
        trainer = tiny_fit(module, 6, [send, stop], plugins=[SLURMEnvironment()])
        trainer.validate(module, DataLoader([pictures, pictures], batch_size=None), verbose=False)
        assert (trainer.global_step, stop.received, left) == (6, None, [])
        assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 6
        os.kill(os.getpid(), signal.SIGTERM)
        assert left == [], "within moments it is the same"
        os.kill(os.getpid(), signal.SIGINT)
        assert left == [signal.SIGINT]
        signals.listen()  # another job of the sweep begins
        assert left == [signal.SIGINT, signal.SIGTERM]
    finally:
        signals.finish(None, 0.0)
        for number, handler in before.items():
            signal.signal(number, handler)


def test_after_a_failed_run_a_signal_does_what_it_did_before() -> None:
    class Fail(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise RuntimeError("broken")

    caught: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: caught.append(number))
    try:
        with pytest.raises(RuntimeError, match="broken"):
            fit([LastCheckpoint(path="unused"), Fail()])
        os.kill(os.getpid(), signal.SIGINT)
        assert caught == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_undisturbed_run_is_finished_and_its_figures_counted(tmp_path: Path) -> None:
    stop, summary = LastCheckpoint(path=tmp_path / "last.ckpt"), RunSummary(path=tmp_path / "metrics.json")
    summary.write(fit([summary, stop]), "finished")
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content["status"] == "finished"
    assert (content["steps"], content["images_seen"]) == (6, 24)
    assert content["figures"]["train/loss"] > 0
    assert content["images_per_second"] > 0
    assert stop.received is None
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "metrics.json"]


def test_a_failed_run_leaves_its_summary_too(tmp_path: Path) -> None:
    class Fail(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 2:
                raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fit([RunSummary(path=tmp_path / "metrics.json"), Fail()])
    assert json.loads((tmp_path / "metrics.json").read_text())["status"] == "failed"


def test_an_accumulated_step_is_finished_with_all_its_parts(tmp_path: Path) -> None:
    stop = LastCheckpoint(path=tmp_path / "last.ckpt")
    trainer = fit([SendAt(3, signal.SIGTERM), stop], accumulate_grad_batches=3)
    assert trainer.global_step == 4
    progress = torch.load(tmp_path / "last.ckpt", weights_only=True)["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    assert progress["total"]["processed"] == 12


def test_a_last_checkpoint_that_cannot_be_written_is_tried_again_then_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smsff.training.callbacks.last_checkpoint.PAUSE", 0.0)
    writes: list[int] = []

    class Full(SafeCheckpointIO):
        works_at = 2

        def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
            writes.append(1)
            if len(writes) == self.works_at:
                self.failure = None
                super().save_checkpoint(checkpoint, path)
            else:
                self.failure = OSError(28, "No space left on device")

    path = tmp_path / "last.ckpt"
    fit([LastCheckpoint(path=path)], plugins=[Full()])
    assert len(writes) == 2
    assert torch.load(path, weights_only=True)["global_step"] == 6
    writes.clear()
    Full.works_at = -1
    with pytest.raises(RunError, match="No space left on device; the checkpoint of step 6 stands") as caught:
        fit([LastCheckpoint(path=path)], plugins=[Full()])
    assert caught.value.status == RunError.STORAGE
    assert len(writes) == 3


@pytest.mark.parametrize(("number", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_a_slurm_job_is_requeued_after_its_checkpoint_and_for_its_signal_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, requeued: bool
) -> None:
    for name, value in {"NTASKS": "1", "JOB_ID": "5", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    path, asked = tmp_path / "last.ckpt", []

    def requeue(number: signal.Signals) -> None:
        asked.append(torch.load(path, weights_only=True)["global_step"])

    monkeypatch.setattr("smsff.training.slurm.requeue", requeue)
    fit([SendAt(3, number), LastCheckpoint(path=path)], plugins=[SLURMEnvironment()], default_root_dir=tmp_path)
    assert asked == ([4] if requeued else [])
    assert [one.name for one in tmp_path.iterdir()] == ["last.ckpt"]  # Lightning has saved nothing of its own
