"""Models of the Hugging Face hub, through its own client: what they consist of, and filling the local cache."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from smsff.errors import UserError, first_line
from smsff.weights.files import FileRecord, file_sha256, nothing, spell_size
from smsff.weights.pipeline import INDEX, MODELS, PARTS, needed_files


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository on the hub; ``sha256`` is known of large files only."""

    name: str
    size: int
    sha256: str | None


@dataclass(frozen=True)
class Remote:
    """The needed files of a repository on the hub, at one commit."""

    repo: str
    commit: str
    files: tuple[RemoteFile, ...]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


def cached_folder(repo: str, revision: str | None, *, part: str | None = None) -> Path | None:
    """Where the hub's cache has this revision (None: main) of a repository, or of one of `PARTS` in it; offline."""
    from huggingface_hub import try_to_load_from_cache

    for name in [INDEX] if part is None else [f"{place}config.json" for place in PARTS[part][2]]:
        try:
            found = try_to_load_from_cache(repo, name, revision=revision)
        except ValueError:  # no name that a repository can have
            return None
        if isinstance(found, str):
            return Path(found.removesuffix(name))
    return None


def blob_sha256(path: Path) -> str | None:
    """The hash that the hub gave for a large file in its cache: the cache names the file behind the link by it."""
    name = path.resolve().name
    return name if path.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", name) else None


def ask_hub(
    repo: str,
    *,
    revision: str | None,
    variant: str | None,
    weights: Collection[str] = tuple(MODELS),
    part: str | None = None,
    timeout: float = 20.0,
) -> Remote:
    """The needed files of a repository with sizes and hashes; arguments as of `needed_files`.

    Raises:
        UserError: no network, no such repository or revision, no access, or no pipeline.
    """
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=timeout)
    except Exception as error:  # the hub's client raises errors of its HTTP library, which differ between versions
        raise UserError(_hub_error(repo, revision, error)) from None
    listed = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    names = needed_files(listed, variant=variant, weights=weights, part=part)
    wanted = INDEX if part is None else f"config.json of {PARTS[part][0]}"
    if not (INDEX in names if part is None else names) or not info.sha:
        raise UserError(f"{repo}: on the hub, but not in the folder layout of diffusers (it has no {wanted})")
    files = (listed[name] for name in names)
    return Remote(
        repo, info.sha, tuple(RemoteFile(f.rfilename, f.size or 0, f.lfs.sha256 if f.lfs else None) for f in files)
    )


def missing_bytes(remote: Remote) -> int:
    """How much of it is not in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    there = (try_to_load_from_cache(remote.repo, file.name, revision=remote.commit) for file in remote.files)
    return sum(file.size for file, path in zip(remote.files, there, strict=True) if not isinstance(path, str))


def fill_cache(remote: Remote, *, revision: str | None, say: Callable[[str], None] = nothing) -> dict[str, FileRecord]:
    """Bring the needed files into the hub's cache (resumed by its client), and hold them against sizes and hashes.

    Returns:
        Size and hash of every file by its name.

    Raises:
        UserError: the disk is too small, the network broke, or a file is not what the hub says it is.
    """
    from huggingface_hub import constants, snapshot_download

    cache, missing = Path(constants.HF_HUB_CACHE), missing_bytes(remote)
    cache.mkdir(parents=True, exist_ok=True)
    if missing > (free := shutil.disk_usage(cache).free):
        raise UserError(
            f"{remote.repo}: the disk of {cache} is too small: {spell_size(missing)} are to come, {spell_size(free)} "
            "are free; HF_HOME in the environment names another place"
        )
    try:
        folder = Path(
            snapshot_download(remote.repo, revision=revision, allow_patterns=[file.name for file in remote.files])
        )
    except Exception as error:
        raise UserError(_hub_error(remote.repo, revision, error)) from None
    if folder.name != remote.commit:
        raise UserError(f"{remote.repo}: was changed on the hub during the download; run the command again")
    say(f"{remote.repo}: checking {spell_size(remote.size)}")
    records = {}
    for file in remote.files:
        path = folder / file.name
        record = records[file.name] = FileRecord(path.stat().st_size, file_sha256(path))
        if record.size != file.size or file.sha256 not in (None, record.sha256):
            blob = path.resolve()
            path.unlink()
            blob.unlink(missing_ok=True)
            raise UserError(
                f"{remote.repo}: {file.name} is not what the hub says it is; it was removed, run the command again"
            )
    return records


def _hub_error(repo: str, revision: str | None, error: Exception) -> str:
    from huggingface_hub import errors

    page = f"https://huggingface.co/{repo}"
    known = {  # a gated repository is one that is not found, too
        errors.GatedRepoError: f"its authors ask you to accept terms on {page}; do so, and set HF_TOKEN to an access "
        "token of your account",
        errors.RevisionNotFoundError: f"the hub has no revision {revision}",
        errors.RepositoryNotFoundError: "the hub has no such model (or it is private: then set HF_TOKEN to an access "
        "token)",
        errors.OfflineModeIsEnabled: "not in the hub's cache, and HF_HUB_OFFLINE forbids to ask the hub",
    }
    unknown = f"the hub cannot be asked ({first_line(error, at_most=160)}); no network?"
    return f"{repo}: " + next((text for kind, text in known.items() if isinstance(error, kind)), unknown)
