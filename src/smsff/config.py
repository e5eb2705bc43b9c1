"""What a configuration may say, checked before any weight is loaded.

Every node with a ``_target_`` is held against the signature of what it names, and the rest against the dataclasses
below: unknown keys, missing keys and wrong types are refused by name, with the nearest name that exists.
"""

from __future__ import annotations

import collections.abc
import difflib
import inspect
import pkgutil
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from smsff.errors import UserError

ASSETS = Path(__file__).parent / "assets"
ALLOWED_TARGETS = ("smsff.", "lightning.pytorch.", "torch.")
RESERVED = ("_target_", "_partial_", "_recursive_", "_convert_")

OmegaConf.register_new_resolver("asset", lambda name: str(ASSETS / name), replace=True)


@dataclass(kw_only=True)
class Style:
    """One style: whose LoRA, on which base, under which words.

    Attributes:
        name: For people and file names.
        words: What prompts call it, with the trigger words of the LoRA.
        edit: Template of the prompt that asks the base for the style, with {words} and {caption}.
        lora: The LoRA file.
        strength: Factor on the LoRA.
        base: Model the LoRA is applied to (folder or hub id); None is the teacher's own base.
        resolution: Side in pixels of the pictures that the base was made for.
        page: Where the LoRA can be had, if it does not come with the package.
        base_page: Where the base can be had, if ``base`` is a local folder.
    """

    name: str
    words: str
    edit: str
    lora: str
    strength: float = 1.0
    base: str | None = None
    resolution: int
    page: str | None = None
    base_page: str | None = None


@dataclass(kw_only=True)
class Tuned:
    """Numbers that hang on the teacher, not on the method; the groups below take them as their defaults.

    Attributes:
        t_max: Largest t of the style score: in SD's schedule for other latents the same t hides more or less.
        scale: Side of a training crop's window as a fraction of the shorter side of the image, (low, high).
        fake_rank, fake_alpha, fake_layers: Size and places of the fake score's LoRA.
    """

    t_max: int
    scale: Sequence[float]
    fake_rank: int
    fake_alpha: float
    fake_layers: Sequence[str]


@dataclass(kw_only=True)
class OptimizerGroups:
    generator: dict
    fake: dict


@dataclass(kw_only=True)
class TrainConfig:
    """The top level of ``conf/train.yaml``."""

    style: Style
    tuned: Tuned
    teacher: dict
    generator: dict
    objective: dict
    regularizer: dict
    relevance: dict
    timesteps: dict
    fake_timesteps: dict
    fake_score: dict
    warmup: dict
    prompts: dict
    optimizer: OptimizerGroups
    data: dict
    trainer: dict
    logger: dict | None
    callbacks: dict
    seed: int
    steps: int
    fake_draws: int
    ema_decay: float
    grid_jitter: int
    log_every: int
    sample_every: int
    checkpoint_every: int
    run_dir: str
    ckpt_path: str | None


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence naming the closest of the known names, or all of them if none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"nearest: {close[0]}" if close else f"known: {', '.join(names)}"


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


def spelled(kind: Any) -> str:
    """An annotation in the words of a configuration."""
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(kind)))
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(spelled(one) for one in typing.get_args(kind))
    return "null" if kind is type(None) else getattr(kind, "__name__", str(kind))


def check_arguments(
    target: Callable[..., Any], values: Mapping[str, Any], prefix: str, *, partial: bool = False
) -> None:
    """Hold the keys and values of one node against a signature.

    Args:
        target: A class, dataclass or function.
        values: Plain containers.
        prefix: Key of the node, for messages.
        partial: Missing arguments are all right, they come later.

    Raises:
        UserError: unknown or missing key, wrong type.
    """
    parameters = inspect.signature(target).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    try:
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError):
        hints = {}
    for name, value in values.items():
        key = f"{prefix}.{name}" if prefix else name
        if name in RESERVED:
            continue
        if name not in parameters:
            if takes_any:
                continue
            raise UserError(f"{key}: there is no such key; {nearest(name, parameters)}")
        if name in hints and not fits(value, hints[name]):
            raise UserError(f"{key}={value!r}: must be {spelled(hints[name])}")
    required = [
        n for n, p in parameters.items() if p.default is p.empty and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    missing = [name for name in required if name not in values]
    if missing and not partial:
        raise UserError(f"{prefix or 'the configuration'}: {', '.join(missing)} missing")


def find_target(name: str, key: str) -> Callable[..., Any]:
    """What a ``_target_`` names.

    Raises:
        UserError: it lies outside the packages that a configuration may use, or cannot be imported.
    """
    if not name.startswith(ALLOWED_TARGETS):
        raise UserError(f"{key}={name}: targets must lie in {', '.join(p.rstrip('.') for p in ALLOWED_TARGETS)}")
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{key}={name}: cannot be imported ({error})") from error


def check_targets(node: Any, prefix: str) -> None:
    """`check_arguments` for every node with a ``_target_`` in a tree of plain containers."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            target = find_target(node["_target_"], f"{prefix}._target_")
            check_arguments(target, node, prefix, partial=bool(node.get("_partial_")))
        for name, value in node.items():
            check_targets(value, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            check_targets(value, f"{prefix}.{index}")


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain containers, every reference followed.

    Raises:
        UserError: a key that must be given has no value, or a reference leads nowhere.
    """
    missing = sorted(str(key) for key in OmegaConf.missing_keys(cfg))
    if missing:
        raise UserError(f"{', '.join(missing)}: no value given; add {missing[0]}=... to the command")
    try:
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    assert isinstance(plain, dict)
    return typing.cast(dict[str, Any], plain)


def check_config(plain: Mapping[str, Any]) -> None:
    """Names, types and ranges of a whole configuration; no weights, no data.

    Raises:
        UserError: names the key.
    """
    check_arguments(TrainConfig, plain, "")
    check_arguments(Style, plain["style"], "style")
    check_arguments(Tuned, plain["tuned"], "tuned")
    check_arguments(OptimizerGroups, plain["optimizer"], "optimizer")
    check_targets(plain, "")
    for key in ("steps", "log_every", "sample_every", "checkpoint_every"):
        if plain[key] < 1:
            raise UserError(f"{key}={plain[key]}: must be at least 1")
    precision = plain["trainer"].get("precision", "32-true")
    if "16-true" in str(precision) or str(precision) in ("16", "16-mixed"):
        raise UserError(
            f"trainer.precision={precision}: use 32-true, 64-true or bf16-mixed; teacher.dtype may be float16"
        )


def check_style_files(style: Mapping[str, Any]) -> None:
    """Whether the files of a style are there.

    Raises:
        UserError: says which file is missing, where to get it and where to put it.
    """
    lora = Path(style["lora"])
    if not lora.is_file():
        source = f"download it from {style['page']} and save it as {lora}" if style.get("page") else "check the path"
        raise UserError(f"style.lora: {lora} does not exist; {source} (relative to {Path.cwd()})")
    base = style.get("base")
    if base and style.get("base_page") and not Path(base).is_dir():
        raise UserError(
            f"style.base: the folder {base} does not exist; get the model from {style['base_page']}, convert it to the "
            "diffusers format if it is a single file, and put it there"
        )


def find_checkpoint(wanted: str | None, run_dir: Path) -> Path | None:
    """The file that ``ckpt_path`` means.

    ``last`` is ``checkpoints/last.ckpt`` of the run folder itself (to go on in the same folder), or else the newest one
    of the runs beside it (to go on from there in a new folder).

    Raises:
        UserError: nothing is there.
    """
    if wanted is None:
        return None
    if wanted != "last":
        path = Path(wanted)
        if not path.is_file():
            raise UserError(f"ckpt_path={wanted}: there is no such file")
        return path.resolve()
    own = run_dir / "checkpoints" / "last.ckpt"
    if own.is_file():
        return own.resolve()
    beside = [p for depth in ("*", "*/*") for p in run_dir.parent.glob(f"{depth}/checkpoints/last.ckpt")]
    if not beside:
        raise UserError(f"ckpt_path=last: no checkpoints/last.ckpt in {run_dir} or in a run beside it")
    return max(beside, key=lambda path: path.stat().st_mtime).resolve()
