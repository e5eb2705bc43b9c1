"""LPIPS, the features of ArtFID, FID and ArtFID against the packages lpips and art-fid with the same random weights.

art-fid asks for numpy < 2, although it runs with later ones: pip install --no-deps art-fid
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lpips
import numpy as np
import pytest
import torch
from network_files import random_picture, write_pictures
from torch import Tensor, nn
from torchmetrics.functional.image.lpips import _LPIPS
from torchvision.models import AlexNet

from smsff.cli import main
from smsff.errors import UserError
from smsff.metrics.frechet import FeatureSet, frechet_distance
from smsff.metrics.inception import ArtInception, ReferenceInception
from smsff.metrics.perceptual import Perceptual


def pictures(count: int, *, first: int = 0, height: int = 80, width: int = 88) -> Tensor:
    return torch.stack([random_picture(first + i, height=height, width=width) for i in range(count)]).float() / 255


@pytest.fixture
def packages_alexnet(alexnet_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both packages get their AlexNet from torchvision; here with our random weights instead of a download."""

    def build(**_: Any) -> nn.Module:
        network = AlexNet.__new__(AlexNet)
        nn.Module.__init__(network)
        network.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(), nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
        )  # fmt: skip
        network.load_state_dict(torch.load(alexnet_file))
        return network

    monkeypatch.setattr("lpips.pretrained_networks.tv.alexnet", build)


@pytest.mark.usefixtures("packages_alexnet")
def test_lpips_equals_the_package_and_torchmetrics(alexnet_file: Path) -> None:
    y, x = pictures(3), pictures(3, first=50)
    ours = Perceptual(alexnet_file)
    assert torch.allclose(ours(y, x), lpips.LPIPS(net="alex", verbose=False)(2 * y - 1, 2 * x - 1).flatten(), atol=1e-6)
    other = _LPIPS(pretrained=True, net="alex", pnet_rand=True)
    other.net.load_state_dict(ours.network.net.state_dict())
    assert torch.allclose(ours(y, x), other(2 * y - 1, 2 * x - 1).flatten(), atol=1e-6)
    assert ours(y, y).abs().max() < 1e-7
    assert ours(y, x).min() > 1e-3


def test_art_features_equal_those_of_art_fid(art_file: Path) -> None:
    inception = pytest.importorskip("art_fid.inception", reason="pip install --no-deps art-fid")
    theirs = inception.Inception3(init_weights=False)
    theirs.load_state_dict(torch.load(art_file), strict=False)
    x = pictures(2)
    with torch.no_grad():
        expected = theirs.eval()(x, return_features=True)
    assert expected.std() > 1e-3
    torch.testing.assert_close(ArtInception(art_file)(x), expected, rtol=1e-5, atol=1e-6)


def test_frechet_distance_equals_that_of_art_fid() -> None:
    art_fid = pytest.importorskip("art_fid.art_fid", reason="pip install --no-deps art-fid")
    features = [torch.randn(60, 24).double().abs() * scale for scale in (1.0, 1.3)]
    sets = [FeatureSet(width=24) for _ in features]
    for found, part in zip(sets, features, strict=True):
        found.update(part)
    moments = [m for f in features for m in (f.numpy().mean(0), np.cov(f.numpy(), rowvar=False))]
    assert frechet_distance(*sets) == pytest.approx(art_fid.compute_frechet_distance(*moments), rel=1e-8)


@pytest.mark.slow
@pytest.mark.usefixtures("packages_alexnet")
def test_evaluate_equals_art_fid_on_the_same_folders(
    alexnet_file: Path, art_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 2048 features art-fid's matrix root takes a minute."""
    art_fid = pytest.importorskip("art_fid.art_fid", reason="pip install --no-deps art-fid")
    import json

    names = [f"{i}.png" for i in range(6)]
    for i, folder in enumerate(("results", "content", "style")):
        write_pictures(tmp_path / folder, names, first=100 * i)
    folders = [str(tmp_path / folder) for folder in ("results", "style", "content")]
    monkeypatch.setattr("art_fid.utils.download", lambda _: art_file)
    theirs_fid = art_fid.compute_fid(*folders[:2], 3, "cpu", num_workers=0)
    theirs_lpips = art_fid.compute_content_distance(folders[0], folders[2], 3, device="cpu", num_workers=0).item()
    options = ["--content", folders[2], "--style", folders[1], "--figures", "artfid", "--out", str(tmp_path / "out")]
    weights = ["--weights", f"alexnet={alexnet_file}", "--weights", f"art_inception={art_file}"]
    assert main(["evaluate", folders[0], *options, *weights]) == 0
    figures = json.loads((tmp_path / "out" / "evaluation.json").read_text())["figures"]
    assert figures["lpips"]["value"] == pytest.approx(theirs_lpips, abs=1e-6)
    assert figures["art_fid"]["value"] == pytest.approx(theirs_fid, abs=1e-4)
    assert figures["artfid"]["value"] == pytest.approx((1 + theirs_lpips) * (1 + theirs_fid), abs=1e-4)


def test_the_reference_network_sees_rounded_pictures_of_299_pixels(inception_file: Path) -> None:
    network = ReferenceInception(inception_file)
    x = pictures(1, height=40, width=60)
    features = network(x)
    assert features.shape == (1, 2048)
    assert features.std() > 1e-3
    torch.testing.assert_close(network(x + 0.001), features)  # rounds to the same 8-bit picture
    # TensorFlow 1's bilinear weights: the left of two columns reaches up to the middle, the right one is flat
    seen: list[Tensor] = []
    network.network.Conv2d_1a_3x3.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(torch.tensor([0.0, 1.0]).expand(1, 3, 2, 2))
    row = seen[0][0, 0, 0]
    assert len(row) == 299
    assert row[0] == -1
    assert row[75] == pytest.approx(2 * 75 * 2 / 299 * 255 / 256 - 1, abs=1e-2)
    assert row[-1] == pytest.approx(127 / 128)


def test_files_of_other_networks_and_dangerous_ones_are_refused(
    alexnet_file: Path, art_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="is no Inception-v3"):
        ArtInception(alexnet_file)
    with pytest.raises(UserError, match="is not the Inception-v3 of FID"):
        ReferenceInception(alexnet_file)
    with pytest.raises(UserError, match=r"it lacks features.0.weight"):
        Perceptual(art_file)
    harmful = tmp_path / "harmful.pth"
    torch.save(nn.Linear(1, 1), harmful)  # a whole object: unpickling it runs code
    for network in (ArtInception, ReferenceInception, Perceptual):
        with pytest.raises(UserError, match=r"harmful.pth: cannot be read as weights"):
            network(harmful)
    torch.save([1, 2], harmful)
    with pytest.raises(UserError, match="expected a state dict"):
        Perceptual(harmful)
