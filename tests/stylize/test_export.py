from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from models import checkpoint, network
from safetensors.torch import load_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from smsff.errors import UserError
from smsff.generator import LatentGenerator, ResNetGenerator
from smsff.stylize.export import default_folder, export_checkpoint, load_generator_from_checkpoint, save_stylizer
from smsff.stylize.stylizer import Stylizer, load_stylizer


def test_saved_files_are_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_stylizer(network(0), tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert set(before) == {"model.safetensors", "config.json"}

    def fails(state: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("smsff.stylize.export.save_file", fails)
    with pytest.raises(OSError, match="disk full"):
        save_stylizer(network(1), tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_saved_files_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        save_stylizer(network(), tmp_path)
    finally:
        os.umask(old)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_half_precision_is_saved_as_float32(tmp_path: Path) -> None:
    save_stylizer(network().bfloat16(), tmp_path)
    assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {torch.float32}


@pytest.mark.parametrize("averaged", [True, False])
def test_averaged_weights_are_preferred(tmp_path: Path, averaged: bool) -> None:
    raw, ema = network(1), network(2)
    path = checkpoint(tmp_path / "a.ckpt", raw, ema=ema if averaged else None)
    net, meta = load_generator_from_checkpoint(path)
    x = torch.rand(1, 3, 12, 17)
    assert torch.equal(net(x), (ema if averaged else raw)(x))
    assert meta["averaged_weights"] is averaged
    assert meta["step"] == 7


def test_weights_never_averaged_are_not_taken(tmp_path: Path) -> None:
    raw = network(1)
    state = nn.ModuleDict({"generator": raw, "ema": AveragedModel(network(2))}).state_dict()
    net, meta = load_generator_from_checkpoint(checkpoint(tmp_path / "a.ckpt", raw, state_dict=state))
    assert meta["averaged_weights"] is False
    assert torch.equal(net.to_rgb.weight, raw.to_rgb.weight)


def test_export_to_the_run_folder(tmp_path: Path) -> None:
    net = network()
    checkpoint(tmp_path / "run/checkpoints/last.ckpt", net)
    done = export_checkpoint(tmp_path / "run", None)
    assert done.folder == tmp_path / "run/export"
    assert default_folder(tmp_path / "run/checkpoints/last.ckpt") == done.folder
    assert done.files["model.safetensors"] == (done.folder / "model.safetensors").stat().st_size
    assert set(done.agreement.parity.values()) == {0.0}
    x = torch.rand(1, 3, 14, 20)
    assert torch.equal(load_stylizer(done.folder)(x), Stylizer(net)(x))


def test_the_model_says_what_it_is_but_not_where_it_was_made(tmp_path: Path) -> None:
    export_checkpoint(checkpoint(tmp_path / "a.ckpt", network()), tmp_path / "out")
    text = (tmp_path / "out/config.json").read_text()
    assert "/home/someone" not in text
    training = json.loads(text)["training"]
    assert training["style"] == {"name": "cel", "words": "cel shading", "strength": 1.0}
    assert training["settings"] == {"steps": 7, "seed": 3}


@pytest.mark.parametrize("format", ["safetensors", pytest.param("onnx", marks=pytest.mark.slow)])
def test_a_released_generator_is_used_and_exported(tmp_path: Path, format: str) -> None:
    net = ResNetGenerator(width=4, blocks=1, antialias=True)
    torch.save(net.state_dict() | {"body.7.filt": torch.ones(8, 1, 3, 3)}, tmp_path / "net_G.pth")
    export_checkpoint(tmp_path / "net_G.pth", tmp_path / "out", format=format)
    x = torch.rand(2, 3, 21, 34)
    wanted = (net(2 * x - 1) / 2 + 0.5).detach()
    for model in ("net_G.pth", "out"):
        torch.testing.assert_close(load_stylizer(tmp_path / model)(x), wanted, atol=1e-5, rtol=0)


def test_resnet_can_be_exported(tmp_path: Path) -> None:
    done = export_checkpoint(checkpoint(tmp_path / "a.ckpt", ResNetGenerator(width=4, blocks=1)), tmp_path / "out")
    assert set(done.agreement.parity.values()) == {0.0}


def test_bad_checkpoints_get_one_message(tmp_path: Path) -> None:
    (tmp_path / "junk.ckpt").write_bytes(b"junk")
    (tmp_path / "empty.ckpt").touch()
    torch.save({"weights": 1}, tmp_path / "other.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    torch.save({"hyper_parameters": {"generator": {}}, "unsafe": Path}, tmp_path / "unsafe.ckpt")
    cases = {
        "missing.ckpt": "is not a file",
        ".": "nor are",
        "junk.ckpt": "cannot be read as a checkpoint",
        "empty.ckpt": "cannot be read as a checkpoint",
        "unsafe.ckpt": "holds Python code",
        "other.ckpt": "not of an smsff training run",
        "list.ckpt": "holds a list, no checkpoint",
    }
    for name, message in cases.items():
        with pytest.raises(UserError, match=message):
            export_checkpoint(tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_checkpoints_that_hold_no_network_are_refused(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.ckpt", LatentGenerator(torch.zeros(1, 4, 5, 6)))
    with pytest.raises(UserError, match="per-image run has no network"):
        export_checkpoint(path, tmp_path / "out")
    path = checkpoint(tmp_path / "b.ckpt", network(), state_dict={})
    with pytest.raises(UserError, match="weights do not fit"):
        export_checkpoint(path, tmp_path / "out")


def test_bad_targets_are_refused(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.ckpt", network())
    with pytest.raises(UserError, match="format=pt is not one of safetensors, onnx"):
        export_checkpoint(path, tmp_path / "out", "pt")
    with pytest.raises(UserError, match="is a file"):
        export_checkpoint(path, path)
