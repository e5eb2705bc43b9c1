from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from tiny import tiny_batch, tiny_module
from torch.utils.data import DataLoader

from smsff.callbacks.last_checkpoint import LastCheckpoint
from smsff.callbacks.summary import RunSummary


class SendAt(pl.Callback):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, step: int, number: signal.Signals) -> None:
        self.step, self.number = step, number

    def on_before_backward(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


def fit(callbacks: list[Any], steps: int = 6) -> pl.Trainer:
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        callbacks=callbacks,
    )
    trainer.fit(tiny_module(), DataLoader([tiny_batch(i) for i in range(steps)], batch_size=None))
    return trainer


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
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
    fit([summary, stop])
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
