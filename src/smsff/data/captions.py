"""Captions of an image folder: tables of many images, and text files beside the images (rules: data/README.md).

`read_captions` names whatever lies in the folder and gives no image its caption, so that none is lost unnoticed.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import logging
import os
import posixpath
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smsff.data.images import NAMED, PICTURE_EXTENSIONS, ending, printable, walk
from smsff.errors import UserError, shown

METADATA = "metadata.jsonl"
"""What ``smsff caption`` writes."""
TABLES = (METADATA, "metadata.csv", "metadata.json")
"""Captions of many images, in any case; the first prevails where one folder has several."""
TEXTS = (".txt", ".caption")
"""Endings of files with the caption of one image, in any case; the first prevails."""
KEYS = ("text", "caption", "prompt")
"""Keys or columns of a table that may hold the caption; the first prevails."""
EXPECTED = f'"file_name" and one of {", ".join(KEYS)}'
MAX_WARNED = 20
"""Lines in the log about one matter; the others are only counted."""

log = logging.getLogger(__name__)


@dataclass
class Problems:
    """What is to be said about the captions of a folder: a sentence by file, line or image.

    Attributes:
        wrong: What cannot be read as a caption, although its place says that it is one.
        absent: What gives no image a caption: there is no such readable image, another caption prevails, or the file
            is of a kind that is not read.
        guessed: Files that are read although their encoding is not certain.
    """

    wrong: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    guessed: dict[str, str] = field(default_factory=dict)

    def warn(self) -> None:
        """Name them in the log."""
        for reasons in (self.wrong, self.absent, self.guessed):
            warn_each("captions", reasons)


def read_captions(root: Path, images: Sequence[str], *, problems: Problems | None = None) -> dict[str, str]:
    """Captions, each on one line, by name, of those images that have one.

    First choice is a table (`TABLES`) in the folder of the image, then one in the folder above, up to ``root``; its
    ``file_name`` is relative to the folder of the table. Of several lines about an image the last counts. Second choice
    is a text file (`TEXTS`) beside the image, ``a.jpg.txt`` before ``a.txt``. Empty captions count as none. A name that
    no image has exactly may also differ in case, in the composition of its letters (NFC, NFD) or by backslashes.

    Args:
        images: Names as from `list_images`, of those that can be read.
        problems: Takes what there is to say. Without it the first that is ``wrong`` is raised, and the rest logged.

    Raises:
        UserError: See ``problems``; names file and line.
    """
    if problems is None:
        problems = Problems()
        captions = read_captions(root, images, problems=problems)
        if problems.wrong:
            raise UserError(next(iter(problems.wrong.values())))
        problems.warn()
        return captions
    found = _Captions(root, images, problems)
    others = [name for name in walk(root) if ending(name) not in PICTURE_EXTENSIONS]
    others.sort(key=lambda name: (-name.count("/"), name))  # inner folders first
    unknown: dict[str, list[str]] = {}
    tables = []
    for name in others:
        folder, _, file = name.rpartition("/")
        if file.lower() in TABLES:
            tables.append((-name.count("/"), f"{folder}/", TABLES.index(file.lower()), name))
        elif ending(name) not in TEXTS:
            unknown.setdefault(ending(name), []).append(name)
    for *_, table in sorted(tables):
        for where, name, texts in reversed(list(_entries(root / table, problems))):
            found.add_named(where, posixpath.dirname(table), name, texts)
    found.add_beside([name for name in others if ending(name) in TEXTS])
    for end, names in unknown.items():
        first = ", ".join(map(printable, names[:NAMED]))
        more = ", ..." if len(names) > NAMED else ""
        kind = end or "without an ending"
        where = printable(root)
        problems.absent[f"{where}/*{end}"] = f"{where}: not read: {len(names)} {kind} ({first}{more})"
    return found.texts


def warn_each(what: str, reasons: Mapping[str, str]) -> None:
    """A line in the log for each reason, of very many for the first ones."""
    for reason in list(reasons.values())[:MAX_WARNED]:
        log.warning("%s: %s", what, reason)
    if len(reasons) > MAX_WARNED:
        log.warning("%s: %d more", what, len(reasons) - MAX_WARNED)


def decode_text(data: bytes) -> tuple[str, str]:
    """Text and its encoding: what a byte order mark says, else UTF-8, else Windows' Western European, cp1252.

    Raises:
        UnicodeDecodeError: It is none of them.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16"), "utf-16"
    try:
        return data.decode("utf-8-sig"), "utf-8"
    except UnicodeDecodeError:
        return data.decode("cp1252"), "cp1252"


class _Captions:
    """The captions found so far; the first of an image stays, and a later one that differs is named."""

    def __init__(self, root: Path, images: Sequence[str], problems: Problems) -> None:
        self.root, self.problems = root, problems
        self.texts: dict[str, str] = {}
        self._places: dict[str, str] = {}
        self._names = _Names(images, str)
        self._stems = _Names(images, lambda image: os.path.splitext(image)[0])

    def add_named(self, where: str, folder: str, name: str, texts: Mapping[str, str]) -> None:
        """Captions by key of a line for the image of this name in a folder, the one that prevails first."""
        for variant in (name, name.replace("\\", "/")):
            if images := self._names.get(posixpath.normpath(posixpath.join(folder, variant))):
                for key, text in texts.items():
                    self._add(f"{where}, {key}", images[0], text)
                return
        self.problems.absent[where] = f"{where}: there is no readable image {shown(name)}"

    def add_beside(self, files: Iterable[str]) -> None:
        """Captions of text files for the images beside them."""
        found = []
        for file in files:
            name, path = os.path.splitext(file)[0], self.root / file
            exact = self._names.get(name) if ending(name) in PICTURE_EXTENSIONS else []
            if images := exact or self._stems.get(name):
                found.append((not exact, TEXTS.index(ending(file)), path, images))
            else:
                self.problems.absent[printable(path)] = f"{printable(path)}: there is no readable image of this name"
        for _, _, path, images in sorted(found):
            text = _read(path, self.problems)
            for image in images:
                self._add(printable(path), image, text)

    def _add(self, where: str, image: str, text: str) -> None:
        text = " ".join(text.split()).encode("utf-8", "replace").decode()  # JSON can hold half a character
        if text and image not in self.texts:
            self.texts[image], self._places[image] = text, where
        elif text and self.texts[image] != text:
            name = printable(image)
            self.problems.absent[f"{where}, {name}"] = (
                f"{where}: not used, for {name} has another caption in {self._places[image]}"
            )


class _Names:
    """Images by name; where no name is equal, one that differs in the form of its letters or in case counts."""

    FORMS: tuple[Callable[[str], str], ...] = (
        str,
        lambda name: unicodedata.normalize("NFC", name),  # macOS takes letters apart from their accents
        lambda name: unicodedata.normalize("NFC", name).casefold(),
    )

    def __init__(self, images: Sequence[str], name: Callable[[str], str]) -> None:
        self._images, self._name = images, name
        self._indices: list[dict[str, list[str]]] = []

    def get(self, name: str) -> list[str]:
        """The images of this name, else the only one of this name in another form, else none."""
        for number, form in enumerate(self.FORMS):
            if number == len(self._indices):  # made when first needed: there may be a million images
                index: dict[str, list[str]] = {}
                for image in self._images:
                    index.setdefault(form(self._name(image)), []).append(image)
                self._indices.append(index)
            images = self._indices[number].get(form(name), [])
            if len(images) == 1 or (images and number == 0):
                return images
        return []


def _entries(path: Path, problems: Problems) -> Iterator[tuple[str, str, dict[str, str]]]:
    """(where, file name, captions by key) of every line or entry of a table that can be understood."""
    records = {".csv": _rows, ".json": _objects}.get(ending(path), _lines)
    for where, record in records(printable(path), _read(path, problems), problems):
        texts = {key: record[key] for key in KEYS if key in record} if isinstance(record, Mapping) else {}
        given = {key: text for key, text in texts.items() if text is not None}
        if not texts or not all(isinstance(text, str) for text in (record.get("file_name"), *given.values())):
            _report(where, f"expected an object with {EXPECTED}, all of them strings", problems)
        else:
            yield where, record["file_name"], given


def _lines(path: str, text: str, problems: Problems) -> Iterator[tuple[str, Any]]:
    """The JSON values of a text that has one on each line."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            yield where, json.loads(line)
        except (ValueError, RecursionError) as error:  # ValueError also for a number of thousands of digits
            _report(where, f"not valid JSON ({error})", problems)


def _objects(path: str, text: str, problems: Problems) -> Iterator[tuple[str, Any]]:
    """The objects of a JSON list, of one object, or of a text that has one on each line."""
    try:
        whole = json.loads(text) if text.strip() else []
    except (ValueError, RecursionError):
        yield from _lines(path, text, problems)
        return
    for number, value in enumerate(whole if isinstance(whole, list) else [whole], start=1):
        yield f"{path}, entry {number}", value


def _rows(path: str, text: str, problems: Problems) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a CSV table whose first line names the columns; separated by commas, semicolons or tabs."""
    if not text.strip():
        return
    text = text.lstrip("\r\n")
    delimiter = max(",;\t", key=text.splitlines()[0].count)
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        rows.fieldnames = [name.strip() for name in rows.fieldnames or []]
    except csv.Error as error:
        _report(path, f"not a CSV table ({error})", problems)
        return
    if "file_name" not in rows.fieldnames or not set(KEYS) & set(rows.fieldnames):
        _report(path, f"must have the columns {EXPECTED}, has {shown(rows.fieldnames)}", problems)
        return
    while True:
        start = rows.reader.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            _report(f"{path}, line {start}", f"not a row of a CSV table ({error})", problems)
            continue
        if row is None:
            return
        where = f"{path}, line {rows.line_num}"
        if None in row:
            _report(where, "more fields than columns; a caption with a comma must stand in quotation marks", problems)
        else:
            yield where, row


def _read(path: Path, problems: Problems) -> str:
    """Text of a file, empty if it cannot be read."""
    where = printable(path)
    try:
        if not path.is_file():  # reading a pipe would wait for ever
            raise OSError("not a regular file")
        text, encoding = decode_text(path.read_bytes())
    except (UnicodeDecodeError, OSError) as error:
        _report(where, f"cannot be read as text ({error})", problems)
        return ""
    if "\0" in text:
        _report(where, "cannot be read as text: UTF-16 needs a byte order mark", problems)
        return ""
    if encoding == "cp1252":
        problems.guessed[where] = f"{where}: not valid UTF-8, read as cp1252 (Western European); save it as UTF-8"
    return text


def _report(where: str, reason: str, problems: Problems) -> None:
    problems.wrong[where] = f"{where}: {reason}"
