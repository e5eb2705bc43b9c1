"""``smsff shards FOLDER OUT``: the images of a folder in a few large files, from which a run reads the same samples.

OUT holds ``000000.tar`` and so on, with the files as they are, in the order of their names, each followed by its
caption (the layout of webdataset), and `INDEX`, which says where each file lies and what else a scan of the folder
finds. Until all shards are there the index is called `PLAN`.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TypeAlias

from rich.console import Console
from rich.progress import Progress

from smsff.atomic import write_aside
from smsff.data.captions import warn_each
from smsff.data.folder import INDEX, PLAN, ImageFolder, is_shards, shard_file
from smsff.data.images import describe_others, printable
from smsff.errors import UserError

Place: TypeAlias = tuple[int, int, int, int]
"""Of a file: number of the shard, first byte and bytes in it, and the time of the file in ns."""
BLOCK = tarfile.BLOCKSIZE
MAX_PIXELS = 10**10
"""The most that data.max_pixels can ask for: the run decides what is too large."""


def run(arguments: argparse.Namespace) -> int:
    """Write the shards that are missing; the exit status is 0 when all is done, 1 when pictures could not be read.

    Raises:
        UserError: no images, OUT holds other things, or the folder changes meanwhile.
    """
    root, out = Path(arguments.folder).expanduser().absolute(), Path(arguments.out).expanduser()
    if is_shards(root):
        raise UserError(f"FOLDER {printable(root)}: holds shards already")
    if out.resolve().is_relative_to(root.resolve()):
        raise UserError(f"OUT {printable(out)}: must lie outside the folder, whose content it would change")
    if not is_shards(out) and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"OUT {printable(out)}: is neither a folder of shards nor a new or empty one")
    console = Console(stderr=True, soft_wrap=True)
    console.print("reading the headers", highlight=False)
    folder = ImageFolder(root, default_caption="", key="FOLDER", max_pixels=MAX_PIXELS)
    others = {"": describe_others(folder.others)} if folder.others else {}
    warn_each("left out", {**others, **folder.unreadable})
    folder.problems.warn()
    try:
        places = lay_out(folder, arguments.shard_mb * 10**6)
        prepare(out, index_text(folder, places), overwrite=arguments.overwrite)
        write_missing(out, folder, places, console)
    except OSError as error:
        raise UserError(f"{printable(error.filename or out)}: {error.strerror}") from error
    print(f"{len(folder)} images, {len(folder.unreadable)} left out, in {places[-1][0] + 1} shards: {printable(out)}")
    return 1 if folder.unreadable else 0


def lay_out(folder: ImageFolder, size: int) -> list[Place]:
    """Where each file comes, in shards of at most `size` bytes, or of one file."""
    places: list[Place] = []
    shard = end = 0
    for index, name in enumerate(folder.names):
        found = (folder.root / name).stat()
        lengths = [found.st_size] + [len(content) for _, content in caption_files(folder, index)]
        needed = sum(BLOCK + -(-length // BLOCK) * BLOCK for length in lengths)
        if end and end + needed > size:
            shard, end = shard + 1, 0
        places.append((shard, end + BLOCK, found.st_size, found.st_mtime_ns))
        end += needed
    return places


def caption_files(folder: ImageFolder, index: int) -> list[tuple[str, bytes]]:
    """Name and content of the file with the caption of an image, if it has one of its own."""
    return [(f"{index:09d}.txt", folder.captions[index].encode())] if folder.captioned[index] else []


def index_text(folder: ImageFolder, places: list[Place]) -> str:
    """The index, as `ImageFolder` reads it; equal for equal folders."""
    captions = [text if own else None for text, own in zip(folder.captions, folder.captioned, strict=True)]
    columns = {"names": folder.names, "sizes": folder.sizes, "captions": captions, "places": places}
    problems = asdict(folder.problems)
    return json.dumps({**columns, "others": folder.others, "unreadable": folder.unreadable, "problems": problems})


def prepare(out: Path, text: str, *, overwrite: bool) -> None:
    """Leave only shards that belong to this index in OUT, and the index itself.

    Raises:
        UserError: there are finished shards of another.
    """
    done, plan = out / INDEX, out / PLAN
    before = next((path.read_text("utf-8") for path in (done, plan) if path.is_file()), None)
    if before == text:
        return
    if done.is_file():
        if not overwrite:
            raise UserError(
                f"OUT {printable(out)}: its shards are not those of FOLDER as it is now, or of another --shard-mb; "
                "--overwrite replaces them"
            )
        done.replace(plan)
    for path in out.glob("[0-9]*.tar"):
        path.unlink()
    write_aside(plan, lambda aside: aside.write_text(text, "utf-8"))


def write_missing(out: Path, folder: ImageFolder, places: list[Place], console: Console) -> None:
    """Write each shard that is not there whole, then give the index its name."""
    shards: dict[int, list[int]] = {}
    for index, place in enumerate(places):
        shards.setdefault(place[0], []).append(index)
    missing = {}
    for shard, indices in shards.items():
        path, (_, start, size, _) = shard_file(out, shard), places[indices[-1]]
        if not path.is_file() or path.stat().st_size < start + size:
            missing[path] = indices
    with Progress(console=console) as progress:
        task = progress.add_task("writing", total=sum(places[i][2] for indices in missing.values() for i in indices))
        for path, indices in missing.items():
            advance = partial(progress.advance, task)
            write_aside(path, partial(write_shard, folder=folder, indices=indices, places=places, advance=advance))
    if (out / PLAN).is_file():
        (out / PLAN).replace(out / INDEX)


def write_shard(
    path: Path, *, folder: ImageFolder, indices: list[int], places: list[Place], advance: Callable[[int], None]
) -> None:
    """Write some images of the folder; UserError if one is not as it was when the places were laid out."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for index in indices:
            source = folder.root / folder.names[index]
            data, found = source.read_bytes(), source.stat()
            if (len(data), found.st_size, found.st_mtime_ns) != (places[index][2], *places[index][2:]):
                raise UserError(f"{printable(source)}: has changed since it was read; give the command again")
            for name, content in [(f"{index:09d}{source.suffix.lower()}", data), *caption_files(folder, index)]:
                header = tarfile.TarInfo(name)
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))
            advance(len(data))
