from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

LISTEN = "import os, time\nfrom smsff.training import signals\nsignals.listen()\n"


def status(script: str, number: int, *, environment: dict[str, str] | None = None) -> int:
    """How a process ends that gets a signal once it has printed a line."""
    command, env = [sys.executable, "-c", LISTEN + script], os.environ | (environment or {})
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        return process.wait(timeout=60)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_before_the_training_a_signal_ends_the_process_with_its_status(number: signal.Signals) -> None:
    # In the middle of an import, where an exception would come out as an ImportError.
    assert status("try: print(flush=True); time.sleep(60)\nexcept BaseException: pass", number) == 128 + number


def test_a_signal_while_python_ends_does_not_change_the_status() -> None:
    script = f"""
import os, runpy, sys
class Late:
    def __del__(self):
        os.kill(os.getpid(), {signal.SIGUSR1:d})
late, sys.argv[1:] = Late(), ["--cfg", "job"]
runpy.run_path({str(Path(__file__).parents[2] / "train.py")!r}, run_name="__main__")
"""
    assert subprocess.run([sys.executable, "-c", script], stdout=subprocess.DEVNULL).returncode == 0


def test_an_evicted_slurm_job_is_requeued_by_the_training_and_not_by_its_loader(tmp_path: Path) -> None:
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    (tmp_path / "scontrol").chmod(0o755)
    job = {"SLURM_NTASKS": "1", "SLURM_JOB_ID": "17", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "train"}
    script = """
here, there = os.pipe()
child = os.fork()
if child == 0:
    os.write(there, b"x")
    time.sleep(60)
    os._exit(0)
os.read(here, 1)
os.kill(child, 10)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 138
print(flush=True)
time.sleep(60)
"""
    environment = {**job, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert status(script, signal.SIGUSR1, environment=environment) == 138
    assert (tmp_path / "asked").read_text() == "requeue 17\n"
