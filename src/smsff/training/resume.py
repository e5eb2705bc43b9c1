"""Whether a configuration agrees with the checkpoint from which its run goes on."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from smsff.errors import UserError, shown
from smsff.training.checkpoints import read_checkpoint
from smsff.training.slurm import is_main_process

log = logging.getLogger(__name__)

REFUSED = ("task", "generator.*", "fake_score._target_", "fake_score.rank", "fake_score.target_modules", "lora.*")
"""What decides which tensors there are: another choice is another run."""

IGNORED = tuple(f"optimizer.*.{name}" for name in ("lr", "betas", "eps", "weight_decay", "clip_norm"))
"""What an optimizer takes from the checkpoint, whatever the configuration says."""

FREE = (
    "run_dir",
    "ckpt_path",
    "returns",
    "trainer.*",
    "logger*",
    "callbacks.*",
    "log_every",
    "sample_every",
    "checkpoint_*",
    "max_bad_steps",
    "process_timeout",
    "weights.*",
    "style.page",
    "data.root",  # the data module compares the images themselves
    "data.path",
    "data.batch_size",  # and the size of the whole batch
    "data.num_workers",
    "data.worker_timeout",
    "data.cache_mb",
    "data.val_*",
    "teacher.gradient_checkpointing",
    "teacher.local_files_only",
)
"""What changes nothing in the numbers of the training, or is looked at elsewhere."""

MAX_NAMED = 10


def check(checkpoint: Path, plain: Mapping[str, Any]) -> bool:
    """Compare a configuration with that of a checkpoint.

    What makes going on impossible is refused; a warning names what changes the training, and a run at its end.

    Returns:
        Whether the checkpoint is the end of just this training.

    Raises:
        UserError: the checkpoint is unreadable, was made for something else, or has more steps than the run.
    """
    content = read_checkpoint(checkpoint, mmap=True)
    then = content.get("hyper_parameters", {}).get("config")
    if not isinstance(then, Mapping):
        raise UserError(f"ckpt_path={checkpoint}: not a checkpoint of an smsff training run")
    before, now = dict(leaves(then)), dict(leaves(plain))
    differ = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    refused = [key for key in differ if fits(key, REFUSED)]
    if refused:
        key = refused[0]
        raise UserError(
            f"{key}={shown(now.get(key))} contradicts ckpt_path={checkpoint}, which was made with "
            f"{shown(before.get(key))}; go on with that, or start a new run"
        )
    done, steps = int(content.get("global_step", 0)), plain["steps"]
    if done > steps:
        raise UserError(f"steps={steps}: ckpt_path={checkpoint} has {done} steps already; raise steps above {done}")
    changed = [key for key in differ if key in before and key in now]  # another version may have other keys
    others = [key for key in changed if not fits(key, IGNORED + FREE)]
    if is_main_process():
        if done == steps:
            log.warning("ckpt_path=%s: all steps=%d are done; raise steps to train on", checkpoint, steps)
        warn([key for key in changed if fits(key, IGNORED)], before, now, ": the checkpoint's value stays")
        warn(others, before, now, ": from here on another training")
    return done == steps and not others


def warn(keys: list[str], before: Mapping[str, Any], now: Mapping[str, Any], consequence: str) -> None:
    """One line for the keys that changed, with both values."""
    if not keys:
        return
    named = [f"{key} {shown(before.get(key))} -> {shown(now.get(key))}" for key in keys[:MAX_NAMED]]
    more = f" and {len(keys) - MAX_NAMED} more" if len(keys) > MAX_NAMED else ""
    log.warning("ckpt_path: changed since the checkpoint%s: %s%s", consequence, ", ".join(named), more)


def fits(key: str, patterns: tuple[str, ...]) -> bool:
    """Whether a dotted key is one of the patterns, or lies below one."""
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything in a tree of plain containers that is no mapping."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from leaves(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, list(node) if isinstance(node, tuple) else node
