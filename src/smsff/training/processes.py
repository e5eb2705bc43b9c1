"""The processes of one run: when one of them is gone, all end, with the cause, and none is left over.

Lightning starts the processes of one machine as children of the first. Its own observer kills everything without a
message as soon as a child has failed; this one leaves the first process time to report and to write its summary. The
children watch the first process in turn, for nothing else would end them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

from smsff.errors import RunError

MAIN_PROCESS = "SMSFF_MAIN_PROCESS"
"""Environment variable: the process that starts the others."""

POLL = 0.5
GRACE = 15.0
"""Seconds that a process has to end by itself once another one is known to be gone."""

_children: list[subprocess.Popen[Any]] = []


def device_count(devices: Any) -> int | None:
    """How many devices ``trainer.devices`` names; None if it leaves that to the machine."""
    if isinstance(devices, str):
        devices = int(devices) if devices.isdecimal() else None if devices in ("auto", "-1") else devices.split(",")
    return (devices if devices > 0 else None) if isinstance(devices, int) else devices and len(devices)


def loader_workers(devices: Any) -> int:
    """Loader processes for each process of a run: one for each core but one that it has to itself, at most four.

    Args:
        devices: As ``trainer.devices``; where it does not say how many, one is assumed.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, min(4, cores // (device_count(devices) or 1) - 1))


def lost() -> str | None:
    """Which process of this run on this machine is gone, and how; None if none is."""
    for rank, child in enumerate(_children, start=1):
        code = child.poll()
        if not code:
            continue
        if code > 0:
            return f"process {rank} of this run ended with status {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        why = ", perhaps for want of memory" if code == -signal.SIGKILL else ""
        return f"process {rank} of this run was ended by {name}{why}"
    return None


def watch_children(child_processes: list[subprocess.Popen[Any]]) -> None:
    """From the first process: end it and the others some seconds after one of the children has failed."""
    _children[:] = child_processes
    mine = list(child_processes)

    def watch() -> None:
        while all(child.poll() in (None, 0) for child in mine):
            if all(child.returncode == 0 for child in mine):
                return
            time.sleep(POLL)
        cause = lost()
        time.sleep(GRACE)
        if _children == mine:  # else the job has ended meanwhile
            print(f"error: {cause}; go on with ckpt_path=last", file=sys.stderr, flush=True)
            for child in mine:
                child.kill()
            os._exit(RunError.PROCESS)

    threading.Thread(target=watch, name="watch-children", daemon=True).start()


def watch_main() -> None:
    """From a child: end when the first process is gone."""
    main = int(os.environ.get(MAIN_PROCESS, 0))
    if main != os.getppid():  # not started by ours: torchrun and Slurm look after their processes themselves
        return

    def watch() -> None:
        while os.getppid() == main:
            time.sleep(POLL)
        print("error: the first process of this run is gone; go on with ckpt_path=last", file=sys.stderr, flush=True)
        os._exit(RunError.PROCESS)

    threading.Thread(target=watch, name="watch-main", daemon=True).start()


def end_main() -> None:
    """From a child that waited for the others in vain: the first process may be stopped, and then it ends nobody."""
    main = int(os.environ.get(MAIN_PROCESS, 0))
    if main == os.getppid():
        time.sleep(GRACE)  # it has waited as long as we have, and comes first if it still runs
        os.kill(main, signal.SIGKILL)


def end_workers() -> None:
    """Kill the loader workers that are left: Python waits for ever for one that hangs or ignores SIGTERM."""
    for worker in multiprocessing.active_children():
        worker.kill()


def end_children(*, grace: float) -> None:
    """Wait so many seconds for the children of a job, then kill those that are left; none remains as a zombie."""
    children, _children[:] = list(_children), []
    end = time.monotonic() + grace
    for child in children:
        try:
            child.wait(timeout=max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
