"""Faults that are prepared in the process that will suffer them. All can be sent to another process."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class KillWhileSaving:
    """SIGKILL during the n-th writing of a checkpoint (from 1).

    Attributes:
        which: n.
        stage: ``write`` (after ``share`` of the bytes), ``fsync``, ``link``, ``rename`` or ``renamed`` (just after it).
        share: Of the bytes that are in the file by then.
    """

    which: int
    stage: str
    share: float = 0.5

    def __call__(self) -> None:
        import smsff.training.checkpoints as target
        from smsff.training.callbacks.checkpoint_io import SafeCheckpointIO

        count = 0
        save = SafeCheckpointIO.save_checkpoint

        def counting(self: SafeCheckpointIO, *args: Any, **kwargs: Any) -> None:
            nonlocal count
            count += 1
            save(self, *args, **kwargs)

        SafeCheckpointIO.save_checkpoint = counting  # type: ignore[method-assign]

        def at(stage: str) -> None:
            if count == self.which and stage == self.stage:
                die()

        self._in_files(lambda: count == self.which and self.stage == "write")
        fsync, link, replace = os.fsync, os.link, os.replace

        def broken_fsync(number: int) -> None:
            at("fsync")
            fsync(number)

        def broken_link(*args: Any) -> None:
            at("link")
            link(*args)

        def broken_replace(source: Path, goal: Path) -> None:
            if Path(goal).name == "last.ckpt":
                at("rename")
            replace(source, goal)
            if Path(goal).name == "last.ckpt":
                at("renamed")

        target.os.fsync, target.os.link, target.os.replace = broken_fsync, broken_link, broken_replace  # type: ignore

    def _in_files(self, now: Callable[[], bool]) -> None:
        opened = Path.open

        def broken_open(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            file = opened(path, mode, *args, **kwargs)
            return HalfFile(file, self.share) if path.suffix == ".part" and "w" in mode and now() else file

        Path.open = broken_open  # type: ignore[method-assign, assignment]


class HalfFile:
    """Writes a part of the first piece, makes sure that it arrives, and dies."""

    def __init__(self, file: Any, share: float) -> None:
        self.file, self.share = file, share

    def __enter__(self) -> HalfFile:
        return self

    def __exit__(self, *_: Any) -> None:
        self.file.close()

    def write(self, data: Any) -> int:
        self.file.write(data[: int(len(data) * self.share)])
        self.file.flush()
        os.fsync(self.file.fileno())
        die()
        return 0


@dataclass
class HangingDisk:
    """Reading a picture takes for ever while a switch file exists, as on a file server that does not answer."""

    switch: Path

    def __call__(self) -> None:
        read = Path.read_bytes

        def hanging(path: Path) -> bytes:
            while path.suffix in (".jpg", ".png") and self.switch.exists():
                time.sleep(0.1)
            return read(path)

        Path.read_bytes = hanging  # type: ignore[method-assign]


@dataclass
class FullDisk:
    """No room for the files whose path ends or contains as given, while a switch file exists.

    Attributes:
        patterns: Parts of paths.
        switch: While this file exists, the disk is full.
        after: Bytes that still fit into each file.
    """

    patterns: tuple[str, ...]
    switch: Path
    after: int = 1000

    def __call__(self) -> None:
        import builtins
        import io

        opened, built_in, raw = Path.open, builtins.open, io.open

        def guarded(original: Callable[..., Any]) -> Callable[..., Any]:
            def call(path: Any, *args: Any, **kwargs: Any) -> Any:
                file = original(path, *args, **kwargs)
                mode = str(args[0] if args else kwargs.get("mode", "r"))
                hit = any(pattern in str(path) for pattern in self.patterns)
                return LimitedFile(file, self) if hit and set(mode) & set("wa") else file

            return call

        Path.open = guarded(opened)  # type: ignore[method-assign]
        builtins.open, io.open = guarded(built_in), guarded(raw)  # type: ignore[assignment]


class LimitedFile:
    """A file on a full disk: takes some bytes, then none."""

    def __init__(self, file: Any, disk: FullDisk) -> None:
        self.file, self.disk, self.left = file, disk, disk.after

    def __enter__(self) -> LimitedFile:
        return self

    def __exit__(self, *_: Any) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, data: Any) -> Any:
        if not self.disk.switch.exists():
            return self.file.write(data)
        part, self.left = data[: self.left], self.left - len(data)
        written = self.file.write(part)
        if self.left < 0:
            self.file.flush()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), getattr(self.file, "name", None))
        return written
