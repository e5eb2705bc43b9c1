"""The weights that a configuration needs: manifest, records of what was fetched, and what is on the disk; offline."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from smsff.atomic import write_atomically
from smsff.config.check import check_arguments, lora_paths
from smsff.config.schema import Weight
from smsff.errors import UserError
from smsff.weights.files import FileRecord, Progress, file_sha256, folder_lock, nothing, safetensors_fault
from smsff.weights.hub import blob_sha256, cached_folder
from smsff.weights.pipeline import MODELS, PARTS, folder_fault, folder_files

LOCK = "weights.lock.json"
KEYS = ("base", "style_base", "vae", "config", "lora")
"""Keys of ``teacher`` that name weights; ``weights`` has its entries under the same keys."""
BASELINE = ("controlnet", "ip_adapter", "image_encoder", "network")
"""The same of ``baseline``."""
FILES = ("lora", "ip_adapter", "network")
"""Those of them that are one file, and never a model of the hub."""

State = Literal["there", "missing", "broken", "wrong"]
HashState = Literal["verified", "not checked", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Need:
    """One model or file that the configuration names.

    Attributes:
        key: Config key, ``teacher.base`` for example.
        hub: Whether it is a model of the hub, to be read from the hub's cache.
        weight: What the manifest knows of it; None of what is the user's own.
        revision, variant: Of a model, as the configuration has them.
        weights: Parts of a model whose weights are needed; of others the settings alone.
        part: One of `smsff.weights.pipeline.PARTS` if this alone is needed; it may have a repository of its own.
    """

    key: str
    name: str
    hub: bool
    weight: Weight | None = None
    revision: str | None = None
    variant: str | None = None
    weights: Collection[str] = tuple(MODELS)
    part: str | None = None

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
    """

    source: str | None
    revision: str | None
    files: Mapping[str, FileRecord]


def is_flow(teacher: Mapping[str, Any]) -> bool:
    """Whether a teacher's node is that of a flow-matching transformer."""
    return str(teacher.get("_target_")).endswith(".load_flow")


def needs(plain: Mapping[str, Any]) -> list[Need]:
    """The weights that a resolved configuration names, each once.

    Raises:
        UserError: an entry of ``weights`` is not one of the manifest.
    """
    nodes = {name: plain.get(name) or {} for name in ("teacher", "baseline")}
    known = plain.get("weights") or {}
    for key, entry in known.items():
        check_arguments(Weight, entry, f"weights.{key}")
    found: dict[str, Need] = {}
    # What a single file has not: Stable Diffusion's has all weights, a flow's those of the transformer.
    beside = tuple(part for part in MODELS if is_flow(nodes["teacher"]) and part != "transformer")
    for place, key in [*(("teacher", key) for key in KEYS), *(("baseline", key) for key in BASELINE)]:
        for name in lora_paths(nodes[place].get(key)):
            entry = known.get(key)
            weight = Weight(**entry) if entry is not None and entry["name"] == name else None
            need = Need(
                key=f"{place}.{key}",
                name=name,
                hub=key not in FILES and _is_hub_id(name, weight),
                weight=weight,
                revision=nodes["teacher"].get("revision") if key == "base" else None,
                variant=nodes["teacher"].get("variant") if key in ("base", "style_base", "config") else None,
                weights=beside if key == "config" else tuple(MODELS),
                part=key if key in PARTS else None,
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


@dataclass(frozen=True, kw_only=True)
class Status:
    """What was found of one need.

    Attributes:
        state: ``there``; ``missing``; ``broken``: incomplete or no weights at all; ``wrong``: another size or hash than
            the manifest or the record says.
        files: What was found, by name; of a pipeline only the files that are read.
        hash: ``verified`` against manifest, record or hub; ``not checked``: one is known; ``unknown``: none is.
        revision: Commit of a model of the hub.
        reason: Why the state is ``broken`` or ``wrong``.
    """

    need: Need
    state: State
    files: Mapping[str, Path]
    hash: HashState = "unknown"
    revision: str | None = None
    reason: str | None = None

    @property
    def size(self) -> int:
        """Bytes of the files."""
        return sum(path.stat().st_size for path in self.files.values())


def look(need: Need, locked: Locked | None, *, verify: bool, progress: Progress = nothing) -> Status:
    """Find out about one need, in milliseconds; ``verify`` computes the hashes too, some seconds for each gigabyte."""
    revision: str | None = None
    place: Path | None = need.path
    if need.hub and not need.path.is_dir():
        place = cached_folder(need.name, need.revision, part=need.part)
        revision = place.name if place else None
    if place is None or not place.exists():
        return Status(need=need, state="missing", files={})
    if place.is_dir():
        fault = folder_fault(place, variant=need.variant, weights=need.weights, part=need.part)
        files = folder_files(place, variant=need.variant, weights=need.weights, part=need.part)
    else:
        fault = safetensors_fault(place) if place.suffix.lower() == ".safetensors" else None
        files = {place.name: place}
    if fault:
        return Status(need=need, state="broken", files=files, revision=revision, reason=fault)
    record = locked if revision is None or (locked and locked.revision == revision) else None
    reason, hashed = _compare(need, record, files, verify=verify, progress=progress)
    state: State = "wrong" if reason else "there"
    return Status(need=need, state=state, files=files, hash=hashed, revision=revision, reason=reason)


def _compare(
    need: Need, locked: Locked | None, files: Mapping[str, Path], *, verify: bool, progress: Progress
) -> tuple[str | None, HashState]:
    """Why the files are not what they should be, or None and how much is known of their hashes."""
    hashes: list[tuple[str, str, str]] = []
    for name, path in files.items():
        size, sha256, by = _expected(need, locked.files.get(name) if locked else None, path)
        if size not in (None, found := path.stat().st_size):
            return f"{name} has {found:,} bytes, {by} says {size:,}", "unknown"
        if sha256:
            hashes.append((name, sha256, by))
    if not hashes or not verify:
        return None, "not checked" if hashes else "unknown"
    for name, sha256, by in hashes:
        if (digest := file_sha256(files[name], progress=progress)) != sha256.lower():
            return f"{name} has the SHA-256 {digest}, {by} says {sha256}", "unknown"
    return None, "verified"


def _expected(need: Need, record: FileRecord | None, path: Path) -> tuple[int | None, str | None, str]:
    """Size and hash of a file, and who says so: first the manifest, then the record, then the hub's cache."""
    weight = need.weight if path == need.path else None
    if weight is not None and (weight.size is not None or weight.sha256 is not None):
        recorded = record.sha256 if record and weight.sha256 is None else None
        return weight.size, weight.sha256 or recorded, "the manifest"
    if record is not None:
        return record.size, record.sha256, LOCK
    return None, blob_sha256(path), "the hub"
