"""What a picture file says beside its pixels, read so that it is true of the upright picture in sRGB."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import Any

from PIL import ExifTags, Image, ImageFile, IptcImagePlugin

from smsff.data.colour import srgb_profile

log = logging.getLogger(__name__)

TAG = ExifTags.Base
ORIENTATION = re.compile(rb'(tiff:Orientation(?:="|>))[0-9]')
LAYOUT = frozenset(
    {*range(254, 267), 273, *range(277, 282), 284, *range(288, 294), 297, 301, *range(317, 348), *range(512, 533)}
    | {700, 33723, 34377, 34675, 37724}
)
"""Tags that say how a TIFF file holds its pixels, and copies of other metadata in it: not true of the result."""
RIGHTS = {TAG.Copyright: ("Copyright", (2, 116)), TAG.Artist: ("Author", (2, 80))}
"""EXIF tag by its name in PNG text and its number in IPTC."""
MAX_DPI = 65_535
"""What a JPEG file can hold."""


@dataclass(frozen=True)
class Metadata:
    """What is kept of a file.

    Attributes:
        exif: EXIF data with the orientation of an upright picture and without the preview; empty for none. Copyright
            and author are in it, also if the file has them as PNG text or IPTC.
        xmp: XMP data with the same orientation; empty for none.
        dpi: Dots per inch, horizontally and vertically.
        profile: Whether the file had a colour profile; then the sRGB profile is written.
    """

    exif: bytes = b""
    xmp: bytes = b""
    dpi: tuple[float, float] | None = None
    profile: bool = False

    def options(self) -> dict[str, Any]:
        """As options of PIL's ``save``, those that are there."""
        profile = srgb_profile() if self.profile else None
        options = {"exif": self.exif, "xmp": self.xmp, "dpi": self.dpi, "icc_profile": profile}
        return {key: value for key, value in options.items() if value}


def orientation_of(image: Image.Image) -> int:
    """The EXIF (or XMP) orientation, 1 to 8; 1, upright, for one that cannot be read."""
    try:
        found = image.getexif().get(TAG.Orientation, 1)
    except Exception:  # headers of untrusted files raise anything
        return 1
    return found if found in range(1, 9) else 1


def read_metadata(image: Image.Image, name: str) -> Metadata:
    """The metadata of an opened file, which is not changed; EXIF data that cannot be read are named in the log."""
    try:
        exif = _exif(image)
    except Exception as error:  # as above
        log.warning("%s: its EXIF data are left out: they cannot be read (%s)", name, error)
        exif = b""
    xmp = image.info.get("xmp") or b""
    xmp = xmp.encode() if isinstance(xmp, str) else bytes(xmp)
    if b"Container:Directory" in xmp:  # of pictures behind this one, which are not kept
        xmp = b""
    profile = bool(image.info.get("icc_profile"))
    return Metadata(exif, ORIENTATION.sub(rb"\g<1>1", xmp), _dpi(image.info.get("dpi")), profile)


def _dpi(found: Any) -> tuple[float, float] | None:
    try:
        x, y = map(float, found)
    except (TypeError, ValueError, ArithmeticError):
        return None
    return (x, y) if all(1 < n <= MAX_DPI for n in (x, y)) else None  # 1: a TIFF file without


def _exif(image: Image.Image) -> bytes:
    source, exif = image.getexif(), Image.Exif()
    for tag, value in source.items():
        if tag not in LAYOUT and tag not in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            exif[tag] = _bytes(value)
    for tag, (text, iptc) in RIGHTS.items():
        if not str(exif.get(tag, "")).strip("\0 ") and (found := image.info.get(text) or _iptc(image, iptc)):
            exif[tag] = found.encode() if isinstance(found, str) else found
    if TAG.Orientation in exif:
        exif[TAG.Orientation] = 1
    if gps := source.get_ifd(ExifTags.IFD.GPSInfo):
        exif[ExifTags.IFD.GPSInfo] = {tag: _bytes(value) for tag, value in gps.items()}
    if details := source.get_ifd(ExifTags.IFD.Exif):
        details = {tag: _bytes(value) for tag, value in details.items()}
        if TAG.ExifImageWidth in details and orientation_of(image) >= 5:
            names = (TAG.ExifImageWidth, TAG.ExifImageHeight)
            details[names[0]], details[names[1]] = (details.get(tag, 0) for tag in names[::-1])
        if TAG.ColorSpace in details and image.info.get("icc_profile"):
            details[TAG.ColorSpace] = 1  # sRGB
        if ExifTags.IFD.Interop in details:
            details[ExifTags.IFD.Interop] = source.get_ifd(ExifTags.IFD.Interop)
        exif[ExifTags.IFD.Exif] = details
    return exif.tobytes() if len(exif) else b""


def _bytes(value: Any) -> Any:
    """PIL reads text as Latin-1 and writes only ASCII: other text goes as the bytes it was."""
    return value.encode("latin-1") if isinstance(value, str) and not value.isascii() else value


def _iptc(image: Image.Image, key: tuple[int, int]) -> bytes | None:
    found = (IptcImagePlugin.getiptcinfo(image) or {}).get(key) if isinstance(image, ImageFile.ImageFile) else None
    return found[0] if isinstance(found, list) else found
