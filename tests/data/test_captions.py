from __future__ import annotations

import json
from pathlib import Path

import pytest

from smsff.data.captions import read_captions
from smsff.errors import UserError


def touch(root: Path, *names: str) -> list[Path]:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return [root / name for name in names]


def write_metadata(folder: Path, *entries: dict[str, str]) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")


def test_order_of_the_sources(tmp_path: Path) -> None:
    a, b, c, d = touch(tmp_path, "a.jpg", "b.jpg", "c.jpg", "d.jpg")
    write_metadata(tmp_path, {"file_name": "a.jpg", "text": "from metadata"}, {"file_name": "c.jpg", "text": " "})
    a.with_suffix(".txt").write_text("not used")
    b.with_suffix(".txt").write_text("\ufeff a caf\u00e9\nat night \n", encoding="utf-8")
    c.with_suffix(".txt").write_text("used, for its metadata is empty")
    captions = read_captions(tmp_path, [a, b, c, d])
    assert captions == {a: "from metadata", b: "a caf\u00e9 at night", c: "used, for its metadata is empty"}


def test_metadata_is_relative_to_its_folder_and_the_nearest_prevails(tmp_path: Path) -> None:
    x, y, z = touch(tmp_path, "s/x.jpg", "s/t/y.jpg", "s/t/z.jpg")
    write_metadata(tmp_path, {"file_name": "s/x.jpg", "text": "outer x"}, {"file_name": "s/t/y.jpg", "text": "outer y"})
    write_metadata(tmp_path / "s", {"file_name": "./t/z.jpg", "text": "middle z", "more": "is allowed"})
    write_metadata(tmp_path / "s/t", {"file_name": "y.jpg", "text": "inner y"})
    assert read_captions(tmp_path, [x, y, z]) == {x: "outer x", y: "inner y", z: "middle z"}


@pytest.mark.parametrize(
    "line", ["{broken", "[]", '{"file_name": "a.jpg"}', '{"file_name": "a.jpg", "text": 3}', "[" * 100_000]
)
def test_malformed_lines_are_named(tmp_path: Path, line: str) -> None:
    images = touch(tmp_path, "sub/a.jpg")
    good = json.dumps({"file_name": "a.jpg", "text": "x"})
    (tmp_path / "sub/metadata.jsonl").write_text(f"{good}\n\n{line}\n")
    with pytest.raises(UserError, match=r"metadata\.jsonl, line 3"):
        read_captions(tmp_path, images)


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    images = touch(tmp_path, "a.jpg")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"a\.txt"):
        read_captions(tmp_path, images)


def test_line_separators_within_a_caption_do_not_split_the_line(tmp_path: Path) -> None:
    (image,) = touch(tmp_path, "a.jpg")
    text = '{"file_name": "a.jpg", "text": "one\u2028two"}'
    (tmp_path / "metadata.jsonl").write_text(text, encoding="utf-8")
    assert read_captions(tmp_path, [image]) == {image: "one two"}
