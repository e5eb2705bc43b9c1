"""Image files in: find them, check them cheaply, decode them to 8-bit RGB tensors."""

from __future__ import annotations

import io
import logging
import os
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.io import decode_jpeg

from smsff.errors import UserError

log = logging.getLogger(__name__)

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
"""What a file may really be, whatever its extension says: PIL would hand some of its formats to other programs."""
MAX_PIXELS = 150_000_000
"""Larger images are refused before they are decoded: a file of a few kB can claim to be any size."""
MAX_SCANS = 100
MAX_SCANNED = 20 * MAX_PIXELS
"""A progressive JPEG is decoded once for each of its scans: usually ten, but a file can have thousands of them."""


class ImageError(UserError):
    """An image file cannot be read; the message names the file."""


def printable(path: str | Path) -> str:
    """The path as text that can always be printed: bytes that are not UTF-8 are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def relative_name(path: Path, root: Path) -> str:
    """The name of an image within its folder: relative, with forward slashes on every system."""
    return path.relative_to(root).as_posix()


def find_images(root: str | Path) -> list[Path]:
    """All image files below a folder, sorted by relative name (code points, so the same on every file system).

    The extension decides, in any case. Hidden files and folders (leading dot) are left out; links to folders are
    followed, each real folder once, so a link loop ends. A folder that cannot be listed is left out and named in the
    log.

    Raises:
        UserError: If ``root`` is not a folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{printable(root)} is not a folder")
    return [root / name for name in sorted(_walk(os.fspath(root)))]


def _walk(root: str) -> Iterator[str]:
    """Names relative to the root, as text: a million of them have to be sorted."""
    seen: set[str] = set()
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        real = os.path.realpath(os.path.join(root, folder))
        if real in seen:
            continue
        seen.add(real)
        try:
            with os.scandir(real) as listing:
                entries = [(entry.name, _is_folder(entry)) for entry in listing if not entry.name.startswith(".")]
        except OSError as error:
            log.warning(
                "left out: %s: cannot be listed: %s", printable(os.path.join(root, folder[:-1])), error.strerror
            )
            continue
        # The last is taken first: sorted, so that of two links to one folder the same one is taken everywhere.
        waiting += sorted((f"{folder}{name}/" for name, is_folder in entries if is_folder), reverse=True)
        for name, is_folder in entries:
            if not is_folder and os.path.splitext(name)[1].lower() in EXTENSIONS:
                yield folder + name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def image_size(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height from the header, without decoding (EXIF orientation not applied).

    Raises:
        ImageError: If the file is missing, empty, not an image, or has more than ``max_pixels``.
    """
    try:
        _check_file(path)
        with _open(path, max_pixels) as image:
            return image.size
    except Exception as error:  # the decoders of untrusted bytes raise anything
        raise _image_error(path, error) from error


def load_image(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Decode one image file to RGB (3, H, W) uint8.

    EXIF orientation is applied, transparency is laid over white, grey, palette, CMYK and 16-bit images are converted,
    of animated images the first frame is taken. Colour profiles are not applied: values are taken as sRGB.

    Raises:
        ImageError: If the file cannot be decoded completely, or has more than ``max_pixels``; names the file.
    """
    try:
        _check_file(path)
        data = Path(path).read_bytes()
        with _open(io.BytesIO(data), max_pixels) as image:
            if image.format in ("JPEG", "MPO"):
                _check_scans(data, image.width * image.height)
            if image.format == "JPEG":
                # Three times faster than PIL, the same values.
                return _decode_jpeg(data)
            array = np.array(_to_rgb(image))
        return torch.from_numpy(array).permute(2, 0, 1).contiguous()
    except Exception as error:  # the decoders of untrusted bytes raise anything
        raise _image_error(path, error) from error


def _check_file(path: str | Path) -> None:
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):  # reading a pipe would wait for ever
        raise ValueError("not a regular file")


def _open(file: str | Path | io.BytesIO, max_pixels: int) -> Image.Image:
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > 2 * Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels  # PIL's own limit would come first
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL warns above half of its own limit, and about odd EXIF entries
        try:
            image = Image.open(file, formats=FORMATS)
        except Image.DecompressionBombError as error:
            raise ValueError(f"its pixels are more than {max_pixels:,}") from error
    if image.width * image.height > max_pixels:
        image.close()
        raise ValueError(f"{image.width} x {image.height} pixels are more than {max_pixels:,}")
    return image


def _check_scans(data: bytes, pixels: int) -> None:
    scans = data.count(b"\xff\xda")
    if scans > MAX_SCANS or scans * pixels > MAX_SCANNED:
        raise ValueError(f"{scans} scans of {pixels:,} pixels would take too long to decode")


def to_image(x: Tensor) -> Image.Image:
    """(3, H, W), uint8 or float in [0, 1], to an 8-bit picture."""
    x = x if x.dtype.itemsize == 1 else (x.clamp(0, 1) * 255).round().byte()
    return Image.fromarray(x.permute(1, 2, 0).contiguous().cpu().numpy())


def _decode_jpeg(data: bytes) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision >= 0.29 announces that its decoders will move
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return decode_jpeg(encoded, mode="RGB", apply_exif_orientation=True).contiguous()


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        raise ValueError(f"mode {image.mode} (32 bits a channel) has no known range")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        # 16-bit grey (PIL opens it as I or I;16, by version): the high byte, which PIL takes of 16-bit colour too.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _image_error(path: str | Path, error: Exception) -> ImageError:
    lines = (error.strerror if isinstance(error, OSError) and error.strerror else str(error)).splitlines()
    reason = lines[0] if lines else type(error).__name__
    # PIL says "cannot identify image file <the object>", torchvision names its source file: neither helps.
    reason = "not an image of a known format" if isinstance(error, UnidentifiedImageError) else reason
    reason = "damaged or truncated" if "decode_jpeg" in reason else reason
    return ImageError(f"{printable(path)}: cannot be read as an image: {reason}")
