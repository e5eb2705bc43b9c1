from __future__ import annotations

import sys
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import RichProgressBar
from tiny import tiny_batch, tiny_module
from torch.utils.data import DataLoader

from smsff.training.callbacks.progress import LineProgress, progress_bar
from smsff.training.callbacks.throughput import Throughput


def test_a_terminal_gets_a_bar_and_a_file_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert isinstance(progress_bar(), RichProgressBar)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    assert isinstance(progress_bar(), LineProgress)


def test_lines_say_step_share_remaining_time_rate_and_loss(capsys: pytest.CaptureFixture[str]) -> None:
    callbacks: list[Any] = [LineProgress(every=2), Throughput(window=3)]
    trainer = pl.Trainer(
        max_steps=5,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )
    trainer.fit(tiny_module(), DataLoader([tiny_batch(i) for i in range(5)], batch_size=None))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == ["2/5", "4/5", "5/5"]
    assert "40%" in lines[0]
    for line in lines:
        assert "ETA 0:00:" in line
    assert "images_per_second" in lines[-1]
    assert "loss" in lines[-1]
    assert float(trainer.callback_metrics["train/images_per_second"]) > 0
