"""Files in 16 and 8 bits: smaller, loadable like others, and honest about what they lose."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from smsff.errors import UserError
from smsff.generator import UNetGenerator
from smsff.stylize import onnx_model
from smsff.stylize.export import export_checkpoint
from smsff.stylize.onnx_model import photos, psnr
from smsff.stylize.stylizer import Stylizer, load_stylizer

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

GRAPH = 250_000
"""More than the bytes of the graph around the weights."""


@pytest.fixture(scope="module")
def network() -> UNetGenerator:
    torch.manual_seed(0)
    net = UNetGenerator(widths=(16, 24), encoder_blocks=(1, 2), decoder_blocks=(1,), head_width=8)
    torch.nn.init.normal_(net.to_rgb.weight, std=0.05)
    return net.eval()


@pytest.fixture(scope="module")
def checkpoint(network: UNetGenerator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "last.ckpt"
    state = {f"generator.{name}": value for name, value in network.state_dict().items()}
    hyper = {"generator": {"name": "smsff.generator.unet.UNetGenerator", "config": network.config()}}
    torch.save({"state_dict": state, "hyper_parameters": hyper, "global_step": 1}, path)
    return path


@pytest.fixture(scope="module")
def exported(checkpoint: Path) -> Callable[[str], tuple[Path, dict[str, float]]]:
    """File and told loss by precision, each exported once."""

    @cache
    def export(precision: str) -> tuple[Path, dict[str, float]]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(onnx_model, "CALIBRATION_SIDE", 64)
            done = export_checkpoint(checkpoint, checkpoint.parent / precision, "onnx", precision)
        return done.folder / "model.onnx", done.agreement.psnr

    return export


# weights in 16 bits take half the space; in 8 bits a quarter, to which the graph adds a node for each scale
@pytest.mark.parametrize(
    ("precision", "least", "most", "bytes_each"),
    [pytest.param("float16", 50, 110, 2.1, marks=pytest.mark.slow), ("int8", 30, 70, 1.1)],
)
def test_what_is_lost_is_told_and_small_and_the_file_is_smaller(
    exported: Callable[[str], tuple[Path, dict[str, float]]],
    network: UNetGenerator,
    precision: str,
    least: float,
    most: float,
    bytes_each: float,
) -> None:
    path, told = exported(precision)
    assert set(told) == {"chelsea.jpg", "coffee.jpg"}
    assert all(least < decibels < most for decibels in told.values())
    assert path.stat().st_size < bytes_each * sum(p.numel() for p in network.parameters()) + GRAPH
    # what was told is what anyone gets who loads the file
    name, picture = next(iter(photos("test", side=512).items()))
    error = (load_stylizer(path)(picture) - Stylizer(network)(picture)).square().mean()
    assert -10 * error.log10().item() == pytest.approx(told[name], abs=0.2)
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
    network: UNetGenerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(onnx_model.LEAST_PSNR, "float16", 200.0)
    monkeypatch.setattr(onnx_model, "photos", lambda part, side: {"a": torch.full((1, 3, 16, 24), 0.3)})
    with pytest.raises(RuntimeError, match=r"float16 is .* dB from float32 on a photo"):
        onnx_model.export_onnx(network, tmp_path / "model.onnx", precision="float16")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("format", "precision", "message"),
    [
        ("onnx", "int4", "precision=int4 is not one of float32, float16, int8"),
        ("safetensors", "int8", "precision=int8 is one of ONNX files; add format=onnx"),
    ],
)
def test_wrong_choices_are_refused(checkpoint: Path, tmp_path: Path, format: str, precision: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        export_checkpoint(checkpoint, tmp_path, format, precision)
