from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from tiny import tiny_fit, tiny_module
from torch import nn

from smsff.errors import RunError
from smsff.training.callbacks.bad_steps import BadSteps, image_names, remedy, told
from smsff.training.callbacks.last_checkpoint import LastCheckpoint
from smsff.training.callbacks.summary import RunSummary


class Spoil(pl.Callback):
    """NaN in the style score of sample 2 from one step to another."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        def hook(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            output = output.clone()
            if self.first <= trainer.global_step <= self.last:
                output[2] = float("nan")
            return output

        pl_module.teacher.style.register_forward_hook(hook)


def fit(folder: Path, spoil: Spoil, limit: int) -> pl.Trainer:
    last = LastCheckpoint(path=folder / "last.ckpt")
    summary = RunSummary(path=folder / "metrics.json")
    bad = BadSteps(path=folder / "bad_steps.json", limit=limit)
    return tiny_fit(tiny_module(), 8, [spoil, bad, summary, last])


def test_some_skipped_steps_are_named_and_counted_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = fit(tmp_path, Spoil(3, 4), limit=3)
    assert trainer.global_step == 8
    lines = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert len(lines) == 2
    assert lines[0].startswith("step 3 skipped (1 so far): NaN or Inf in the style score, image 2, t [")
    assert json.loads((tmp_path / "metrics.json").read_text())["skipped_steps"] == 2
    assert not (tmp_path / "bad_steps.json").exists()


def test_too_many_in_a_row_end_the_run_with_checkpoint_and_report(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"max_bad_steps: 3 steps in a row .* in the style score, image 2") as caught:
        fit(tmp_path, Spoil(3, 99), limit=3)
    assert caught.value.status == RunError.NUMBERS
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["bad_steps"] == {"in_a_row": 3, "total": 3}
    report = json.loads((tmp_path / "bad_steps.json").read_text())
    assert [one["step"] for one in report["steps"]] == [3, 4, 5]
    assert report["steps"][0]["images"] == ["image 2"]
    assert len(report["steps"][0]["times"]["t"]) == 4
    assert report["steps"][0]["gradient_norms"] == {
        "generator": "nan",
        "fake": report["steps"][0]["gradient_norms"]["fake"],
    }
    assert json.loads((tmp_path / "metrics.json").read_text())["status"] == "failed"


def teacher(dtype: torch.dtype) -> Any:
    latent = nn.Linear(2, 2).to(dtype).requires_grad_(False)
    whole = nn.ModuleDict({"latent": latent, "unet": nn.Linear(2, 2).requires_grad_(False)})
    whole.latent = latent
    return SimpleNamespace(teacher=whole)


def test_an_auto_encoder_that_overflows_in_half_precision_is_named_with_the_remedy() -> None:
    sentence = remedy({"stage": "latent"}, teacher(torch.float16))
    assert sentence.startswith("the auto-encoder computes in float16")
    assert sentence.endswith("set teacher.dtype=bfloat16 or float32")
    assert remedy({"stage": "style_score"}, teacher(torch.float16)).startswith("the teacher computes in float16")
    assert "smsff doctor" in remedy({"stage": "source_latent"}, teacher(torch.float32))
    assert "optimizer.generator.lr" in remedy({"stage": "generator"}, teacher(torch.float16))
    assert "optimizer.generator.lr" in remedy({"stage": None}, SimpleNamespace())  # type: ignore[arg-type]


def test_images_have_their_names_where_the_data_know_them() -> None:
    data = SimpleNamespace(train=SimpleNamespace(name=lambda index: f"{index}.jpg"))
    assert image_names(SimpleNamespace(datamodule=data), [3, 1]) == ["3.jpg", "1.jpg"]  # type: ignore[arg-type]
    assert image_names(SimpleNamespace(), [3]) == ["image 3"]  # type: ignore[arg-type]
    record = {"stage": None, "images": [str(i) for i in range(10)], "times": {"t": [1, 2]}}
    assert told(record) == "in the backward pass, 0, 1, 2, 3, 4, 5, 6, 7 and 2 more, t [1, 2]"
