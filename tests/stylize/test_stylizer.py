from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import network
from PIL import Image
from torch import Tensor

import smsff
from smsff.errors import UserError
from smsff.generator import ResNetGenerator
from smsff.stylize.export import save_stylizer
from smsff.stylize.stylizer import Stylizer


def bytes_picture(*shape: int) -> Tensor:
    return torch.randint(256, shape, dtype=torch.uint8)


def test_floats_are_zero_to_one_and_clamped() -> None:
    net = network()
    torch.nn.init.constant_(net.to_rgb.bias, 0.8)
    x = torch.rand(2, 3, 21, 34)
    y = Stylizer(net)(x)
    torch.testing.assert_close(y, ((net(x * 2 - 1) + 1) / 2).clamp(0, 1).detach())
    assert y.max() == 1.0
    assert not y.requires_grad


def test_bytes_and_pil_agree_with_floats() -> None:
    stylizer, x = Stylizer(network()), bytes_picture(1, 3, 19, 40)
    y = stylizer(x)
    assert y.dtype == torch.uint8
    assert (y.float() / 255 - stylizer(x / 255)).abs().max() <= 0.5 / 255 + 1e-6
    picture = stylizer(Image.fromarray(x[0].permute(1, 2, 0).contiguous().numpy()))
    assert picture.size == (40, 19)
    assert list(picture.tobytes()) == y[0].permute(1, 2, 0).flatten().tolist()


def test_strength_lies_between_source_and_result() -> None:
    stylizer, x = Stylizer(network()), torch.rand(1, 3, 20, 30)
    y = stylizer(x)
    assert torch.equal(stylizer(x, strength=1), y)
    for strength in (0, 0.25, 0.75, 1.5):
        torch.testing.assert_close(stylizer(x, strength=strength), (x + strength * (y - x)).clamp(0, 1))
    pixels = bytes_picture(1, 3, 20, 30)
    assert torch.equal(stylizer(pixels, strength=0), pixels)
    picture = Image.fromarray(pixels[0].permute(1, 2, 0).contiguous().numpy())
    assert stylizer(picture, strength=0).tobytes() == picture.tobytes()
    tiled = Stylizer(network(), tile=8)(x, strength=0.5)
    torch.testing.assert_close(tiled, stylizer(x, strength=0.5), rtol=0, atol=1e-5)
    for strength in (-0.1, 1.51, float("nan")):
        with pytest.raises(UserError, match=r"strength=.* between 0 and 1\.5"):
            stylizer(x, strength=strength)


def test_tiles_equal_the_whole() -> None:
    net, x = network(), bytes_picture(1, 3, 130, 157)
    whole, tiled = Stylizer(net, tile=0)(x), Stylizer(net, tile=16)(x)
    assert (whole.int() - tiled.int()).abs().max() <= 1  # rounding of a value half-way between two bytes
    floats = x / 255
    torch.testing.assert_close(Stylizer(net, tile=16)(floats), Stylizer(net, tile=0)(floats), rtol=0, atol=1e-5)


def test_resnet_is_never_tiled() -> None:
    net = ResNetGenerator(width=4, blocks=1)
    assert Stylizer(net).tile == 0
    assert Stylizer(net)(torch.rand(1, 3, 20, 30)).shape == (1, 3, 20, 30)
    with pytest.raises(UserError, match="cannot work in tiles"):
        Stylizer(net, tile=512)


def test_unusable_pictures_are_refused() -> None:
    stylizer = Stylizer(network())
    for shape in [(3, 8, 8), (1, 4, 8, 8), (1, 3, 0, 8)]:
        with pytest.raises(ValueError, match="shape"):
            stylizer(torch.rand(shape))
    with pytest.raises(ValueError, match="uint8 or floating point"):
        stylizer(torch.zeros(1, 3, 8, 8, dtype=torch.int64))
    with pytest.raises(UserError, match="tile=-1"):
        Stylizer(network(), tile=-1)


def test_loading_what_was_saved(tmp_path: Path) -> None:
    net = network()
    save_stylizer(net, tmp_path, {"style": {"name": "cel"}})
    stylizer = smsff.load_stylizer(tmp_path)
    assert stylizer.config["training"] == {"style": {"name": "cel"}}
    x = torch.rand(1, 3, 16, 25)
    assert torch.equal(stylizer(x), Stylizer(net)(x))


def test_import_smsff_is_light() -> None:
    code = "import sys, smsff; assert smsff.__version__ == '0.1.0'; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        smsff.nothing  # noqa: B018


def test_a_file_that_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("text")
    with pytest.raises(UserError, match=r"a\.jpg"):
        Stylizer(network())(tmp_path / "a.jpg")
