"""Whether the weights that a configuration needs are there, by what lies on the disk; the network is never asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from smsff.weights.files import FileRecord, Progress, file_sha256, nothing, safetensors_fault
from smsff.weights.hub import blob_sha256, cached_folder
from smsff.weights.manifest import LOCK, Locked, Need
from smsff.weights.pipeline import folder_fault, folder_files

State = Literal["there", "missing", "broken", "wrong"]
HashState = Literal["verified", "not checked", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Status:
    """What was found of one need.

    Attributes:
        need: The need.
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
    """Find out about one need, in milliseconds without ``verify``.

    Args:
        locked: What was recorded of it, if anything.
        verify: Compute the hashes of the files, some seconds for each gigabyte.
        progress: Told of the bytes of each file that is hashed.
    """
    revision: str | None = None
    place: Path | None = need.path
    if need.hub and not need.path.is_dir():
        place = cached_folder(need.name, need.revision, vae=need.vae)
        revision = place.name if place else None
    if place is None or not place.exists():
        return Status(need=need, state="missing", files={})
    if place.is_dir():
        fault = folder_fault(place, variant=need.variant, weights=need.weights, vae=need.vae)
        files = folder_files(place, variant=need.variant, weights=need.weights, vae=need.vae)
    else:
        fault = safetensors_fault(place) if place.suffix.lower() == ".safetensors" else None
        files = {place.name: place}
    if fault:
        return Status(need=need, state="broken", files=files, revision=revision, reason=fault)
    expected = _expected(need, locked if revision is None or (locked and locked.revision == revision) else None, files)
    reason, hashed = _compare(files, expected, verify=verify, progress=progress)
    if reason:
        return Status(need=need, state="wrong", files=files, revision=revision, reason=reason)
    return Status(need=need, state="there", files=files, hash=hashed, revision=revision)


@dataclass(frozen=True)
class _Expected:
    size: int | None
    sha256: str | None
    by: str


def _expected(need: Need, locked: Locked | None, files: Mapping[str, Path]) -> dict[str, _Expected]:
    """What is known of the files: by the manifest first, then by the record, then by the names in the hub's cache."""
    known: dict[str, _Expected] = {}
    for name, path in files.items():
        record: FileRecord | None = locked.files.get(name) if locked else None
        weight = need.weight if path == need.path else None
        if weight is not None and (weight.size is not None or weight.sha256 is not None):
            same = record is not None and weight.sha256 in (None, record.sha256)
            known[name] = _Expected(
                weight.size, weight.sha256 or (record.sha256 if record and same else None), "the manifest"
            )
        elif record is not None:
            known[name] = _Expected(record.size, record.sha256, LOCK)
        elif digest := blob_sha256(path):
            known[name] = _Expected(None, digest, "the hub")
    return known


def _compare(
    files: Mapping[str, Path], expected: Mapping[str, _Expected], *, verify: bool, progress: Progress
) -> tuple[str | None, HashState]:
    """Why the files are not what they should be, or None and how much is known of their hashes."""
    for name, known in expected.items():
        size = files[name].stat().st_size
        if known.size not in (None, size):
            return f"{name} has {size:,} bytes, {known.by} says {known.size:,}", "unknown"
    hashes = {name: known for name, known in expected.items() if known.sha256}
    if not hashes:
        return None, "unknown"
    if not verify:
        return None, "not checked"
    for name, known in hashes.items():
        if (digest := file_sha256(files[name], progress=progress)) != (known.sha256 or "").lower():
            return f"{name} has the SHA-256 {digest}, {known.by} says {known.sha256}", "unknown"
    return None, "verified"
