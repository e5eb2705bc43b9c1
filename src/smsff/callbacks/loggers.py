"""Loggers that need a decision before they are built."""

from __future__ import annotations

import netrc
import os
from pathlib import Path

from lightning.pytorch.loggers import WandbLogger

from smsff.errors import UserError


def wandb_logged_in() -> bool:
    """Whether Weights & Biases can be reached without asking for a key: a key in the environment or in ~/.netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        hosts = netrc.netrc(os.environ.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return "api.wandb.ai" in hosts


def wandb_logger(*, save_dir: str | Path, project: str = "smsff", name: str | None = None) -> WandbLogger:
    """A Weights & Biases logger that works offline when nobody is logged in, and never asks.

    Offline runs lie in ``<save_dir>/wandb`` and can be sent later with ``wandb sync``.

    Raises:
        UserError: the package is not installed.
    """
    offline = os.environ.get("WANDB_MODE") == "offline" or not wandb_logged_in()
    Path(save_dir).mkdir(parents=True, exist_ok=True)
    try:
        return WandbLogger(project=project, name=name, save_dir=str(save_dir), offline=offline)
    except ModuleNotFoundError as error:
        raise UserError("logger=wandb needs the package wandb: pip install 'smsff[loggers]'") from error
