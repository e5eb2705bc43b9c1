"""``smsff fetch``: bring the weights that a configuration needs, verified, or say how to come by them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bars

from smsff.errors import UserError
from smsff.weights.compose import composed, find_conf
from smsff.weights.download import Download, download
from smsff.weights.files import FileRecord, Progress, file_sha256, spell_size
from smsff.weights.hub import ask_hub, fill_cache, missing_bytes
from smsff.weights.manifest import LOCK, Locked, Need, Status, look, needs, read_lock, write_lock


def fetch(overrides: Sequence[str], *, conf: str | None = None, dry_run: bool = False) -> int:
    """Fetch what is missing of the weights that a command line needs, one line for each on stdout.

    Returns 0 if everything is there (or would be), 1 if something is missing; it is named.
    """
    plain = composed(find_conf(conf), overrides)
    output, locked = _Output(), read_lock()
    if offline():
        output.say("HF_HUB_OFFLINE is set: nothing is fetched, only what is there is looked at")
    complete = [_one(need, locked.get(need.name), output, dry_run=dry_run) for need in needs(plain)]
    return 0 if all(complete) else 1


def offline() -> bool:
    """Whether the environment forbids the use of the network, by the hub's variables."""
    values = (os.environ.get(name, "") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return any(value.upper() in ("1", "ON", "YES", "TRUE") for value in values)


class _Output:
    """Lines on stdout, progress and retries on stderr."""

    def __init__(self) -> None:
        options: dict[str, Any] = {"soft_wrap": True, "highlight": False, "markup": False}
        self.console, self.errors = Console(**options), Console(stderr=True, **options)

    def line(self, state: str, need: Need, text: str) -> None:
        self.console.print(f"{state:<8} {need.key:<18} {need.name}: {text}")

    def say(self, text: str) -> None:
        self.errors.print(text)

    @contextmanager
    def bar(self, name: str) -> Iterator[Progress]:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        terminal = self.errors.is_terminal
        with Bars(*columns, TimeRemainingColumn(), console=self.errors, transient=True, disable=not terminal) as bars:
            task = bars.add_task(name, total=None)
            yield lambda done, total: bars.update(task, completed=done, total=total)


def _one(need: Need, locked: Locked | None, output: _Output, *, dry_run: bool) -> bool:
    """Whether a need is met, at the end or (dry run) by what would be fetched."""
    known = need.weight.sha256 if need.weight else None
    recorded = {record.sha256 for record in locked.files.values()} if locked else set()
    with output.bar(f"checking {need.path.name}") as progress:
        status = look(need, locked, verify=known is not None and known.lower() not in recorded, progress=progress)
    try:
        if status.state == "there":
            output.line("there", need, _found(status) + ("" if dry_run else _record(status, locked, source=None)))
            return True
        if not need.hub and status.state != "missing":
            raise UserError(f"{need.path}: {status.reason}; move it away and run the command again")
        source = source_of(need)
        if offline() or source is None:
            output.line("missing", need, ("not in the hub's cache; " if need.hub else "") + by_hand(need))
            return False
        if dry_run:
            output.line("fetch", need, _plan(need, source))
        elif need.hub:
            _fetch_hub(need, locked, output)
        else:
            _fetch_file(need, source, locked, output)
        return True
    except UserError as error:
        output.line("failed", need, str(error).removeprefix(f"{need.name}: "))
        return False


def source_of(need: Need) -> str | None:
    """Where a need can be fetched from: an address, ``hub``, or nowhere."""
    if need.hub:
        return "hub"
    source = need.weight.source if need.weight else None
    return source if source and source.startswith(("http://", "https://")) else None


def by_hand(need: Need) -> str:
    """What a person can do about weights that are missing, with the place where they belong."""
    page = need.weight.page if need.weight else None
    if need.hub:
        folder = need.path.name
        return (
            f"where there is a network, run `hf download {need.name} --local-dir {folder}`, "
            f"bring the folder here and set {need.key}={folder}"
        )
    if need.weight is None:
        return f"not in the manifest: put it there, or correct {need.key}"
    if need.weight.source == "package":
        return "belongs to the package smsff: install it again"
    if page:
        return f"download it from {page} and save it as {need.path.absolute()}"
    return f"no source is known: get it from a place that you trust and put it at {need.path.absolute()}"


def _plan(need: Need, source: str) -> str:
    licence = terms(need)
    if not need.hub:
        size = spell_size(need.weight.size) if need.weight and need.weight.size else "size not known"
        return f"from {source} ({size}), to {need.path.absolute()}; {licence}"
    remote = ask_hub(need.name, revision=need.revision, variant=need.variant, weights=need.weights, part=need.part)
    return (
        f"from the hub, commit {remote.commit[:12]}: {spell_size(missing_bytes(remote))} of {spell_size(remote.size)} "
        f"in {len(remote.files)} files; {licence}"
    )


def terms(need: Need) -> str:
    """The licence, or where to read it."""
    if need.weight is not None and need.weight.licence:
        return f"licence: {need.weight.licence}"
    page = need.weight.page if need.weight else f"https://huggingface.co/{need.name}" if need.hub else None
    return f"licence: see {page}" if page else "licence: not known"


def _fetch_file(need: Need, source: str, locked: Locked | None, output: _Output) -> None:
    weight, record = need.weight, locked.files.get(need.path.name) if locked else None
    known, recorded = weight.sha256 if weight else None, record.sha256 if record else None
    wanted = Download(source, need.path, size=weight.size if weight else None, sha256=known or recorded)
    output.say(f"{need.name}: from {wanted}; {terms(need)}")
    try:
        with output.bar(need.path.name) as progress:
            fresh = download(wanted, progress=progress, say=output.say)
    except UserError as error:
        if recorded and known is None and recorded in str(error):
            hint = f"that one is of the first download, in {LOCK}: remove it there if the author has replaced the file"
            raise UserError(f"{error}; {hint}") from error
        raise
    status = look(need, locked, verify=not fresh)
    if status.state != "there":
        raise UserError(f"{need.path}: {status.reason}; move it away and run the command again")
    output.line("fetched", need, _found(status) + _record(status, locked, source=str(wanted)))


def _fetch_hub(need: Need, locked: Locked | None, output: _Output) -> None:
    remote = ask_hub(need.name, revision=need.revision, variant=need.variant, weights=need.weights, part=need.part)
    output.say(f"{need.name}: {spell_size(missing_bytes(remote))} from the hub, commit {remote.commit}; {terms(need)}")
    files = fill_cache(remote, revision=need.revision, say=output.say)
    if locked is not None and locked.revision not in (None, remote.commit):
        output.say(f"{need.name}: has changed on the hub since commit {locked.revision}, which was recorded in {LOCK}")
    write_lock(need.name, Locked(source="hub", revision=remote.commit, files=files))
    output.line("fetched", need, f"{spell_size(remote.size)}, commit {remote.commit[:12]}, hashes as on the hub")


def _found(status: Status) -> str:
    where = "" if status.revision is None else f" in the hub's cache, commit {status.revision[:12]}"
    return spell_size(status.size) + where


def _record(status: Status, locked: Locked | None, *, source: str | None) -> str:
    """Record the hashes of what is there for the first time, and say so; what comes with the package is left out."""
    need = status.need
    if need.weight is not None and need.weight.source == "package":
        return ", comes with the package"
    if locked is not None and (status.revision is None or locked.revision == status.revision):
        return f", as recorded in {LOCK}"
    files = {name: FileRecord(path.stat().st_size, file_sha256(path)) for name, path in status.files.items()}
    write_lock(need.name, Locked(source=source, revision=status.revision, files=files))
    if need.weight is not None and need.weight.sha256 is not None:
        return ", SHA-256 as in the manifest"
    return f", SHA-256 recorded in {LOCK} (none was known before)"
