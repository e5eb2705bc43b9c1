from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from smsff.data.images import ImageError, find_images, image_size, load_image
from smsff.errors import UserError

H, W = 12, 20
RGB = np.stack(np.broadcast_arrays(np.arange(H)[:, None] * 20, np.arange(W) * 12, np.full((H, W), 90)), -1)
RGB = RGB.astype(np.uint8)


def pixels(path: Path) -> np.ndarray:
    tensor = load_image(path)
    assert tensor.dtype == torch.uint8
    assert tensor.shape[0] == 3
    assert tensor.is_contiguous()
    return tensor.permute(1, 2, 0).numpy()


def test_jpeg_equals_pil(tmp_path: Path) -> None:
    for kind in ("RGB", "L", "CMYK"):
        path = tmp_path / f"{kind}.jpg"
        Image.fromarray(RGB).convert(kind).save(path, quality=90)
        assert np.array_equal(pixels(path), np.asarray(Image.open(path).convert("RGB"))), kind


def test_transparent_palette_and_colour_key(tmp_path: Path) -> None:
    palette = Image.fromarray(RGB).quantize(8)
    index = palette.getpixel((3, 2))
    palette.save(tmp_path / "p.png")
    assert np.array_equal(pixels(tmp_path / "p.png"), np.asarray(palette.convert("RGB")))
    palette.save(tmp_path / "key.png", transparency=index)
    assert (pixels(tmp_path / "key.png")[2, 3] == 255).all()
    Image.fromarray(RGB).save(tmp_path / "rgb.png", transparency=tuple(int(v) for v in RGB[4, 7]))
    assert (pixels(tmp_path / "rgb.png")[4, 7] == 255).all()


def test_32_bit_images_are_refused(tmp_path: Path) -> None:
    for name, dtype in (("f.tif", np.float32), ("i.tif", np.int32)):
        Image.fromarray(RGB[..., 0].astype(dtype)).save(tmp_path / name)
        with pytest.raises(ImageError, match="32 bits"):
            load_image(tmp_path / name)


def test_what_is_no_image_is_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    reasons = {"text.jpg": "known format", "empty.png": "known format", "none.png": "No such file"}
    for name, reason in {**reasons, "folder.png": "regular", "pipe.png": "regular"}.items():
        for read in (load_image, image_size):
            with pytest.raises(ImageError, match=rf"{name}: .*{reason}"):
                read(tmp_path / name)


def test_random_damage_never_raises_anything_else(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for extension in ("jpg", "png", "webp", "tif", "bmp"):
        path = tmp_path / f"a.{extension}"
        Image.fromarray(RGB).save(path)
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(12):
            data = whole.copy()
            data[rng.integers(0, len(data), 8)] = rng.integers(0, 256, 8)
            path.write_bytes(data.tobytes())
            with contextlib.suppress(ImageError):
                assert load_image(path).shape[0] == 3


def test_find_images(tmp_path: Path) -> None:
    names = ["b/z.jpg", "b/a.PNG", "a.webp", "Z.jpeg", "b/c/d.tiff", "notes.txt", ".hidden/a.jpg", "._a.jpg", "b/x.gif"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    os.symlink(tmp_path, tmp_path / "b" / "loop")
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(str(tmp_path))]
    assert found == ["Z.jpeg", "a.webp", "b/a.PNG", "b/c/d.tiff", "b/x.gif", "b/z.jpg"]


def test_find_images_needs_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file.jpg").touch()
    for path in (tmp_path / "none", tmp_path / "file.jpg"):
        with pytest.raises(UserError, match=path.name):
            find_images(path)
