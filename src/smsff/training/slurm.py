"""What a Slurm job tells its processes, and how a job that is about to be evicted asks to be started again."""

from __future__ import annotations

import os
import subprocess
from datetime import datetime

INTERACTIVE = ("bash", "interactive")


def in_job() -> bool:
    """Whether ``srun`` started this process, by the rule of Lightning's SLURMEnvironment."""
    return "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in INTERACTIVE


def started_again() -> bool:
    """Whether Slurm has started this job before: requeued after an eviction or the failure of a node."""
    return in_job() and int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0


def job_id() -> str:
    """The job as ``scontrol`` names it; of an array, with the task."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def run_name() -> str:
    """A name for the folder of a run: the time, or in a Slurm job what stays the same when the job starts again."""
    if in_job() and "SLURM_JOB_ID" in os.environ:
        return f"slurm_{job_id()}_{os.environ.get('SLURM_STEP_ID', '0')}"
    return datetime.now().strftime("%Y-%m-%d_%H-%M-%S_%f")


def requeue() -> str | None:
    """Ask Slurm to start this job again; returns why that failed, or None.

    Lightning's own handler does this too, but inside of the signal handler, after saving in the middle of a step.
    """
    command = ["scontrol", "requeue", job_id()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{' '.join(command)}: {error}"
    return None if done.returncode == 0 else f"{' '.join(command)}: {done.stderr.strip() or done.returncode}"
