"""Waiting for other processes on a machine that may be busy: what they wait for a processor does not count."""

from __future__ import annotations

import time
from pathlib import Path


def held_up(pid: int) -> float:
    """Seconds for which the first thread of a process was ready to run and had no processor; 0 where nobody counts."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


class Patience:
    """Ends after so many seconds in which a process ran or slept.

    A process that hangs uses them up as the clock runs; one that is slow because others need the processors does not.
    """

    def __init__(self, pid: int, seconds: float) -> None:
        self.pid, self.seconds = pid, seconds
        self._start, self._held_up = time.monotonic(), held_up(pid)

    def left(self) -> float:
        """Seconds until the end at the earliest, 0 if it is over."""
        waited = max(0.0, held_up(self.pid) - self._held_up)
        return max(0.0, self._start + self.seconds + waited - time.monotonic())
