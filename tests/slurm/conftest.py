"""A Slurm of two nodes on this machine, and jobs that train in it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "faults")]

from runner import TINY  # noqa: E402

TRAIN = [sys.executable, str(ROOT / "train.py"), *TINY]


@pytest.fixture(scope="session", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The Slurm of ``SLURM_CONF``, else one that is started here and stopped at the end."""
    folders = [str(ROOT / "src"), str(HERE.parent), str(HERE.parent / "faults"), os.environ.get("PYTHONPATH", "")]
    own = {"SMSFF_ALLOW": "fault_parts", "PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": "1"}
    os.environ.update(own)
    if "SLURM_CONF" in os.environ:
        yield
        return
    folder = tmp_path_factory.mktemp("slurm")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    try:
        subprocess.run([HERE / "cluster.sh", "start", folder], check=True)
        yield
    finally:
        subprocess.run([HERE / "cluster.sh", "stop", folder], check=True)


def call(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def until(condition: Callable[[], Any], text: Callable[[], str], seconds: float = 900) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, text()
        time.sleep(0.2)


def steps(run: Path) -> int:
    """Steps that the newest part of a run has logged."""
    tables = sorted(run.glob("csv/version_*/metrics.csv"), key=lambda path: int(path.parent.name[8:]))
    return tables[-1].read_text().count("\n") - 1 if tables else -1


class Job:
    """A batch job; its script runs in `folder`.

    Attributes:
        number: As Slurm names it.
    """

    def __init__(self, folder: Path, script: str, *options: str, slower: float = 0.0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        (folder / "job.sh").write_text(f"#!/bin/bash\n{script}\n")
        words = [f"--chdir={folder}", f"--output={folder}/%a.out", "--open-mode=append", *options]
        environment = f"--export=ALL,FAULT_SLEEP={slower}"
        self.number = call("sbatch", "--parsable", environment, *words, str(folder / "job.sh")).strip()

    @property
    def facts(self) -> dict[str, str]:
        return dict(re.findall(r"(\w+)=(\S+)", call("scontrol", "show", "job", self.number)))

    @property
    def restarts(self) -> int:
        return int(self.facts["Restarts"])

    def text(self) -> str:
        return "\n".join(f"{path}:\n{path.read_text()}" for path in self.folder.glob("*.out"))

    def wait_for(self, condition: Callable[[], Any]) -> None:
        until(condition, lambda: f"{self.facts}\n{self.text()}")

    def ended(self) -> tuple[str, int]:
        """Wait for the end; the state and the status of the job."""
        states = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.wait_for(lambda: self.facts["JobState"] in states)
        facts = self.facts
        return facts["JobState"], int(facts["ExitCode"].partition(":")[0])

    def signal(self, name: str) -> None:
        call("scancel", f"--signal={name}", self.number)


def train(run: str, *words: str, tasks: str = "") -> str:
    """The line of a script that trains in a folder; ``run`` may be empty for the folder that a job has by itself."""
    return f"srun {tasks} " + " ".join(f"'{word}'" for word in [*TRAIN, *words, *([f"run_dir={run}"] if run else [])])


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one task to which nothing happened."""
    job = Job(tmp_path_factory.mktemp("whole"), train("run"))
    assert job.ended() == ("COMPLETED", 0), job.text()
    return job.folder / "run"
