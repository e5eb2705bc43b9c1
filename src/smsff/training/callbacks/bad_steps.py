"""Steps that were skipped because a number was not finite: named, counted, and after too many in a row the end."""

from __future__ import annotations

import logging
from collections import deque
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from smsff.errors import RunError
from smsff.training.callbacks.last_checkpoint import LastCheckpoint
from smsff.training.callbacks.summary import write_json
from smsff.training.faults import going_on
from smsff.training.nonfinite import Outcome, StepGuard, origin

log = logging.getLogger(__name__)

HALF = (torch.float16,)
STAGES = {
    "source_latent": "the latents of the photos",
    "generator": "the output of the generator",
    "latent": "the latents of the result",
    "gradient": "the gradient of the objective",
    "fake_loss": "the loss of the fake score",
    None: "the backward pass",
}
FROZEN = ("source_latent", "latent", "style_score", "style_source_score", "base_score", "fake_score", "relevance")
NAMED = 8
"""Most images named for one step."""


class BadSteps(pl.Callback):
    """Reports what the module's `StepGuard` has skipped; after `limit` skipped steps in a row it ends the run, with a
    checkpoint and the report `path` in JSON.
    """

    def __init__(self, *, path: str | Path, limit: int) -> None:
        self.path, self.limit = Path(path), limit
        self.total = 0
        self.recent: deque[dict[str, Any]] = deque(maxlen=limit)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        guard = getattr(pl_module, "guard", None)
        if isinstance(guard, StepGuard):
            self.note(guard.outcomes(), trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        guard = getattr(pl_module, "guard", None)
        if isinstance(guard, StepGuard):
            self.note(guard.outcomes(wait=True), trainer, pl_module)

    def note(self, outcomes: list[Outcome], trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report outcomes; RunError after too many skipped steps in a row, with a checkpoint written."""
        for outcome in outcomes:
            self.total = outcome.total
            if not outcome.skipped:
                continue
            record = describe(outcome, trainer)
            self.recent.append(record)
            log.warning("step %d skipped (%d so far): NaN or Inf %s", outcome.step, outcome.total, told(record))
            if outcome.in_a_row >= self.limit:
                self.end(outcome, trainer, pl_module)

    def end(self, outcome: Outcome, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Checkpoint, report, stop; every process comes here at the same step."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, LastCheckpoint):
                callback.save(trainer)
        record, cure = self.recent[-1], remedy(self.recent[-1], pl_module)
        if trainer.is_global_zero:
            report = {
                "step": outcome.step,
                "in_a_row": outcome.in_a_row,
                "total": outcome.total,
                "remedy": cure,
                "steps": list(self.recent),
            }
            with going_on(f"the report {self.path}"):
                write_json(self.path, report)
        raise RunError(
            f"max_bad_steps: {outcome.in_a_row} steps in a row had NaN or Inf, the last {told(record)}; {cure}; "
            f"report: {self.path}",
            status=RunError.NUMBERS,
        )


def describe(outcome: Outcome, trainer: pl.Trainer) -> dict[str, Any]:
    """One skipped step in plain values: where it began, at which images and which t."""
    stage, images, batches = origin(outcome.batches)
    return {
        "step": outcome.step,
        "process": trainer.global_rank,
        "stage": stage,
        "images": image_names(trainer, images),
        "times": {name: t.tolist() for one in batches or outcome.batches for name, t in one.times.items()},
        "iterations": [one.iteration for one in outcome.batches],
        "gradient_norms": {name: str(norm) for name, norm in outcome.norms.items()},
    }


def image_names(trainer: pl.Trainer, indices: list[int]) -> list[str]:
    """Names of training images, or their numbers if the data have no names."""
    name = getattr(getattr(getattr(trainer, "datamodule", None), "train", None), "name", None)
    return [name(index) if callable(name) else f"image {index}" for index in indices]


def told(record: dict[str, Any]) -> str:
    """A record as part of a sentence."""
    stage = STAGES.get(record["stage"], f"the {str(record['stage']).replace('_', ' ')}")
    images = record["images"]
    more = f" and {len(images) - NAMED} more" if len(images) > NAMED else ""
    times = ", ".join(f"{name} {t}" for name, t in record["times"].items())
    return f"in {stage}, {', '.join(images[:NAMED])}{more}" + (f", {times}" if times else "")


def remedy(record: dict[str, Any], pl_module: pl.LightningModule) -> str:
    """What may help against numbers that are not finite, by where they came up."""
    teacher = getattr(pl_module, "teacher", None)
    part = getattr(teacher, "latent", None) if record["stage"] in ("source_latent", "latent") else teacher
    types = {parameter.dtype for parameter in part.parameters() if not parameter.requires_grad} if part else set()
    if record["stage"] in FROZEN and types & set(HALF):
        what = "the auto-encoder" if record["stage"] in ("source_latent", "latent") else "the teacher"
        return f"{what} computes in float16, whose largest number is 65504: set teacher.dtype=bfloat16 or float32"
    if record["stage"] in ("source_latent", "style_score", "base_score"):
        return "the frozen weights gave it: check them with `smsff doctor`"
    return "a lower optimizer.generator.lr or optimizer.fake.lr, or a lower clip_norm, from an earlier checkpoint"
