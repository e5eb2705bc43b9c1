"""Which result belongs to which content picture, and what identifies a set of pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from smsff.data.captions import read_captions
from smsff.data.images import find_images, printable
from smsff.errors import UserError
from smsff.weights.files import file_sha256


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One result and what it is compared with.

    Attributes:
        truth: Its true stylization, where that is known.
        rivals: The same content by other methods, one file for each of their folders; None where it has none.
        caption: Of the content picture; empty without one.
    """

    name: str
    result: Path
    content: Path
    truth: Path | None = None
    rivals: tuple[Path | None, ...] = ()
    caption: str = ""


@dataclass(frozen=True)
class Pairing:
    """The pairs in the order of their names, and why other files are in none: reason by file."""

    pairs: tuple[Pair, ...]
    left_out: dict[str, str]


class PictureFolder:
    """The pictures of a folder by relative name, and by relative name without extension."""

    def __init__(self, root: Path, option: str) -> None:
        self.root = root
        if not root.is_dir():
            raise UserError(f"{option} {printable(root)}: not a folder")
        found = find_images(root)
        if not found:
            raise UserError(f"{option} {printable(root)}: there are no images in it")
        self.by_name = {path.relative_to(root).as_posix(): path for path in found}
        self.by_stem: dict[str, list[Path]] = {}
        for name, path in self.by_name.items():
            self.by_stem.setdefault(_stem(name), []).append(path)

    def get(self, name: str) -> Path | None:
        """The picture of this name, else the only one of this name with another extension."""
        if name in self.by_name:
            return self.by_name[name]
        others = self.by_stem.get(_stem(name), [])
        return others[0] if len(others) == 1 else None


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def pair_up(
    results: Path, content: Path, *, truth: Path | None = None, rivals: Sequence[Path] = (), skip: Path | None = None
) -> Pairing:
    """Pair by relative name: ``a/b.png`` of the results with ``a/b.png`` of the content, else its ``a/b.jpg``.

    A result without content, or without truth where a truth folder is given, is in no pair, and so is a content
    picture without result. Pictures below `skip` (the report) are no results. UserError if nothing pairs.
    """
    ours, contents = PictureFolder(results, "RESULTS"), PictureFolder(content, "--content")
    truths = PictureFolder(truth, "--truth") if truth else None
    others = [PictureFolder(rival, "--against") for rival in rivals]
    captions = read_captions(content, list(contents.by_name))
    pairs, left_out, used = [], {}, set()
    for name, path in ours.by_name.items():
        if skip and path.resolve().is_relative_to(skip.resolve()):
            continue
        source, true = contents.get(name), truths.get(name) if truths else None
        if source is None or (truths and true is None):
            folder = printable(content if source is None else truths.root if truths else "")
            left_out[printable(name)] = f"no picture of this name in {folder}"
            continue
        used.add(source)
        pairs.append(
            Pair(
                name=printable(name),
                result=path,
                content=source,
                truth=true,
                rivals=tuple(folder.get(name) for folder in others),
                caption=captions.get(source.relative_to(content).as_posix(), ""),
            )
        )
    for name, path in contents.by_name.items():
        if path not in used:
            left_out.setdefault(f"{printable(name)} (content)", f"no result of this name in {printable(results)}")
    if not pairs:
        raise UserError(
            f"no result in {printable(results)} has the name of a picture in {printable(content)}"
            + (f" and in {printable(truth)}" if truth else "")
            + f"; the first result is {printable(next(iter(ours.by_name)))}, the first content picture "
            f"{printable(next(iter(contents.by_name)))}"
        )
    return Pairing(tuple(pairs), left_out)


def set_sha256(paths: Sequence[Path]) -> str:
    """One hash for a set of files: of their sorted hashes, so neither names nor order count, duplicates do."""
    digests = sorted(file_sha256(path) for path in paths)
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
