"""What a checkpoint holds of a LightningModule with a frozen teacher: the trained weights, and who wrote them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from smsff import __version__
from smsff.errors import UserError
from smsff.training.nonfinite import StepGuard


def write_state(checkpoint: dict[str, Any], keys: set[str], record: Mapping[str, Any], guard: StepGuard) -> None:
    """Leave only the named tensors in a checkpoint, and put the record and the counts of skipped steps into it."""
    checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in keys}
    checkpoint["hyper_parameters"] = {**record, "smsff_version": __version__}
    checkpoint["bad_steps"] = guard.state_dict()


def read_state(
    checkpoint: Mapping[str, Any], keys: set[str], own: Mapping[str, Tensor], guard: StepGuard, *, written_with: str
) -> None:
    """Check that a checkpoint has just the named tensors, in the shapes of `own`; take over its counts.

    Args:
        written_with: What another checkpoint was written with, for the message.

    Raises:
        UserError: it lacks a tensor, has one too many, or one of another shape.
    """
    guard.load_state_dict(checkpoint.get("bad_steps", {"in_a_row": 0, "total": 0}))
    for optimizer in checkpoint.get("optimizer_states", []):
        for group in optimizer["param_groups"]:
            group["fused"] = True  # not so in checkpoints from before steps could be skipped
    state = checkpoint["state_dict"]
    missing, surplus = sorted(keys - state.keys()), sorted(state.keys() - keys)
    misfits = [k for k in sorted(keys & state.keys()) if state[k].shape != own[k].shape]
    for what, names in (("lacks", missing), ("has unknown", surplus), ("has another shape of", misfits)):
        if names:
            raise UserError(
                f"ckpt_path: the checkpoint {what} {len(names)} of this run's {len(keys)} tensors (first: {names[0]}); "
                f"it was written with {written_with}"
            )
