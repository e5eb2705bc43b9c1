"""The signals that end a run, from the first moment of its process to the last.

Within a training `LastCheckpoint` handles them: the step is finished and saved. Before and after it there is nothing to
save, and the process ends at once, for an exception in the middle of an import would come out as another one.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

from smsff.training import slurm

ENDING = tuple(
    signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if name in signal.Signals.__members__
)
SAME = 2.0
"""Seconds within which another signal is the first once more: Slurm and torchrun send SIGTERM twice."""


def listen() -> None:
    """From now on each of these signals ends this process by `leave`, until a training handles them."""
    if threading.current_thread() is not threading.main_thread():
        return
    owner = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a loader worker: the signal is for the process that it works for
            os._exit(128 + number)
        leave(signal.Signals(number))

    for number in ENDING:
        signal.signal(number, handle)


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
