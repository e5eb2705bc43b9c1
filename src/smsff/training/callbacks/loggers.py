"""Loggers that need a decision before they are built."""

from __future__ import annotations

import http.client
import logging
import netrc
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from smsff.errors import UserError
from smsff.training.faults import going_on

log = logging.getLogger(__name__)

WANDB = "https://api.wandb.ai"


def wandb_logged_in() -> bool:
    """Whether Weights & Biases can be reached without asking for a key: a key in the environment or in ~/.netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        hosts = netrc.netrc(os.environ.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return "api.wandb.ai" in hosts


def unreachable(url: str, *, seconds: float = 10.0) -> str | None:
    """Why a server cannot be reached; None if it answers, whatever it says."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds):
            return None
    except urllib.error.HTTPError:
        return None
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"{url} cannot be reached ({getattr(error, 'reason', None) or error})"


def wandb_logger(*, save_dir: str | Path, project: str = "smsff", name: str | None = None) -> WandbLogger:
    """A Weights & Biases logger that works offline when nobody is logged in or nothing answers, and never asks.

    A connection that is lost later is the business of W&B's own process: it keeps everything on the disk and tries
    again. Offline runs lie in ``<save_dir>/wandb`` and can be sent later with ``wandb sync``.

    Raises:
        UserError: the package is not installed.
    """
    offline = os.environ.get("WANDB_MODE") == "offline" or not wandb_logged_in()
    if not offline and (reason := unreachable(os.environ.get("WANDB_BASE_URL", WANDB))):
        log.warning("logger=wandb: %s; logging offline, send it later with: wandb sync %s/wandb/*", reason, save_dir)
        offline = True
    Path(save_dir).mkdir(parents=True, exist_ok=True)
    try:
        return WandbLogger(project=project, name=name, save_dir=str(save_dir), offline=offline)
    except ModuleNotFoundError as error:
        raise UserError("logger=wandb needs the package wandb: pip install 'smsff[loggers]'") from error


def tolerant(logger: Logger) -> None:
    """Let a run continue when a logger cannot write: every failure is reported.

    Figures of a step that are logged a second time are dropped: see `LastCheckpoint.on_save_checkpoint`.
    """
    logger.log_metrics = _once_a_step(logger.log_metrics)  # type: ignore[method-assign]
    for name in ("log_metrics", "log_hyperparams", "save", "finalize"):
        setattr(logger, name, _tolerant_method(logger, getattr(logger, name)))


def _once_a_step(method: Callable[..., None]) -> Callable[..., None]:
    logged: tuple[int | None, set[str]] = (None, set())

    @wraps(method)
    def call(metrics: dict[str, float], step: int | None = None) -> None:
        nonlocal logged
        before = logged[1] if step is not None and step == logged[0] else set()
        if not metrics.keys() <= before:
            logged = (step, before | metrics.keys())
            method(metrics, step)

    return call


def _tolerant_method(logger: Logger, method: Callable[..., None]) -> Callable[..., None]:
    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> None:
        with going_on(f"the log of {type(logger).__name__}"):
            method(*args, **kwargs)

    return call
