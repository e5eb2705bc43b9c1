from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from smsff.data.datamodule import ImageDataModule
from smsff.data.fingerprint import DataState, compare, fingerprint
from smsff.data.single import SingleImage

STATE = DataState(fingerprint="a", images=4, global_batch=8, micro_batches=1)


def folder(root: Path, count: int = 4) -> Path:
    root.mkdir(exist_ok=True)
    for i in range(count):
        Image.new("RGB", (20 + i, 30), (i, 0, 0)).save(root / f"{i}.png")
    return root


def data(root: Path, **changes: Any) -> ImageDataModule:
    return ImageDataModule(
        **{"root": str(root), "crop_size": 8, "batch_size": 2, "steps": 2, "val_fraction": 0, **changes}
    )


def test_the_same_folder_has_the_same_fingerprint_and_every_change_another(tmp_path: Path) -> None:
    root = folder(tmp_path / "a")
    first = data(root).state()
    assert data(folder(tmp_path / "b")).state() == first
    seen = {first.fingerprint, data(root, default_caption="other").state().fingerprint}
    (root / "0.txt").write_text("a caption")
    seen.add(data(root).state().fingerprint)
    Image.new("RGB", (99, 30)).save(root / "1.png")
    seen.add(data(root).state().fingerprint)
    (root / "2.png").rename(root / "22.png")
    seen.add(data(root).state().fingerprint)
    (root / "3.png").unlink()
    seen.add(data(root).state().fingerprint)
    assert len(seen) == 6


def test_fingerprints_keep_apart_what_belongs_to_different_fields() -> None:
    assert fingerprint([("a", 1, 2, "b c")]) != fingerprint([("a b", 1, 2, "c")])
    assert fingerprint([("a", 1, 2, "b"), ("c", 1, 2, "d")]) != fingerprint([("c", 1, 2, "d"), ("a", 1, 2, "b")])


def test_nothing_is_said_when_nothing_changed_and_each_change_is_named() -> None:
    assert compare(asdict(STATE), STATE, processes=2) == []
    other = DataState(fingerprint="b", images=3, global_batch=4, micro_batches=2)
    images, batch = compare(asdict(STATE), other, processes=2)
    assert "4 images then, 3 now" in images
    assert "data.batch_size=4 with trainer.accumulate_grad_batches=1 would continue the same training" in batch
    assert "another number of processes" in compare(asdict(STATE), other, processes=3)[1]


def test_a_changed_folder_is_reported_when_its_run_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = folder(tmp_path / "a")
    state = data(root).state_dict()
    with caplog.at_level(logging.WARNING):
        data(root).load_state_dict(state)
        assert not caplog.text
        (root / "3.png").unlink()
        data(root).load_state_dict(state)
    assert "4 images then, 3 now" in caplog.text


def test_another_picture_is_reported_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = folder(tmp_path / "a")
    one, other = (SingleImage(path=str(root / f"{i}.png"), short_side=16, steps=2) for i in (0, 1))
    with caplog.at_level(logging.WARNING):
        one.load_state_dict(one.state_dict())
        assert not caplog.text
        other.load_state_dict(one.state_dict())
    assert "as many images" in caplog.text
