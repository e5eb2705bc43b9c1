"""From the name of a baseline and overrides to the method itself.

plain = configuration("styleid", ["baseline.gamma=0.3"])
if not missing(plain, "styleid", [...]): stylize = load(plain)
"""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smsff.atomic import write_atomically
from smsff.baselines import Baseline
from smsff.build import build
from smsff.config.check import check_config, check_text
from smsff.config.trust import find_target
from smsff.device import chosen_device
from smsff.errors import UserError
from smsff.weights.compose import composed, find_conf
from smsff.weights.doctor import missing_weights


def configuration(name: str, overrides: Sequence[str] = (), *, conf: str | None = None) -> dict[str, Any]:
    """The resolved configuration of a baseline, checked; nothing is loaded.

    Args:
        name: A file in conf/baseline.
        overrides: ``key=value``, as of train.py.
        conf: Folder of the configuration; see `find_conf`.

    Raises:
        UserError: names what is wrong.
    """
    plain = composed(find_conf(conf), [f"baseline={name}", *overrides])
    check_text(plain)
    check_config(plain)
    return plain


def missing(plain: Mapping[str, Any], name: str, overrides: Sequence[str] = ()) -> list[str]:
    """A sentence for each of its weights that is not there, or not as it should be, with what to do; offline."""
    return missing_weights(plain, [f"baseline={name}", *overrides])


def needs_style(plain: Mapping[str, Any]) -> bool:
    """Whether the baseline takes a style picture."""
    target = find_target(plain["baseline"], "baseline")
    kind: Any = target if inspect.isclass(target) else typing.get_type_hints(target)["return"]
    return bool(kind.needs_style)


def claim(out: Path, plain: Mapping[str, Any], *, overwrite: bool) -> None:
    """Write the settings into the folder of the results, in which all have the same.

    Raises:
        UserError: Results of other settings are there, and are not to be overwritten.
    """
    record = out / "baseline.json"
    text = json.dumps(plain, indent=2) + "\n"
    if record.is_file() and record.read_text(encoding="utf-8") != text and not overwrite:
        raise UserError(f"{record} has other settings than this command: name another folder, or give --overwrite")
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(record, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def device_of(plain: Mapping[str, Any]) -> torch.device:
    """Where a configuration computes, and where the pictures must be.

    Raises:
        UserError: It asks for CUDA, and there is none.
    """
    return chosen_device(plain["device"], "device=")


def stylized(
    baseline: Baseline, pixels: Tensor, caption: str, *, style: Tensor | None, seed: int, device: torch.device
) -> Tensor:
    """One picture (3, H, W) of bytes, stylized, with a style picture (3, h, w) of bytes if it takes one."""
    shown = None if style is None else style[None].to(device) / 255
    out = baseline(pixels[None].to(device) / 255, [caption], style=shown, seeds=[seed])
    return (out[0] * 255).round().to("cpu", torch.uint8)


def load(plain: Mapping[str, Any]) -> Baseline:
    """The method, on the device of the configuration.

    Raises:
        UserError: Weights are missing or do not fit one another; names the key.
    """
    device = device_of(plain)
    teacher = build(plain["teacher"]).to(device) if plain["teacher"] else None
    made: Any = build(plain["baseline"])
    baseline: Baseline = made(teacher) if isinstance(made, partial) else made
    return baseline
