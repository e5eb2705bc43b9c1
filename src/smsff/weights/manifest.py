"""What a configuration needs, what the manifest knows of it, and what was recorded when it was fetched."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from smsff.atomic import write_atomically
from smsff.config.check import check_arguments, lora_paths
from smsff.config.schema import Weight
from smsff.errors import UserError
from smsff.weights.files import FileRecord, folder_lock

LOCK = "weights.lock.json"
KEYS = ("base", "style_base", "vae", "config", "lora")
"""Keys of ``teacher`` that name weights; ``weights`` has its entries under the same keys."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """One model or file that the configuration names.

    Attributes:
        key: Config key, ``teacher.base`` for example.
        name: Path or hub id, as it stands there.
        hub: Whether it is a model of the hub, to be read from the hub's cache.
        weight: What the manifest knows of it; None of what is the user's own.
        revision, variant: Of a model, as the configuration has them.
        weights: Whether the weights of a model are needed, or its settings and tokenizers alone.
        vae: Whether its auto-encoder alone is needed, which may have a repository or folder of its own.
    """

    key: str
    name: str
    hub: bool
    weight: Weight | None = None
    revision: str | None = None
    variant: str | None = None
    weights: bool = True
    vae: bool = False

    @property
    def path(self) -> Path:
        """Where it has to be, if it is no model of the hub."""
        return Path(self.name).expanduser()


@dataclass(frozen=True, kw_only=True)
class Locked:
    """What was recorded of one need when it was there for the first time.

    Attributes:
        source: Where it came from; None if the user put it there.
        revision: Commit of a model of the hub.
        files: Size and hash by file name.
    """

    source: str | None
    revision: str | None
    files: Mapping[str, FileRecord]


def needs(plain: Mapping[str, Any]) -> list[Need]:
    """The weights that a resolved configuration names, each once.

    Raises:
        UserError: an entry of ``weights`` is not one of the manifest.
    """
    teacher, known = plain.get("teacher") or {}, plain.get("weights") or {}
    for key, entry in known.items():
        check_arguments(Weight, entry, f"weights.{key}")
    found: dict[str, Need] = {}
    for key in KEYS:
        for name in lora_paths(teacher.get(key)):
            entry = known.get(key)
            weight = Weight(**entry) if entry is not None and entry["name"] == name else None
            need = Need(
                key=f"teacher.{key}",
                name=name,
                hub=key != "lora" and _is_hub_id(name, weight),
                weight=weight,
                revision=teacher.get("revision") if key == "base" else None,
                variant=teacher.get("variant") if key not in ("lora", "vae") else None,
                weights=key != "config",
                vae=key == "vae",
            )
            found.setdefault(name, need)
    return list(found.values())


def _is_hub_id(name: str, weight: Weight | None) -> bool:
    if weight is not None:
        return weight.source == "hub"
    local = Path(name).expanduser().exists() or name.startswith((".", "/", "~")) or "\\" in name
    return (
        not local and name.count("/") == 1 and Path(name).suffix.lower() not in (".safetensors", ".ckpt", ".pt", ".bin")
    )


def read_lock(path: Path | None = None) -> dict[str, Locked]:
    """The records by the names of the needs; of the file `LOCK` in the current folder if no other is given.

    Raises:
        UserError: the file is not readable.
    """
    path = path or Path(LOCK)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {
            name: Locked(
                source=entry["source"],
                revision=entry["revision"],
                files={file: FileRecord(**record) for file, record in entry["files"].items()},
            )
            for name, entry in content["weights"].items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); mend it, or remove it to record everything anew") from error


def write_lock(name: str, locked: Locked, path: Path | None = None) -> None:
    """Add or replace one record; the others, and what other processes add meanwhile, stay."""
    path = path or Path(LOCK)
    with folder_lock(path.absolute().parent):
        records = read_lock(path) | {name: locked}
        content = {"version": 1, "weights": {key: asdict(records[key]) for key in sorted(records)}}
        text = json.dumps(content, indent=2) + "\n"
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
