"""A folder of images as a list of samples: scanned once, unreadable files left out, captions attached."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from copy import copy
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from smsff.data.captions import Problems, read_captions
from smsff.data.images import (
    MAX_PIXELS,
    ImageError,
    describe_others,
    find_images,
    image_size,
    list_images,
    load_image,
    printable,
    too_large,
)
from smsff.errors import UserError

BUNDLED = Path(__file__).parent / "photos"
INDEX, PLAN = "smsff_shards.json", "smsff_shards.unfinished.json"
"""The index of shards (`smsff.data.shards`), and its name until all of them are there."""
MANY, READERS = 20_000, 8
"""From so many images on, so many processes read the headers: a file system in a network answers each late."""


def load_photos(part: str) -> dict[str, Tensor]:
    """Bundled photos by name, whole, (1, 3, H, W) in [0, 1]; `part` is train, val or test."""
    return {path.stem: load_image(path)[None].float() / 255 for path in find_images(BUNDLED / part)}


class ImageFolder:
    """The readable images of one folder, or a part of them, in the order of their names.

    The folder may also hold shards of another (`smsff.data.shards`): then everything is as in that one.

    Attributes:
        names: The images, relative to the folder and with forward slashes.
        captioned: For each image, whether that caption is its own and not the default.
        sizes: (width, height) of each image as it is shown, by its header.
        others: Pictures of kinds that are not read.
        unreadable: Reason by name, for the files whose header could not be read.
        problems: What there is to say about the captions.
        max_pixels: Images with more are not read.
    """

    def __init__(
        self, root: str | Path, *, default_caption: str, key: str = "data.root", max_pixels: int = MAX_PIXELS
    ) -> None:
        """Scan the folder; UserError, which names the config key ``key``, if it has no readable image.

        Images without a caption get ``default_caption``; those of more than ``max_pixels`` are left out.
        """
        self.root = Path(root).expanduser()
        self.max_pixels = max_pixels
        if not self.root.is_dir():
            raise UserError(f"{key}: {printable(self.root)} is not a folder")
        self._cache: list[Tensor | str] | None = None
        self._places: np.ndarray | None = None
        texts = self._read_index(key) if is_shards(self.root) else self._scan(key)
        if not self.names:
            first, count = next(iter(self.unreadable.values())), len(self.unreadable)
            raise UserError(f"{key}: none of the {count} images can be read; the first: {first}")
        self.captions = [default_caption if text is None else text for text in texts]
        self.captioned = [text is not None for text in texts]

    def _scan(self, key: str) -> list[str | None]:
        """Find the images and read their headers; returns their captions."""
        found, self.others = list_images(self.root)
        if not found:
            others = f"; left out: {describe_others(self.others)}" if self.others else ""
            raise UserError(f"{key}: no images in {printable(self.root)} or below it{others}")
        paths = [f"{self.root}/{name}" for name in found]
        sizes = dict(zip(found, _read_sizes(paths, self.max_pixels), strict=True))
        self.unreadable = {printable(name): reason for name, reason in sizes.items() if isinstance(reason, str)}
        self.names = [name for name, size in sizes.items() if not isinstance(size, str)]
        self.sizes = [size for size in sizes.values() if not isinstance(size, str)]
        self.problems = Problems()
        texts = read_captions(self.root, self.names, problems=self.problems)
        return [texts.get(name) for name in self.names]

    def _read_index(self, key: str) -> list[str | None]:
        """What `_scan` found where the shards come from; returns the captions."""
        path, again = self.root / INDEX, "write it again with smsff shards"
        if not path.is_file():
            raise UserError(f"{key}: {printable(self.root)}: shards are missing; {again}, which goes on")
        try:
            index = json.loads(path.read_bytes())
            sizes = [(int(width), int(height)) for width, height in index["sizes"]]
            self.others, self.problems = index["others"], Problems(**index["problems"])
            self.unreadable, rows = dict(index["unreadable"]), []
            for row in zip(index["names"], sizes, index["captions"], index["places"], strict=True):
                if row[1][0] * row[1][1] <= self.max_pixels:
                    rows.append(row)
                else:
                    name = printable(row[0])
                    self.unreadable[name] = f"{name}: {too_large(*row[1], self.max_pixels)}"
            self.names, self.sizes = [row[0] for row in rows], [row[1] for row in rows]
            self._places = np.array([row[3] for row in rows], dtype=np.int64).reshape(-1, 4)
            ends = {shard: offset + size for shard, offset, size, _ in index["places"]}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{key}: {printable(path)}: not an index of shards ({error}); {again}") from error
        for shard, end in ends.items():
            file = shard_file(self.root, shard)
            if not file.is_file() or file.stat().st_size < end:
                raise UserError(f"{key}: {printable(file)}: missing or cut short; copy it again, or {again}")
        return [row[2] for row in rows]

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """Name of an image, always printable."""
        return printable(self.names[index])

    def load(self, index: int) -> Tensor:
        """Image (3, H, W) uint8; ImageError if the file is gone, or damaged behind its header."""
        if self._cache is None:
            return self._decode(index)
        image = self._cache[index]
        if isinstance(image, str):
            raise ImageError(image)
        return image

    def _decode(self, index: int) -> Tensor:
        path = self.root / self.names[index]
        if self._places is None:
            return load_image(path, max_pixels=self.max_pixels)
        shard, offset, size, _ = self._places[index].tolist()
        file = shard_file(self.root, shard)
        try:
            data = os.pread(_opened(file).fileno(), size, offset)  # moves no position that other processes share
        except OSError as error:
            raise ImageError(f"{printable(file)}: cannot be read: {error.strerror}") from error
        return load_image(file / self.names[index], max_pixels=self.max_pixels, data=data)

    def load_or_next(self, index: int) -> tuple[Tensor, int, dict[str, str]]:
        """The image, or the next readable one in the order of names.

        Which one that is depends on the files alone, so every process and a run that goes on take the same.

        Returns:
            The image (3, H, W) uint8, its index, and the reason by name for each image passed over. If none can be
            read, a grey pixel and ``index``: whoever counts the reasons can stop.
        """
        skipped: dict[str, str] = {}
        for offset in range(len(self)):
            candidate = (index + offset) % len(self)
            try:
                return self.load(candidate), candidate, skipped
            except ImageError as error:
                skipped[self.name(candidate)] = str(error)
        return torch.full((3, 1, 1), 128, dtype=torch.uint8), index, skipped

    def cache(self, limit_mb: float) -> dict[str, str]:
        """Decode everything now and keep it in memory, if that needs at most ``limit_mb`` MB (10^6 bytes).

        Loader workers that are forked afterwards share the memory. Nothing happens the second time.

        Returns:
            The reason by name for each image that could not be decoded.
        """
        if self._cache is not None or sum(3 * width * height for width, height in self.sizes) > limit_mb * 1e6:
            return {}
        self._cache = []
        failed = {}
        for index in range(len(self)):
            try:
                self._cache.append(self._decode(index))
            except ImageError as error:
                self._cache.append(str(error))
                failed[self.name(index)] = str(error)
        return failed

    def subset(self, indices: Sequence[int]) -> ImageFolder:
        """The same folder restricted to some images; ``unreadable`` stays that of the whole folder."""
        part = copy(self)
        for name in ("names", "sizes", "captions", "captioned"):
            setattr(part, name, [getattr(self, name)[i] for i in indices])
        part._places = None if self._places is None else self._places[list(indices)]
        part._cache = None
        return part


def is_shards(root: Path) -> bool:
    """Whether ``smsff shards`` wrote, or began to write, its shards into a folder."""
    return any((root / name).is_file() for name in (INDEX, PLAN))


def shard_file(root: Path, number: int) -> Path:
    """The file of a shard."""
    return root / f"{number:06d}.tar"


@lru_cache(maxsize=128)
def _opened(path: Path) -> BinaryIO:
    """A file that stays open while it is one of those last used."""
    return path.open("rb")


def _read_sizes(paths: Sequence[str], max_pixels: int) -> list[tuple[int, int] | str]:
    """Width and height of each image, or why it cannot be read; of very many, by several processes."""
    read = partial(_size_or_reason, max_pixels=max_pixels)
    if len(paths) < MANY:
        return [read(path) for path in paths]
    with ProcessPoolExecutor(READERS, mp_context=get_context("fork")) as pool:
        return list(pool.map(read, paths, chunksize=1000))


def _size_or_reason(path: str, *, max_pixels: int) -> tuple[int, int] | str:
    try:
        return image_size(path, max_pixels=max_pixels)
    except ImageError as error:
        return str(error)


def split_by_name(names: Sequence[str], fraction: float) -> tuple[list[int], list[int]]:
    """Divide images into training and validation by a hash of their names: indices of both, ascending.

    An image stays on its side when others come or go. Of two images or more at least one is on each side (unless
    ``fraction``, the expected share of validation, is 0); only that rule, in very small folders, can move an image
    later.
    """
    ranks = [int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") / 2**64 for name in names]
    order = sorted(range(len(names)), key=lambda i: (ranks[i], names[i]))
    count = sum(rank < fraction for rank in ranks)
    count = min(max(count, 1), len(names) - 1) if fraction > 0 and len(names) > 1 else 0
    return sorted(order[count:]), sorted(order[:count])
