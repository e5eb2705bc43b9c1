from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from smsff.data import folder as folder_module
from smsff.data.folder import BUNDLED, ImageFolder, split_by_name
from smsff.errors import UserError


def make(root: Path, count: int = 4) -> list[Path]:
    paths = [root / f"{i}.png" for i in range(count)]
    for i, path in enumerate(paths):
        Image.new("RGB", (10 + i, 8), (i, 0, 0)).save(path)
    return paths


def test_headers_read_by_several_processes_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, 7)
    (tmp_path / "4.png").write_bytes(b"")
    alone = ImageFolder(tmp_path, default_caption="")
    monkeypatch.setattr(folder_module, "MANY", 7)
    several = ImageFolder(tmp_path, default_caption="")
    assert several.unreadable.keys() == {"4.png"}
    for name in ("names", "sizes", "unreadable"):
        assert getattr(several, name) == getattr(alone, name)


def test_nothing_to_train_on_names_the_key(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.root: .*none is not a folder"):
        ImageFolder(tmp_path / "none", default_caption="")
    with pytest.raises(UserError, match=r"data\.root: no images"):
        ImageFolder(tmp_path, default_caption="")
    (tmp_path / "a.jpg").touch()
    with pytest.raises(UserError, match=r"data\.root: none of the 1 images can be read; .*a\.jpg"):
        ImageFolder(tmp_path, default_caption="")


def test_an_image_that_vanishes_is_replaced_by_the_next_one(tmp_path: Path) -> None:
    paths = make(tmp_path)
    folder = ImageFolder(tmp_path, default_caption="")
    os.remove(paths[1])
    paths[2].write_bytes(paths[2].read_bytes()[:-30])
    image, index, skipped = folder.load_or_next(1)
    assert index == 3
    assert image[0, 0, 0] == 3
    assert list(skipped) == ["1.png", "2.png"]
    assert folder.load_or_next(3)[1:] == (3, {})
    os.remove(paths[3])
    assert folder.load_or_next(3)[1] == 0
    for path in (paths[0], paths[2]):
        os.remove(path)
    image, index, skipped = folder.load_or_next(2)
    assert (image.shape, index) == ((3, 1, 1), 2)
    assert list(skipped) == ["2.png", "3.png", "0.png", "1.png"]


def test_cache_holds_all_or_nothing(tmp_path: Path) -> None:
    paths = make(tmp_path)
    paths[1].write_bytes(paths[1].read_bytes()[:-30])
    folder = ImageFolder(tmp_path, default_caption="")
    needed = sum(3 * 8 * (10 + i) for i in range(4)) / 1e6
    assert folder.cache(needed * 0.99) == {}
    direct = [folder.load_or_next(i) for i in range(4)]
    assert list(folder.cache(needed * 1.01)) == ["1.png"]
    for path in paths:
        os.remove(path)
    for i in range(4):
        image, index, skipped = folder.load_or_next(i)
        assert torch.equal(image, direct[i][0])
        assert (index, skipped) == direct[i][1:]


def test_subset(tmp_path: Path) -> None:
    make(tmp_path)
    folder = ImageFolder(tmp_path, default_caption="")
    folder.cache(1)
    part = folder.subset([3, 1])
    assert [part.name(0), part.name(1)] == ["3.png", "1.png"]
    assert len(folder) == 4
    assert part.load(0)[0, 0, 0] == 3


def test_split_is_a_partition_of_the_asked_size() -> None:
    names = [f"{i}.jpg" for i in range(2000)]
    train, val = split_by_name(names, 0.2)
    assert sorted(train + val) == list(range(2000))
    assert 340 < len(val) < 460
    assert split_by_name(names, 0.0) == (list(range(2000)), [])


def test_split_does_not_change_when_images_come_or_go() -> None:
    names = [f"{i}.jpg" for i in range(300)]
    more = sorted(names[::2] + [f"new{i}.jpg" for i in range(100)])
    val = {names[i] for i in split_by_name(names, 0.2)[1]}
    val_more = {more[i] for i in split_by_name(more, 0.2)[1]}
    assert {name for name in val_more if not name.startswith("new")} == {name for name in val if name in more}


def test_small_folders_have_both_sides() -> None:
    for count in range(2, 12):
        for fraction in (0.01, 0.5, 0.99):
            train, val = split_by_name([f"{i}.jpg" for i in range(count)], fraction)
            assert train
            assert val
    assert split_by_name(["only.jpg"], 0.5) == ([0], [])


def test_bundled_photos_are_all_readable_and_licensed() -> None:
    licences = (BUNDLED / "LICENSES.md").read_text(encoding="utf-8")
    for part in ("train", "textures", "val", "test"):
        folder = ImageFolder(BUNDLED / part, default_caption="")
        assert not folder.unreadable
        assert not folder.cache(100)
        for i in range(len(folder)):
            folder.load(i)
            assert f"`{part}/{folder.name(i)}`" in licences
