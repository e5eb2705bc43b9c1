"""Bad files in a folder of images: each is named once and counted, the run goes on, and above a share it stops."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import resource
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from smsff.data.datamodule import ImageDataModule
from smsff.data.folder import ImageFolder
from smsff.data.images import MAX_SCANS, ImageError, find_images, image_size, load_image
from smsff.data.single import SingleImage
from smsff.errors import UserError


def picture(path: Path, size: tuple[int, int] = (24, 20), seed: int = 0, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def module(root: Path, **options: Any) -> ImageDataModule:
    defaults = {"crop_size": 8, "batch_size": 2, "steps": 10, "val_fraction": 0.0, "cache_mb": 0}
    return ImageDataModule(root=str(root), **{**defaults, **options})


def run(data: ImageDataModule) -> list[dict[str, Any]]:
    """All batches, as the training loop would take them."""
    loader = data.train_dataloader()
    return [data.on_before_batch_transfer(batch, 0) for batch in loader]


def png_of(width: int, height: int) -> bytes:
    """A few bytes that claim to be a picture of any size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(100_000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Without the rights of root, for whom every file is readable."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_every_kind_of_bad_file_is_named_once_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "photos"
    for i in range(12):
        picture(root / f"good{i:02d}.png", seed=i)
    picture(root / "png_named.jpg", format="PNG")
    picture(root / "one.png", size=(1, 1))
    for name in ("truncated.jpg", "truncated.webp", "truncated.png"):
        whole = picture(root / name).read_bytes()
        (root / name).write_bytes(whole[: len(whole) * 2 // 3])
    (root / "text.jpg").write_text("a text file")
    (root / "empty.png").touch()
    (root / "bomb.png").write_bytes(png_of(60_000, 60_000))
    (root / "self.png").symlink_to("self.png")
    (root / "dangling.png").symlink_to("nowhere.png")
    os.mkfifo(root / "pipe.png")
    (root / "folder.png").mkdir()
    (root / "loop").symlink_to(root)
    picture(root / "name\udcff\udc80.png")
    with caplog.at_level(logging.WARNING):
        data = module(root, steps=60, max_unreadable_share=0.5)
        seen = run(data)
    bad = {"text.jpg", "empty.png", "bomb.png", "self.png", "dangling.png", "pipe.png"}
    bad |= {"truncated.jpg", "truncated.webp", "truncated.png"}
    assert set(data.unreadable) == bad
    assert data.summary()["unreadable_images"] == 9
    lines = [line for line in caplog.messages if line.startswith("left out")]
    assert len(lines) == 9
    for name in bad:
        assert sum(name in line for line in lines) == 1, name
    assert "pixels are more than 150,000,000" in next(line for line in lines if "bomb" in line)
    names = {data.train.name(index) for batch in seen for index in batch["index"].tolist()}
    assert {"png_named.jpg", "one.png", "name\\xff\\x80.png"} <= names
    assert not names & bad
    json.dumps(data.unreadable).encode()


def test_a_file_or_folder_without_permission_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    picture(tmp_path / "a.png")
    picture(tmp_path / "secret.png").chmod(0)
    picture(tmp_path / "closed" / "b.png").parent.chmod(0)
    with as_nobody(), caplog.at_level(logging.WARNING):
        folder = ImageFolder(tmp_path, default_caption="")
    (tmp_path / "closed").chmod(0o755)
    assert [folder.name(i) for i in range(len(folder))] == ["a.png"]
    assert "Permission denied" in folder.unreadable["secret.png"]
    assert "closed: cannot be listed: Permission denied" in caplog.text


def test_above_the_share_the_run_does_not_begin(tmp_path: Path) -> None:
    for i in range(8):
        picture(tmp_path / f"{i}.png")
    (tmp_path / "8.png").touch()
    assert module(tmp_path, max_unreadable_share=0.12).summary()["unreadable_images"] == 1
    with pytest.raises(UserError, match=r"max_unreadable_share=0\.1: 1 of 9 images cannot be read; .*8\.png.*Mend"):
        module(tmp_path, max_unreadable_share=0.1)
    with pytest.raises(UserError, match=r"max_unreadable_share=0: 1 of 9"):
        module(tmp_path, max_unreadable_share=0)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_vanish_during_the_run_stop_it_above_the_share(tmp_path: Path, workers: int) -> None:
    for i in range(10):
        picture(tmp_path / f"{i}.png", seed=i)
    data = module(tmp_path, num_workers=workers, max_unreadable_share=0.2, steps=30)
    for i in (2, 3):
        (tmp_path / f"{i}.png").unlink()
    replaced = run(data)
    assert set(data.unreadable) == {"2.png", "3.png"}
    assert not {2, 3} & {index for batch in replaced for index in batch["index"].tolist()}
    for i in range(10):
        (tmp_path / f"{i}.png").unlink(missing_ok=True)
    for share, message in (
        (0.2, r"data\.max_unreadable_share=0\.2: \d+ of 10 "),
        (1.0, "10 of 10 images cannot be read"),
    ):
        data.max_unreadable_share = share
        with pytest.raises(UserError, match=message):
            run(data)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_replaces_a_vanished_image_is_the_same_for_all(tmp_path: Path) -> None:
    for i in range(6):
        picture(tmp_path / f"{i}.png", seed=i)
    options = {"max_unreadable_share": 1, "steps": 12, "seed": 5}
    alone, workers = (module(tmp_path, num_workers=n, **options) for n in (0, 2))
    ranks = [module(tmp_path, batch_size=1, **options) for _ in range(2)]
    (tmp_path / "4.png").unlink()
    whole = run(alone)
    assert alone.unreadable
    for rank, data in enumerate(ranks):
        progress = SimpleNamespace(total=SimpleNamespace(processed=0))
        loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
        trainer = SimpleNamespace(global_rank=rank, world_size=2, accumulate_grad_batches=1, fit_loop=loop)
        data.trainer = trainer  # type: ignore[assignment]
    parts = [run(data) for data in ranks]
    for n, (a, b) in enumerate(zip(whole, run(workers), strict=True)):
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["image"], torch.cat([part[n]["image"] for part in parts]))


def test_the_largest_image_is_a_number_of_pixels(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", size=(40, 30))
    picture(tmp_path / "b.png", size=(40, 31))
    assert image_size(tmp_path / "a.png", max_pixels=1200) == (40, 30)
    for function in (image_size, load_image):
        with pytest.raises(ImageError, match="40 x 31 pixels are more than 1,200"):
            function(tmp_path / "b.png", max_pixels=1200)
    assert set(module(tmp_path, max_pixels=1200, max_unreadable_share=1).unreadable) == {"b.png"}


@pytest.mark.parametrize(("width", "height"), [(2**31 - 1, 2**31 - 1), (150_000_001, 1), (1, 2**31 - 1)])
def test_a_bomb_costs_nothing(tmp_path: Path, width: int, height: int) -> None:
    (tmp_path / "bomb.png").write_bytes(png_of(width, height))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    for function in (image_size, load_image):
        with pytest.raises(ImageError, match=r"pixels are more than|cannot be read"):
            function(tmp_path / "bomb.png")
    assert time.process_time() - start < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_a_limit_above_that_of_pil_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    picture(tmp_path / "a.png", size=(40, 30))
    with pytest.raises(ImageError, match="its pixels are more than 150"):
        image_size(tmp_path / "a.png", max_pixels=150)
    assert image_size(tmp_path / "a.png", max_pixels=2000) == (40, 30)


def test_a_jpeg_with_thousands_of_scans_is_not_decoded(tmp_path: Path) -> None:
    whole = picture(tmp_path / "a.jpg", progressive=True).read_bytes()
    load_image(tmp_path / "a.jpg")
    begin = whole.rindex(b"\xff\xda")
    (tmp_path / "a.jpg").write_bytes(whole[:begin] + whole[begin:-2] * (MAX_SCANS + 1) + whole[-2:])
    with pytest.raises(ImageError, match="scans of 480 pixels would take too long"):
        load_image(tmp_path / "a.jpg")


def test_formats_that_pil_gives_to_other_programs_are_none(tmp_path: Path) -> None:
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(ran) (w) file closefile\n%%EOF\n"
    (tmp_path / "a.jpg").write_bytes(eps)
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png", format="PPM")
    for name in ("a.jpg", "b.png"):
        for function in (image_size, load_image):
            with pytest.raises(ImageError, match="not an image of a known format"):
                function(tmp_path / name)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_of_a_moving_or_manifold_picture_the_first_is_taken(tmp_path: Path, kind: str) -> None:
    frames = [Image.new("RGB", (12, 10), colour) for colour in ("red", "lime", "blue")]
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    data = io.BytesIO()
    frames[0].save(data, format=kind, save_all=True, append_images=frames[1:], **options)
    (tmp_path / "a.png").write_bytes(data.getvalue())
    red, green, blue = load_image(tmp_path / "a.png").float().mean((1, 2)).tolist()
    assert red > 250
    assert max(green, blue) < 5


def test_bad_captions_are_named_and_counted_and_the_others_are_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for i in range(30):
        picture(tmp_path / f"{i:02d}.png")
    lines = [json.dumps({"file_name": f"{i:02d}.png", "text": f"text {i}"}) for i in range(5)]
    lines += ["{broken", '{"file_name": "05.png", "text": 3}', '{"file_name": "gone.png", "text": "x"}', "[]"]
    lines += ['{"file_name": "../../up.png", "text": "x"}', "9" * 5000]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    (tmp_path / "06.txt").write_bytes("caf\xe9".encode("cp1252"))
    (tmp_path / "07.txt").write_text("beside", encoding="utf-32")
    (tmp_path / "08.txt").mkdir()
    os.mkfifo(tmp_path / "09.txt")
    (tmp_path / "10.txt").write_text("good")
    (tmp_path / "11.txt").symlink_to("nowhere.txt")
    with caplog.at_level(logging.WARNING):
        data = module(tmp_path, default_caption="a photo", max_unreadable_share=0.3)
    captions = {data.train.name(i)[:2]: data.train.captions[i] for i in range(30)}
    own = {f"{i:02d}": f"text {i}" for i in range(5)} | {"06": "caf\xe9", "10": "good"}
    assert captions == {f"{i:02d}": "a photo" for i in range(30)} | own
    assert [data.train.name(i)[:2] for i in range(30) if data.train.captioned[i]] == sorted(own)
    said = [line for line in caplog.messages if line.startswith("captions")]
    assert len(said) == 1 + data.summary()["bad_captions"] == 10
    parts = ["line 6: not valid JSON", "line 7: expected", "line 8: there is no readable image 'gone.png'"]
    parts += ["line 9: expected", "line 10: there is no", "line 11: not valid"]
    parts += [f"{name}.txt: cannot" for name in ("07", "09", "11")] + ["06.txt: not valid UTF-8, read as cp1252"]
    for part in parts:
        assert sum(part in line for line in said) == 1, part
    with pytest.raises(UserError, match=r"data\.max_unreadable_share=0\.1: 7 of 30 captions cannot be read"):
        module(tmp_path, max_unreadable_share=0.1)


def test_images_smaller_than_the_crop_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture(tmp_path / "a.png", size=(30, 30))
    picture(tmp_path / "b.png", size=(30, 15))
    with caplog.at_level(logging.WARNING):
        data = module(tmp_path, crop_size=16)
    assert "data.crop_size=16: 1 images are smaller and are enlarged" in caplog.text
    assert run(data)[0]["image"].shape == (2, 3, 16, 16)


def test_a_picture_of_one_row_is_not_blown_up(tmp_path: Path) -> None:
    picture(tmp_path / "row.png", size=(20_000, 1))
    with pytest.raises(UserError, match=r"data\.path: .*row\.png would have 512 x 10240000 pixels"):
        SingleImage(path=str(tmp_path / "row.png"), short_side=512, steps=1)
    picture(tmp_path / "one.png", size=(1, 1))
    assert SingleImage(path=str(tmp_path / "one.png"), short_side=16, steps=1).image.shape == (3, 16, 16)


def many(root: Path, count: int) -> None:
    """Links to one file of 75 bytes: `count` names."""
    root.mkdir()
    one = picture(root / "0000000.png", size=(2, 2))
    for i in range(1, count):
        if i % 30_000 == 0:  # a file can have 65,000 names
            one = picture(root / f"{i:07d}.png", size=(2, 2))
        else:
            os.link(one, root / f"{i:07d}.png")


@pytest.mark.parametrize("count", [2_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_very_many_files_in_one_folder(tmp_path: Path, count: int) -> None:
    many(tmp_path / "photos", count)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    found = find_images(tmp_path / "photos")
    listed = time.process_time() - start
    folder = ImageFolder(tmp_path / "photos", default_caption="")
    whole = time.process_time() - start
    assert len(found) == len(folder) == count
    assert listed < 60e-6 * count + 1
    assert whole < 600e-6 * count + 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1.5 * count + 20_000  # kB
