"""Shards of a folder: the same samples as from the folder, whatever happens while they are written."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from same_run import content, difference
from test_datamodule import batches, data, fit, same
from test_train import NETWORK, command, finished, tiny  # noqa: F401

from smsff import cli
from smsff.data import shards
from smsff.data.datamodule import ImageDataModule
from smsff.data.folder import INDEX, PLAN, ImageFolder
from smsff.data.own import OWN, own_photos
from smsff.errors import UserError
from smsff.weights.doctor import _pictures

LOST = {"empty.png", "trip/text.jpg"}
CUT = "trip/cut.png"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """13 readable pictures of 3 MB together, with what else a folder may hold."""
    root = tmp_path_factory.mktemp("photos")
    names = [*(f"{i}.png" for i in range(8)), CUT, "trip/a.b.jpeg", "trip/IMG.JPG", "trip/\udcff.png", "z.png", "x.tga"]
    (root / "trip").mkdir()
    for i, name in enumerate(names):
        pixels = np.random.default_rng(i).integers(0, 256, (250 + i, 300, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name, format="PNG" if name.endswith(("png", "tga")) else "JPEG")
    (root / CUT).write_bytes((root / CUT).read_bytes()[:-3000])
    (root / "empty.png").touch()
    (root / "trip/text.jpg").write_text("a text")
    (root / "a.jxl").touch()
    lines = [json.dumps({"file_name": f"{i}.png", "text": f"photo {i} \u00e9 \ud800"}) for i in range(5)]
    (root / "metadata.jsonl").write_text("\n".join([*lines, "{broken", '{"file_name": "gone.png", "text": "x"}']))
    (root / "trip/IMG.txt").write_text("on the way")
    return root


@pytest.fixture(scope="module")
def packed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "new" / "shards"
    assert cli.main(["shards", str(photos), str(out), "--shard-mb", "1"]) == 1
    return out


def modules(*roots: Path, **options: Any) -> list[ImageDataModule]:
    options = {"max_unreadable_share": 0.8, "val_fraction": 0.2, "default_caption": "a photo", **options}
    return [data(root, cache_mb=options.pop("cache_mb", 0), **options) for root in roots]


@pytest.mark.filterwarnings("ignore::UserWarning")  # more workers than cores
@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize(("world", "done"), [(1, 0), (2, 0), (1, 7), (2, 7)])
def test_batches_are_those_of_the_folder(photos: Path, packed: Path, world: int, done: int, workers: int) -> None:
    seen: set[str] = set()
    for rank in range(world):
        ours, theirs = (
            batches(one, rank=rank, world=world, done=done)
            for one in modules(packed, photos, batch_size=4 // world, num_workers=workers)
        )
        assert len(ours) == 12 - done
        for a, b in zip(ours, theirs, strict=True):
            assert same(a, b)
            assert a["unreadable"].keys() == b["unreadable"].keys()
            seen |= a["unreadable"].keys()
    assert seen == {CUT}


@pytest.mark.parametrize("options", [{}, {"max_pixels": 300 * 260}, {"cache_mb": 100}])
def test_everything_else_is_that_of_the_folder(
    photos: Path, packed: Path, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    found, said = [], []
    for root in (packed, photos):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            (module,) = modules(root, **options)
            module.setup("fit")
        said.append(len(caplog.messages))
        val = [(batch["name"], batch["caption"], batch["image"].sum()) for batch in module.val_dataloader()]
        overview = module.overview().removeprefix(str(root))
        state, summary, lost = module.state_dict(), module.summary(), sorted(module.unreadable)
        found.append((state, summary, lost, overview, module.captions(), module.train.others, val))
    assert found[0] == found[1]
    assert said[0] == said[1] > 3
    assert set(found[0][2]) >= LOST
    assert found[0][5] == ["a.jxl"]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_training_goes_on_from_the_other(
    photos: Path, packed: Path, tmp_path: Path, order: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    begun, other = (modules(photos, packed, steps=6)[i] for i in order)
    whole = fit(modules(photos, steps=6)[0], tmp_path / "whole", max_steps=6)
    fit(begun, tmp_path / "cut", stop_at=4, max_steps=6)
    with caplog.at_level(logging.WARNING):
        rest = fit(other, tmp_path / "cut", ckpt=str(tmp_path / "cut/step=3.ckpt"), max_steps=6)
    assert rest.seen == whole.seen[3:]
    assert torch.equal(rest.weight, whole.weight)
    assert "ckpt_path" not in caplog.text


@pytest.mark.slow
def test_two_processes_train_the_same_and_go_on_from_the_folder(
    photos: Path,
    packed: Path,
    tiny: list[str],  # noqa: F811
    tmp_path: Path,
) -> None:
    network = [option for option in NETWORK if not option.startswith("data.batch_size")]
    common = [*tiny, *network, "trainer.devices=2", "data.batch_size=1", "data.max_unreadable_share=0.5"]
    folder = tmp_path / "folder"
    runs = {
        folder: ["data=folder", f"data.root={photos}", "data.num_workers=0"],
        tmp_path / "shards": ["data=shards", f"data.root={packed}", "data.num_workers=3"],
        tmp_path / "rest": ["data=shards", f"data.root={packed}", f"ckpt_path={folder}/checkpoints/step_000002.ckpt"],
    }
    for run, options in runs.items():
        printed = finished(command(*common, *options, f"run_dir={run}", cwd=tmp_path))
        assert "the names, sizes or captions of the training images" not in printed
    whole = content(folder)
    assert whole["global_step"] == 4
    for run in list(runs)[1:]:
        for part in ("state_dict", "optimizer_states"):
            assert difference(content(run)[part], whole[part]) is None, (run.name, part)


def test_the_files_are_plain_tar_with_the_pictures_as_they_are(photos: Path, packed: Path) -> None:
    index = json.loads((packed / INDEX).read_text())
    assert not (packed / PLAN).exists()
    files = sorted(packed.glob("*.tar"))
    assert [file.name for file in files] == ["000000.tar", "000001.tar", "000002.tar"]
    assert all(file.stat().st_size < 1.02e6 for file in files)
    seen = []
    for shard, file in enumerate(files):
        with tarfile.open(file) as tar:
            for member in tar.getmembers():
                number, ending = member.name.split(".")
                name = index["names"][int(number)]
                content = tar.extractfile(member).read()  # type: ignore[union-attr]
                if ending == "txt":
                    assert content == index["captions"][int(number)].encode()
                    continue
                assert content == (photos / name).read_bytes()
                assert index["places"][int(number)][:3] == [shard, member.offset_data, member.size]
                seen.append(int(number))
    assert seen == list(range(14))
    assert sum(text is not None for text in index["captions"]) == 6


def test_samples_can_be_sent_to_spawned_workers(packed: Path) -> None:
    (module,) = modules(packed)
    copy = pickle.loads(pickle.dumps(module.train))
    assert torch.equal(copy.load(1), module.train.load(1))


def test_what_was_ended_goes_on(
    photos: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["shards", str(photos), str(tmp_path / "out"), "--shard-mb", "1"]
    original = shards.write_shard

    def stop_in_the_second(path: Path, **options: Any) -> None:
        original(path, **options)
        if path.stem == "000001":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_shard", stop_in_the_second)
        assert cli.main(words) == 130
    assert sorted(os.listdir(tmp_path / "out")) == ["000000.tar", PLAN]
    with pytest.raises(UserError, match=r"data\.root: .*shards are missing.*smsff shards"):
        modules(tmp_path / "out")
    first = (tmp_path / "out/000000.tar").stat().st_mtime_ns
    for _ in range(2):  # the second time there is nothing to do
        assert cli.main(words) == 1
    assert (tmp_path / "out/000000.tar").stat().st_mtime_ns == first
    names = sorted(os.listdir(packed))
    assert sorted(os.listdir(tmp_path / "out")) == names
    assert all((tmp_path / "out" / name).read_bytes() == (packed / name).read_bytes() for name in names)
    assert "14 images, 2 left out, in 3 shards" in capsys.readouterr().out


def small(root: Path, *names: str) -> Path:
    root.mkdir(exist_ok=True)
    for i, name in enumerate(names):
        Image.new("RGB", (20, 30), (i, 0, 0)).save(root / name)
    return root


def test_a_folder_that_has_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, out = small(tmp_path / "photos", "a.png", "b.png"), tmp_path / "out"
    words = ["shards", str(photos), str(out)]
    assert cli.main(words) == 0
    os.utime(photos / "a.png", (1, 1))
    assert cli.main(words) == 2
    assert "--overwrite" in capsys.readouterr().err
    shutil.copy(out / "000000.tar", out / "000001.tar")
    small(photos, "b.png", "c.png")
    assert cli.main([*words, "--overwrite"]) == 0
    assert sorted(os.listdir(out)) == ["000000.tar", INDEX]
    assert ImageFolder(out, default_caption="").names == ["a.png", "b.png", "c.png"]
    (out / INDEX).rename(out / PLAN)  # as if ended before all were there
    (photos / "c.png").unlink()
    assert cli.main(words) == 0
    assert ImageFolder(out, default_caption="").names == ["a.png", "b.png"]


def test_a_picture_that_changes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = small(tmp_path / "photos", "a.png", "b.png")
    original = shards.prepare

    def touch(*words: Any, **options: Any) -> None:
        original(*words, **options)
        os.utime(photos / "b.png", (1, 1))

    monkeypatch.setattr(shards, "prepare", touch)
    assert cli.main(["shards", str(photos), str(tmp_path / "out")]) == 2
    assert os.listdir(tmp_path / "out") == [PLAN]


def test_bad_places_are_refused(tmp_path: Path, packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = small(tmp_path / "photos", "a.png")
    for folder, out, part in (
        (photos, photos / "in", "must lie outside"),
        (photos, photos.parent / "full", "is neither"),
        (packed, tmp_path / "out", "holds shards already"),
        (tmp_path / "full", tmp_path / "out", "FOLDER: no images"),
        (photos, Path("/dev/null/out"), "/dev/null/out"),
    ):
        small(tmp_path / "full").joinpath("other.tar").touch()
        assert cli.main(["shards", str(folder), str(out)]) == 2
        assert part in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["full", "photos"]


def test_damaged_shards_are_named_before_the_run(tmp_path: Path, packed: Path) -> None:
    out = tmp_path / "out"
    for name, change, part in (
        ("000001.tar", lambda path: os.truncate(path, path.stat().st_size // 2), "000001.tar: missing or cut"),
        ("000002.tar", Path.unlink, "000002.tar: missing or cut"),
        (INDEX, lambda path: os.truncate(path, 100), f"{INDEX}: not an index"),
        (INDEX, lambda path: path.write_text("{}"), f"{INDEX}: not an index"),
        (INDEX, lambda path: path.write_text("[]"), f"{INDEX}: not an index"),
    ):
        shutil.copytree(packed, out)
        change(out / name)
        with pytest.raises(UserError, match=f"data.root: .*{part}"):
            modules(out)
        shutil.rmtree(out)


def test_a_shard_damaged_within_is_as_a_damaged_picture(tmp_path: Path, packed: Path) -> None:
    shutil.copytree(packed, tmp_path / "out")
    folder = ImageFolder(tmp_path / "out", default_caption="")
    with (tmp_path / "out/000000.tar").open("r+b") as file:
        file.seek(512)
        file.write(bytes(1000))
    _, index, skipped = folder.load_or_next(0)
    assert index == 1
    assert "000000.tar/0.png: cannot be read as an image" in skipped["0.png"]


def test_shards_are_found_where_pictures_are_looked_for(
    tmp_path: Path, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(packed, OWN)
    assert own_photos() == OWN
    found, problems = _pictures({"root": OWN})
    assert found is not None
    assert (found["images"], problems) == (14, [])
    assert "1 .jxl" in found["left_out"]
    os.truncate(f"{OWN}/000000.tar", 0)
    assert "cut short" in _pictures({"root": OWN})[1][0]
