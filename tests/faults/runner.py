"""Starts real trainings and ends them in unfriendly ways.

Each run is a process of its own that executes ``train.py`` as the command does. It is forked by a server that has
imported the libraries once, so that fifty runs cost the time of their steps and not of their imports.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from patience import Patience

ROOT = Path(__file__).parent.parent.parent
HERE = Path(__file__).parent
PRELOAD = [
    "torch",
    "lightning.pytorch",
    "torchvision.io",
    "diffusers",
    "peft",
    "transformers",
    "smsff.config.check",
    "smsff.method.module",
    "smsff.training.run_folder",
    "smsff.data.datamodule",
    "smsff.teacher.stable_diffusion",
    "gaussian",
    "smsff.training.callbacks.bad_steps",
    "smsff.training.callbacks.table_log",
    "smsff.training.callbacks.image_grid",
    "smsff.training.callbacks.throughput",
    "smsff.training.callbacks.progress",
]
TINY = [
    "teacher._target_=fault_parts.teacher",
    "fake_score._target_=fault_parts.fake_score",
    "+generator.widths=[8,8]",
    "+generator.encoder_blocks=[1,1]",
    "+generator.decoder_blocks=[1]",
    "trainer=cpu",
    "data.crop_size=16",
    "data.batch_size=2",
    "data.val_max_side=32",
    "warmup.steps=4",
    "steps=40",
    "log_every=1",
    "sample_every=20",
    "checkpoint_every=4",
    "callbacks.progress.every=1",
]
"""A run of 40 steps of some milliseconds, with everything that a real one has."""

Breaker = Callable[[], None]
"""Called in the new process before the training: prepares a fault."""

_context = multiprocessing.get_context("forkserver")


def prepare() -> None:
    """Start the server; once is enough."""
    for name, value in {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "SMSFF_ALLOW": "fault_parts"}.items():
        os.environ[name] = value
    paths = [str(ROOT / "src"), str(HERE.parent), str(HERE)]
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])
    sys.path[:0] = [path for path in paths if path not in sys.path]
    _context.set_forkserver_preload(PRELOAD)


def _execute(
    overrides: Sequence[str], output: Path, environment: Mapping[str, str], breaker: Breaker | None, user: int | None
) -> None:
    """In the new process: become the command."""
    os.setsid()
    number = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(number, 1)
    os.dup2(number, 2)
    if user is not None:
        os.setuid(user)
    multiprocessing.set_start_method("fork", force=True)  # for the loader's workers, as in the command
    os.environ.update(environment)
    os.chdir(output.parent)
    sys.argv = [str(ROOT / "train.py"), *overrides]
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    if breaker is not None:
        breaker()
    runpy.run_path(sys.argv[0], run_name="__main__")


class Training:
    """One process that trains.

    Attributes:
        folder: Of the run.
        output: File with what it printed.
    """

    def __init__(
        self,
        folder: Path,
        *overrides: str,
        breaker: Breaker | None = None,
        environment: Mapping[str, str] | None = None,
        user: int | None = None,
    ) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        self.folder, self.output = folder, folder.parent / f"{folder.name}.out"
        self.before = set(folder.glob("csv/version_*/metrics.csv"))
        words = [*TINY, *overrides, f"run_dir={folder}"]
        self.process = _context.Process(
            target=_execute, args=(words, self.output, dict(environment or {}), breaker, user)
        )
        self.process.start()

    @property
    def steps(self) -> int:
        """Steps that this process has logged."""
        tables = set(self.folder.glob("csv/version_*/metrics.csv")) - self.before
        return sum(path.read_text().count("\n") - 1 for path in tables)

    def wait_for(self, condition: Callable[[], Any], *, seconds: float = 300) -> bool:
        """Whether the condition came true while the process ran."""
        patience = self._patience(seconds)
        while not condition():
            if not self.process.is_alive():
                return bool(condition())
            assert patience.left(), self.text()
            time.sleep(0.002)
        return True

    def send(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def ended(self, *, seconds: float = 300) -> int:
        """Wait for the end and give the exit status; minus the number of the signal that killed it."""
        patience = self._patience(seconds)
        while self.process.exitcode is None and (left := patience.left()):
            self.process.join(left)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"still running after {seconds} s\n{self.text()}")
        return self.process.exitcode

    def text(self) -> str:
        return self.output.read_text() if self.output.exists() else ""

    def _patience(self, seconds: float) -> Patience:
        assert self.process.pid is not None
        return Patience(self.process.pid, seconds)


SLOWER = (0.0, 0.05, 0.3, 1.0)
"""Seconds by which every step takes longer, try by try, until a signal comes before the end of a run."""


def struck(
    number: signal.Signals, folder: Path, *overrides: str, at: Callable[[Training], Any], pause: float = 0.0
) -> Training:
    """A training that got a signal some seconds after a condition came true, and has ended.

    On a busy machine the run may be over before its signal is sent: then it is done again, with slower steps.
    """
    for slower in SLOWER:
        training = Training(folder, *overrides, environment={"FAULT_SLEEP": str(slower)})
        assert training.wait_for(lambda: at(training)), training.text()  # noqa: B023
        time.sleep(pause)
        training.send(number)
        if training.ended() != 0:
            return training
        shutil.rmtree(folder)
        training.output.unlink()
    raise AssertionError(f"{number.name} always came too late")
