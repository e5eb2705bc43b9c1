"""The folder of a run: who may write into it, what stands in it, and the checkpoint from which it goes on."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from smsff.errors import UserError
from smsff.training import slurm
from smsff.training.checkpoints import SUFFIX, find_checkpoint, report_found
from smsff.training.faults import tolerate_full_logs
from smsff.training.slurm import is_main_process

log = logging.getLogger(__name__)

LOCK = ".lock"
CONFIG = "config.yaml"
SUMMARY = "metrics.json"


def goes_on(wanted: str | None, run_dir: Path) -> bool:
    """Whether the run of this very folder goes on; one that Slurm starts again does so by itself."""
    if wanted == "last" or (wanted is None and slurm.started_again()):
        return (run_dir / CONFIG).exists()
    return wanted is not None and Path(wanted).resolve().is_relative_to(run_dir.resolve())


def checkpoint_for(wanted: str | None, run_dir: Path, *, sweep: bool = False) -> Path | None:
    """The checkpoint that ``ckpt_path`` means; None is the beginning, also of a run that was lost before its first one.

    Args:
        sweep: Whether the runs beside it are other jobs of the same sweep, from which none goes on.

    Raises:
        UserError: it is missing or damaged.
    """
    own = goes_on(wanted, run_dir)
    wanted = "last" if wanted is None and own else wanted
    if wanted == "last" and (own or sweep) and not list(run_dir.glob(f"checkpoints/*{SUFFIX}")):
        if is_main_process() and own:
            log.warning("ckpt_path=last: %s has no checkpoint yet; starting from the beginning", run_dir)
        return None
    found = find_checkpoint(wanted, run_dir)
    if found and is_main_process():
        report_found(found, run_dir)
    return found.path if found else None


def finished(run_dir: Path) -> dict[str, float] | None:
    """The figures of the run of this folder, if it has come to its end, pictures and all."""
    try:
        summary = json.loads((run_dir / SUMMARY).read_text())
    except (OSError, ValueError):
        return None
    return summary["figures"] if summary["status"] == "finished" else None


@contextlib.contextmanager
def claimed(cfg: DictConfig, run_dir: Path) -> Iterator[None]:
    """Lock the folder and write the resolved configuration into it; a folder that holds another run is left alone.

    Raises:
        UserError: the folder is in use, holds a run, or cannot be written to.
    """
    tolerate_full_logs()
    if not is_main_process():
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(run_lock(run_dir))
            save_config(cfg, run_dir)
        except OSError as error:
            raise cannot_write(error, run_dir) from error
        yield


def cannot_write(error: OSError, run_dir: Path | str | None) -> UserError:
    """The message for a folder into which nothing can be written."""
    place = error.filename or run_dir
    return UserError(f"run_dir: {place} cannot be written: {error.strerror or error}; take another with run_dir=FOLDER")


def save_config(cfg: DictConfig, run_dir: Path) -> None:
    """Write ``config.yaml``, or ``config_resumed_N.yaml`` when the run of this folder goes on."""
    path = run_dir / CONFIG
    if path.exists():
        if not goes_on(cfg.ckpt_path, run_dir):
            raise UserError(f"run_dir: {run_dir} already holds a run; take another folder or ckpt_path=last")
        path = run_dir / f"config_resumed_{len(list(run_dir.glob('config*.yaml')))}.yaml"
    OmegaConf.save(cfg, path, resolve=True)


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Within the context no other process of this or another machine trains in ``folder``.

    A record lock of the system: it belongs to this process alone, not to its workers, and ends with it however it ends,
    so a killed run never blocks the one that goes on. The file stays and names the process. Where the file system has
    no locks, there is no protection.

    Raises:
        UserError: another process holds it.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with (folder / LOCK).open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                owner = file.read(200).strip() or "another process"
                message = f"run_dir: {folder} is in use by {owner}; wait for it, or take another folder"
                raise UserError(message) from error
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            log.warning("run_dir: the file system of %s has no locks; start no second run there", folder)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
