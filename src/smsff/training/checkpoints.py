"""Checkpoint files: written whole or not at all, with a manifest that tells a damaged one from an intact one.

A checkpoint is what ``torch.save`` writes, a zip archive. Its archive comment is one line of JSON: versions, step, time
and the sha256 of the archive without the comment. Contents and hash are one file, so they cannot part, and
``unzip -z FILE`` prints the manifest without loading anything.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import pickle
import re
import time
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from smsff import __version__
from smsff.errors import UserError, first_line

log = logging.getLogger(__name__)

FORMAT = 1
"""Raised when an older smsff could no longer read the file."""

SUFFIX = ".ckpt"
PART = ".part"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What stands in the archive comment; the hash is that of the archive with an empty comment."""

    format: int
    sha256: str
    step: int
    saved: float
    smsff: str
    torch: str


@dataclass(frozen=True)
class Found:
    """The checkpoint to go on from, and the newer ones that cannot be used, each with the reason."""

    path: Path
    passed_over: dict[Path, str]


# ------------------------------------------------------------------------------------------------------------- writing


def write_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Write aside in the same folder, sync, rename, sync the folder: a crash leaves the old file or the new one.

    Raises:
        OSError: the file cannot be written; what was there before is untouched.
    """
    import torch

    buffer = io.BytesIO()  # in memory first: torch's own writer ends the process when the disk is full
    torch.save(dict(content), buffer)
    archive = buffer.getbuffer()
    manifest = Manifest(
        format=FORMAT,
        sha256=hashlib.sha256(archive).hexdigest(),
        step=int(content.get("global_step", 0)),
        saved=time.time(),
        smsff=__version__,
        torch=str(torch.__version__),
    )
    comment = json.dumps(asdict(manifest)).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + PART)
    try:
        with aside.open("wb") as file:
            file.write(archive[:-2])  # the archive ends with the length of its comment
            file.write(len(comment).to_bytes(2, "little") + comment)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # the new name outlasts a power failure, where the file system can do that
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def keep_former(path: Path, *, step: int) -> None:
    """Give the checkpoint at ``path`` a second name, ``step_XXXXXX.ckpt``, before that of ``step`` takes its place."""
    manifest = read_manifest(path)
    if manifest is None or manifest.step == step:
        return
    former = path.with_name(f"step_{manifest.step:06d}{SUFFIX}")
    aside = former.with_name(former.name + PART)
    try:
        aside.unlink(missing_ok=True)
        os.link(path, aside)  # no second copy: two names of one file
        os.replace(aside, former)
    except OSError:  # a file system without links: for a moment there is no file at `path`, but this one
        os.replace(path, former)


def prune(folder: Path, *, keep: int) -> None:
    """Remove all but the ``keep`` newest of the former checkpoints ``step_*.ckpt``, and what a killed run left half."""
    former = sorted(folder.glob(f"step_*{SUFFIX}"), key=saved, reverse=True)
    for path in [*former[keep:], *folder.glob(f"*{PART}")]:
        path.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------------- reading


def read_manifest(path: Path) -> Manifest | None:
    """The manifest of a file; None if it has none, or none that can be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return Manifest(**json.loads(archive.comment))
    except Exception:  # the reader of damaged archives raises anything
        return None


def saved(path: Path) -> float:
    """When a checkpoint was written, in seconds since the epoch."""
    manifest = read_manifest(path)
    return manifest.saved if manifest else path.stat().st_mtime


def damage(path: Path) -> str | None:
    """Why a file cannot be a whole checkpoint; None if it is intact.

    Checkpoints without a manifest, from before there were any, are held against the checksums of the archive.
    """
    try:
        size = path.stat().st_size
        if size == 0:
            return "empty"
        if not zipfile.is_zipfile(path):
            return "truncated, or no checkpoint"
        manifest = read_manifest(path)
        if manifest is None:
            with zipfile.ZipFile(path) as archive:
                if archive.comment:
                    return "damaged: its manifest cannot be read"
                broken = archive.testzip()
            return f"damaged in {broken}" if broken else None
        if manifest.format > FORMAT:
            return f"written by smsff {manifest.smsff}, which is newer than this one ({__version__})"
        return None if digest(path) == manifest.sha256 else "damaged: its sha256 is not that of its manifest"
    except Exception as error:  # the reader of damaged archives raises anything
        return f"damaged: {first_line(error)}"


def digest(path: Path) -> str:
    """sha256 of an archive as if it had no comment."""
    with zipfile.ZipFile(path) as archive:
        tail = 2 + len(archive.comment)
    found, left = hashlib.sha256(), path.stat().st_size - tail
    with path.open("rb") as file:
        while left > 0 and (chunk := file.read(min(1 << 20, left))):
            found.update(chunk)
            left -= len(chunk)
    found.update(b"\0\0")
    return found.hexdigest()


def named(path: Path, key: str) -> str:
    """``key=path`` for messages; a name need not be UTF-8."""
    return f"{key}={os.fsencode(path).decode('utf-8', 'backslashreplace')}"


def intact(path: Path, key: str) -> Path:
    """The path, if its file is whole; UserError if the file is missing or damaged."""
    if not path.is_file():
        raise UserError(f"{named(path, key)}: there is no such file")
    reason = damage(path)
    if reason:
        raise UserError(f"{named(path, key)}: cannot be read as a checkpoint: {reason}")
    return path


def read_checkpoint(
    path: str | Path, *, key: str = "ckpt_path", map_location: Any = "cpu", mmap: bool = False
) -> dict[str, Any]:
    """Tensors and plain containers of a checkpoint; whatever else is in it is refused, and none of it is run.

    Args:
        path: The file.
        key: Config key to name in messages.
        map_location, mmap: As for ``torch.load``.

    Raises:
        UserError: the file is missing, damaged, no checkpoint, or holds Python code.
    """
    import torch

    path = intact(Path(path), key)
    source = named(path, key)
    try:
        content = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" ({found.group(1)})" if found else ""
        raise UserError(
            f"{source}: refused, nothing of it was run: it holds Python code{what}, and a checkpoint of smsff "
            "holds tensors and plain values alone"
        ) from error
    except Exception as error:  # the readers of untrusted bytes raise anything
        raise UserError(f"{source}: cannot be read as a checkpoint: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{source}: holds a {type(content).__name__}, no checkpoint")
    return content


# ------------------------------------------------------------------------------------------------------------- finding


def find_checkpoint(wanted: str | None, run_dir: Path) -> Found | None:
    """The file that ``ckpt_path`` means.

    ``last`` is the newest intact checkpoint of the run folder itself (to go on in the same folder), or else of the
    runs beside it (to go on from there in a new folder).

    Raises:
        UserError: nothing is there, or nothing intact.
    """
    if wanted is None:
        return None
    if wanted != "last":
        return Found(intact(Path(wanted), "ckpt_path").resolve(), {})
    own = sorted((run_dir / "checkpoints").glob(f"*{SUFFIX}"))
    beside = [p for depth in ("*", "*/*") for p in run_dir.parent.glob(f"{depth}/checkpoints/*{SUFFIX}")]
    candidates = [path for path in own or beside if path.is_file()]
    if not candidates:
        raise UserError(f"ckpt_path=last: no checkpoints/*{SUFFIX} in {run_dir} or in a run beside it")
    passed_over: dict[Path, str] = {}
    for path in sorted(candidates, key=lambda path: (saved(path), path.stem == "last"), reverse=True):
        reason = damage(path)
        if reason is None:
            return Found(path.resolve(), passed_over)
        passed_over[path.resolve()] = reason
    listed = "; ".join(f"{path.name}: {reason}" for path, reason in passed_over.items())
    raise UserError(f"ckpt_path=last: none of the {len(passed_over)} checkpoints is intact ({listed})")


def report_found(found: Found, run_dir: Path) -> None:
    """Name the checkpoints that were passed over; those of this run are renamed to ``*.damaged``."""
    for path, reason in found.passed_over.items():
        log.warning("ckpt_path=last: passed over %s (%s)", path, reason)
        if path.is_relative_to(run_dir.resolve()):
            with contextlib.suppress(OSError):
                os.replace(path, path.with_name(path.name + ".damaged"))
    if found.passed_over:
        log.warning("ckpt_path=last: going on from %s", found.path)
