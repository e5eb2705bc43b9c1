"""The command as a whole: what a configuration needs, from a server on loopback, into a folder and the hub's cache."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from file_server import FileServer, Served, serve_hub

from smsff.cli import main
from smsff.weights.download import Download
from smsff.weights.manifest import LOCK, read_lock

SOURCE = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "someone/tiny-pipeline"

Command = Callable[..., int]


@pytest.fixture
def lora(server: FileServer, tiny_lora: Path) -> bytes:
    server.files["/lora"] = Served(tiny_lora.read_bytes())
    return tiny_lora.read_bytes()


@pytest.fixture
def fetch(server: FileServer, lora: bytes, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """``smsff fetch`` of a style with a local base, and a LoRA at the server, in an empty current folder."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    style = [
        "style=ghibli",
        "style.base=null",
        f'teacher.base="{tiny_base}"',
        f'weights.lora.source="{server.url}/lora?token=secret"',
    ]
    return lambda *overrides: main(["fetch", "--conf", str(SOURCE / "conf"), *style, *overrides])


def test_brings_what_is_missing_and_records_what_was_not_known(
    fetch: Command, server: FileServer, lora: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fetch() == 0
    assert Path("weights/ghibli.safetensors").read_bytes() == lora
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert [line.split()[:2] for line in lines] == [["there", "teacher.base"], ["fetched", "teacher.lora"]]
    assert f"SHA-256 recorded in {LOCK} (none was known before)" in lines[1]
    assert "licence: see https://civitai.com/models/54233" in printed.err
    assert "secret" not in printed.out + printed.err

    recorded = json.loads(Path(LOCK).read_text())["weights"]["weights/ghibli.safetensors"]
    assert recorded["source"] == f"{server.url}/lora"
    assert recorded["files"] == {"ghibli.safetensors": {"size": len(lora), "sha256": hashlib.sha256(lora).hexdigest()}}
    base = next(value for name, value in read_lock().items() if name != "weights/ghibli.safetensors")
    assert {"unet/config.json", "unet/diffusion_pytorch_model.safetensors", "model_index.json"} <= set(base.files)

    before = len(server.requests)
    assert fetch() == 0
    assert len(server.requests) == before
    assert f"as recorded in {LOCK}" in capsys.readouterr().out


def test_the_licence_of_a_baseline_is_shown_before_its_file_is_fetched(
    server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    words = ["fetch", "--conf", str(SOURCE / "conf"), "baseline=scenimefy", f"weights.network.source={server.url}/G"]
    assert main([*words, "--dry-run"]) == 0
    assert "licence: S-Lab License 1.0, NON-COMMERCIAL" in capsys.readouterr().out
    assert main(words) == 1  # the server has no such file: the terms are said all the same
    assert "NON-COMMERCIAL" in capsys.readouterr().err
    server.files["/G"] = Served(b"weights")
    assert main(words) == 0
    assert Path("weights/Shinkai_net_G.pth").read_bytes() == b"weights"
    assert list(read_lock()) == ["weights/Shinkai_net_G.pth"]


def test_dry_run_fetches_and_writes_nothing(
    fetch: Command, server: FileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fetch("--dry-run", "weights.lora.size=1000") == 0
    out = capsys.readouterr().out
    assert f"fetch    teacher.lora       weights/ghibli.safetensors: from {server.url}/lora" in out
    assert "1.0 kB" in out
    assert server.requests == []
    assert list(Path.cwd().iterdir()) == []


def test_the_manifests_hash_is_enforced(fetch: Command, lora: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch(f"weights.lora.sha256={'0' * 64}") == 1
    assert "expected is 0000" in capsys.readouterr().out
    assert [path.name for path in Path("weights").iterdir()] == [".smsff.lock"]
    assert fetch(f"weights.lora.sha256={hashlib.sha256(lora).hexdigest()}") == 0
    assert "SHA-256 as in the manifest" in capsys.readouterr().out
    assert fetch(f"weights.lora.sha256={'0' * 64}") == 1
    out = capsys.readouterr().out
    assert "the manifest says 0000" in out
    assert "move it away" in out
    assert Path("weights/ghibli.safetensors").read_bytes() == lora


def test_the_recorded_hash_is_enforced_when_the_file_is_fetched_again(
    fetch: Command, server: FileServer, lora: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fetch() == 0
    Path("weights/ghibli.safetensors").unlink()
    changed = bytearray(lora)
    changed[-1] ^= 1
    server.files["/lora"].content = bytes(changed)
    capsys.readouterr()
    assert fetch() == 1
    assert f"that one is of the first download, in {LOCK}: remove it there" in capsys.readouterr().out
    assert not Path("weights/ghibli.safetensors").exists()
    Path(LOCK).unlink()
    assert fetch() == 0


def test_what_another_process_put_there_meanwhile_is_held_against_the_manifest_too(
    fetch: Command, lora: bytes, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def brought_by_another(wanted: Download, **_: object) -> bool:
        wanted.path.parent.mkdir()
        wanted.path.write_bytes(lora)
        return False

    monkeypatch.setattr("smsff.weights.fetch.download", brought_by_another)
    assert fetch(f"weights.lora.sha256={'0' * 64}") == 1
    assert "the manifest says 0000" in capsys.readouterr().out
    assert "weights/ghibli.safetensors" not in read_lock()


def test_a_file_put_there_by_hand_is_taken_and_a_broken_one_is_not_replaced(
    fetch: Command, server: FileServer, lora: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path("weights/ghibli.safetensors")
    path.parent.mkdir()
    path.write_bytes(lora[:-10])
    assert fetch() == 1
    assert "move it away and run the command again" in capsys.readouterr().out
    assert path.read_bytes() == lora[:-10]
    path.write_bytes(lora)
    assert fetch() == 0
    assert read_lock()["weights/ghibli.safetensors"].source is None
    assert server.requests == []


def test_weights_of_ones_own_and_without_a_source_are_named_with_their_place(
    fetch: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fetch("style.lora=mine/own.safetensors", "style.base=weights/anything-v4.5") == 1
    assert "own.safetensors: not in the manifest: put it there, or correct teacher.lora" in capsys.readouterr().out
    assert main(["fetch", "--conf", str(SOURCE / "conf"), "style=pixel_art", 'teacher.base="."', "style.lora=x"]) == 1
    assert (
        f"no source is known: get it from a place that you trust and put it at {Path.cwd()}" in capsys.readouterr().out
    )


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_asks_nobody_and_says_what_to_do_by_hand(
    fetch: Command,
    server: FileServer,
    lora: bytes,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
) -> None:
    monkeypatch.setenv(variable, "1")
    assert fetch() == 1
    printed = capsys.readouterr()
    assert "HF_HUB_OFFLINE is set" in printed.err
    assert f"download it from https://civitai.com/models/54233?modelVersionId=125985 and save it as {Path.cwd()}" in (
        printed.out
    )
    assert server.requests == []
    Path("weights").mkdir()
    Path("weights/ghibli.safetensors").write_bytes(lora)
    assert fetch() == 0


def test_the_embedded_default_needs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fetch"]) == 0
    assert capsys.readouterr().out.count("comes with the package") == 2
    assert list(tmp_path.iterdir()) == []


def hub(server: FileServer, cache: Path, *overrides: str, offline: bool = False) -> subprocess.CompletedProcess[str]:
    """``smsff fetch`` in a process of its own: the hub's client reads its environment when it is imported."""
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("HF_TOKEN", "TRANSFORMERS_OFFLINE")},
        "HF_HUB_OFFLINE": "1" if offline else "0",
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": str(SOURCE / "src"),
    }
    words = ["fetch", "--conf", str(SOURCE / "conf"), "trainer=cpu", f"teacher.base={REPO}", *overrides]
    command = [sys.executable, "-m", "smsff.cli", *words]
    return subprocess.run(command, env=environment, cwd=cache.parent, capture_output=True, text=True, timeout=120)


def test_a_pipeline_of_the_hub_is_brought_in_its_needed_parts(
    server: FileServer, tiny_base: Path, tmp_path: Path
) -> None:
    files = {p.relative_to(tiny_base).as_posix(): p.read_bytes() for p in tiny_base.rglob("*") if p.is_file()}
    unneeded = {"safety_checker/model.safetensors": b"x", "v1-5-pruned.ckpt": b"y", "unet/flax_model.msgpack": b"z"}
    serve_hub(server, REPO, COMMIT, files | unneeded)
    cache = tmp_path / "cache"

    planned = hub(server, cache, "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert f"from the hub, commit {COMMIT[:12]}" in planned.stdout
    assert not any("resolve" in request.path for request in server.requests)

    unet = server.files[f"/{REPO}/resolve/{COMMIT}/unet/diffusion_pytorch_model.safetensors"]
    unet.break_after = [10_000]
    done = hub(server, cache)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "hashes as on the hub" in done.stdout
    asked = {request.path.rpartition(f"{COMMIT}/")[2] for request in server.requests if "resolve" in request.path}
    assert asked == set(files)
    snapshot = next(cache.glob(f"hub/*/snapshots/{COMMIT}"))
    assert (snapshot / "unet/diffusion_pytorch_model.safetensors").read_bytes() == unet.content
    record = read_lock(tmp_path / LOCK)[REPO]
    assert (record.source, record.revision, set(record.files)) == ("hub", COMMIT, set(files))

    again = hub(server, cache, offline=True)
    assert again.returncode == 0, again.stdout
    assert f"in the hub's cache, commit {COMMIT[:12]}, as recorded in {LOCK}" in again.stdout

    serve_hub(server, REPO, COMMIT[::-1], files)
    moved = hub(server, tmp_path / "other")
    assert moved.returncode == 0, moved.stdout
    assert f"has changed on the hub since commit {COMMIT}, which was recorded" in moved.stderr
    assert read_lock(tmp_path / LOCK)[REPO].revision == COMMIT[::-1]


@pytest.mark.slow
def test_what_the_hub_does_not_have_is_named(server: FileServer, tmp_path: Path) -> None:
    server.files[f"/api/models/{REPO}"] = Served(b"", status=[401], headers={"X-Error-Code": "RepoNotFound"})
    failed = hub(server, tmp_path / "cache")
    assert failed.returncode == 1
    assert f"{REPO}: the hub has no such model" in failed.stdout
    assert failed.stderr == ""


@pytest.mark.slow
def test_a_file_that_is_not_what_the_hub_says_is_refused(server: FileServer, tiny_base: Path, tmp_path: Path) -> None:
    files = {p.relative_to(tiny_base).as_posix(): p.read_bytes() for p in tiny_base.rglob("*") if p.is_file()}
    serve_hub(server, REPO, COMMIT, files)
    served = server.files[f"/{REPO}/resolve/{COMMIT}/vae/diffusion_pytorch_model.safetensors"]
    right, served.tag = served.content, served.etag
    served.content = right[:-1] + bytes([right[-1] ^ 1])
    failed = hub(server, tmp_path / "cache")
    assert failed.returncode == 1
    assert "vae/diffusion_pytorch_model.safetensors is not what the hub says it is; it was removed" in failed.stdout
    served.content = right
    assert hub(server, tmp_path / "cache").returncode == 0
