"""What a LoRA file says about rank and alpha outside of its tensors: in its header, or in peft's file beside it.

Programs write this in many ways, and some of them wrongly. Whatever cannot be applied is named, never guessed.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smsff.errors import UserError, shown

_JSON = "lora_adapter_metadata"
_BESIDE = "adapter_config.json"
_ALPHAS = ("network_alpha", "alpha", "lora_alpha")  # the last one that is there counts
_FIELDS = ("r", *_ALPHAS, "rank_pattern", "alpha_pattern", "use_rslora")


@dataclass(frozen=True)
class SavedConfig:
    """Rank and alpha of the layers of one part (the U-Net, a text encoder), in peft's terms.

    Attributes:
        rank, alpha: of all layers; None where they are not said.
        rank_pattern, alpha_pattern: {regular expression for names of layers: their own}.
        rslora: rank-stabilised: the scale is alpha / sqrt(rank).
    """

    rank: float | None
    alpha: float | None
    rank_pattern: Mapping[str, float]
    alpha_pattern: Mapping[str, float]
    rslora: bool

    def scale(self, names: Sequence[str], rank: int | None) -> float:
        """alpha / rank of a layer, or alpha / sqrt(rank). Where there is no alpha, alpha is the rank.

        `names`: of the layer, in the file and in the model. `rank` is None where the tensors do not tell it.
        """
        r = rank or _by_pattern(self.rank_pattern, names, self.rank)
        if r is None:
            return 1.0
        alpha = _by_pattern(self.alpha_pattern, names, self.alpha)
        alpha = r if alpha is None else alpha
        return alpha / r**0.5 if self.rslora else alpha / r


def read_config(
    path: Path, metadata: Mapping[str, str], parts: Collection[str], wanted: Collection[str], *, peft: bool
) -> tuple[dict[str, SavedConfig], tuple[str, ...]]:
    """The configurations of the parts, and the names of the entries that cannot be applied.

    An entry may be for one part (``unet.lora_alpha``) or for all (``lora_alpha``); the former counts first. The JSON of
    diffusers, or else peft's file, counts before single entries of the header.

    Args:
        metadata: strings of the file's header.
        parts: those that the file has layers of; an entry for any other cannot be applied.
        wanted: those that have layers without an alpha of their own.
        peft: whether the names of the tensors are peft's, so that its file beside belongs to this one.

    Raises:
        UserError: an alpha is not finite.
    """
    if not wanted:
        return {}, ()
    single = {key: _parsed(text) for key, text in metadata.items()}
    name, saved = _JSON, single.pop(_JSON, None)
    if not saved and peft and (beside := path.parent / _BESIDE).is_file():
        name, saved = _BESIDE, _read(beside)
    unusable = [] if saved is None or isinstance(saved, Mapping) else [name]
    entries = [*_entries(single, parts), *_entries(saved if isinstance(saved, Mapping) else {}, parts)]
    unusable += [e.key for e in entries if e.part not in ("", *parts) or e.field not in _FIELDS]
    config = {}
    for part in wanted:
        mine = [e for of in ("", part) for e in entries if e.part == of and e.field in _FIELDS]
        if mine:
            config[part] = _typed(path, mine, unusable)
    return config, tuple(sorted(set(unusable)))


@dataclass(frozen=True)
class _Entry:
    """One setting; `part` is "" for all parts."""

    part: str
    field: str
    value: Any

    @property
    def key(self) -> str:
        return f"{self.part}.{self.field}" if self.part else self.field


def _parsed(text: str) -> Any:
    """The value that a string of the header stands for."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _read(path: Path) -> Any:
    try:
        return _parsed(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return str(error)


def _entries(saved: Mapping[str, Any], parts: Collection[str]) -> list[_Entry]:
    """Out of ``{"unet.r": 4}`` and out of ``{"unet": {"r": 4}}``; other alphas too, which have to be named."""
    found = []
    for key, value in saved.items():
        part, _, field = key.rpartition(".")
        if field in _FIELDS or field.endswith("alpha"):
            found.append(_Entry(part, field, value))
        elif isinstance(value, Mapping) and key in parts:
            found += [_Entry(key, name, inner) for name, inner in value.items() if name in _FIELDS]
    return sorted(found, key=lambda entry: (*_FIELDS, entry.field).index(entry.field))


def _typed(path: Path, entries: list[_Entry], unusable: list[str]) -> SavedConfig:
    """The last usable entry of each kind; the names of those that are not are added to `unusable`."""

    def alpha(key: str, value: Any) -> float | None:
        number = _number(value)
        if number is None:
            unusable.append(key)
        elif not math.isfinite(number):
            raise UserError(f"teacher.lora={path}: its {key} (header or {_BESIDE}) is {shown(value)}, not finite")
        return number

    def rank(key: str, value: Any) -> float | None:
        number = _number(value)
        if number is None or not 0 < number < math.inf:
            unusable.append(key)
            return None
        return number

    def patterns(key: str, value: Any, read: Callable[[str, Any], float | None]) -> dict[str, float]:
        if not isinstance(value, Mapping):
            unusable.append(key)
            return {}
        unusable.extend(f"{key}.{name}" for name in value if not _is_pattern(name))
        numbers = {name: read(f"{key}.{name}", one) for name, one in value.items() if _is_pattern(name)}
        return {name: number for name, number in numbers.items() if number is not None}

    found: dict[str, Any] = {}
    for entry in entries:
        kind = "alpha" if entry.field in _ALPHAS else entry.field
        if entry.value is None and kind != "alpha":  # peft writes null for what is not set
            continue
        if kind in ("rank_pattern", "alpha_pattern"):
            found[kind] = patterns(entry.key, entry.value, rank if kind == "rank_pattern" else alpha)
        elif kind == "use_rslora":
            found[kind] = str(entry.value).lower() == "true"
            unusable += [] if str(entry.value).lower() in ("true", "false") else [entry.key]
        elif (number := (alpha if kind == "alpha" else rank)(entry.key, entry.value)) is not None:
            found[kind] = number
    return SavedConfig(
        rank=found.get("r"),
        alpha=found.get("alpha"),
        rank_pattern=found.get("rank_pattern", {}),
        alpha_pattern=found.get("alpha_pattern", {}),
        rslora=found.get("use_rslora", False),
    )


def _number(value: Any) -> float | None:
    """A float, infinite for an integer that is too large for one; None for what is no number."""
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf
    except (TypeError, ValueError):
        return None


def _by_pattern(patterns: Mapping[str, float], names: Sequence[str], default: float | None) -> float | None:
    """peft's rule: the first key that, as a regular expression, ends the layer's name at a dot."""
    return next((v for key, v in patterns.items() if any(_pattern(key).match(name) for name in names)), default)


def _is_pattern(key: str) -> bool:
    try:
        _pattern(key)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


@functools.cache
def _pattern(key: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({key})$")
