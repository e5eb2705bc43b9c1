from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from smsff.data.images import MAX_PIXELS, ImageError, find_images, image_size, load_image
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


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.bmp", "a.tif", "a.tiff", "a.webp"])
def test_lossless_formats_are_exact(tmp_path: Path, name: str) -> None:
    Image.fromarray(RGB).save(tmp_path / name, **({"lossless": True} if name == "a.webp" else {}))
    assert np.array_equal(pixels(tmp_path / name), RGB)
    assert image_size(tmp_path / name) == (W, H)


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


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path / "x") + b"\xff.png"))
    path.write_bytes(b"no image")
    with pytest.raises(ImageError) as caught:
        load_image(find_images(tmp_path)[0])
    assert "\\xff.png" in str(caught.value).encode("utf-8").decode()


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


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_16_bit_grey_keeps_its_range(tmp_path: Path, extension: str) -> None:
    deep = np.arange(H * W, dtype=np.uint16).reshape(H, W) * 256 + 17
    Image.fromarray(deep).save(tmp_path / f"a.{extension}")
    assert np.array_equal(pixels(tmp_path / f"a.{extension}")[..., 1], deep >> 8)


def test_contents_decide_how_a_file_is_decoded(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "really_png.jpg", format="PNG")
    assert np.array_equal(pixels(tmp_path / "really_png.jpg"), RGB)


def test_decompression_bombs_are_refused_unread(tmp_path: Path) -> None:
    side = int(MAX_PIXELS**0.5) + 1
    Image.new("1", (side, side)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 100_000
    for read in (load_image, image_size):
        with pytest.raises(ImageError, match="pixels are more than"):
            read(tmp_path / "bomb.png")


@pytest.mark.parametrize("extension", ["jpg", "png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int, extension: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{extension}"
    options = {"quality": 98, "subsampling": 0} if extension == "jpg" else {}
    Image.fromarray(RGB).save(path, exif=exif, **options)
    turned = {1: RGB, 2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1], 5: RGB.transpose(1, 0, 2)}
    turned |= {6: np.rot90(RGB, -1), 7: RGB.transpose(1, 0, 2)[::-1, ::-1], 8: np.rot90(RGB)}
    difference = pixels(path).astype(int) - turned[orientation].astype(int)
    assert abs(difference).max() <= 8


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert np.array_equal(pixels(tmp_path / "a.webp"), RGB)


def test_grey_and_one_bit(tmp_path: Path) -> None:
    Image.fromarray(RGB[..., 0]).save(tmp_path / "grey.png")
    assert np.array_equal(pixels(tmp_path / "grey.png"), np.repeat(RGB[..., :1], 3, -1))
    Image.fromarray(RGB[..., 0] > 99).save(tmp_path / "bit.png")
    assert set(np.unique(pixels(tmp_path / "bit.png"))) == {0, 255}


def test_one_pixel(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (3, 4, 5)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").flatten().tolist() == [3, 4, 5]


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    alpha = np.zeros((H, W), np.uint8)
    alpha[:, 5:] = 255
    alpha[0] = 51
    Image.fromarray(np.dstack([RGB, alpha])).save(tmp_path / "a.png")
    expected = RGB * (alpha[..., None] / 255) + 255 * (1 - alpha[..., None] / 255)
    assert abs(pixels(tmp_path / "a.png") - expected).max() <= 1
    Image.fromarray(np.dstack([RGB[..., 0], alpha])).save(tmp_path / "la.png")
    assert (pixels(tmp_path / "la.png")[1:, :5] == 255).all()


@pytest.mark.parametrize("extension", ["jpg", "png", "webp"])
def test_truncated_files_are_named(tmp_path: Path, extension: str) -> None:
    whole, cut = tmp_path / f"whole.{extension}", tmp_path / f"cut.{extension}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole)
    data = whole.read_bytes()
    for share in (0.5, 0.9):
        cut.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(ImageError, match=rf"cut\.{extension}"):
            load_image(cut)
