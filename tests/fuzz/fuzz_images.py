"""Image files: damaged ones of every format that is read, and bytes that are none."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzz_edits import byte_edits, edit_bytes, mend_png, some_byte_edits
from hypothesis import strategies as st
from PIL import Image

LIMIT = 2_000_000
"""Pixels of the largest picture that is decoded."""
EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif", "avif", "PNG")


@cache
def corpus() -> dict[str, bytes]:
    """Small pictures in every format and mode that is read."""
    rows, columns = np.mgrid[:20, :24]
    smooth = np.stack((rows * 12, columns * 10, (rows * columns) % 256), -1).astype(np.uint8)
    colour, grey = Image.fromarray(smooth), Image.fromarray(smooth[..., 0])
    frames = {"save_all": True}
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(smooth[..., 0].astype(np.uint16) * 257)
    kinds: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "jpeg": (colour, "JPEG", {"quality": 90}),
        "jpeg_progressive": (colour, "JPEG", {"progressive": True, "exif": exif}),
        "jpeg_grey": (grey, "JPEG", {}),
        "jpeg_cmyk": (colour.convert("CMYK"), "JPEG", {}),
        "jpeg_icc": (colour, "JPEG", {"icc_profile": bytes(200), "comment": b"text"}),
        "mpo": (colour, "MPO", frames),
        "png": (colour, "PNG", {"exif": exif}),
        "png_palette": (colour.convert("P"), "PNG", {"transparency": 3}),
        "png_bit": (grey.convert("1"), "PNG", {}),
        "png_deep": (deep, "PNG", {}),
        "png_alpha": (colour.convert("RGBA"), "PNG", {}),
        "png_moving": (colour, "PNG", frames),
        "webp": (colour, "WEBP", {"exif": exif}),
        "webp_lossless": (colour.convert("RGBA"), "WEBP", {"lossless": True}),
        "webp_moving": (colour, "WEBP", frames),
        "bmp": (colour, "BMP", {}),
        "bmp_palette": (colour.convert("P"), "BMP", {}),
        "tiff": (colour, "TIFF", {"exif": exif}),
        "tiff_lzw": (colour, "TIFF", {"compression": "tiff_lzw"}),
        "tiff_deflate": (colour.convert("RGBA"), "TIFF", {"compression": "tiff_adobe_deflate"}),
        "tiff_jpeg": (colour, "TIFF", {"compression": "jpeg"}),
        "tiff_pages": (colour, "TIFF", frames),
        "tiff_deep": (deep, "TIFF", {}),
        "gif": (colour, "GIF", frames),
        "avif": (colour, "AVIF", {"exif": exif}),
    }
    files = {}
    for name, (image, kind, options) in kinds.items():
        data = io.BytesIO()
        if "save_all" in options:
            options = {**options, "append_images": [image.rotate(90), image.rotate(180)]}
        image.copy().save(data, format=kind, **options)  # copies: the JPEG plug-in leaves its options in an image
        files[name] = data.getvalue()
    return files


cases = st.one_of(
    st.tuples(
        st.sampled_from(sorted(corpus())),
        some_byte_edits,
        st.sampled_from(EXTENSIONS),
        st.booleans(),
    ),
    st.tuples(st.binary(max_size=400), st.lists(byte_edits, max_size=1), st.sampled_from(EXTENSIONS), st.booleans()),
)


def run(case: Any, folder: Path) -> None:
    """Read the file as the training and the command do, and write what was read."""
    from smsff.data.crops import random_window, shrink_to
    from smsff.data.images import Picture, image_size, load_image, read_picture
    from smsff.stylize.files import plan, save_image

    seed, edits, extension, mend = case
    data = edit_bytes(corpus()[seed] if isinstance(seed, str) else seed, edits)
    data = mend_png(data) if mend and data[:4] == b"\x89PNG" else data
    path = folder / "in" / f"picture.{extension}"
    path.parent.mkdir()
    path.write_bytes(data)
    width, height = image_size(path, max_pixels=LIMIT)
    image = load_image(path, max_pixels=LIMIT)
    assert image.dtype == torch.uint8
    assert sorted(image.shape[1:]) == sorted((height, width)), (image.shape, height, width)
    picture = read_picture(path, max_pixels=LIMIT)
    assert torch.equal(picture.on_white(), image)
    generator = torch.Generator().manual_seed(0)
    crop = random_window(image, size=16, scale=(0.5, 1.0), flip=True, generator=generator).cut(image, 16)
    assert crop.shape == (3, 16, 16)
    assert bool(torch.isfinite(crop).all())
    ((_, result),) = plan([folder / "in"], folder / "out")
    save_image(Picture(shrink_to(image, 32), metadata=picture.metadata), result)
