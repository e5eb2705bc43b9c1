"""train.py on a file system that takes a second for each checkpoint and summary, and says when it writes one."""

from __future__ import annotations

import os
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from smsff.training.callbacks.checkpoint_io import SafeCheckpointIO
from smsff.training.callbacks.summary import RunSummary


def slow(write: Callable[..., None], name: str) -> Callable[..., None]:
    def slower(*args: Any, **kwargs: Any) -> None:
        Path(name).touch()
        time.sleep(1)
        write(*args, **kwargs)

    return slower


SafeCheckpointIO.save_checkpoint = slow(SafeCheckpointIO.save_checkpoint, "saving")  # type: ignore[method-assign]
RunSummary.write = slow(RunSummary.write, "writing")  # type: ignore[method-assign]
sys.argv.pop(0)
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
