"""Colour profiles: pixels of any embedded ICC profile to sRGB."""

from __future__ import annotations

import io
from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageCms

SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""PIL's mode by the colour space that a profile is for."""
SAME = 2
"""Profiles that move no colour by more than this, of 255, are sRGB, whatever their name."""


class ProfileError(ValueError):
    """A profile that cannot be used for a picture."""


@cache
def srgb_profile() -> bytes:
    """The sRGB profile that is written; the same bytes on every day."""
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return data[:24] + bytes.fromhex("07e8 0001 0001 0000 0000 0000") + data[36:]  # the time it was made: 2024-01-01


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """A picture of mode L, RGB, CMYK or LAB as RGB in sRGB.

    Raises:
        ProfileError: If the profile is damaged, or for pictures of another kind.
    """
    if not profile and image.mode != "LAB":
        return image.convert("RGB")
    transform = conversion(profile or b"", image.mode)
    if transform is None:
        return image.convert("RGB")
    mode = transform.input_mode
    return ImageCms.applyTransform(image if image.mode == mode else image.convert(mode), transform)  # type: ignore[return-value]


@lru_cache(maxsize=8)
def conversion(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """How pictures of a mode with this profile become sRGB; None if they are. ProfileError as in `to_srgb`."""
    try:
        if mode == "LAB":
            source, wanted = ImageCms.createProfile("LAB"), "LAB"
        else:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile
            wanted = SPACES.get(source.xcolor_space, source.xcolor_space)
        if wanted != mode and (mode, wanted) != ("L", "RGB"):
            raise ProfileError(f"a profile for {wanted.strip()} in a picture that is {mode}")
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), wanted, "RGB")
    except ProfileError:
        raise
    except Exception as error:  # the profile is untrusted, and its library raises several kinds
        raise ProfileError(str(error) or type(error).__name__) from error
    if wanted not in ("RGB", "L"):
        return transform
    colours = _colours() if wanted == "RGB" else Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    moved = np.asarray(ImageCms.applyTransform(colours, transform), int) - np.asarray(colours.convert("RGB"), int)
    return None if np.abs(moved).max() <= SAME else transform


@cache
def _colours() -> Image.Image:
    """17 values of each channel, in all combinations."""
    steps = np.linspace(0, 255, 17).astype(np.uint8)
    return Image.fromarray(np.stack(np.meshgrid(steps, steps, steps), -1).reshape(17, -1, 3))
