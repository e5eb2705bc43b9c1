"""A process that handles one case after the other, and another that watches it: for crashes, hangs and writing."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import sys
import traceback
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(path) for path in (HERE, HERE.parent, HERE.parent / "teacher") if str(path) not in sys.path]

from patience import Patience  # noqa: E402

MEMORY = 6 << 30
"""Bytes that a case may need beyond what the libraries need."""
WATCHED = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "pty.spawn")
MOVES = ("os.rename", "os.link", "os.symlink", "shutil.move")
WRITES = ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", *MOVES)


@dataclass
class Verdict:
    """What became of a case.

    Attributes:
        outcome: accepted; refused (by a UserError); error (any other exception); crashed (the process died); hung.
        detail: Message or traceback.
        outside: What was written, started or connected to outside the folder of the case.
    """

    outcome: str
    detail: str = ""
    outside: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return self.outcome in ("accepted", "refused") and not self.outside


class Watched:
    """Runs cases in a process of its own, which is started again when it dies or hangs."""

    def __init__(self, folder: Path, *, limit: float = 20) -> None:
        """
        Args:
            folder: For the cases; nothing else may be written.
            limit: Seconds that one case may take, without those in which others have the processor.
        """
        self.folder, self.limit = folder.resolve(), limit
        self.process: Any = None
        (self.folder / "outside").mkdir(parents=True)
        (self.folder / "outside" / "keep").write_text("keep")

    def run(self, kind: str, case: Any) -> Verdict:
        if self.process is None:
            self._start()
        inside = self.folder / "case"
        shutil.rmtree(inside, ignore_errors=True)
        inside.mkdir()
        self.pipe.send((kind, case, str(inside)))
        if not self._answers(self.limit):
            self._stop()
            return Verdict("hung", f"no end after {self.limit} s")
        try:
            outcome, detail, outside = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            code = self.process.exitcode
            self._stop()
            return Verdict("crashed", f"exit status {code}")
        if sorted(os.listdir(self.folder)) != ["case", "outside"] or os.listdir(self.folder / "outside") != ["keep"]:
            outside = [*outside, f"files beside the case: {os.listdir(self.folder)}"]
        return Verdict(outcome, detail, outside)

    def close(self) -> None:
        if self.process is not None:
            self._stop()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, there = context.Pipe()
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        self.process = context.Process(target=work, args=(there, str(self.folder)), daemon=True)
        self.process.start()
        there.close()
        if not self._answers(300) or self.pipe.recv() != "ready":
            raise RuntimeError("the process that handles the cases did not start")

    def _answers(self, seconds: float) -> bool:
        """Whether the process says something, or dies, in time."""
        patience = Patience(self.process.pid, seconds)
        while left := patience.left():
            if self.pipe.poll(left):
                return True
        return False

    def _stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()
        self.process = None


def work(pipe: Connection, folder: str) -> None:
    """The watched process."""
    sys.dont_write_bytecode = True
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    import logging
    import warnings

    import fuzz_configs
    import fuzz_images
    import fuzz_models
    import torch

    from smsff.errors import UserError

    handlers = {
        "image": fuzz_images.run,
        "config": fuzz_configs.run,
        "model": fuzz_models.run_model,
        "lora": fuzz_models.run_lora,
        "lora_header": fuzz_models.run_lora_header,
    }
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    fuzz_models.lora_models()
    warm = Path(folder) / "warm"
    warm.mkdir()
    fuzz_configs.run(("tree", 0, []), warm)  # some libraries make folders in the home directory when first imported
    warm.rmdir()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    outside: list[str] = []
    guard = _Guard(outside)
    sys.addaudithook(guard)
    os.chdir(folder)
    with open(os.devnull, "w") as nothing:  # the decoders' own words about every damaged file
        os.dup2(nothing.fileno(), 2)
    pipe.send("ready")
    while True:
        kind, case, inside = pipe.recv()
        os.chdir(inside)
        outside.clear()
        guard.inside = inside
        try:
            handlers[kind](case, Path(inside))
            answer = ("accepted", "")
        except UserError as error:
            answer = ("refused", str(error))
        except BaseException:
            answer = ("error", traceback.format_exc())
        guard.inside = ""
        os.chdir(folder)
        pipe.send((*answer, list(outside)))


class _Guard:
    """An audit hook: notes every file that Python opens to write, moves or removes elsewhere, and every program."""

    def __init__(self, outside: list[str]) -> None:
        self.outside, self.inside = outside, ""

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.inside:
            return
        if event in WATCHED:
            self.outside.append(f"{event}{arguments[:2]!r}")
        elif event == "open":
            path, _, flags = arguments
            writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND))
            if writes and isinstance(path, (str, bytes)):
                self._check(event, path)
        elif event in WRITES:
            for path in arguments[: 2 if event in MOVES else 1]:
                if isinstance(path, (str, bytes)):
                    self._check(event, path)

    def _check(self, event: str, path: str | bytes) -> None:
        real = os.path.realpath(os.fsdecode(path))
        if real != "/dev/null" and not real.startswith(self.inside + os.sep) and real != self.inside:
            self.outside.append(f"{event} {real!r}")
