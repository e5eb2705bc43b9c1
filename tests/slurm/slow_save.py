"""train.py on a file system that takes a second for each checkpoint, and says when one is being written."""

from __future__ import annotations

import os
import runpy
import sys
import time
from pathlib import Path
from typing import Any

from smsff.training.callbacks.checkpoint_io import SafeCheckpointIO

save = SafeCheckpointIO.save_checkpoint


def slow(self: SafeCheckpointIO, *args: Any, **kwargs: Any) -> None:
    Path("saving").touch()
    time.sleep(1)
    save(self, *args, **kwargs)


SafeCheckpointIO.save_checkpoint = slow  # type: ignore[method-assign]
sys.argv.pop(0)
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
