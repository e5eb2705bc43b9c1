"""Which files to stylize, where the results go, and writing them."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL.PngImagePlugin import PngInfo

from smsff.atomic import write_atomically
from smsff.data.images import PICTURE_EXTENSIONS, Picture, list_images, printable
from smsff.errors import UserError

log = logging.getLogger(__name__)

FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG", ".webp": "WEBP"}
"""What is written, by extension."""
QUALITY = 95
MAX_JPEG_BLOCK = 65_000
"""Bytes of EXIF or XMP data that a JPEG file can hold."""

Job = tuple[Path, Path]
"""(source, result)"""


def plan(inputs: Sequence[str | Path], out: str | Path, *, overwrite: bool = False) -> list[Job]:
    """(source, result) for every picture, before anything is computed or written.

    A file goes to OUT/name, an image of a folder to OUT/its path below that folder, and one that a pattern (``*``,
    ``?``, ``**``) finds to OUT/its path below the part before the pattern. Extensions that can be written are kept,
    others become png; a result whose name is taken gets a number. If OUT has the extension of a picture and is no
    folder, it is the result of the only picture. Files that are pictures by name but cannot be read are among the
    sources: reading them says why. Images below OUT are not taken as inputs of a folder, so that a second run does not
    stylize the results of the first.

    Raises:
        UserError: If an input is missing, a folder has no images, OUT is one file for several pictures or of a format
            that is not written, a result would lie outside OUT (through a link in it), replace an input, or exists
            (unless `overwrite`).
    """
    out = Path(out)
    found = [pair for item in map(Path, inputs) for pair in _expand(item, out)]
    if not out.is_dir() and out.suffix.lower() in PICTURE_EXTENSIONS:
        if len(set(found)) > 1:
            raise UserError(f"--out {printable(out)} is one file, but there are {len(found)} pictures; name a folder")
        if out.suffix.lower() not in FORMATS:
            raise UserError(f"--out {printable(out)}: results are written as {', '.join(FORMATS)}")
        jobs, folder = [(found[0][0], out)], out.parent
    elif out.exists() and not out.is_dir():
        raise UserError(f"--out {printable(out)} is a file; it must be a folder, or end in {', '.join(FORMATS)}")
    else:
        jobs, folder = [(source, out / name) for source, name in _named(found)], out
    _check(jobs, folder, overwrite=overwrite)
    return jobs


def _expand(item: Path, out: Path) -> list[tuple[Path, Path]]:
    """The pictures of an input, each with its name below OUT."""
    if item.is_file():
        return [(item, Path(item.name))]
    pattern = os.path.expanduser(item)
    matches = [item] if item.exists() else [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
    if not matches:
        raise UserError(f"{printable(item)} does not exist")
    fixed = (path for path in Path(pattern).parents if not set("*?[") & set(str(path)))
    root = item if item.exists() else next(fixed)
    inside = _resolved(out)
    found: list[Path] = []
    for match in matches:
        files = [match / name for part in list_images(match) for name in part] if match.is_dir() else [match]
        found += [path for path in files if path.suffix.lower() in PICTURE_EXTENSIONS]
    found = [path for path in found if inside not in _resolved(path).parents]
    if not found:
        raise UserError(f"{printable(item)} has no images")
    return [(path, Path(os.path.relpath(path, root))) for path in found]


def _named(found: Sequence[tuple[Path, Path]]) -> list[tuple[Path, Path]]:
    """Each source once, with the name of its result: those that keep their own first, the others numbered if taken."""
    wanted = {name if name.suffix.lower() in FORMATS else name.with_suffix(".png") for _, name in found}
    names: dict[Path, tuple[Path, Path]] = {}
    order = dict.fromkeys((_resolved(source), source, name) for source, name in found)
    for real, source, name in sorted(order, key=lambda one: one[2].suffix.lower() not in FORMATS):
        free = name = name if name.suffix.lower() in FORMATS else name.with_suffix(".png")
        number = 1
        while (free in names and names[free][1] != real) or (free in wanted and free != name):
            number += 1
            free = name.with_stem(f"{name.stem}_{number}")
        names.setdefault(free, (source, real))
    return [(source, name) for name, (source, _) in names.items()]


def _check(jobs: Sequence[tuple[Path, Path]], out: Path, *, overwrite: bool) -> None:
    inputs, inside = {_resolved(source) for source, _ in jobs}, _resolved(out)
    taken: dict[Path, Path] = {}
    for source, result in jobs:
        target = _resolved(result)
        if inside not in (folder := _resolved(result.parent), *folder.parents):
            raise UserError(
                f"{printable(result)} would lie in {printable(folder)}, outside --out: there is a link in it"
            )
        if target in inputs:
            raise UserError(f"{printable(result)} would replace an input; choose another --out")
        if target in taken:
            raise UserError(f"{printable(taken[target])} and {printable(source)} would both become {printable(result)}")
        taken[target] = source
    existing = [result for _, result in jobs if result.exists()]
    if existing and not overwrite:
        raise UserError(
            f"{len(existing)} of {len(jobs)} results exist (first: {printable(existing[0])}); --overwrite replaces them"
        )


def _resolved(path: Path) -> Path:
    return Path(os.path.realpath(path))  # unlike Path.resolve it takes a loop of links as it is


def save_image(picture: Picture, path: str | Path, *, quality: int = QUALITY) -> None:
    """Write a picture with its metadata; the extension decides the format. Folders are made as needed.

    JPEG has no transparency: there the picture is laid over white. `quality` is that of JPEG and WebP, 1 to 100.
    """
    path = Path(path)
    kind = FORMATS[path.suffix.lower()]
    options: dict[str, Any] = {"format": kind, "quality": quality, **picture.metadata.options()}
    if kind == "JPEG":
        picture = Picture(picture.on_white())
        options["subsampling"] = 0
        for key in [key for key in ("exif", "xmp") if len(options.get(key, b"")) > MAX_JPEG_BLOCK]:
            log.warning("%s: without the %s data of its source, which are too long for JPEG", printable(path), key)
            del options[key]
    elif kind == "WEBP":
        options["exact"] = True  # also the colours where it is transparent
    elif "xmp" in options:
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", options["xmp"].decode("utf-8", "replace"))
    image = picture.to_pil()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: image.save(temporary, **options))
