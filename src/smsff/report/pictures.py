"""Pictures as part of the page: shrunken, encoded, and together no larger than a limit."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass

from PIL import Image

from smsff.data.images import load_image, to_image
from smsff.errors import UserError
from smsff.report.content import Source

SIDES = (960, 720, 512, 384, 256, 160)
"""Longest side of a picture in pixels, tried from the largest on; sheets of several pictures get twice as much."""
LIMIT = 12_000_000
"""Most bytes of all pictures of a page, as text."""
QUALITY = 84


@dataclass(frozen=True)
class Picture:
    """A picture in the page: ``data:`` address, size of what is encoded, and size on the disk, in pixels."""

    uri: str
    width: int
    height: int
    alt: str
    original: tuple[int, int]


def embed(sources: Iterable[Source], *, limit: int = LIMIT) -> dict[Source, Picture]:
    """The pictures at the largest size at which all of them together stay below the limit.

    A picture that cannot be read any more is left out. The last size is taken even if it is above the limit.
    """
    wanted, pictures = list(dict.fromkeys(sources)), {}
    for side in SIDES:
        encoded = ((source, _encode(source, side)) for source in wanted)
        pictures = {source: picture for source, picture in encoded if picture is not None}
        if sum(len(picture.uri) for picture in pictures.values()) <= limit:
            break
    return pictures


def _encode(source: Source, side: int) -> Picture | None:
    try:
        image = to_image(load_image(source.path))
    except UserError:
        return None
    if source.box:
        image = image.crop(source.box)
    original = image.size
    longest = side * (2 if source.wide else 1)
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, subsampling=0 if max(image.size) < 300 else 2, optimize=True)
    uri = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Picture(uri, *image.size, source.alt, original)
