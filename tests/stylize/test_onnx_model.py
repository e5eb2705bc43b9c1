from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from models import checkpoint, network

from smsff.errors import UserError
from smsff.generator import UNetGenerator
from smsff.stylize import onnx_model
from smsff.stylize.export import export_checkpoint
from smsff.stylize.onnx_model import photos, psnr
from smsff.stylize.stylizer import Stylizer, load_stylizer

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

GRAPH = 250_000
"""More than the bytes of the graph around the weights."""


def test_onnx_agrees_at_every_size_and_states_its_range(tmp_path: Path) -> None:
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
            onnx_model.export_onnx(network(1), path)
    assert path.read_bytes() == before


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_model, "find_spec", lambda name: None if name.startswith("onnxs") else object())
    with pytest.raises(UserError, match=r"needs onnxscript: pip install 'smsff\[export\]'"):
        onnx_model.export_onnx(network(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def wide() -> UNetGenerator:
    torch.manual_seed(0)
    net = UNetGenerator(widths=(16, 24), encoder_blocks=(1, 2), decoder_blocks=(1,), head_width=8)
    torch.nn.init.normal_(net.to_rgb.weight, std=0.05)
    return net.eval()


@pytest.fixture(scope="module")
def trained(wide: UNetGenerator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("run") / "last.ckpt", wide)


@pytest.fixture(scope="module")
def exported(trained: Path) -> Callable[[str], tuple[Path, dict[str, float]]]:
    """File and reported loss by precision, each exported once."""

    @cache
    def export(precision: str) -> tuple[Path, dict[str, float]]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(onnx_model, "CALIBRATION_SIDE", 64)
            done = export_checkpoint(trained, trained.parent / precision, "onnx", precision)
        return done.folder / "model.onnx", done.agreement.psnr

    return export


# weights in 16 bits take half the space; in 8 bits a quarter, to which the graph adds a node for each scale
@pytest.mark.parametrize(
    ("precision", "least", "most", "bytes_each"),
    [pytest.param("float16", 50, 110, 2.1, marks=pytest.mark.slow), ("int8", 30, 70, 1.1)],
)
def test_the_loss_is_reported_and_small_and_the_file_is_smaller(
    exported: Callable[[str], tuple[Path, dict[str, float]]],
    wide: UNetGenerator,
    precision: str,
    least: float,
    most: float,
    bytes_each: float,
) -> None:
    path, reported = exported(precision)
    assert set(reported) == {"chelsea.jpg", "coffee.jpg"}
    assert all(least < decibels < most for decibels in reported.values())
    assert path.stat().st_size < bytes_each * sum(p.numel() for p in wide.parameters()) + GRAPH
    # what was reported is what anyone gets who loads the file
    name, picture = next(iter(photos("test", side=512).items()))
    error = (load_stylizer(path)(picture) - Stylizer(wide)(picture)).square().mean()
    assert -10 * error.log10().item() == pytest.approx(reported[name], abs=0.2)
    assert json.loads(json.dumps(load_stylizer(path).config))["training"]["precision"] == precision


def test_normalisations_are_not_quantised(exported: Callable[[str], tuple[Path, dict[str, float]]]) -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(str(exported("int8")[0])).graph
    floats = {weight.name for weight in graph.initializer if weight.data_type == onnx.TensorProto.FLOAT}
    plain = [node for node in graph.node if node.op_type == "Conv" and node.input[1] in floats]
    assert len(plain) == 6  # four blocks, two ways up
    assert not any(node.input[0].endswith("DequantizeLinear_Output") for node in plain)


def test_a_constant_error_has_its_decibels(
    exported: Callable[[str], tuple[Path, dict[str, float]]],
) -> None:
    path, _ = exported("int8")
    stylizer = load_stylizer(path)

    class Brighter(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return stylizer.generator(x) + 0.1

    found = psnr(Brighter(), path, {"a": torch.full((1, 3, 16, 24), 0.5)})
    assert found["a"] == pytest.approx(20, abs=0.01)


def test_a_conversion_that_fails_leaves_no_file(
    wide: UNetGenerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(onnx_model.LEAST_PSNR, "float16", 200.0)
    monkeypatch.setattr(onnx_model, "photos", lambda part, side: {"a": torch.full((1, 3, 16, 24), 0.3)})
    with pytest.raises(RuntimeError, match=r"float16 is .* dB from float32 on a photo"):
        onnx_model.export_onnx(wide, tmp_path / "model.onnx", precision="float16")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("format", "precision", "message"),
    [
        ("onnx", "int4", "precision=int4 is not one of float32, float16, int8"),
        ("safetensors", "int8", "precision=int8 is one of ONNX files; add format=onnx"),
    ],
)
def test_wrong_choices_are_refused(trained: Path, tmp_path: Path, format: str, precision: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        export_checkpoint(trained, tmp_path, format, precision)
