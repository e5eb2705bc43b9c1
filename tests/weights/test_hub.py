"""The hub's cache on the disk, as its client writes it, without the hub."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants, errors
from huggingface_hub.hf_api import ModelInfo

from smsff.errors import UserError
from smsff.weights.hub import Remote, RemoteFile, ask_hub, cached_folder, fill_cache, missing_bytes
from smsff.weights.manifest import Need, look

REPO = "someone/tiny-pipeline"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with one model at one commit, which is the branch main; its large files are links to their hashes."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    model = tmp_path / "models--someone--tiny-pipeline"
    (model / "refs").mkdir(parents=True)
    (model / "refs/main").write_text(COMMIT)
    for path in (path for path in tiny_base.rglob("*") if path.is_file()):
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        blob = model / "blobs" / (digest if path.suffix == ".safetensors" else digest[:40])
        link = model / "snapshots" / COMMIT / path.relative_to(tiny_base)
        for place in (blob, link):
            place.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link.symlink_to(blob)
    return model / "snapshots" / COMMIT


def need(**changes: str) -> Need:
    return Need(key="teacher.base", name=REPO, hub=True, **changes)


def test_a_model_is_found_by_its_branch_or_commit(cache: Path) -> None:
    for revision in (None, "main", COMMIT):
        assert cached_folder(REPO, revision) == cache
    assert cached_folder(REPO, "other") is None
    assert cached_folder("someone/else", None) is None
    assert cached_folder("../up", None) is None
    status = look(need(), None, verify=False)
    assert (status.state, status.revision, status.hash) == ("there", COMMIT, "not checked")
    assert look(need(revision="other"), None, verify=False).state == "missing"


def test_a_folder_of_that_name_comes_first(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(cache, tmp_path / REPO)
    assert look(need(), None, verify=False).revision is None


def test_large_files_are_verified_against_the_hashes_that_the_hub_gave(cache: Path) -> None:
    assert look(need(), None, verify=True).hash == "verified"
    blob = (cache / "unet/diffusion_pytorch_model.safetensors").resolve()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    assert look(need(), None, verify=False).state == "there"
    status = look(need(), None, verify=True)
    assert status.state == "wrong"
    assert f"the hub says {blob.name}" in (status.reason or "")


def test_the_variant_that_the_configuration_asks_for(cache: Path) -> None:
    for path in list(cache.rglob("*.safetensors")):
        path.rename(path.with_name(f"{path.stem}.fp16.safetensors"))
    assert look(need(), None, verify=False).reason == "unet has no weights"
    assert look(need(variant="fp16"), None, verify=False).state == "there"


def test_a_disk_that_is_too_small_is_named_before_it_starts(cache: Path, tmp_path: Path) -> None:
    remote = Remote(REPO, COMMIT, (RemoteFile("unet/config.json", 10**15, None), RemoteFile("x.bin", 10**15, None)))
    assert missing_bytes(remote) == 10**15
    with pytest.raises(
        UserError, match=rf"the disk of {tmp_path} is too small: 1000000\.00 GB are to come, .* HF_HOME"
    ):
        fill_cache(remote, revision=None)


def test_a_large_file_that_is_not_what_the_hub_says_is_removed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(cache))
    link = cache / "unet/diffusion_pytorch_model.safetensors"
    blob = link.resolve()
    listed = RemoteFile("unet/diffusion_pytorch_model.safetensors", blob.stat().st_size, blob.name)
    settings = RemoteFile("model_index.json", (cache / "model_index.json").stat().st_size, None)
    with pytest.raises(UserError, match="was changed on the hub during the download; run the command again"):
        fill_cache(Remote(REPO, COMMIT[::-1], (settings,)), revision=None)
    recorded = fill_cache(Remote(REPO, COMMIT, (listed, settings)), revision=None)
    assert recorded[listed.name].sha256 == blob.name
    assert len(recorded[settings.name].sha256) == 64
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    with pytest.raises(UserError, match=f"{listed.name} is not what the hub says it is; it was removed"):
        fill_cache(Remote(REPO, COMMIT, (listed,)), revision=None)
    assert not link.is_symlink()
    assert not blob.exists()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (errors.RepositoryNotFoundError, "the hub has no such model"),
        (errors.GatedRepoError, f"accept terms on https://huggingface.co/{REPO}; do so, and set HF_TOKEN"),
        (errors.RevisionNotFoundError, "the hub has no revision v9"),
        (errors.HfHubHTTPError, r"the hub cannot be asked \(busy\); no network\?"),
    ],
)
def test_what_the_hub_answers_is_put_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, kind: type[errors.HfHubHTTPError], message: str
) -> None:
    def answer(*_: object, **__: object) -> None:
        raise kind("busy\nand more", response=SimpleNamespace(headers={}, request=None))  # type: ignore[arg-type]

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", answer)
    with pytest.raises(UserError, match=f"^{REPO}: .*{message}"):
        ask_hub(REPO, revision="v9", variant=None)


def test_offline_the_hub_is_not_asked() -> None:
    with pytest.raises(UserError, match="HF_HUB_OFFLINE forbids to ask the hub"):
        ask_hub(REPO, revision=None, variant=None)


def listing(*names: str) -> ModelInfo:
    return ModelInfo(id=REPO, sha=COMMIT, siblings=[{"rfilename": name, "size": 5} for name in names])


def test_settings_alone(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    names = ("model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors")
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: listing(*names))
    assert [file.name for file in ask_hub(REPO, revision=None, variant=None, weights=()).files] == list(names[:2])
    assert ask_hub(REPO, revision=None, variant=None).size == 15
    for path in list(cache.rglob("*.safetensors")):
        path.unlink()
    assert look(need(), None, verify=False).state == "broken"
    settings = Need(key="teacher.config", name=REPO, hub=True, weights=())
    assert look(settings, None, verify=False).state == "there"


def test_an_auto_encoder_alone(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    names = ("README.md", "config.json", "diffusion_pytorch_model.safetensors")
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: listing(*names))
    assert [file.name for file in ask_hub(REPO, revision=None, variant=None, part="vae").files] == list(names[1:])
    vae = Need(key="teacher.vae", name=REPO, hub=True, part="vae")
    assert set(look(vae, None, verify=False).files) == {"vae/config.json", f"vae/{names[2]}"}
    for part in ("unet", "text_encoder", "tokenizer", "scheduler"):
        shutil.rmtree(cache / part)
    (cache / "model_index.json").unlink()
    assert look(vae, None, verify=False).state == "there"
    for path in list((cache / "vae").iterdir()):
        path.rename(cache / path.name)
    assert cached_folder(REPO, None, part="vae") == cache
    assert set(look(vae, None, verify=False).files) == set(names[1:])
    for names, part, lacking in (("model_index.json", "vae", "config.json"), ("model.ckpt", None, "model_index")):
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, n=names, **__: listing(n))
        with pytest.raises(UserError, match=f"not in the folder layout of diffusers .it has no {lacking}"):
            ask_hub(REPO, revision=None, variant=None, part=part)
