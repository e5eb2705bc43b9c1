from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from smsff.errors import UserError
from smsff.metrics import networks
from smsff.metrics.networks import PUBLISHED, MissingNetworkError, find, parse_paths


@pytest.fixture(autouse=True)
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv(networks.FOLDER, raising=False)
    return tmp_path


@pytest.mark.parametrize("key", PUBLISHED)
def test_a_missing_network_is_one_sentence_with_name_size_source_and_hash(key: str) -> None:
    file = PUBLISHED[key]
    with pytest.raises(MissingNetworkError) as caught:
        find(key, {})
    text = str(caught.value)
    assert "\n" not in text
    assert file.name in text
    assert (file.source or f"https://huggingface.co/{file.name}") in text
    assert f"--weights {key}=" in text
    assert (file.sha256 or "no hash recorded") in text
    assert "MB" in text or "GB" in text


def test_files_are_found_in_torchs_cache_and_in_the_users_folder(
    empty_caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = replace(PUBLISHED["alexnet"], sha256=hashlib.sha256(b"weights").hexdigest(), size=7)
    monkeypatch.setitem(PUBLISHED, "alexnet", file)
    cached = empty_caches / "torch" / "hub" / "checkpoints" / file.name
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"weights")
    assert find("alexnet", {}).path == cached
    own = empty_caches / "own" / file.name
    own.parent.mkdir()
    own.write_bytes(b"weights")
    monkeypatch.setenv(networks.FOLDER, str(own.parent))
    found = find("alexnet", {})
    assert found.path == own
    assert found.published is True


def test_another_file_of_this_name_is_refused_unless_the_user_names_it(
    empty_caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = empty_caches / PUBLISHED["art_inception"].name
    path.write_bytes(b"half of it")
    monkeypatch.setenv(networks.FOLDER, str(empty_caches))
    with pytest.raises(MissingNetworkError, match=r"is not the published file \(10 bytes instead of 107,935,977"):
        find("art_inception", {})
    found = find("art_inception", {"art_inception": path})
    assert found.published is False
    assert found.sha256 == hashlib.sha256(b"half of it").hexdigest()


def test_a_model_folder_is_known_by_its_weights(empty_caches: Path) -> None:
    folder = empty_caches / "model"
    folder.mkdir()
    with pytest.raises(UserError, match=r"expected a model folder with config.json"):
        find("clip", {"clip": folder})
    (folder / "config.json").write_text("{}")
    with pytest.raises(UserError, match="there are no weights"):
        find("clip", {"clip": folder})
    (folder / "pytorch_model.bin").write_bytes(b"old and large")
    (folder / "model.safetensors").write_bytes(b"read")
    found = find("clip", {"clip": folder})
    assert found.sha256 == hashlib.sha256(b"read").hexdigest()
    assert found.published is None


def test_a_model_is_found_in_the_hubs_cache(empty_caches: Path) -> None:
    repo = empty_caches / "hub" / "models--openai--clip-vit-base-patch32"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    snapshot = repo / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").write_bytes(b"weights")
    assert find("clip", {}).path == snapshot


def test_options_that_name_no_network_or_no_file_are_refused(tmp_path: Path) -> None:
    for option in ("alexnet", "wrong=x", "=x"):
        with pytest.raises(UserError, match="expected KEY=PATH, with one of the keys alexnet, inception"):
            parse_paths([option])
    with pytest.raises(UserError, match="there is nothing at"):
        parse_paths([f"alexnet={tmp_path}/no"])
    with pytest.raises(UserError, match="expected a file such as alexnet-owt"):
        find("alexnet", parse_paths([f"alexnet={tmp_path}"]))
