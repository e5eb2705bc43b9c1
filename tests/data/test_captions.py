from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from smsff.data.captions import Problems, read_captions
from smsff.data.images import list_images
from smsff.errors import UserError
from smsff.method.prompts import Prompts
from smsff.style_lora.prompts import TriggerPrompts


def read(root: Path, images: Sequence[str], files: Mapping[str, str | bytes]) -> tuple[dict[str, str], Problems]:
    """The captions by image name that files give to images, and what there is to say about them."""
    for name in (*images, *files):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    for name, content in files.items():
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    problems = Problems()
    return read_captions(root, list_images(root)[0], problems=problems), problems


def line(name: str, text: str, key: str = "text") -> str:
    return json.dumps({"file_name": name, key: text}, ensure_ascii=False) + "\n"


NFC, NFD = (unicodedata.normalize(form, "Z\u00fcrich") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("images", "files"),
    [
        (["a.jpg"], {"a.txt": "a lake"}),
        (["a.jpg"], {"a.caption": "a lake"}),
        (["a.jpg"], {"a.jpg.txt": "a lake"}),
        (["a.jpg"], {"a.jpg.CAPTION": "a lake"}),
        (["A.JPG"], {"A.TXT": "a lake"}),
        (["IMG.JPG"], {"img.txt": "a lake"}),
        (["s/a.jpg"], {"s/a.Txt": "a lake"}),
        ([f"{NFD}.jpg"], {f"{NFC}.txt": "a lake"}),
        ([f"{NFC}.jpg"], {f"{NFD}.jpg.txt": "a lake"}),
        (["a.jpg"], {"a.txt": "\ufeffa lake"}),
        (["a.jpg"], {"a.txt": "\ufeff a\r\nlake \r\n"}),
        (["a.jpg"], {"a.txt": "a lake".encode("utf-16")}),
        (["a.jpg"], {"a.txt": b"\xfe\xff" + "a lake".encode("utf-16-be")}),
        (["a.jpg"], {"metadata.jsonl": line("a.jpg", "a lake")}),
        (["a.jpg"], {"metadata.jsonl": line("a.jpg", "a lake").encode("utf-16")}),
        (["a.jpg"], {"METADATA.JSONL": line("a.jpg", "a lake", "caption")}),
        (["a.jpg"], {"metadata.jsonl": line("./a.jpg", "a lake", "prompt")}),
        (["s/a.jpg"], {"metadata.jsonl": line("s\\a.jpg", "a lake")}),
        (["s/a.jpg"], {"metadata.jsonl": line(".\\s\\A.JPG", "a lake")}),
        (["s\\a.jpg"], {"metadata.jsonl": line("s\\a.jpg", "a lake")}),
        ([f"s/{NFD}.jpg"], {"metadata.jsonl": line(f"s/{NFC}.jpg", "a lake")}),
        ([f"s/{NFC}.jpg"], {"metadata.jsonl": line(f"s/{NFD}.jpg", "a lake")}),
        (["s/t/a.jpg"], {"s/metadata.jsonl": line("t/a.jpg", "a lake")}),
        (["images/a.jpg"], {"captions/metadata.jsonl": line("../images/a.jpg", "a lake")}),
        (["a.jpg"], {"metadata.jsonl": '{"file_name": "a.jpg", "text": null, "prompt": "a lake", "width": 3}'}),
        (["a.jpg"], {"metadata.json": json.dumps([{"file_name": "a.jpg", "text": "a lake"}], indent=2)}),
        (["a.jpg"], {"metadata.json": json.dumps({"file_name": "a.jpg", "caption": "a lake"}, indent=2)}),
        (["a.jpg", "b.jpg"], {"metadata.json": line("a.jpg", "a lake") + line("b.jpg", "")}),
        (["s/a.jpg"], {"metadata.csv": "file_name,text\ns/a.jpg,a lake\n"}),
        (["s/a.jpg"], {"s/metadata.csv": "\ufefffile_name,width,caption\r\na.jpg,3,a lake\r\n"}),
        (["a.jpg"], {"metadata.csv": 'prompt;file_name\n"a\nlake";a.jpg\n'}),
        (["a.jpg"], {"metadata.jsonl": line("a.jpg", "a\u2028lake")}),
        (["a.jpg"], {"metadata.jsonl": line("a.jpg", " "), "a.txt": " a lake\n"}),
        (["a.jpg"], {"metadata.csv": "\tfile_name\ttext\r\n0\ta.jpg\ta lake\r\n".encode("utf-16")}),
    ],
    ids=lambda value: ", ".join(value),
)
def test_captions_as_people_have_them(tmp_path: Path, images: Sequence[str], files: Mapping[str, str | bytes]) -> None:
    captions, problems = read(tmp_path, images, files)
    assert captions == {images[0]: "a lake"}
    assert problems == Problems()


@pytest.mark.parametrize(
    "text", ["{red|blue}, (lake:1.2), <lora:x:1>, 100%", "{caption} {words} {0}", 'a "lake", blue']
)
def test_a_caption_is_taken_word_for_word(tmp_path: Path, text: str) -> None:
    quoted = text.replace('"', '""')
    for number, (name, content) in enumerate(
        {
            "a.txt": text,
            "metadata.jsonl": line("a.jpg", text),
            "metadata.csv": f'file_name,text\na.jpg,"{quoted}"\n',
        }.items()
    ):
        captions, _ = read(tmp_path / str(number), ["a.jpg"], {name: content})
        assert captions == {"a.jpg": text}
    prompts = Prompts(words="ink", style="{words}, {caption}", source="{caption}", edit="{words}")
    assert prompts.of(text) == (f"ink, {text}", text, "ink")
    assert TriggerPrompts(trigger="ink").fill(text) == f"ink, {text}"


def test_half_a_character_becomes_a_question_mark(tmp_path: Path) -> None:
    files = {"metadata.jsonl": '{"file_name": "a.jpg", "text": "a \\ud83d lake"}'}
    assert read(tmp_path, ["a.jpg"], files)[0] == {"a.jpg": "a ? lake"}


def test_text_that_is_not_utf8_is_read_as_cp1252_and_named(tmp_path: Path) -> None:
    files = {
        "a.txt": "the dog\u2019s bowl".encode("cp1252"),
        "metadata.csv": "file_name,text\nb.jpg,a caf\u00e9\n".encode("cp1252"),
    }
    captions, problems = read(tmp_path, ["a.jpg", "b.jpg"], files)
    assert captions == {"a.jpg": "the dog\u2019s bowl", "b.jpg": "a caf\u00e9"}
    assert set(problems.guessed) == {str(tmp_path / name) for name in files}
    assert not problems.wrong
    assert not problems.absent


@pytest.mark.parametrize("content", ["a lake".encode("utf-16-le"), "a lake".encode("utf-32"), b"a \x81 lake"])
def test_text_in_no_known_encoding_is_wrong(tmp_path: Path, content: bytes) -> None:
    captions, problems = read(tmp_path, ["a.jpg", "b.jpg"], {"a.txt": content, "b.txt": "fine"})
    assert captions == {"b.jpg": "fine"}
    assert list(problems.wrong) == [str(tmp_path / "a.txt")]
    with pytest.raises(UserError, match=r"a\.txt"):
        read_captions(tmp_path, list_images(tmp_path)[0])


def test_of_several_captions_one_prevails_and_the_others_are_named(tmp_path: Path) -> None:
    tables = {
        "s/metadata.jsonl": line("a.jpg", "first") + line("a.jpg", "1"),
        "s/metadata.csv": "file_name,text\na.jpg,2\n",
        "s/metadata.json": '[{"file_name": "a.jpg", "text": "3", "caption": "3b"}]',
        "metadata.jsonl": line("s/a.jpg", "4"),
    }
    texts = {"s/a.jpg.txt": "5", "s/a.jpg.caption": "6", "s/a.txt": "7", "s/a.caption": "8"}
    order = {**tables, **texts}
    for number in range(len(order)):
        left = dict(list(order.items())[number:])
        captions, problems = read(tmp_path / str(number), ["s/a.jpg"], left)
        assert captions == {"s/a.jpg": str(number + 1)}
        for other in list(left)[1:]:
            assert any(f"{other}" in where for where in problems.absent), other
        assert not problems.wrong
    _, problems = read(tmp_path / "all", ["s/a.jpg"], order)
    assert len(problems.absent) == 9
    said = problems.absent[f"{tmp_path}/all/s/metadata.jsonl, line 1, text, s/a.jpg"]
    assert said.endswith("has another caption in " + str(tmp_path / "all/s/metadata.jsonl, line 2, text"))


def test_the_same_caption_twice_is_nothing_to_speak_of(tmp_path: Path) -> None:
    files = {"a.txt": "a lake\n", "a.caption": " a  lake", "metadata.jsonl": line("a.jpg", "a lake")}
    assert read(tmp_path, ["a.jpg"], files) == ({"a.jpg": "a lake"}, Problems())


def test_what_gives_no_image_a_caption_is_named_and_counted(tmp_path: Path) -> None:
    files = {
        "IMG_1.txt": "its picture is of another format",
        "a.json": '{"caption": "of another program"}',
        **{f"s/{number}.json": "{}" for number in range(11)},
        "captions.csv": "image,caption\na.jpg,a lake\n",
        "train.parquet": "PAR1",
        "LICENSE": "free",
        ".hidden": "",
        ".thumbnails/a.json": "{}",
        "metadata.jsonl": line("gone.jpg", "x") + line("B.jpg", "which of the two?"),
        "B.txt": "which of the two?",
    }
    captions, problems = read(tmp_path, ["a.jpg", "b.jpg", "b.JPG"], files)
    assert captions == {}
    assert not problems.wrong
    said = sorted(text.removeprefix(f"{tmp_path}") for text in problems.absent.values())
    assert said == [
        "/B.txt: there is no readable image of this name",
        "/IMG_1.txt: there is no readable image of this name",
        "/metadata.jsonl, line 1: there is no readable image 'gone.jpg'",
        "/metadata.jsonl, line 2: there is no readable image 'B.jpg'",
        ": not read: 1 .csv (captions.csv)",
        ": not read: 1 .parquet (train.parquet)",
        ": not read: 1 without an ending (LICENSE)",
        ": not read: 12 .json (s/0.json, s/1.json, s/10.json, ...)",
    ]


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        *(("metadata.jsonl", f"\n{line}\n", ", line 2") for line in ("[]", '{"file_name": "a.jpg"}', "[" * 100_000)),
        ("metadata.csv", "name,words\na.jpg,a lake\n", ""),
        ("metadata.csv", "file_name,width\na.jpg,3\n", ""),
        ("metadata.csv", "file_name,text\na.jpg,a lake, blue\n", ", line 2"),
        ("metadata.csv", 'file_name,text\na.jpg,"a lake\n', ", line 2"),
        ("metadata.csv", "file_name,text\na.jpg,a " + "x" * 200_000, ", line 2"),
        ("metadata.json", '{"title": "an album"}', ", entry 1"),
        ("metadata.json", '[{"file_name": "a.jpg", "text": ["one", "two"]}]', ", entry 1"),
        ("metadata.json", "[1]", ", entry 1"),
        ("metadata.jsonl", '{"file_name": "a.jpg", "text": 3}\n', ", line 1"),
        ("metadata.json", "{broken", ", line 1"),
    ],
)
def test_tables_that_are_not_understood_are_named(tmp_path: Path, name: str, content: str, where: str) -> None:
    captions, problems = read(tmp_path, ["a.jpg"], {name: content})
    assert captions == {}
    assert list(problems.wrong) == [f"{tmp_path / name}{where}"]


def test_rows_after_a_malformed_one_are_read(tmp_path: Path) -> None:
    table = 'file_name,text\na.jpg,"a" lake\nb.jpg,a street, wet\nc.jpg,a town\n'
    captions, problems = read(tmp_path, ["a.jpg", "b.jpg", "c.jpg"], {"metadata.csv": table})
    assert captions == {"c.jpg": "a town"}
    assert [where.rpartition(" ")[2] for where in problems.wrong] == ["2", "3"]


def test_captions_in_a_linked_folder(tmp_path: Path) -> None:
    read(tmp_path, ["far/a.jpg", "root/z/b.jpg"], {"far/a.txt": "a lake"})
    (tmp_path / "root/link").symlink_to(tmp_path / "far")
    (tmp_path / "root/z/loop").symlink_to(tmp_path / "root")
    captions, problems = read(tmp_path / "root", [], {})
    assert captions == {"link/a.jpg": "a lake"}
    assert problems == Problems()


def test_metadata_is_relative_to_its_folder_and_the_nearest_prevails(tmp_path: Path) -> None:
    files = {
        "metadata.jsonl": line("s/x.jpg", "outer x") + line("s/t/y.jpg", "outer y") + line("/s/t/w.jpg", "nowhere"),
        "s/metadata.jsonl": line("./t/z.jpg", "middle z"),
        "s/t/metadata.jsonl": line("y.jpg", "inner y"),
    }
    captions, problems = read(tmp_path, ["s/x.jpg", "s/t/w.jpg", "s/t/y.jpg", "s/t/z.jpg"], files)
    assert captions == {"s/x.jpg": "outer x", "s/t/y.jpg": "inner y", "s/t/z.jpg": "middle z"}
    assert len(problems.absent) == 2
