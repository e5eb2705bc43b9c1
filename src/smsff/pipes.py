"""Output that nobody reads any more, as after ``| head``: it is dropped, and the command goes on to its end."""

from __future__ import annotations

import io
import os
import sys


class _Pipe(io.FileIO):
    def write(self, data: bytes) -> int | None:  # type: ignore[override]
        try:
            return super().write(data)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(data)


def tolerate_closed() -> None:
    """Let this process's output and error output, where they are pipes, outlive their readers."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and stream is getattr(sys, f"__{name}__") and not stream.isatty():
            stream.flush()
            pipe = _Pipe(stream.fileno(), "w", closefd=False)
            tolerant = io.TextIOWrapper(
                pipe if stream.write_through else io.BufferedWriter(pipe),  # type: ignore[type-var] # as Python's own
                encoding=stream.encoding,
                errors=stream.errors,
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, tolerant)
