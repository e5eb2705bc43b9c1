"""One file over HTTP(S): resumed, checked, and put in its place only when it is complete and right."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import requests

from smsff.errors import UserError
from smsff.weights.files import Progress, file_sha256, folder_lock, nothing, safetensors_fault, spell_size

CHUNK = 1 << 16
TIMEOUT = (10.0, 60.0)
"""Seconds to connect, and between two pieces of data."""
SPARE = 64 * 1024**2
"""Bytes that a download leaves free on the disk."""
TOKENS = {"civitai.com": "CIVITAI_TOKEN", "huggingface.co": "HF_TOKEN"}
"""Environment variable with the access token of a host; of other hosts see `token_variable`."""


class _RetryError(Exception):
    """The server is busy or the connection broke: try again, after ``wait`` seconds if the server gave a time."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class Download:
    """An address (http or https), the file it goes to, and its size and hash where they are known."""

    url: str
    path: Path
    size: int | None = None
    sha256: str | None = None

    @property
    def part(self) -> Path:
        """Where the bytes are until all of them have come."""
        return self.path.with_name(self.path.name + ".part")

    @property
    def notes(self) -> Path:
        """Beside `part`: which version of the file its bytes are of."""
        return self.path.with_name(self.path.name + ".part.json")

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or self.url

    def __str__(self) -> str:
        """The address without its query, which may hold a token."""
        split = urlsplit(self.url)
        return f"{split.scheme}://{split.netloc.rpartition('@')[2]}{split.path}"


def download(
    wanted: Download,
    *,
    progress: Progress = nothing,
    say: Callable[[str], None] = nothing,
    attempts: int = 6,
    wait: float = 1.0,
) -> bool:
    """Fetch a file. In its place there is the complete file or none; the bytes of a broken download are kept beside it.

    Args:
        say: Called with one line for each retry, and while another process fetches into the folder.
        attempts: In a row, without one new byte.
        wait: Seconds before the second attempt; doubled before each further one, a minute at most.

    Returns:
        False if another process has put the file there meanwhile; then it is not checked.

    Raises:
        UserError: network, server or disk fail, or the file has another size or hash.
    """
    try:
        wanted.path.parent.mkdir(parents=True, exist_ok=True)
        with folder_lock(wanted.path.parent, say=say):
            if wanted.path.exists():
                return False
            _receive(wanted, progress, say, attempts, wait)
            _verify(wanted)
            os.replace(wanted.part, wanted.path)
            wanted.notes.unlink(missing_ok=True)
            return True
    except OSError as error:  # the disk: requests' own errors, which are OSErrors too, end in _receive
        raise UserError(f"{wanted.path}: cannot be written ({error.strerror or error}){_kept(wanted)}") from error


def token_variable(host: str) -> str:
    """Name of the environment variable whose token is sent to this host (and to no other one)."""
    return TOKENS.get(host) or "SMSFF_TOKEN_" + "".join(c if c.isalnum() else "_" for c in host).upper()


def _receive(wanted: Download, progress: Progress, say: Callable[[str], None], attempts: int, wait: float) -> None:
    """Bring all bytes into `part`, by as many requests as it takes."""
    failures = 0
    with requests.Session() as session:
        while True:
            before = _length(wanted.part)
            try:
                return _request(session, wanted, progress)
            except (_RetryError, requests.RequestException) as error:
                grown, reason = _length(wanted.part) > before, _reason(error)
                failures = 1 if grown else failures + 1
                if isinstance(error, ValueError):  # requests' errors about the address itself
                    raise UserError(f"{wanted}: not an address that can be fetched ({reason})") from None
                if failures == 1 and not grown and _unreachable(error):
                    raise UserError(f"{wanted}: {wanted.host} cannot be reached ({reason}); no network?") from None
                if failures >= attempts:
                    raise UserError(f"{wanted}: given up after {attempts} attempts ({reason}){_kept(wanted)}") from None
                pause = max(getattr(error, "wait", 0.0), min(60.0, wait * 2 ** (failures - 1)))
            say(f"{wanted.path.name}: {reason}; again in {pause:.0f} s")
            time.sleep(pause)


def _request(session: requests.Session, wanted: Download, progress: Progress) -> None:
    """One request for the missing bytes; returns when `part` is complete."""
    have, validator = _resumable(wanted)
    headers = {"Accept-Encoding": "identity"}  # a compressed answer has other offsets
    if token := os.environ.get(token_variable(wanted.host)):
        headers["Authorization"] = f"Bearer {token}"  # requests drops it on a redirect to another host
    if have:
        headers |= {"Range": f"bytes={have}-"} | ({"If-Range": validator} if validator else {})
    with session.get(wanted.url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == 416:  # no bytes beyond `have`
            if response.headers.get("Content-Range", "").rpartition("/")[2] == str(have):
                return
            wanted.part.unlink(missing_ok=True)
            raise _RetryError("the file has changed on the server")
        _check_answer(response, wanted)
        start, total = _extent(response)
        if start not in (0, have):
            raise _RetryError("the server sent another part of the file")
        if wanted.size is not None and total not in (None, wanted.size):
            raise UserError(f"{wanted}: the server has {total:,} bytes, the manifest says {wanted.size:,}")
        missing, free = (total or wanted.size or 0) - start, shutil.disk_usage(wanted.path.parent).free
        if missing + SPARE > free:
            raise UserError(
                f"{wanted.path}: the disk is too small: {spell_size(missing)} are to come, {spell_size(free)} are free"
            )
        if start == 0:
            # what If-Range takes (RFC 9110, 13.1.5): a strong entity tag, else the date
            tag = response.headers.get("ETag", "")
            validator = tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")
            wanted.notes.write_text(json.dumps({"url": str(wanted), "validator": validator}))
        with wanted.part.open("r+b" if start else "wb") as file:
            file.seek(start)
            for piece in response.iter_content(CHUNK):
                file.write(piece)
                start += len(piece)
                progress(start, total)
            file.flush()
            os.fsync(file.fileno())
    if total is not None and start != total:
        raise _RetryError(f"the connection broke off after {start:,} of {total:,} bytes")


def _resumable(wanted: Download) -> tuple[int, str | None]:
    """Bytes of `part` that can be kept, and the validator of their version; without one only a hash can check them."""
    have = _length(wanted.part)
    try:
        notes = json.loads(wanted.notes.read_text())
    except (OSError, ValueError):
        return 0, None
    validator = notes.get("validator")
    fits = notes.get("url") == str(wanted) and (wanted.size is None or have <= wanted.size)
    return (have, validator) if have and fits and (validator or wanted.sha256) else (0, None)


def _extent(response: requests.Response) -> tuple[int, int | None]:
    """Offset of the first byte of the body in the file, and the size of the complete file."""
    if response.status_code == 206:
        span, _, total = response.headers.get("Content-Range", "").rpartition(" ")[2].partition("/")
        start = span.partition("-")[0]
        return (int(start) if start.isdigit() else -1), (int(total) if total.isdigit() else None)
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _check_answer(response: requests.Response, wanted: Download) -> None:
    """Raise an error for every answer but the file."""
    status, page = response.status_code, "text/html" in response.headers.get("Content-Type", "")
    if status in (401, 403) or (status == 200 and page and wanted.path.suffix not in (".html", ".htm")):
        variable = token_variable(wanted.host)
        what = f"refuses ({status})" if status != 200 else "answers with a web page"
        given = f"{variable} is set but was not accepted" if os.environ.get(variable) else "a login may be needed"
        raise UserError(
            f"{wanted}: {wanted.host} {what}; {given}: make an access token in your account there and run again with "
            f"{variable}=TOKEN in the environment, or download it in a browser and save it as {wanted.path}"
        )
    if status in (404, 410):
        raise UserError(f"{wanted}: not found there ({status}); get the file elsewhere and save it as {wanted.path}")
    if status == 429 or status >= 500:
        after = response.headers.get("Retry-After", "")
        raise _RetryError(f"{wanted.host} answers {status}", float(after) if after.isdigit() else 0.0)
    if status not in (200, 206):
        raise UserError(f"{wanted}: {wanted.host} answers {status} {response.reason}")


def _verify(wanted: Download) -> None:
    """Check size, hash and header. A wrong file is removed, or every resumed download would fail here."""
    found, fault = _length(wanted.part), None
    if wanted.size is not None and found != wanted.size:
        fault = f"has {found:,} bytes, the manifest says {wanted.size:,}"
    elif wanted.sha256 is not None and (digest := file_sha256(wanted.part)) != wanted.sha256.lower():
        fault = f"has the SHA-256 {digest}, expected is {wanted.sha256}"
    elif wanted.path.suffix.lower() == ".safetensors" and (reason := safetensors_fault(wanted.part)):
        fault = f"is not a safetensors file ({reason})"
    if fault:
        wanted.part.unlink(missing_ok=True)
        wanted.notes.unlink(missing_ok=True)
        raise UserError(f"{wanted.path}: the file from {wanted} {fault}; it was removed")


def _unreachable(error: Exception) -> bool:
    """Whether no connection came about at all: then urllib3's error inside has a reason of its own."""
    return isinstance(error, requests.ConnectionError) and hasattr((error.args or (None,))[0], "reason")


def _reason(error: BaseException) -> str:
    """The innermost cause in a few words."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0][:120]


def _kept(wanted: Download) -> str:
    return f"; {wanted.part.name} is kept, the next fetch continues it" if _length(wanted.part) else ""


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
