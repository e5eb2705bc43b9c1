"""The check of a configuration before any weight is loaded.

A node with a ``_target_`` is compared with the signature of what it names, every other node with its dataclass in
`smsff.config.schema`. Unknown keys, missing keys and wrong types are refused by name, with the nearest name there is.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException, UnsupportedInterpolationType

from smsff.config.paths import absolute
from smsff.config.schema import TASKS, TrainConfig, check_contradictions, check_ranges
from smsff.config.trust import asset, find_target, limit_resolvers, nearest, targets_of
from smsff.data.own import own_photos
from smsff.errors import UserError, shown
from smsff.training.processes import loader_workers
from smsff.training.slurm import run_name

RESERVED = ("_target_", "_partial_")


def on_bfloat16(fast: str, otherwise: str, *, _root_: DictConfig) -> str:
    """``${on_bfloat16:A,B}``: A where the run has a GPU that multiplies bfloat16, else B."""
    device = _root_.device if "device" in _root_ else _root_.trainer.accelerator
    if device not in ("auto", "gpu", "cuda"):
        return otherwise
    import torch  # here: not every command that reads a configuration waits for it

    gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return fast if gpu else otherwise


def warmup_steps(steps: int, share: float = 0.05, most: int = 500) -> int:
    """``${warmup_steps:STEPS,SHARE,MOST}``: this share of a run's steps, at most so many."""
    return min(most, int(steps * share))


OmegaConf.register_new_resolver("asset", asset, replace=True)
OmegaConf.register_new_resolver("workers", loader_workers, replace=True)
OmegaConf.register_new_resolver("run_name", run_name, use_cache=True, replace=True)
OmegaConf.register_new_resolver("on_bfloat16", on_bfloat16, replace=True)
OmegaConf.register_new_resolver("warmup_steps", warmup_steps, replace=True)
OmegaConf.register_new_resolver("own_photos", own_photos, use_cache=True, replace=True)


def fits(value: Any, kind: Any) -> bool:
    """Whether a value from YAML can stand for an argument annotated with ``kind`` (any, if YAML cannot tell)."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in arguments)
    if origin is Literal:
        return any(value == one and type(value) is type(one) for one in arguments)
    if kind is Any:
        return True
    if kind is None or kind is type(None):
        return value is None
    if dataclasses.is_dataclass(kind):
        return isinstance(value, Mapping)
    if isinstance(value, Mapping) and "_target_" in value:
        return kind not in (bool, int, float, str)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind in (bool, str):
        return isinstance(value, kind)
    container = origin or kind
    if not inspect.isclass(container) or container is object:
        return True
    if issubclass(container, Path):
        return isinstance(value, str)
    if issubclass(container, collections.abc.Mapping):
        return isinstance(value, Mapping)
    if issubclass(container, collections.abc.Iterable) or container is collections.abc.Iterable:
        inner = arguments[0] if arguments else Any
        return isinstance(value, list) and all(fits(one, inner) for one in value)
    return isinstance(value, (Mapping, list))


def type_name(kind: Any) -> str:
    """An annotation in the words of a configuration."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(type_name, arguments)))
    if dataclasses.is_dataclass(kind):
        return f"a node with {', '.join(field.name for field in dataclasses.fields(kind))}"
    if origin is collections.abc.Sequence:
        return f"a list of {type_name(arguments[0])}"
    if (origin or kind) in (dict, collections.abc.Mapping):
        return "a node"
    if kind is Path:
        return "str"
    return "null" if kind is type(None) else getattr(kind, "__name__", str(kind))


def check_value(value: Any, kind: Any, key: str) -> None:
    """Check a value against an annotation, and a node without a ``_target_`` against the dataclass it stands for.

    Raises:
        UserError: wrong type, or an unknown or missing key in the node.
    """
    if not fits(value, kind):
        raise UserError(f"{key}={shown(value)}: must be {type_name(kind)}")
    if dataclasses.is_dataclass(kind) and "_target_" not in value:
        check_arguments(typing.cast(type, kind), value, key)
    elif typing.get_origin(kind) is dict:
        for name, one in value.items():
            check_value(one, typing.get_args(kind)[1], f"{key}.{name}")


def check_arguments(
    target: Callable[..., Any], values: Mapping[str, Any], prefix: str, *, partial: bool = False
) -> None:
    """Check the keys and values of one node against a signature.

    Args:
        partial: Missing arguments are all right, they come later.

    Raises:
        UserError: unknown or missing key, wrong type.
    """
    try:
        parameters = inspect.signature(target).parameters
    except ValueError:  # some classes written in C tell nothing
        return
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    try:
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError):
        hints = {}
    for name, value in values.items():
        key = f"{prefix}.{name}" if prefix else name
        if name in RESERVED:
            continue
        if not isinstance(name, str):
            raise UserError(f"{key}: a key must be a text, not {shown(name)}")
        if name not in parameters:
            if takes_any:
                continue
            raise UserError(f"{key}: there is no such key; {nearest(name, parameters)}")
        if name in hints:
            check_value(value, hints[name], key)
    required = [
        n for n, p in parameters.items() if p.default is p.empty and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    missing = [name for name in required if name not in values]
    if missing and not partial:
        raise UserError(f"{prefix or 'the configuration'}: {', '.join(missing)} missing")


def check_targets(node: Any, prefix: str) -> None:
    """Check every node with a ``_target_`` in a tree of plain containers against what it names.

    Raises:
        UserError: a target that its place does not have, or arguments that it does not take.
    """
    if isinstance(node, Mapping):
        if "_target_" in node:
            target = find_target(node, prefix)
            check_arguments(target, node, prefix, partial=bool(node.get("_partial_")))
        elif targets_of(prefix) and not (prefix == "logger" and not node):
            raise UserError(f"{prefix}._target_ missing: {nearest('', targets_of(prefix))}")
        for name, value in node.items():
            check_targets(value, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            check_targets(value, f"{prefix}.{index}")


def check_text(node: Any, key: str = "") -> None:
    """Refuse text that would be a reference the next time it is read (``\\${...}``), or that no file name can hold.

    Raises:
        UserError: names the key.
    """
    if isinstance(node, Mapping):
        for name, value in node.items():
            check_text(str(name), f"{key}.{name!r}" if key else repr(name))
            check_text(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            check_text(value, f"{key}.{index}")
    elif isinstance(node, str):
        if "${" in node:
            raise UserError(f"{key}={shown(node)}: ${{ must not stand in a text")
        if "\0" in node:
            raise UserError(f"{key}={shown(node)}: a zero byte must not stand in a text")


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain containers, every reference followed and the user's own paths absolute.

    Raises:
        UserError: a key that must be given has no value, or a reference leads nowhere or to what it may not read.
    """
    limit_resolvers()
    try:
        missing = sorted(str(key) for key in OmegaConf.missing_keys(cfg))
        if missing:
            raise UserError(f"{', '.join(missing)}: no value given; add {missing[0]}=... to the command")
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except UnsupportedInterpolationType as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{error.full_key}: {reason}: not in a configuration, unless SMSFF_ALLOW permits it") from error
    except OmegaConfBaseException as error:
        if isinstance(error.__cause__, UserError):
            raise UserError(f"{error.full_key}: {error.__cause__}") from error
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    except RecursionError as error:
        raise UserError(
            "the references of the configuration go round in circles, or it is nested too deeply"
        ) from error
    check_text(plain)
    assert isinstance(plain, dict)
    return absolute(typing.cast(dict[str, Any], plain))


def check_config(plain: Mapping[str, Any], *, files: bool = False) -> None:
    """Names, types and ranges of a whole configuration; no weights, no data. UserError, which names the key.

    Args:
        files: First look whether the local files of a style are there: the rest imports libraries, for seconds.
    """
    check_arguments(TASKS.get(plain.get("task", ""), TrainConfig), plain, "")
    if files and plain["task"] == "style_matching":
        check_style_files(plain)
    check_targets(plain, "")
    check_ranges(plain)
    if plain["task"] != "baseline":
        check_contradictions(plain)


def check_style_files(plain: Mapping[str, Any]) -> None:
    """Whether the local files of a style are there.

    Args:
        plain: The whole configuration.

    Raises:
        UserError: says which file is missing, where to get it and where to put it.
    """
    style, known, base = plain["style"], plain["weights"], plain["style"].get("base")
    for lora in lora_paths(plain["teacher"].get("lora")):
        if not Path(lora).expanduser().is_file():
            key = "style.lora" if lora == style["lora"] else "teacher.lora"
            raise UserError(f"{key}: {Path(lora).absolute()} does not exist; {_where_from('lora', lora, style, known)}")
    local = "style_base" in known and known["style_base"]["name"] == base and known["style_base"]["source"] != "hub"
    if base and local and not Path(base).exists():
        raise UserError(
            f"style.base: {Path(base).absolute()} does not exist; {_where_from('style_base', base, style, known)}"
        )


def lora_paths(value: Any) -> list[str]:
    """The files that ``teacher.lora`` names: none, one path, or a list of ``{path: FILE, strength: NUMBER}``."""
    if value is None:
        return []
    entries = value if isinstance(value, list) else [value]
    return [str(one["path"]) if isinstance(one, Mapping) and "path" in one else str(one) for one in entries]


def _where_from(key: str, name: str, style: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """What to do about a missing file: the command that fetches it, and the page and place for doing it by hand."""
    weight = known.get(key)
    if weight is None or weight["name"] != name:
        return "check the path"
    page = weight.get("page")
    by_hand = f"download it from {page} and save it there" if page else "put it there"
    if weight["source"] is None:
        return f"no source is known: get it from a place that you trust and {by_hand}"
    return f"run `smsff fetch style={style['name']}`, or {by_hand}"
