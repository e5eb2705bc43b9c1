"""One way in for pictures: the same pixels whoever asks, true colours, and what a file says beside its pixels."""

from __future__ import annotations

import io
import logging
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, features
from PIL.PngImagePlugin import PngInfo
from profiles import grey_profile, press_profile, rgb_profile

from smsff.data import images
from smsff.data.colour import conversion, srgb_profile
from smsff.data.folder import ImageFolder
from smsff.data.images import ImageError, Picture, image_size, list_images, load_image, read_picture
from smsff.data.single import SingleImage
from smsff.generator import UNetGenerator
from smsff.stylize.files import save_image
from smsff.stylize.stylizer import Stylizer

H, W = 16, 24
ROWS, COLUMNS = np.mgrid[:H, :W]
RGB = np.stack([COLUMNS * 10, ROWS * 15, 255 - COLUMNS * 6], -1).astype(np.uint8)
RGB[:5, :7] = (230, 30, 30)
ALPHA = np.where(COLUMNS > 12, 255, COLUMNS * 20).astype(np.uint8)
DEEP = (COLUMNS * 2600 + ROWS * 300).astype(np.uint16)
COLOURS = Image.fromarray(RGB)
CUTOUT = Image.fromarray(np.dstack([RGB, ALPHA]))
PALETTE = COLOURS.quantize(12)
MODES: dict[str, Image.Image] = {
    "1": COLOURS.convert("1"),
    "L": COLOURS.convert("L"),
    "LA": CUTOUT.convert("LA"),
    "P": PALETTE,
    "P with transparency": PALETTE,
    "I;16": Image.fromarray(DEEP),
    "RGB": COLOURS,
    "RGBA": CUTOUT,
    "CMYK": COLOURS.convert("CMYK"),
    "LAB": ImageCms.applyTransform(
        COLOURS,
        ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"),
    ),
}
FORMATS = {
    "jpg": ["L", "RGB", "CMYK"],
    "png": ["1", "L", "LA", "P", "P with transparency", "I;16", "RGB", "RGBA"],
    "webp": ["RGB", "RGBA"],
    "tif": ["1", "L", "LA", "P", "I;16", "RGB", "RGBA", "CMYK", "LAB"],
    "avif": ["RGB", "RGBA"] if features.check("avif") else [],
    "gif": ["P", "P with transparency"],
    "bmp": ["1", "L", "P", "RGB"],
}


@pytest.fixture(scope="module")
def identity() -> Stylizer:
    """A network that has not been trained gives back the picture."""
    return Stylizer(UNetGenerator(widths=(4, 4), encoder_blocks=(0, 0), decoder_blocks=(0,), head_width=4))


def write(path: Path, mode: str, orientation: int = 1, **options: Any) -> Path:
    kinds = {
        ".jpg": {"quality": 98, "subsampling": 0},
        ".webp": {"lossless": True, "exact": True},
        ".avif": {"quality": 100},
    }
    if mode == "P with transparency":
        options["transparency"] = PALETTE.getpixel((3, 3))
    if orientation != 1:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    MODES[mode].save(path, **kinds.get(path.suffix, {}), **options)
    return path


def turned(x: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, C) as it is to be shown."""
    x = {2: x[:, ::-1], 3: x[::-1, ::-1], 4: x[::-1], 6: np.rot90(x, -1), 8: np.rot90(x)}.get(orientation, x)
    return {5: x.swapaxes(0, 1), 7: x.swapaxes(0, 1)[::-1, ::-1]}.get(orientation, x)


def shown(mode: str) -> np.ndarray:
    """How a picture looks over white, worked out without the code under test."""
    if mode == "I;16":
        return np.repeat((DEEP >> 8)[..., None], 3, -1)
    if mode == "LAB":
        return RGB
    if mode == "P with transparency":
        rgb = np.asarray(PALETTE.convert("RGB")).copy()
        rgb[np.asarray(PALETTE) == PALETTE.getpixel((3, 3))] = 255
        return rgb
    rgb = np.asarray(MODES[mode].convert("RGB")).astype(float)
    if mode in ("LA", "RGBA"):
        opacity = ALPHA[..., None] / 255
        rgb = rgb * opacity + 255 * (1 - opacity)
    return rgb


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in FORMATS.items() for mode in modes])
def test_every_way_in_gives_the_same_pixels(kind: str, mode: str, tmp_path: Path, identity: Stylizer) -> None:
    for orientation in (1,) if kind in ("gif", "bmp") else range(1, 9):
        path = write(tmp_path / f"{orientation}.{kind}", mode, orientation)
        pixels = load_image(path)
        array = pixels.permute(1, 2, 0).numpy().astype(int)
        expected = turned(shown(mode), orientation)
        difference = np.abs(array - expected)
        if kind in ("jpg", "avif") or mode == "LAB":
            assert difference.mean() <= 6, (orientation, mode)
        else:
            assert difference.max() <= 1, (orientation, mode)
        assert image_size(path) == (array.shape[1], array.shape[0])
        with Image.open(path) as opened:
            before = dict(opened.getexif())
            ways = {
                "file": read_picture(path).on_white(),
                "image": read_picture(opened).on_white(),
                "API, file": read_picture(identity(path)).on_white(),
                "API, image": read_picture(identity(opened)).on_white(),
                "API, picture": identity(read_picture(path)).on_white(),
            }
            assert kind == "tif" or dict(opened.getexif()) == before  # PIL itself turns TIFF files
        save_image(identity(read_picture(path)), tmp_path / "result.png")
        ways["CLI"] = load_image(tmp_path / "result.png")
        for name, way in ways.items():
            assert torch.equal(way, pixels), (orientation, name)
    folder = ImageFolder(tmp_path, default_caption="")
    assert torch.equal(folder.load(folder.names.index(path.name)), pixels)
    single = SingleImage(path=str(path), short_side=H, steps=1).image
    assert torch.equal(single, pixels / 127.5 - 1)


def test_16_bit_colour_and_keys(tmp_path: Path) -> None:
    """PIL cannot write them."""

    def png(colour: int, values: np.ndarray, key: np.ndarray | None) -> bytes:
        def chunk(kind: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        head = struct.pack(">IIBBBBB", W, H, 16, colour, 0, 0, 0)
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
        trns = b"" if key is None else chunk(b"tRNS", np.asarray(key).astype(">u2").tobytes())
        parts = chunk(b"IHDR", head) + trns + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
        return b"\x89PNG\r\n\x1a\n" + parts

    colour = np.dstack([DEEP, 65535 - DEEP, DEEP // 3])
    for kind, values in ((0, DEEP), (2, colour)):
        for key in (None, values[5, 6]):
            path = tmp_path / "a.png"
            path.write_bytes(png(kind, values, key))
            picture = read_picture(path)
            high = np.broadcast_to((values >> 8).reshape(H, W, -1), (H, W, 3)).copy()
            assert (picture.alpha is None) == (key is None)
            if picture.alpha is not None:
                assert picture.alpha[0, 5, 6] == 0
                high[(picture.alpha[0] == 0).numpy()] = 255
            assert np.array_equal(picture.pixels.permute(1, 2, 0).numpy(), high)


def tiff(bits: int, photometric: int, data: bytes, width: int, height: int, **tags: int) -> bytes:
    entries = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 277: 1, 278: height, 279: len(data)}
    entries |= {int(tag[1:]): value for tag, value in tags.items()}
    entries[273] = 8 + 2 + 12 * (len(entries) + 1) + 4
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + bytes(4) + data


def test_grey_tiff_of_12_bits_and_with_white_as_zero(tmp_path: Path) -> None:
    values = np.arange(24) * 170
    packed = b"".join(bytes((a >> 4, (a & 15) << 4 | b >> 8, b & 255)) for a, b in values.reshape(-1, 2).tolist())
    (tmp_path / "12.tif").write_bytes(tiff(12, 1, packed, 6, 4))
    assert load_image(tmp_path / "12.tif")[0].flatten().tolist() == (values >> 4).tolist()
    (tmp_path / "0.tif").write_bytes(tiff(16, 0, DEEP.tobytes(), W, H))
    assert np.array_equal(load_image(tmp_path / "0.tif")[0].numpy(), 255 - (DEEP >> 8))


# ------------------------------------------------------------------------------------------------------------- colours


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """(..., 3) of 0 to 255 in sRGB, to CIE Lab."""
    c = rgb / 255
    c = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x = c @ np.array(to_xyz).T / [0.9505, 1, 1.089]
    f = np.where(x > 0.008856, np.cbrt(x), 7.787 * x + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def from_p3(rgb: np.ndarray, gamma: float = 2.2) -> np.ndarray:
    """Display P3 with this gamma to sRGB, by the published matrices."""
    to_srgb = [[1.2249, -0.2247, 0], [-0.0420, 1.0419, 0], [-0.0197, -0.0786, 1.0979]]
    linear = ((rgb / 255.0) ** gamma @ np.array(to_srgb).T).clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
def test_the_colours_of_a_profile_are_kept_and_written_as_srgb(kind: str, tmp_path: Path, identity: Stylizer) -> None:
    path = write(tmp_path / f"a.{kind}", "RGB", 6, icc_profile=rgb_profile())
    save_image(identity(read_picture(path)), tmp_path / "result.png")
    expected = to_lab(from_p3(turned(RGB, 6)))
    assert np.linalg.norm(to_lab(np.asarray(Image.open(tmp_path / "result.png"))) - expected, axis=-1).mean() < 1
    assert np.linalg.norm(to_lab(turned(RGB, 6)) - expected, axis=-1).mean() > 3  # else it would show nothing
    written = Image.open(tmp_path / "result.png").info["icc_profile"]
    assert ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(written))).startswith("sRGB")
    assert identity(Image.open(path)).info["icc_profile"] == written


def test_profiles_of_press_and_grey(tmp_path: Path) -> None:
    inks = Image.new("CMYK", (8, 8), (0, 0, 0, 128))
    for kind in ("jpg", "tif"):
        inks.save(tmp_path / f"press.{kind}", icc_profile=press_profile(black=45))
        lab = to_lab(load_image(tmp_path / f"press.{kind}")[:, 4, 4].numpy())
        assert np.linalg.norm(lab - [65.7, 0, 0]) < 1  # half of the black ink, with black point compensation
        inks.save(tmp_path / f"plain.{kind}")
        assert np.abs(load_image(tmp_path / f"plain.{kind}").float() - 127).max() <= 1
    Image.new("L", (8, 8), 55).save(tmp_path / "grey.png", icc_profile=grey_profile(gamma=1))
    assert load_image(tmp_path / "grey.png")[:, 0, 0].tolist() == pytest.approx([128] * 3, abs=2)
    MODES["L"].save(tmp_path / "phone.jpg", icc_profile=rgb_profile())  # a grey picture with a profile for colour
    assert load_image(tmp_path / "phone.jpg").shape == (3, H, W)
    CUTOUT.save(tmp_path / "cut.png", icc_profile=rgb_profile())
    picture = read_picture(tmp_path / "cut.png")
    assert np.abs(picture.pixels[:, :, 1:].permute(1, 2, 0).numpy() - from_p3(RGB[:, 1:])).max() <= 2
    assert picture.alpha is not None
    assert np.array_equal(picture.alpha[0].numpy(), ALPHA)


def test_what_is_srgb_is_not_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert conversion(srgb_profile(), "RGB") is None
    assert conversion(srgb_profile(), "L") is None
    assert conversion(rgb_profile(), "RGB") is not None
    write(tmp_path / "a.jpg", "RGB", 6, icc_profile=srgb_profile())
    expected = load_image(write(tmp_path / "b.jpg", "RGB", 6))
    monkeypatch.setattr(Image.Image, "load", None)  # PIL decodes nothing: the fast decoder does
    assert torch.equal(load_image(tmp_path / "a.jpg"), expected)


def test_a_profile_that_cannot_be_used_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for profile in (b"no profile" * 20, grey_profile(2.5), press_profile()[:200]):
        for name in ("a.png", "b.png"):
            write(tmp_path / name, "RGB", icc_profile=profile)
            assert np.array_equal(load_image(tmp_path / name).permute(1, 2, 0).numpy(), RGB)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [str(tmp_path / "a.png")] * 3


# ------------------------------------------------------------------------------------------------------------ metadata


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A phone's JPEG on its side, with everything that it says."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0112], exif[0x8298] = "MakerX", 6, "© Jörg".encode()
    exif[0x8769] = {0x9003: "2024:01:02 03:04:05", 0xA001: 0xFFFF, 0xA002: W, 0xA003: H, 0x927C: b"notes"}
    exif[0x8825] = {1: "N", 2: (51.0, 30.0, 0.0)}
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d tiff:Orientation="6" r="rights"/></x:xmpmeta>'
    options = {"quality": 95, "exif": exif, "xmp": xmp, "dpi": (240, 240), "icc_profile": rgb_profile()}
    COLOURS.save(tmp_path / "photo.jpg", **options)
    return tmp_path / "photo.jpg"


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_metadata_are_kept_and_true(kind: str, photo: Path, tmp_path: Path, identity: Stylizer) -> None:
    save_image(identity(read_picture(photo)), tmp_path / f"cli.{kind}")
    image = identity(Image.open(photo))
    image.save(tmp_path / f"api.{kind}", **image.info)
    for name in ("cli", "api"):
        result = Image.open(tmp_path / f"{name}.{kind}")
        exif = result.getexif()
        assert (result.width, result.height) == (H, W)
        assert exif[0x0112] == 1
        assert exif[0x010F] == "MakerX"
        assert exif[0x8298].encode("latin-1").decode() == "© Jörg"
        details = exif.get_ifd(0x8769)
        assert [details[tag] for tag in (0x9003, 0xA001, 0xA002, 0xA003)] == ["2024:01:02 03:04:05", 1, H, W]
        assert details[0x927C] == b"notes"
        assert exif.get_ifd(0x8825)[2] == (51, 30, 0)
        assert result.info["icc_profile"] == srgb_profile()
        assert kind == "webp" or result.info["dpi"] == pytest.approx((240, 240), abs=0.1)
        if name == "cli":
            assert b'tiff:Orientation="1" r="rights"' in result.info["xmp"]
    with Image.open(photo) as opened:
        identity(opened)
        assert opened.getexif()[0x0112] == 6  # the caller's image is not changed


def test_nothing_is_invented(tmp_path: Path, identity: Stylizer) -> None:
    for name in ("a.png", "a.jpg", "a.tif", "a.webp"):
        assert identity(write(tmp_path / name, "RGB")).info == {}


def test_the_copyright_of_png_text_and_of_tiff_is_kept(tmp_path: Path) -> None:
    text = PngInfo()
    text.add_text("Copyright", "(c) owner")
    text.add_text("Author", "somebody")
    write(tmp_path / "a.png", "RGB", pnginfo=text)
    exif = Image.Exif()
    exif[0x8298], exif[0x013B] = "(c) owner", "somebody"
    write(tmp_path / "a.tif", "RGB", exif=exif, dpi=(300, 300))
    for name in ("a.png", "a.tif"):
        picture = read_picture(tmp_path / name)
        save_image(picture, tmp_path / "result.jpg")
        result = Image.open(tmp_path / "result.jpg")
        kept = dict(result.getexif())
        assert (kept.pop(0x8298), kept.pop(0x013B)) == ("(c) owner", "somebody")
        assert set(kept) <= {0x011A, 0x011B, 0x0128}  # the resolution; nothing about strips and bits
        assert name == "a.png" or result.info["dpi"] == (300, 300)


def test_exif_data_that_cannot_be_kept_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture, photo: Path) -> None:
    metadata = read_picture(write(tmp_path / "a.png", "RGB", exif=b"Exif\0\0II*\0\xff\xff\xff\x00")).metadata
    assert metadata.exif == b""
    exif = Image.Exif()
    exif[0x010E] = "d" * 70_000
    save_image(read_picture(write(tmp_path / "b.png", "RGB", exif=exif)), tmp_path / "b.jpg")
    assert any("b.jpg: without the exif data" in record.getMessage() for record in caplog.records)
    assert load_image(tmp_path / "b.jpg").shape == (3, H, W)


def test_transparency_comes_back_where_the_format_has_it(tmp_path: Path, identity: Stylizer) -> None:
    for kind in ("png", "webp"):
        picture = identity(read_picture(write(tmp_path / f"a.{kind}", "RGBA")))
        save_image(picture, tmp_path / f"result.{kind}")
        result = np.asarray(Image.open(tmp_path / f"result.{kind}")).astype(int)
        assert np.array_equal(result[..., 3], ALPHA)
        seen = ALPHA > 0
        assert np.abs(result[seen, :3] - RGB[seen].astype(int)).mean() <= (6 if kind == "webp" else 0)
    save_image(picture, tmp_path / "result.jpg")
    assert Image.open(tmp_path / "result.jpg").mode == "RGB"
    assert np.abs(load_image(tmp_path / "result.jpg").permute(1, 2, 0).numpy() - shown("RGBA")).mean() < 4
    whole = identity(CUTOUT)
    assert whole.mode == "RGBA"
    assert np.array_equal(np.asarray(whole)[..., 3], ALPHA)


# ------------------------------------------------------------------------------------------- what is read, and what not


def test_contents_decide_what_is_read(tmp_path: Path) -> None:
    for name in ("really_png.jpg", "a.jfif", "a.JPE", "IMG_1.HEIC", "moving.apng"):
        COLOURS.save(tmp_path / name, format="PNG")
    for name in ("b.jxl", "c.heif", "d.svg"):
        (tmp_path / name).write_bytes(b"nothing that is read")
    preview = tiff(16, 1, DEEP.tobytes(), W, H, t254=1)
    for name in ("e.DNG", "f.tif", "g.nef"):
        (tmp_path / name).write_bytes(preview)
    found, others = list_images(tmp_path)
    assert others == ["b.jxl", "c.heif", "d.svg", "e.DNG", "g.nef"] if not images.HEIF else True
    assert len(found) + len(others) == 11
    folder = ImageFolder(tmp_path, default_caption="")
    assert len(folder) == 5
    assert "f.tif" in folder.unreadable
    for name in ("e.DNG", "f.tif"):
        with pytest.raises(ImageError, match=rf"{name}: .*camera raw"):
            load_image(tmp_path / name)
    with Image.open(tmp_path / "f.tif") as opened, pytest.raises(ImageError, match="preview"):
        read_picture(opened)


def test_what_is_not_read_is_named_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i in range(5):
        (tmp_path / f"{i}.dng").touch()
    (tmp_path / "a.jxl").touch()
    write(tmp_path / "a.png", "RGB")
    with caplog.at_level(logging.WARNING):
        assert len(images.find_images(tmp_path)) == 1
    (message,) = (record.getMessage() for record in caplog.records)
    assert "6 pictures of kinds that are not read (5 .dng, 1 .jxl): 0.dng, 1.dng, 2.dng, 3 more" in message


@pytest.mark.skipif(images.HEIF, reason="the extra is installed")
def test_heic_names_the_extra(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with pytest.raises(ImageError, match=r"a\.heic: .*smsff\[heic\]"):
        load_image(tmp_path / "a.heic")


@pytest.mark.skipif(not images.HEIF, reason="needs the extra heic")
def test_heic(tmp_path: Path) -> None:
    import pillow_heif

    pillow_heif.register_heif_opener()
    for orientation in (1, 6):
        exif = Image.Exif()
        exif[0x0112], exif[0x010F] = orientation, "MakerX"
        COLOURS.resize((96, 64)).save(tmp_path / "a.heic", quality=95, exif=exif, icc_profile=rgb_profile())
        picture = read_picture(tmp_path / "a.heic")
        expected = from_p3(np.asarray(COLOURS.resize((96, 64))))  # HEIC is turned by its decoder, never by EXIF
        assert np.abs(picture.pixels.permute(1, 2, 0).numpy() - expected).mean() < 6
        assert picture.metadata.profile
        exif.load(picture.metadata.exif)
        assert (exif[0x0112], exif[0x010F]) == (1, "MakerX")
        assert image_size(tmp_path / "a.heic") == picture.to_pil().size
        assert list_images(tmp_path)[0] == ["a.heic"]


def test_pictures_in_memory(identity: Stylizer) -> None:
    for mode in ("HSV", "YCbCr", "RGBX", "La", "RGBa", "PA"):
        image = Image.new(mode, (9, 8))
        assert identity(image).size == (9, 8), mode
    for mode in ("I", "F"):
        with pytest.raises(ImageError, match=r"the image: .*32 bits"):
            identity(Image.new(mode, (9, 8)))
    with pytest.raises(ImageError, match="pixels are more than 10"):
        read_picture(Image.new("RGB", (9, 8)), max_pixels=10)
    assert Picture(torch.zeros(3, 2, 2, dtype=torch.uint8)).to_pil().info == {}
