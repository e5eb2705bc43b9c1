"""Which keys of a configuration are paths, and the place that a path means."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILES = (
    "ckpt_path",
    "run_dir",
    "ckpt",
    "out",
    "data.root",
    "data.path",
    "data.photos",
    "data.prior.root",
    "data.degraded.texture_root",
)
"""Files and folders of the user's own."""

NAMES = (
    "style.lora",
    "style.base",
    "teacher.base",
    "teacher.style_base",
    "teacher.config",
    "teacher.vae",
    "baseline.controlnet",
    "baseline.ip_adapter",
    "baseline.image_encoder",
    "baseline.network",
)
"""Weights: a file, a folder, or the id of a model of the hub. They stay as they are: ``weights`` refers to them."""

LAST = "last"
"""As ``ckpt_path``: the newest checkpoint."""


def absolute(node: Mapping[str, Any], key: str = "") -> dict[str, Any]:
    """A tree of plain containers in which every path among `FILES` is absolute and ``~`` the home folder."""
    changed = dict(node)
    for name, value in node.items():
        inside = f"{key}.{name}" if key else str(name)
        if isinstance(value, Mapping):
            changed[name] = absolute(value, inside)
        elif inside in FILES and isinstance(value, str) and value not in ("", "???", LAST):
            changed[name] = str(at_home(value).absolute())
    return changed


def at_home(text: str) -> Path:
    """A path with ``~`` expanded, if it is the home of someone."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # ~name without such a user: a file that is called so
        return Path(text)
