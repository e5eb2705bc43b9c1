"""Batches of styled pictures: a pure function of (seed, iteration, position), whatever the processes and workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from styled import pictures, write_pictures

from smsff.errors import UserError
from smsff.style_lora.data import Degraded, Prior, StyleCrops, StylePictures, collate_style


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("styled"))


def batch(data: StylePictures, iteration: int, positions: range, **changes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"scale": (0.5, 1.0), "flip": True, "seed": 0, "global_batch": 4}
    options |= {"degraded": data.degraded, "textures": data.textures, "prior": data.prior, **changes}
    crops = StyleCrops(data.train, data.buckets, **options)
    return collate_style([crops[iteration, position] for position in positions])


def test_a_batch_has_one_shape_and_the_shapes_of_its_pictures(root: Path) -> None:
    data = pictures(root)
    assert len(data.train) + len(data.val) == 12
    shapes = set()
    for iteration in range(12):
        found = batch(data, iteration, range(4))
        shapes.add(tuple(found["image"].shape))
        assert torch.equal(found["image"], found["input"])
        assert not found["degraded"].any()
        assert found["position"].tolist() == [0, 1, 2, 3]
        assert found["iteration"].tolist() == [iteration] * 4
        assert found["caption"] == [data.train.captions[i] for i in found["index"].tolist()]
    assert shapes == {(4, 3, 32, 32), (4, 3, 24, 40), (4, 3, 40, 24)}


def test_processes_divide_the_global_batch(root: Path) -> None:
    data = pictures(root, degraded=Degraded(share=0.5), prior=Prior(root=str(root)))
    for iteration in (0, 5, 17):
        whole = batch(data, iteration, range(4))
        halves = [batch(data, iteration, positions) for positions in (range(2), range(2, 4))]
        for name in ("image", "input", "degraded", "index", "prior_image"):
            assert torch.equal(whole[name], torch.cat([half[name] for half in halves])), name
        assert whole["caption"] == halves[0]["caption"] + halves[1]["caption"]
    other = batch(data, 0, range(4), seed=1)
    assert not torch.equal(other["image"], batch(data, 0, range(4))["image"])


def test_degraded_samples_differ_from_their_targets_and_the_others_do_not(root: Path) -> None:
    data = pictures(root, degraded=Degraded(share=0.5))
    assert data.textures is not None
    counted = 0
    for iteration in range(20):
        found = batch(data, iteration, range(4))
        differs = (found["image"] - found["input"]).flatten(1).abs().amax(1) > 0
        assert torch.equal(differs, found["degraded"])
        assert found["input"].abs().max() <= 1 + 1e-6
        counted += int(differs.sum())
    assert 25 < counted < 55
    everything = batch(pictures(root, degraded=Degraded(share=1.0)), 0, range(4))
    assert everything["degraded"].all()


def test_tones_reach_the_inputs_and_leave_everything_else(root: Path) -> None:
    def first(tones: float) -> dict[str, Any]:
        data = pictures(root, degraded=Degraded(share=1.0, tones=tones))
        found: dict[str, Any] = next(iter(data.train_dataloader()))
        return found

    bent, kept = first(1.0), first(0.0)
    assert torch.equal(bent["image"], kept["image"])
    assert not torch.equal(bent["input"], kept["input"])


def test_class_pictures_have_their_own_caption_and_the_shape_of_the_batch(root: Path, tmp_path: Path) -> None:
    prior = write_pictures(tmp_path / "class", 5, brightness=20)
    data = pictures(root, prior=Prior(root=str(prior), caption="a thing"))
    found = batch(data, 3, range(4))
    assert found["prior_image"].shape == found["image"].shape
    assert set(found["prior_caption"]) <= {"a thing", "caption 1", "caption 3"}
    assert data.prior_captions() == ["a thing", "caption 1", "caption 3"]
    assert data.summary()["prior_images"] == 5
    assert "prior_image" not in batch(pictures(root), 3, range(4))


def test_loaders_hold_out_pictures_and_bring_photos(root: Path, tmp_path: Path) -> None:
    photos = write_pictures(tmp_path / "photos", 3)
    data = pictures(root, photos=str(photos), max_photos=2, max_held_out=1, val_fraction=0.4)
    held_out, grid = data.val_dataloader()
    first = next(iter(held_out))
    assert len(held_out) == 1
    assert first["held_out"] == 0
    assert first["image"].shape[2:] == data.held_out.buckets.shape(0)  # type: ignore[union-attr]
    assert [b["name"] for b in grid] == [["00.png"], ["01.png"]]
    assert len(pictures(root, val_fraction=0.0).val_dataloader()) == 1
    trained = next(iter(data.train_dataloader()))
    assert trained["image"].shape[0] == 3


def test_a_picture_that_is_shown_turned_gets_the_bucket_it_is_shown_in(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (40, 24)).save(tmp_path / "a.jpg", exif=exif)
    Image.new("RGB", (40, 24)).save(tmp_path / "b.jpg")
    data = pictures(tmp_path, val_fraction=0.0)
    assert data.train.sizes == [(24, 40), (40, 24)]
    assert [data.buckets.shape(i) for i in range(2)] == [(40, 24), (24, 40)]


def test_wrong_options_are_refused_by_name(root: Path, tmp_path: Path) -> None:
    for key, changes in {
        r"data\.resolution": {"resolution": 30},
        r"data\.prior\.root": {"prior": Prior(root=str(tmp_path / "no"))},
        r"data\.degraded\.texture_root": {"degraded": Degraded(share=0.1, texture_root=str(tmp_path / "no"))},
        r"data\.photos": {"photos": str(tmp_path / "no")},
    }.items():
        with pytest.raises(UserError, match=key):
            pictures(root, **changes)
