from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from smsff.errors import UserError
from smsff.generator import UNetGenerator
from smsff.stylize import onnx_model
from smsff.stylize.stylizer import Stylizer, load_stylizer


def network() -> UNetGenerator:
    net = UNetGenerator(widths=(8, 12), encoder_blocks=(1, 1), decoder_blocks=(1,), head_width=8)
    torch.nn.init.normal_(net.to_rgb.weight, std=0.1)
    return net


def test_onnx_agrees_at_every_size_and_states_its_range(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    net, path = network(), tmp_path / "new" / "model.onnx"
    parity = onnx_model.export_onnx(net, path, {"style": {"name": "cel"}}).parity
    assert len(parity) == 3
    assert any(h % 2 and w % 2 for h, w in parity)
    assert max(parity.values()) < 1e-4
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]  # one file, no weights beside it

    session = onnxruntime.InferenceSession(path)
    x = np.random.default_rng(0).random((3, 3, 9, 41), dtype=np.float32)  # another batch, a size smaller than the grid
    (y,) = session.run(["stylized"], {"image": x})
    expected = Stylizer(net)(torch.from_numpy(x))
    assert (expected - torch.from_numpy(x)).abs().max() > 0.05
    torch.testing.assert_close(torch.from_numpy(y), expected, rtol=0, atol=1e-4)
    meta = session.get_modelmeta().custom_metadata_map
    assert meta["image"].startswith("RGB in [0, 1]")
    assert '"cel"' in meta["training"]

    # the file is a model of the command too, tiles and all
    loaded = load_stylizer(path.parent)
    assert (loaded.halo, loaded.multiple) == (net.receptive_radius, net.multiple)
    torch.testing.assert_close(loaded(torch.from_numpy(x)), expected, rtol=0, atol=1e-4)
    picture = torch.rand(1, 3, 70, 90)
    tiled = load_stylizer(path, tile=16)(picture)
    torch.testing.assert_close(tiled, Stylizer(net)(picture), rtol=0, atol=1e-4)

    # a file that does not agree with the network is not left behind
    before = path.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_model, "convert", lambda model, temporary, meta: temporary.write_bytes(before))
        with pytest.raises(RuntimeError, match="differs from PyTorch"):
            onnx_model.export_onnx(network(), path)
    assert path.read_bytes() == before


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_model, "find_spec", lambda name: None if name.startswith("onnxs") else object())
    with pytest.raises(UserError, match=r"needs onnxscript: pip install 'smsff\[export\]'"):
        onnx_model.export_onnx(network(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
