"""Captions of an image folder: ``metadata.jsonl`` (Hugging Face's imagefolder layout), ``.txt`` beside the image."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Sequence
from pathlib import Path

from smsff.data.images import printable, relative_name
from smsff.errors import UserError

METADATA = "metadata.jsonl"


def read_captions(root: Path, images: Sequence[Path]) -> dict[Path, str]:
    """Captions of those images that have one.

    First choice is the nearest ``metadata.jsonl`` that names the image, from its own folder up to ``root``; each line
    is an object with ``file_name``, relative to the folder of the metadata file, and ``text``. Second choice is a
    ``.txt`` of the same name beside the image. Empty captions count as none.

    Args:
        root: The folder that was searched.
        images: Paths below ``root``.

    Raises:
        UserError: For a malformed metadata line (naming file and line) or text that is not UTF-8.
    """
    named: dict[str, str] = {}
    for folder in _folders(root, images):
        named.update(_read_metadata(root, folder))
    captions = {}
    for image in images:
        text = named.get(relative_name(image, root)) or _read_text(image.with_suffix(".txt"))
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


def _read_metadata(root: Path, folder: Path) -> dict[str, str]:
    """Captions of one metadata file by image name relative to ``root``; empty if there is no such file."""
    path = folder / METADATA
    captions = {}
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{printable(path)}, line {number}"
        try:
            entry = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(f"{where}: not valid JSON ({error})") from error
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("file_name", "text")):
            raise UserError(f'{where}: expected an object with the strings "file_name" and "text"')
        name = posixpath.normpath(posixpath.join(relative_name(folder, root), entry["file_name"]))
        captions[name] = _one_line(entry["text"])
    return captions


def _read_text(path: Path) -> str:
    return _one_line(_read(path))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return ""
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{printable(path)}: cannot be read as UTF-8 text ({error})") from error


def _one_line(text: str) -> str:
    return " ".join(text.split())
