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
