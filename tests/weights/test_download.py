"""Against a server on loopback: what breaks is resumed, what is wrong is refused, nothing half-written is in place."""

from __future__ import annotations

import hashlib
import random
import resource
import shutil
import socket
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from file_server import FileServer, Served, file_server

from smsff.errors import UserError
from smsff.weights.download import CHUNK, Download, download, token_variable

CONTENT = random.Random(0).randbytes(5 * CHUNK + 123)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "weights" / "style.bin"


def fetch(server: FileServer, target: Path, **known: Any) -> list[str]:
    said: list[str] = []
    options = {key: known.pop(key) for key in ("attempts", "progress") if key in known}
    download(Download(f"{server.url}/style.bin", target, **known), say=said.append, wait=0.01, **options)
    return said


def left(target: Path) -> list[str]:
    """Files beside the target, without the lock."""
    return sorted(path.name for path in target.parent.glob("*") if path.name != ".smsff.lock")


def test_a_whole_file_is_put_in_place_and_nothing_else_is_left(server: FileServer, target: Path) -> None:
    server.files["/style.bin"] = Served(CONTENT)
    seen: list[tuple[int, int | None]] = []
    fetch(server, target, size=len(CONTENT), sha256=SHA256.upper(), progress=lambda *now: seen.append(now))
    assert target.read_bytes() == CONTENT
    assert left(target) == ["style.bin"]
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    fetch(server, target)
    assert len(server.requests) == 1


def test_a_broken_connection_goes_on_with_the_missing_bytes_alone(server: FileServer, target: Path) -> None:
    server.files["/style.bin"] = Served(CONTENT, break_after=[2 * CHUNK, CHUNK])
    said = fetch(server, target, sha256=SHA256)
    assert server.ranges() == [None, f"bytes={2 * CHUNK}-", f"bytes={3 * CHUNK}-"]
    assert all(request.headers["accept-encoding"] == "identity" for request in server.requests)
    assert all(request.headers["if-range"] == server.files["/style.bin"].etag for request in server.requests[1:])
    assert server.sent() == len(CONTENT)
    assert len(said) == 2
    assert target.read_bytes() == CONTENT
    assert left(target) == ["style.bin"]


@pytest.mark.parametrize("ranges", [True, False])
def test_attempts_are_counted_anew_after_every_new_byte(server: FileServer, target: Path, ranges: bool) -> None:
    """Without ranges the server sends everything again."""
    server.files["/style.bin"] = Served(CONTENT, break_after=[CHUNK, 2 * CHUNK, 3 * CHUNK], ranges=ranges)
    fetch(server, target, attempts=2)
    assert (server.sent() == len(CONTENT)) is ranges
    assert target.read_bytes() == CONTENT


def test_a_later_command_goes_on_where_an_earlier_one_gave_up(server: FileServer, target: Path) -> None:
    server.files["/style.bin"] = Served(CONTENT, break_after=[3 * CHUNK])
    with pytest.raises(UserError, match=r"given up after 1 attempts.*style\.bin\.part is kept"):
        fetch(server, target, attempts=1)
    assert left(target) == ["style.bin.part", "style.bin.part.json"]
    fetch(server, target)
    assert server.ranges() == [None, f"bytes={3 * CHUNK}-"]
    assert server.sent() == len(CONTENT)
    assert target.read_bytes() == CONTENT


def test_a_file_that_changed_meanwhile_is_not_patched_together(server: FileServer, target: Path) -> None:
    server.files["/style.bin"] = Served(CONTENT, break_after=[2 * CHUNK])
    with pytest.raises(UserError):
        fetch(server, target, attempts=1)
    other = CONTENT[::-1]
    server.files["/style.bin"] = Served(other)
    fetch(server, target)
    assert target.read_bytes() == other


def test_without_validator_only_a_known_hash_allows_to_resume(server: FileServer, target: Path) -> None:
    server.files["/style.bin"] = Served(CONTENT, break_after=[CHUNK, CHUNK], validators=False)
    fetch(server, target, sha256=SHA256)
    assert server.ranges() == [None, f"bytes={CHUNK}-", f"bytes={2 * CHUNK}-"]
    target.unlink()
    server.requests.clear()
    server.files["/style.bin"].break_after = [CHUNK]
    fetch(server, target)
    assert server.ranges() == [None, None]
    assert target.read_bytes() == CONTENT


def test_all_bytes_there_but_not_renamed_asks_for_none_again(server: FileServer, target: Path) -> None:
    server.files["/style.bin"] = Served(CONTENT, break_after=[CHUNK])
    with pytest.raises(UserError):
        fetch(server, target, attempts=1)
    target.with_name("style.bin.part").write_bytes(CONTENT)
    fetch(server, target)
    assert server.sent() == CHUNK
    assert target.read_bytes() == CONTENT


def test_a_wrong_hash_is_refused_and_nothing_is_left(server: FileServer, target: Path) -> None:
    server.files["/style.bin"] = Served(b"x" + CONTENT[1:])
    with pytest.raises(UserError, match=rf"style\.bin.*SHA-256 [0-9a-f]{{64}}, expected is {SHA256}.*removed"):
        fetch(server, target, size=len(CONTENT), sha256=SHA256)
    assert left(target) == []
    server.files["/style.bin"] = Served(CONTENT)
    fetch(server, target, sha256=SHA256)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(("length", "message"), [(True, "the server has"), (False, "has")])
def test_a_wrong_size_is_refused_even_if_the_server_does_not_give_it(
    server: FileServer, target: Path, length: bool, message: str
) -> None:
    server.files["/style.bin"] = Served(CONTENT, length=length)
    with pytest.raises(UserError, match=rf"{message} {len(CONTENT):,} bytes, the manifest says 1,000"):
        fetch(server, target, size=1000)
    assert left(target) == []


@pytest.mark.parametrize(
    ("served", "message"),
    [
        (Served(b"", status=[404] * 9), r"not found there \(404\); get the file elsewhere and save it as .*style\.bin"),
        (Served(b"", status=[403] * 9), r"127\.0\.0\.1 refuses \(403\).*SMSFF_TOKEN_127_0_0_1=TOKEN"),
        (Served(b"<html>", content_type="text/html; charset=utf-8"), r"answers with a web page; a login may be needed"),
        (Served(b"", status=[418]), r"answers 418"),
    ],
)
def test_what_no_retry_can_mend_ends_after_one_request(
    server: FileServer, target: Path, served: Served, message: str
) -> None:
    server.files["/style.bin"] = served
    with pytest.raises(UserError, match=message) as caught:
        fetch(server, target)
    assert "\n" not in str(caught.value)
    assert len(server.requests) == 1
    assert left(target) == []


def test_a_busy_server_is_asked_again(server: FileServer, target: Path) -> None:
    server.files["/style.bin"] = Served(CONTENT, status=[503, 429, 500])
    assert len(fetch(server, target)) == 3
    assert target.read_bytes() == CONTENT
    target.unlink()
    server.files["/style.bin"].status = [503] * 9
    with pytest.raises(UserError, match=r"given up after 3 attempts .*answers 503"):
        fetch(server, target, attempts=3)
    assert left(target) == []


def test_a_token_goes_to_its_own_host_only(server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["/style.bin"] = Served(CONTENT, token="secret")
    with pytest.raises(UserError, match=r"a login may be needed"):
        fetch(server, target)
    monkeypatch.setenv("SMSFF_TOKEN_127_0_0_1", "wrong")
    with pytest.raises(UserError, match=r"SMSFF_TOKEN_127_0_0_1 is set but was not accepted") as caught:
        fetch(server, target)
    assert "wrong" not in str(caught.value)
    monkeypatch.setenv("SMSFF_TOKEN_127_0_0_1", "secret")
    fetch(server, target)
    assert target.read_bytes() == CONTENT

    target.unlink()
    with file_server() as other:  # another port is another origin, as the storage behind a download site is
        other.files["/stored"] = Served(CONTENT)
        server.files["/style.bin"].redirect = f"{other.url}/stored"
        fetch(server, target)
        assert server.requests[-1].headers["authorization"] == "Bearer secret"
        assert "authorization" not in other.requests[0].headers
    assert target.read_bytes() == CONTENT


def test_names_of_token_variables() -> None:
    assert [token_variable(host) for host in ("civitai.com", "a-b.org")] == ["CIVITAI_TOKEN", "SMSFF_TOKEN_A_B_ORG"]


def test_no_network_is_said_at_once(target: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(UserError, match=r"127\.0\.0\.1 cannot be reached \(.*refused.*\); no network\?"):
        download(Download(f"http://127.0.0.1:{port}/x", target), wait=60)
    with pytest.raises(UserError, match="not an address"):
        download(Download("htp:/nowhere", target), wait=60)
    assert left(target) == []


def test_a_disk_that_is_too_small_is_named_before_it_starts(
    server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/style.bin"] = Served(CONTENT)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5000))
    with pytest.raises(UserError, match=r"the disk is too small: 327\.8 kB are to come, 5\.0 kB are free"):
        fetch(server, target)
    assert left(target) == []


def test_a_disk_that_becomes_full_keeps_what_came(server: FileServer, target: Path) -> None:
    server.files["/style.bin"] = Served(CONTENT)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * CHUNK + 100, hard))
    try:
        with pytest.raises(
            UserError, match=r"style\.bin: cannot be written \(File too large\); style\.bin\.part is kept"
        ):
            fetch(server, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not target.exists()
    fetch(server, target, sha256=SHA256)
    assert target.read_bytes() == CONTENT


def test_two_fetches_at_once_bring_the_file_once(server: FileServer, target: Path) -> None:
    gate = threading.Event()
    server.files["/style.bin"] = Served(CONTENT, gate=gate)
    said: list[list[str]] = []
    threads = [threading.Thread(target=lambda: said.append(fetch(server, target, sha256=SHA256))) for _ in range(3)]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join(20)
    assert len(said) == 3
    assert target.read_bytes() == CONTENT
    assert len(server.requests) == 1
    assert any("waiting for it" in text for texts in said for text in texts)
    assert left(target) == ["style.bin"]


def test_an_error_text_is_not_taken_for_weights(server: FileServer, target: Path) -> None:
    server.files["/style.bin"] = Served(b'{"error": "Unauthorized"}', content_type="application/json")
    with pytest.raises(UserError, match="is not a safetensors file"):
        fetch(server, target.with_suffix(".safetensors"))
    assert left(target) == []
