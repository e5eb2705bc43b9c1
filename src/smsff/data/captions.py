"""Captions of an image folder: ``metadata.jsonl`` (Hugging Face's imagefolder layout), ``.txt`` beside the image."""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from smsff.data.images import printable, relative_name
from smsff.errors import UserError, shown

METADATA = "metadata.jsonl"


@dataclass
class Problems:
    """What is wrong with captions, collected instead of raised: a sentence by file and line.

    Attributes:
        wrong: What cannot be read as a caption.
        absent: Captions of images that are not there or cannot be read.
    """

    wrong: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)


def read_captions(root: Path, images: Sequence[Path], *, problems: Problems | None = None) -> dict[Path, str]:
    """Captions of those images that have one.

    First choice is the nearest ``metadata.jsonl`` that names the image, from its own folder up to ``root``; each line
    is an object with ``file_name``, relative to the folder of the metadata file, and ``text``. Second choice is a
    ``.txt`` of the same name beside the image. Empty captions count as none.

    Args:
        root: The folder that was searched.
        images: Paths below ``root``.
        problems: Takes what is wrong: a malformed line or text that is not UTF-8, whose caption counts as none then,
            and captions of images that are not there. Without it the first that is wrong is raised.

    Raises:
        UserError: See ``problems``; names file and line.
    """
    names = {relative_name(image, root) for image in images}
    named: dict[str, str] = {}
    texts: set[str] = set()
    for folder in _folders(root, images):
        named.update(_read_metadata(root, folder, names, problems))
        texts |= _text_files(folder)
    captions = {}
    for image in images:
        text = named.get(relative_name(image, root))
        beside = os.path.splitext(image)[0] + ".txt"
        if not text and beside in texts:
            text = _one_line(_read(Path(beside), problems))
        if text:
            captions[image] = text
    return captions


def _folders(root: Path, images: Sequence[Path]) -> list[Path]:
    """All folders from ``root`` down to those of the images, outer ones first, so that inner metadata prevails."""
    folders = {root}
    for parent in {image.parent for image in images}:
        while parent != root and parent not in folders:
            folders.add(parent)
            parent = parent.parent
    return sorted(folders, key=lambda folder: len(folder.parts))


def _text_files(folder: Path) -> set[str]:
    """The ``.txt`` files of a folder: one listing, instead of a failing attempt for each of a million images."""
    try:
        with os.scandir(folder) as listing:
            return {os.path.join(folder, entry.name) for entry in listing if entry.name.endswith(".txt")}
    except OSError:  # gone meanwhile, as its images will be found to be
        return set()


def _read_metadata(root: Path, folder: Path, images: set[str], problems: Problems | None) -> dict[str, str]:
    """Captions of one metadata file by image name relative to ``root``; empty if there is no such file."""
    path = folder / METADATA
    captions = {}
    for number, line in enumerate(_read(path, problems).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{printable(path)}, line {number}"
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:  # ValueError also for a number of thousands of digits
            _report(where, f"not valid JSON ({error})", problems)
            continue
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("file_name", "text")):
            _report(where, 'expected an object with the strings "file_name" and "text"', problems)
            continue
        name = posixpath.normpath(posixpath.join(relative_name(folder, root), entry["file_name"]))
        captions[name] = _one_line(entry["text"])
        if problems is not None and name not in images:
            problems.absent[where] = f"{where}: there is no readable image {shown(entry['file_name'])}"
    return captions


def _report(where: str, reason: str, problems: Problems | None, error: Exception | None = None) -> None:
    if problems is None:
        raise UserError(f"{where}: {reason}") from error
    problems.wrong[where] = f"{where}: {reason}"


def _read(path: Path, problems: Problems | None) -> str:
    try:
        if not path.is_file():  # reading a pipe would wait for ever
            return ""
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return ""
    except (UnicodeDecodeError, OSError) as error:
        _report(printable(path), f"cannot be read as UTF-8 text ({error})", problems, error)
        return ""


def _one_line(text: str) -> str:
    return " ".join(text.split())
