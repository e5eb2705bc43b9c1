"""Whether a run goes on with the data with which it began."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class DataState:
    """What a checkpoint says about the data.

    Attributes:
        fingerprint: Hash of names, sizes and captions of the training images, in their order.
        global_batch: Samples of one micro-batch on all processes together.
        micro_batches: Of one optimizer step.
    """

    fingerprint: str
    images: int
    global_batch: int
    micro_batches: int


def fingerprint(samples: Iterable[tuple[object, ...]]) -> str:
    """Hash of a list of (name, width, height, caption)."""
    found = hashlib.sha256()
    for sample in samples:
        found.update(repr(sample).encode("utf-8", "backslashreplace") + b"\n")
    return found.hexdigest()


def compare(then: Mapping[str, Any], now: DataState, *, processes: int) -> list[str]:
    """What differs between the data of a checkpoint and those of the run that goes on from it, in sentences."""
    found = []
    if then["fingerprint"] != now.fingerprint:
        count = f"{then['images']} images then, {now.images} now" if then["images"] != now.images else "as many images"
        found.append(
            f"data: the names, sizes or captions of the training images are not those of the checkpoint ({count}); "
            "the run goes on with those that are there, in an order of their own"
        )
    batch, parts = then["global_batch"], then["micro_batches"]
    if (batch, parts) != (now.global_batch, now.micro_batches):
        each = f"data.batch_size={batch // processes}" if batch % processes == 0 else "another number of processes"
        found.append(
            f"data.batch_size: {processes} processes together have {now.global_batch} samples in each of "
            f"{now.micro_batches} parts of a step, {batch} in {parts} when the checkpoint was written; {each} with "
            f"trainer.accumulate_grad_batches={parts} would continue the same training"
        )
    return found
