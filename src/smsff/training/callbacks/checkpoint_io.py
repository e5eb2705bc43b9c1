"""How Lightning writes and reads checkpoints here: the one place through which every save and load goes."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import CheckpointIO

from smsff.training.checkpoints import keep_former, prune, read_checkpoint, write_checkpoint

log = logging.getLogger(__name__)


class SafeCheckpointIO(CheckpointIO):
    """Atomic writing, `keep` former checkpoints beside ``last.ckpt`` as ``step_XXXXXX.ckpt``, safe reading.

    A checkpoint that cannot be written (disk full, quota, file system read-only) does not end the run and does not
    touch the former one: it is reported, and the next interval tries again. ``failure`` says why the last write failed.
    """

    def __init__(self, *, keep: int = 2) -> None:
        self.keep = keep
        self.failure: OSError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        try:
            if self.keep:
                keep_former(path, step=int(checkpoint["global_step"]))
            write_checkpoint(checkpoint, path)
        except OSError as error:
            self.failure = error
            log.warning("%s could not be written: %s; the former checkpoint stands", path, error.strerror or error)
            return
        self.failure = None
        with contextlib.suppress(OSError):
            prune(path.parent, keep=self.keep)

    def load_checkpoint(
        self, path: Any, map_location: Any = lambda storage, location: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Tensors and plain values alone, whatever ``weights_only`` says.

        Raises:
            UserError: damaged, no checkpoint, or Python code inside.
        """
        return read_checkpoint(path, map_location=map_location)

    def remove_checkpoint(self, path: Any) -> None:
        """Called by retention rules; after a failed write nothing is removed, for the new file is not there."""
        if self.failure is None:
            with contextlib.suppress(OSError):
                Path(path).unlink(missing_ok=True)
