"""The signals that end a run, from the first moment of its process to the last.

Within a training `LastCheckpoint` handles them: the step is finished and saved. Before it there is nothing to save, and
the process ends at once, for an exception in the middle of an import would come out as another one. After the last step
the first signal changes nothing: the results are written, and the run is finished.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType

from smsff.training import slurm

ENDING = tuple(
    signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if name in signal.Signals.__members__
)
SAME = 2.0
"""Seconds within which another signal is the first once more: Slurm and torchrun send SIGTERM twice."""

_finished = False
_late: tuple[signal.Signals, float] | None = None
"""Whether a training of this process has done its last step; the first signal from then on, and when it came."""


def listen() -> None:
    """From now on each of these signals ends this process by `leave`, until a training handles them.

    One that came after the last step of a training ends it now: another job of a sweep is about to begin.
    """
    global _finished
    if threading.current_thread() is not threading.main_thread():
        return
    if _late:
        leave(_late[0])
    _finished, owner = False, os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        global _late
        if _finished and not (_late and further(number, _late[1])):
            if not _late:
                _late = signal.Signals(number), time.monotonic()
                if os.getpid() == owner and slurm.is_main_process():
                    os.write(2, f"{_late[0].name}: all steps are done and saved; once more stops at once\n".encode())
            return
        if os.getpid() != owner:  # a loader worker: the signal is for the process that it works for
            os._exit(128 + number)
        leave(signal.Signals(number))

    for number in ENDING:
        signal.signal(number, handle)


def finish(received: signal.Signals | None, since: float) -> None:
    """The last step is done and saved: from now on `leave` is for the second signal, and `received` was the first."""
    global _finished, _late
    _finished, _late = True, (received, since) if received else None


def further(number: int, since: float) -> bool:
    """Whether a signal is another one than that of a moment, as `time.monotonic` has it, or the same once more."""
    return number == signal.SIGINT or time.monotonic() - since > SAME


def ignore() -> None:
    """From now on these signals do nothing: what they ask for is being done."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


def leave(number: signal.Signals) -> None:
    """End this process with status 128 and the signal's number; a Slurm job that is evicted is requeued before."""
    ignore()
    if slurm.evicted(number):
        slurm.requeue(number)
    sys.stdout.flush()
    os._exit(128 + number)
