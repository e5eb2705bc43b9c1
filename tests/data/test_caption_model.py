"""Captions by a model: a tiny BLIP with random weights, saved and loaded as a real one."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    CLIPTextConfig,
)

from smsff.cli import parser
from smsff.data import caption_model
from smsff.data.captions import read_captions
from smsff.data.images import list_images
from smsff.errors import UserError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "of", "photo", "painting", "cat", "dog", "red", "sea"]


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a BLIP model of some thousand weights."""
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": len(WORDS), "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    text = {**small, **ids, "vocab_size": len(WORDS) + 2, "encoder_hidden_size": 16, "max_position_embeddings": 32}
    vision = {**small, "image_size": 32, "patch_size": 16}
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision, projection_dim=8))
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})
    folder = tmp_path_factory.mktemp("blip")
    model.save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Five images of several shapes, one of them in a folder below, one of them broken."""
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    for i, (name, size) in enumerate(
        {"a.png": (40, 24), "b.jpg": (24, 40), "sub/c.png": (9, 9), "d.png": (64, 8)}.items()
    ):
        Image.new("RGB", size, (60 * i, 90, 255 - 60 * i)).save(folder / name)
    (folder / "e.png").write_bytes(b"not a picture")
    return folder


def arguments(*words: str) -> argparse.Namespace:
    return parser().parse_args(["caption", *words])


def captions(folder: Path) -> dict[str, str]:
    return read_captions(folder, list_images(folder)[0])


def test_every_readable_picture_gets_a_caption_that_is_read_back(
    blip: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = caption_model.run(
        arguments(str(pictures), "--model", str(blip), "--batch-size", "2", "--prompt", "a photo of")
    )
    assert status == 1
    printed = capsys.readouterr()
    assert "e.png" in printed.err
    assert "4 images captioned, 0 had captions, 1 could not be read" in printed.out
    found = captions(pictures)
    assert set(found) == {"a.png", "b.jpg", "sub/c.png", "d.png"}
    assert all(text.startswith("a photo of") and text == " ".join(text.split()) for text in found.values())


def test_a_batch_is_captioned_as_its_pictures_alone(blip: Path) -> None:
    captioner = caption_model.load_captioner(str(blip), device="cpu")
    pictures = [torch.randint(256, (3, h, w), dtype=torch.uint8) for h, w in ((20, 30), (33, 17), (8, 8))]
    together = captioner(pictures, max_words=6)
    assert together == [captioner([one], max_words=6)[0] for one in pictures]


def test_a_second_run_goes_on_where_the_first_stopped(
    blip: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "d.txt").write_text("by hand")
    done = caption_model.append_captions

    def stop_after_one(*given: object) -> None:
        done(*given)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    options = arguments(str(pictures), "--model", str(blip), "--batch-size", "1", "--threads", "1")
    monkeypatch.setattr(caption_model, "append_captions", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        caption_model.run(options)
    assert captions(pictures).keys() == {"a.png", "d.png"}
    first = (pictures / "metadata.jsonl").read_text()
    with (pictures / "metadata.jsonl").open("a") as file:
        file.write('{"file_name": "b.jp')  # what a power failure leaves
    monkeypatch.setattr(caption_model, "append_captions", done)
    (pictures / "e.png").unlink()
    assert caption_model.run(options) == 0
    assert (pictures / "metadata.jsonl").read_text().startswith(first)
    assert captions(pictures)["d.png"] == "by hand"
    assert len(captions(pictures)) == 4
    capsys.readouterr()
    assert caption_model.run(options) == 0
    assert "4 of 4 images have captions" in capsys.readouterr().out


def test_captions_are_added_beside_every_kind_of_table_and_prevail(
    blip: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "e.png").unlink()
    (pictures / "sub" / "metadata.csv").write_text("file_name,text\nc.png,old\n")
    (pictures / "a.caption").write_text("old")
    (pictures / "notes.json").write_text("{}")
    options = [str(pictures), "--model", str(blip), "--prompt", "red sea", "--threads", "1"]
    assert caption_model.run(arguments(*options)) == 0
    assert "2 of 4 images have captions" in capsys.readouterr().out
    assert {name for name, text in captions(pictures).items() if text == "old"} == {"a.png", "sub/c.png"}
    assert caption_model.run(arguments(*options, "--overwrite")) == 0
    assert all(text.startswith("red sea") for text in captions(pictures).values())


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252"])
@pytest.mark.parametrize("end", ["", "\n"])
def test_a_table_in_another_encoding_is_left_as_it_is(blip: Path, pictures: Path, encoding: str, end: str) -> None:
    table = pictures / "metadata.jsonl"
    table.write_text('{"file_name": "a.png", "text": "the caf\u00e9"}' + end, encoding=encoding)
    before = table.read_bytes()
    with pytest.raises(UserError, match=r"metadata\.jsonl: not UTF-8"):
        caption_model.run(arguments(str(pictures), "--model", str(blip)))
    assert table.read_bytes() == before


def test_overwriting_replaces_captions_where_they_stand(blip: Path, pictures: Path) -> None:
    (pictures / "e.png").unlink()
    (pictures / "metadata.jsonl").write_text(
        '{"file_name": "a.png", "text": "old"}\n{"file_name": "gone.png", "text": "x"}'
    )
    (pictures / "sub" / "metadata.jsonl").write_text('{"file_name": "c.png", "text": "old"}\n')
    assert caption_model.run(arguments(str(pictures), "--model", str(blip), "--overwrite", "--prompt", "red sea")) == 0
    assert all(text.startswith("red sea") for text in captions(pictures).values())
    assert len(captions(pictures)) == 4
    lines = [json.loads(line) for line in (pictures / "metadata.jsonl").read_text().splitlines()]
    assert sorted(line["file_name"] for line in lines) == ["a.png", "b.jpg", "d.png", "gone.png"]
    assert not list(pictures.glob("**/.*"))


def test_what_cannot_work_is_said_in_one_sentence(blip: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--model .*nowhere.*hf download"):
        caption_model.load_captioner(str(tmp_path / "nowhere"))
    (tmp_path / "clip").mkdir()
    CLIPTextConfig().save_pretrained(tmp_path / "clip")
    with pytest.raises(UserError, match=r"--model .*clip_text_model.*BLIP"):
        caption_model.load_captioner(str(tmp_path / "clip"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images"):
        caption_model.run(arguments(str(tmp_path / "empty"), "--model", str(blip)))
    (pictures / "metadata.jsonl").write_text("nonsense\n")
    with pytest.raises(UserError, match="line 1"):
        caption_model.run(arguments(str(pictures), "--model", str(blip), "--overwrite"))
    by_hand = '[\n{"file_name": "a.png", "text": "by hand"}\n]'
    (pictures / "metadata.jsonl").write_text(by_hand)
    with pytest.raises(UserError, match="line 1"):
        caption_model.run(arguments(str(pictures), "--model", str(blip)))
    assert (pictures / "metadata.jsonl").read_text() == by_hand
    with pytest.raises(SystemExit):
        arguments(str(pictures), "--batch-size", "0")
