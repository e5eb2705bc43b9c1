"""Which files to stylize, where the results go, and writing them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from smsff.atomic import write_atomically
from smsff.data.images import find_images, printable, to_image
from smsff.errors import UserError

SAVE_OPTIONS: dict[str, dict[str, object]] = {
    ".jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".png": {"format": "PNG"},
    ".webp": {"format": "WEBP", "quality": 95},
}


def plan(inputs: Sequence[str | Path], out: str | Path, *, overwrite: bool = False) -> list[tuple[Path, Path]]:
    """(source, result) for every image, before anything is computed or written.

    A file goes to OUT/name, an image of a folder to OUT/its path below that folder. Extensions that can be written
    (jpg, jpeg, png, webp) are kept, others become png. Images below OUT are not taken as inputs of a folder, so that a
    second run does not stylize the results of the first.

    Raises:
        UserError: If an input is missing, a folder has no images, two results would have the same name, a result would
            lie outside OUT (through a link in it), replace an input, or exists (unless `overwrite`).
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {printable(out)} is a file; it must be a folder")
    jobs: list[tuple[Path, Path]] = []
    for item in map(Path, inputs):
        jobs += [(source, out / _result_name(name)) for source, name in _expand(item, out)]
    _check(jobs, out, overwrite=overwrite)
    return jobs


def _expand(item: Path, out: Path) -> list[tuple[Path, Path]]:
    if item.is_file():
        return [(item, Path(item.name))]
    if not item.exists():
        raise UserError(f"{printable(item)} does not exist")
    inside = _resolved(out)
    found = [path for path in find_images(item) if inside not in _resolved(path).parents]
    if not found:
        raise UserError(f"{printable(item)} has no images")
    return [(path, path.relative_to(item)) for path in found]


def _result_name(name: Path) -> Path:
    return name if name.suffix.lower() in SAVE_OPTIONS else name.with_suffix(".png")


def _check(jobs: Sequence[tuple[Path, Path]], out: Path, *, overwrite: bool) -> None:
    inputs = {_resolved(source) for source, _ in jobs}
    inside = _resolved(out)
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


def save_image(pixels: Tensor, path: str | Path) -> None:
    """Write RGB (3, H, W) uint8; the extension decides the format. Folders are made as needed."""
    path = Path(path)
    options = SAVE_OPTIONS[path.suffix.lower()]
    image = to_image(pixels)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: image.save(temporary, **options))  # type: ignore[arg-type]
