"""Files of weights on the disk: their hash, whether they are whole, and who may write beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are done, and with how many there will be (None: not known)."""


@dataclass(frozen=True)
class FileRecord:
    """What identifies the content of a file: its size in bytes and its SHA-256 in hexadecimal digits."""

    size: int
    sha256: str


def nothing(*_: object) -> None:
    """A listener that does not listen."""


def spell_size(count: int) -> str:
    """Bytes for people, in decimal units."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.{2 if unit == 'GB' else 1}f} {unit}"
    return f"{count} bytes"


def file_sha256(path: Path, *, progress: Progress = nothing) -> str:
    """SHA-256 of a file in hexadecimal digits."""
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
            done += len(piece)
            progress(done, total)
    return digest.hexdigest()


def safetensors_fault(path: Path) -> str | None:
    """Why a file is no whole safetensors file, by its header and length; None if it is one. Reads no tensor."""
    try:
        with safe_open(path, framework="numpy"):
            return None
    except (SafetensorError, OSError) as error:
        return str(error).splitlines()[0]


@contextmanager
def folder_lock(folder: Path, *, say: Callable[[str], None] = nothing) -> Iterator[None]:
    """Within the context no other process fetches into this folder."""
    lock = FileLock(folder / ".smsff.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"another fetch is writing to {folder}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
