"""Image files in: find them, check them cheaply, and read each of them, whatever it is, into one `Picture`."""

from __future__ import annotations

import io
import logging
import os
import stat
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError, features
from torch import Tensor
from torchvision.io import decode_jpeg

from smsff.data.colour import ProfileError, conversion, to_srgb
from smsff.data.metadata import TAG, Metadata, orientation_of, read_metadata
from smsff.errors import UserError

log = logging.getLogger(__name__)

HEIF = find_spec("pillow_heif") is not None
HEIF_EXTENSIONS = frozenset({".heic", ".heif", ".hif"})
EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
EXTENSIONS |= frozenset({".avif"} if features.check("avif") else ()) | (HEIF_EXTENSIONS if HEIF else frozenset())
"""Names of files that are read."""
# fmt: off
RAW_EXTENSIONS = frozenset({
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".iiq", ".kdc", ".mef", ".mos", ".mrw",
    ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
})
"""Camera raw files: never opened, since many are TIFF files whose first picture is a small preview."""
OTHER_EXTENSIONS = RAW_EXTENSIONS | HEIF_EXTENSIONS | frozenset({
    ".apng", ".avif", ".avifs", ".dib", ".heics", ".icns", ".ico", ".j2k", ".jp2", ".jpf", ".jpx", ".jxl", ".jxr",
    ".tga", ".wdp", ".psd", ".psb", ".xcf", ".svg", ".eps", ".exr", ".hdr", ".dds", ".pcx", ".pbm", ".pgm",
    ".pnm", ".ppm",
}) - EXTENSIONS
# fmt: on
"""Names of pictures that are read only if they hold one of `FORMATS` after all."""
PICTURE_EXTENSIONS = EXTENSIONS | OTHER_EXTENSIONS
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", *(["HEIF"] if HEIF else []))
"""What a file may really be, whatever its extension says: PIL would hand some of its formats to other programs."""
DNG_VERSION = 50706
NAMED = 3
"""Pictures of other kinds that are named one by one; all are counted."""
MAX_PIXELS = 150_000_000
"""Larger images are refused before they are decoded: a file of a few kB can claim to be any size."""
MAX_SCANS = 100
MAX_SCANNED = 20 * MAX_PIXELS
"""A progressive JPEG is decoded once for each of its scans: usually ten, but a file can have thousands of them."""


_warned: set[tuple[bytes, str]] = set()
"""Profiles, and modes of the picture, that were said to be unusable."""


class ImageError(UserError):
    """An image file cannot be read; the message names the file."""


def printable(path: str | Path) -> str:
    """The path as text that can always be printed: bytes that are not UTF-8 are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def ending(name: str | Path) -> str:
    """The extension of a file's name, in lower case and with its dot; empty for none."""
    return os.path.splitext(name)[1].lower()


@dataclass(frozen=True)
class Picture:
    """One picture as everything in smsff sees it.

    Attributes:
        pixels: (3, H, W) uint8, RGB in sRGB, upright; not blended with anything, and white where alpha is 0.
        alpha: (1, H, W) uint8, from 0, transparent, to 255; None for a picture without transparency.
        metadata: What the file says beside its pixels.
    """

    pixels: Tensor
    alpha: Tensor | None = None
    metadata: Metadata = field(default_factory=Metadata)

    def on_white(self) -> Tensor:
        """The picture laid over white, (3, H, W) uint8."""
        if self.alpha is None:
            return self.pixels
        colours = to_image(self.pixels)
        white = Image.new("RGB", colours.size, "white")
        return _to_tensor(Image.composite(colours, white, Image.fromarray(self.alpha[0].numpy())))

    def to_pil(self) -> Image.Image:
        """As an image of PIL, RGB or RGBA; ``image.info`` has the metadata, as options of ``image.save``."""
        image = to_image(self.pixels)
        if self.alpha is not None:
            image.putalpha(Image.fromarray(self.alpha[0].numpy()))
        image.info.update(self.metadata.options())
        return image


def find_images(root: str | Path) -> list[Path]:
    """All image files below a folder, as `list_images` finds them; pictures of other kinds are named in the log."""
    names, others = list_images(root)
    if others:
        log.warning("left out: %s", describe_others(others))
    return [Path(root) / name for name in names]


def list_images(root: str | Path) -> tuple[list[str], list[str]]:
    """Names of the image files below a folder, and of pictures of other kinds, which are not read.

    Both are relative, with forward slashes, and sorted (code points, so the same on every file system). The extension
    decides, in any case; of `OTHER_EXTENSIONS`, camera raw excepted, those are images that hold a format that is read.
    Hidden files and folders (leading dot) are left out; links to folders are followed, each real folder once, so a link
    loop ends. A folder that cannot be listed is left out and named in the log.

    Raises:
        UserError: If ``root`` is not a folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{printable(root)} is not a folder")
    names: list[str] = []
    others: list[str] = []
    for name in sorted(name for name in walk(root, onerror=_warn_of_folder) if ending(name) in PICTURE_EXTENSIONS):
        try:
            if ending(name) not in EXTENSIONS:
                image_size(root / name)
            names.append(name)
        except ImageError:
            others.append(name)
    return names, others


def describe_others(others: Sequence[str]) -> str:
    """One sentence on pictures that are not read: how many of each kind, and the names of the first."""
    kinds = Counter(map(ending, others))
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    names = ", ".join(map(printable, others[:NAMED]))
    more = f", {len(others) - NAMED} more" if len(others) > NAMED else ""
    extra = "; .heic and .heif need pip install 'smsff[heic]'" if not HEIF and HEIF_EXTENSIONS & set(kinds) else ""
    return f"{len(others)} pictures of kinds that are not read ({counts}): {names}{more}{extra}"


def _warn_of_folder(error: OSError) -> None:
    log.warning("left out: %s: cannot be listed: %s", printable(error.filename), error.strerror)


def walk(root: Path, *, onerror: Callable[[OSError], None] | None = None) -> Iterator[str]:
    """Names of all files below a folder, relative and with forward slashes; links and hidden ones as in `list_images`.

    ``onerror`` is called with the error of a folder that cannot be listed.
    """
    seen: set[str] = set()
    for folder, below, names in os.walk(root, followlinks=True, onerror=onerror):
        real = os.path.realpath(folder)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        # Sorted, so that of two links to one folder the same one is taken everywhere.
        below[:] = sorted((name for name in below if name[0] != "."), key=lambda name: f"{name}/")
        inside = "" if folder == os.fspath(root) else f"{os.path.relpath(folder, root)}/"
        yield from (inside + name for name in names if name[0] != ".")


def image_size(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height of the upright picture, from the header, without decoding.

    Raises:
        ImageError: If the file is missing, empty, not an image, or has more than ``max_pixels``.
    """
    try:
        _check_file(path)
        with _open(path, max_pixels) as image:
            # PIL turns TIFF files itself; EXIF data behind the pixels of a PNG file are not looked for, as that would
            # decode it
            turned = image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info)
            width, height = image.size
            return (width, height) if turned or orientation_of(image) < 5 else (height, width)
    except Exception as error:  # the decoders of untrusted bytes raise anything
        raise _image_error(path, error) from error


def load_image(path: str | Path, *, max_pixels: int = MAX_PIXELS, data: bytes | None = None) -> Tensor:
    """`read_picture` laid over white: RGB (3, H, W) uint8; ImageError as in `read_picture`."""
    return read_picture(path, max_pixels=max_pixels, metadata=False, data=data).on_white()


def read_picture(
    source: str | Path | Image.Image,
    *,
    max_pixels: int = MAX_PIXELS,
    metadata: bool = True,
    data: bytes | None = None,
) -> Picture:
    """Read a picture, whatever kind of file or image of PIL it is; the one way in for everything.

    EXIF orientation is applied, colours are converted to sRGB by the embedded profile, grey, palette, CMYK, Lab and
    16-bit pictures become 8-bit RGB, transparency is kept apart; of animated pictures the first frame is taken. A
    profile that cannot be used is named in the log, once, and the values are taken as sRGB.

    Args:
        source: A file, or an image, which is not changed.
        max_pixels: Pictures with more are refused before they are decoded.
        metadata: Whether to read what is said beside the pixels.
        data: The bytes of the file, if they do not lie there by themselves; then ``source`` only names it.

    Raises:
        ImageError: If the picture cannot be decoded completely, or has more than ``max_pixels``; names the file.
    """
    if isinstance(source, Image.Image):
        name: str | Path = getattr(source, "filename", "") or "the image"
        try:
            _check_header(source, max_pixels)
            if source.format == "TIFF":
                _load_tiff(source)
            return _read(source, None, printable(name), metadata=metadata)
        except Exception as error:  # as below
            raise _image_error(name, error) from error
    try:
        if data is None:
            _check_file(source)
            data = Path(source).read_bytes()
        with _open(io.BytesIO(data), max_pixels) as image:
            if image.format in ("JPEG", "MPO"):
                _check_scans(data, image.width * image.height)
            return _read(image, data, printable(source), metadata=metadata)
    except Exception as error:  # the decoders of untrusted bytes raise anything
        raise _image_error(source, error) from error


def _load_tiff(image: Any) -> None:
    """Decode a TIFF file that is open. With its name PIL maps it into memory, and scrambles what has to be turned."""
    name, image.filename = image.filename, ""
    try:
        image.load()
    finally:
        image.filename = name


def _read(image: Image.Image, data: bytes | None, name: str, *, metadata: bool) -> Picture:
    """The picture of an opened file, or of an image; `data` are the bytes of the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL warns about odd EXIF entries
        fast = data is not None and image.format == "JPEG" and image.mode in ("L", "RGB")
        colours, alpha = (image, None) if fast else _split(image)
        profile = _usable(image.info.get("icc_profile"), colours.mode, name)
        if fast and data is not None and (profile is None or conversion(profile, colours.mode) is None):
            pixels = _decode_jpeg(data)  # three times faster than PIL, the same values
        else:
            pixels = _to_tensor(to_srgb(colours, profile))
        said = read_metadata(image, name) if metadata else Metadata()
        orientation = orientation_of(image)
    if alpha is None:
        return Picture(_turn(pixels, orientation), None, said)
    opacity = _to_tensor(alpha)
    return Picture(_turn(pixels.masked_fill_(opacity == 0, 255), orientation), _turn(opacity, orientation), said)


def _usable(profile: bytes | None, mode: str, name: str) -> bytes | None:
    """The profile, unless it is damaged or for pictures of another kind, which is said once for each."""
    if not profile:
        return None
    try:
        conversion(profile, mode)
    except ProfileError as error:
        if (profile, mode) not in _warned:
            _warned.add((profile, mode))
            log.warning("%s: its colour profile is not used, its values are taken as sRGB: %s", name, error)
        return None
    return profile


def _split(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Colours as 8-bit L, RGB, CMYK or LAB, and the alpha channel if there is one."""
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        raise ValueError(f"mode {image.mode} (32 bits a channel) has no known range")
    if image.mode.startswith("I"):
        return _eight_bits(image)
    if image.mode in ("1", "La", "RGBa"):
        image = image.convert({"1": "L", "La": "LA", "RGBa": "RGBA"}[image.mode])
    if isinstance(key := image.info.get("transparency"), tuple) and max(key) > 255:
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in key)  # of 16 bits, as the pixels were
    if image.mode in ("LA", "PA", "RGBA") or key is not None:
        image = image.convert("LA" if image.mode in ("L", "LA") else "RGBA")
        return image.convert(image.mode[:-1]), image.getchannel("A")
    return (image if image.mode in ("L", "RGB", "CMYK", "LAB") else image.convert("RGB")), None


def _eight_bits(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """16-bit grey (I or I;16, by version of PIL): the high byte, which PIL takes of 16-bit colour too."""
    values, tags = np.asarray(image), getattr(image, "tag_v2", {})
    grey = (values >> (4 if tags.get(TAG.BitsPerSample) == (12,) else 8)).astype(np.uint8)
    if tags.get(TAG.PhotometricInterpretation) == 0:  # white is zero
        grey = 255 - grey
    key = image.info.get("transparency")
    alpha = None if key is None else Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))
    return Image.fromarray(grey), alpha


def _turn(x: Tensor, orientation: int) -> Tensor:
    """(C, H, W) upright, by the EXIF orientation."""
    x = x.transpose(1, 2) if orientation >= 5 else x
    flipped = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}.get(orientation, ())
    return x.flip(flipped).contiguous()


def _check_file(path: str | Path) -> None:
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):  # reading a pipe would wait for ever
        raise ValueError("not a regular file")
    if ending(path) in RAW_EXTENSIONS:
        raise ValueError("a camera raw file; develop it to JPEG, PNG or TIFF")


def _open(file: str | Path | io.BytesIO, max_pixels: int) -> Image.Image:
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > 2 * Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels  # PIL's own limit would come first
    _add_heif()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL warns above half of its own limit, and about odd EXIF entries
        try:
            image = Image.open(file, formats=FORMATS)
        except Image.DecompressionBombError as error:
            raise ValueError(f"its pixels are more than {max_pixels:,}") from error
    try:
        _check_header(image, max_pixels)
    except ValueError:
        image.close()
        raise
    return image


@cache
def _add_heif() -> None:
    if HEIF:
        import pillow_heif

        pillow_heif.register_heif_opener()


def _check_header(image: Image.Image, max_pixels: int) -> None:
    tags = getattr(image, "tag_v2", {})
    if DNG_VERSION in tags or tags.get(TAG.NewSubfileType) == 1:
        raise ValueError("a camera raw file, or one that begins with a preview; develop it to JPEG, PNG or TIFF")
    if image.width * image.height > max_pixels:
        raise ValueError(too_large(image.width, image.height, max_pixels))


def too_large(width: int, height: int, max_pixels: int) -> str:
    """Why a picture of this size is not read."""
    return f"{width} x {height} pixels are more than {max_pixels:,}"


def _check_scans(data: bytes, pixels: int) -> None:
    scans = data.count(b"\xff\xda")
    if scans > MAX_SCANS or scans * pixels > MAX_SCANNED:
        raise ValueError(f"{scans} scans of {pixels:,} pixels would take too long to decode")


def to_image(x: Tensor) -> Image.Image:
    """(3, H, W), uint8 or float in [0, 1], to an 8-bit picture."""
    x = x if x.dtype.itemsize == 1 else (x.clamp(0, 1) * 255).round().byte()
    return Image.fromarray(x.permute(1, 2, 0).contiguous().cpu().numpy())


def _to_tensor(image: Image.Image) -> Tensor:
    """(C, H, W) uint8."""
    array = np.array(image)
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1).contiguous()


def _decode_jpeg(data: bytes) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision >= 0.29 announces that its decoders will move
        return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode="RGB").contiguous()


def _image_error(path: str | Path, error: Exception) -> ImageError:
    lines = (error.strerror if isinstance(error, OSError) and error.strerror else str(error)).splitlines()
    reason = lines[0] if lines else type(error).__name__
    # PIL says "cannot identify image file <the object>", torchvision names its source file: neither helps.
    if isinstance(error, UnidentifiedImageError):
        reason = "not an image of a known format"
        if not HEIF and ending(path) in HEIF_EXTENSIONS:
            reason = "HEIC needs pip install 'smsff[heic]'"
    reason = "damaged or truncated" if "decode_jpeg" in reason else reason
    return ImageError(f"{printable(path)}: cannot be read as an image: {reason}")
