"""From the name of a baseline and overrides to the method itself.

plain = configuration("styleid", ["baseline.gamma=0.3"])
if not missing(plain, "styleid", [...]): stylize = load(plain)
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from smsff.baselines import Baseline
from smsff.build import build
from smsff.config.check import check_config, check_text
from smsff.config.trust import find_target
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
    kind = target if inspect.isclass(target) else typing.get_type_hints(target)["return"]
    return bool(kind.needs_style)


def load(plain: Mapping[str, Any]) -> Baseline:
    """The method, on the device of the configuration.

    Raises:
        UserError: Weights are missing or do not fit one another; names the key.
    """
    if plain["device"] == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: torch finds no CUDA device")
    device = "cuda" if plain["device"] != "cpu" and torch.cuda.is_available() else "cpu"
    teacher = build(plain["teacher"]).to(device) if plain["teacher"] else None
    made: Any = build(plain["baseline"])
    baseline: Baseline = made(teacher) if isinstance(made, partial) else made
    return baseline
