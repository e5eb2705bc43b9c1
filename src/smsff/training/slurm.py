"""What Slurm and torchrun tell the processes of a job, and how a job that is evicted asks to be started again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from datetime import datetime

INTERACTIVE = ("bash", "interactive")
EVICTION = ("SIGUSR1", "SIGUSR2")
"""What is sent some time before the end: by ``sbatch --signal`` as the guide has it, and by submitit."""
TURN = 5.0
"""Seconds that the other processes of a job leave to the first one to ask for the requeue."""


def in_job() -> bool:
    """Whether ``srun`` started this process, by the rule of Lightning's SLURMEnvironment."""
    return "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in INTERACTIVE


def is_main_process() -> bool:
    """Whether this is the first of all processes of the run, whoever started them."""
    if in_job() and "LOCAL_RANK" not in os.environ:
        return os.environ.get("SLURM_PROCID", "0") == "0"
    return os.environ.get("LOCAL_RANK", "0") == "0" and os.environ.get("NODE_RANK", "0") == "0"


def started_again() -> bool:
    """Whether Slurm or torchrun has started this job before: after an eviction, or when a process or node failed."""
    restarts = os.environ.get("SLURM_RESTART_COUNT") if in_job() else os.environ.get("TORCHELASTIC_RESTART_COUNT")
    return int(restarts or 0) > 0


def job_id() -> str:
    """The job as ``scontrol`` names it; of an array, with the task."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def run_name() -> str:
    """A name for the folder of a run: the time, or in a Slurm job what stays the same when the job starts again."""
    if in_job() and "SLURM_JOB_ID" in os.environ:
        return f"slurm_{job_id()}_{os.environ.get('SLURM_STEP_ID', '0')}"
    start = datetime.now()
    if "TORCHELASTIC_RUN_ID" in os.environ:  # the same for all processes that it starts, also again
        import psutil  # here: the signals wait for this module

        start = datetime.fromtimestamp(psutil.Process(os.getppid()).create_time())
    return start.strftime("%Y-%m-%d_%H-%M-%S_%f")


def _scontrol(*words: str) -> subprocess.CompletedProcess[str]:
    command = ["scontrol", *words, job_id()]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))


def evicted(number: signal.Signals) -> bool:
    """Whether a signal means that this job must make room and shall be started again: SIGTERM may also be its end.

    Slurm itself starts a job again that it evicts without grace; ``scancel`` and the time limit end it.
    """
    if not in_job() or number is signal.SIGINT:
        return False
    if number.name in EVICTION:
        return True
    told = _scontrol("show", "job")
    if told.returncode and is_main_process():
        _say(number, told)
    job = dict(re.findall(r"(JobState|StartTime|PreemptTime)=(RUNNING|\d\S*)", told.stdout))
    return "JobState" in job and job.get("PreemptTime", "") > job.get("StartTime", "")


def requeue(number: signal.Signals) -> None:
    """Ask Slurm to start this job again, and say so or why that failed.

    The first process asks. The others stay meanwhile, for one that ends may end the step (``srun --kill-on-bad-exit``),
    and ask after it: it may be in a call that no signal interrupts. Slurm refuses whoever asks second.

    Lightning's own handler does this too, but inside of the signal handler, after saving in the middle of a step.
    """
    if not is_main_process():
        time.sleep(TURN)
    done = _scontrol("requeue")
    if is_main_process() or not done.returncode:
        _say(number, done)


def _say(number: signal.Signals, answer: subprocess.CompletedProcess[str]) -> None:
    failure = answer.stderr.strip() or str(answer.returncode)
    outcome = f"not requeued: {failure}" if answer.returncode else "requeued"
    print(f"{number.name}: job {job_id()} {outcome}", file=sys.stderr, flush=True)
