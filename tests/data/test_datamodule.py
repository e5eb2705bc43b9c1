from __future__ import annotations

import contextlib
import logging
import os
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import Tensor

from smsff.data.datamodule import BatchDraws, ImageDataModule, end_with, image_index
from smsff.data.single import SingleImage

Record = tuple[list[int], list[int], list[int], float, list[str]]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    generator = torch.Generator().manual_seed(0)
    for i in range(7):
        noise = torch.randint(0, 256, (30 + i, 40, 3), dtype=torch.uint8, generator=generator)
        Image.fromarray(noise.numpy()).save(root / f"{i}.png")
        (root / f"{i}.txt").write_text(f"photo {i}")
    return root


def data(root: Path, **options: Any) -> ImageDataModule:
    defaults = {"crop_size": 16, "batch_size": 2, "steps": 12, "val_fraction": 0.0, "seed": 3}
    return ImageDataModule(root=str(root), **{**defaults, **options})


def batches(module: ImageDataModule, *, rank: int = 0, world: int = 1, done: int = 0) -> list[dict[str, Any]]:
    progress = SimpleNamespace(batch_progress=SimpleNamespace(total=SimpleNamespace(processed=done)))
    loop = SimpleNamespace(epoch_loop=progress)
    trainer = SimpleNamespace(global_rank=rank, world_size=world, accumulate_grad_batches=1, fit_loop=loop)
    module.trainer = trainer  # type: ignore[assignment]
    return list(module.train_dataloader())


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    tensors = all(torch.equal(a[key], b[key]) for key in ("image", "index", "position", "iteration"))
    return tensors and a["caption"] == b["caption"]


def test_batch_layout(photos: Path) -> None:
    first, *_, last = batches(data(photos, batch_size=3))
    assert first["image"].shape == (3, 3, 16, 16)
    assert first["image"].dtype == torch.float32
    assert first["image"].min() >= -1
    assert first["image"].max() <= 1
    assert first["caption"] == [f"photo {i}" for i in first["index"].tolist()]
    assert first["position"].tolist() == [0, 1, 2]
    assert first["position"].dtype == torch.long
    assert last["iteration"].tolist() == [11] * 3


@pytest.mark.parametrize("world", [2, 4])
def test_many_processes_see_what_one_sees(photos: Path, world: int) -> None:
    whole = batches(data(photos, batch_size=4))
    parts = [batches(data(photos, batch_size=4 // world), rank=rank, world=world) for rank in range(world)]
    for one, *many in zip(whole, *parts, strict=True):
        for key in ("image", "index", "position", "iteration"):
            assert torch.equal(one[key], torch.cat([part[key] for part in many]))
        assert one["caption"] == [caption for part in many for caption in part["caption"]]


@pytest.mark.parametrize("options", [{"num_workers": 2}, {"num_workers": 1, "cache_mb": 0}, {"cache_mb": 0}])
def test_workers_and_cache_do_not_matter(photos: Path, options: dict[str, Any]) -> None:
    plain, other = data(photos), data(photos, **options)
    for module in (plain, other):
        module.setup("fit")
    assert all(same(a, b) for a, b in zip(batches(plain), batches(other), strict=True))


def test_seed_iteration_and_position_matter(photos: Path) -> None:
    images = [image for batch in batches(data(photos)) for image in batch["image"]]
    assert len({image.sum().item() for image in images}) == len(images) == 24
    again, other = batches(data(photos)), batches(data(photos, seed=4))
    assert same(again[0], batches(data(photos))[0])
    assert not same(again[0], other[0])


@pytest.mark.parametrize(("count", "global_batch"), [(7, 2), (7, 3), (5, 8), (1, 4), (12, 12)])
def test_every_image_comes_once_in_each_pass(count: int, global_batch: int) -> None:
    draws = [(i, p) for i in range(6 * count) for p in range(global_batch)]
    seen = [image_index(draw, seed=1, count=count, global_batch=global_batch) for draw in draws]
    passes = [seen[start : start + count] for start in range(0, len(seen), count)]
    assert all(sorted(one) == list(range(count)) for one in passes)
    if count > 2:
        assert len({tuple(one) for one in passes}) > 1


def test_a_loader_begins_where_the_training_is(photos: Path) -> None:
    whole, rest = batches(data(photos)), batches(data(photos), done=5)
    assert len(rest) == 7
    assert all(same(a, b) for a, b in zip(whole[5:], rest, strict=True))
    draws = BatchDraws(batch_size=1, batches=4, rank=0, start=lambda: 9)
    assert len(draws) == 4
    assert [batch[0][0] for batch in draws] == [9, 10, 11]


class Recorder(LightningModule):
    """Learns something and writes down what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(3))
        self.seen: list[Record] = []
        self.validated: list[tuple[str, tuple[int, ...]]] = []
        self.stop_at: int | None = None

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        assert "unreadable" not in batch
        if batch_idx == self.stop_at:
            raise StoppedError
        numbers = [batch[key].tolist() for key in ("index", "position", "iteration")]
        self.seen.append((*numbers, batch["image"].double().sum().item(), batch["caption"]))
        return ((self.weight[:, None, None] - batch["image"]) ** 2).mean()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        assert "unreadable" not in batch
        self.validated.append((batch["name"][0], tuple(batch["image"].shape)))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([self.weight], lr=0.1)


class StoppedError(Exception):
    """Stands for the end of a process."""


def fit(data_module: ImageDataModule, folder: Path, *, stop_at: int | None = None, **options: Any) -> Recorder:
    """Train, saving a checkpoint after each step; ``stop_at`` breaks off before that micro-batch."""
    model, ckpt = Recorder(), options.pop("ckpt", None)
    model.stop_at = stop_at
    saver = ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    rules = {"use_distributed_sampler": False, "max_epochs": -1, "callbacks": [saver]}
    trainer = Trainer(accelerator="cpu", devices=1, **quiet, **rules, **options)
    with contextlib.suppress(StoppedError):
        trainer.fit(model, datamodule=data_module, ckpt_path=ckpt)
    return model


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("workers", "accumulate"), [(0, 1), (2, 1), (0, 2)])
def test_a_resumed_training_sees_the_same_batches(photos: Path, tmp_path: Path, workers: int, accumulate: int) -> None:
    def module() -> ImageDataModule:
        return data(photos, num_workers=workers, steps=8)

    options = {"max_steps": 8, "accumulate_grad_batches": accumulate}
    whole = fit(module(), tmp_path / "whole", **options)
    assert [record[2][0] for record in whole.seen] == list(range(8 * accumulate))
    cut = 5 * accumulate
    # Killed two batches after the checkpoint that is used: what came after it counts for nothing.
    stopped = fit(module(), tmp_path / "cut", stop_at=cut + 2, **options)
    assert stopped.seen == whole.seen[: cut + 2]
    resumed = fit(module(), tmp_path / "cut", ckpt=str(tmp_path / "cut" / "step=5.ckpt"), **options)
    assert resumed.seen == whole.seen[cut:]
    assert torch.equal(resumed.weight, whole.weight)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_passes_beyond_the_first_go_on_counting(photos: Path, tmp_path: Path) -> None:
    model = fit(data(photos, steps=4), tmp_path, max_steps=10)
    assert [record[2][0] for record in model.seen] == list(range(10))


def test_resuming_warns_of_nothing(photos: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    fit(data(photos, steps=6), tmp_path, stop_at=4, max_steps=6)
    fit(data(photos, steps=6), tmp_path, ckpt=str(tmp_path / "step=3.ckpt"), max_steps=6)
    assert not [str(w.message) for w in recwarn if "not resumable" in str(w.message)]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_validation_is_on_whole_images_of_the_other_part(photos: Path, tmp_path: Path) -> None:
    module = data(photos, val_fraction=0.4, steps=4, val_max_side=32)
    model = fit(module, tmp_path, max_steps=4, val_check_interval=2, num_sanity_val_steps=0)
    names = [module.val.name(i) for i in range(len(module.val))]
    assert names
    assert [name for name, _ in model.validated] == names * 2
    assert all(max(shape[2:]) == 32 and shape[:2] == (1, 3) for _, shape in model.validated)
    train = {module.train.name(i) for i in range(len(module.train))}
    assert train.isdisjoint(names)
    assert len(train) + len(names) == 7


def test_without_validation_images_there_is_no_loader(photos: Path) -> None:
    assert data(photos).val_dataloader() == []


def test_the_overview_has_every_count(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "a")
    module = data(tmp_path / "a", val_fraction=0.4)
    counts = f"{len(module.train)} images for training, {len(module.val)} for validation"
    assert module.overview() == f"{tmp_path}/a: {counts}; 7 of 7 have captions of their own"
    for name in ("0.txt", "1.txt"):
        (tmp_path / "a" / name).unlink()
    (tmp_path / "a/bad.png").touch()
    for name in ("gone.txt", "a.json", "b.json"):
        (tmp_path / "a" / name).touch()
    module = data(tmp_path / "a", val_fraction=0.4, default_caption="a photo", max_unreadable_share=0.5)
    assert module.overview() == (
        f"{tmp_path}/a: {counts}; 5 of 7 have captions of their own, the others 'a photo'; left out (see the log): "
        "1 images, 2 captions or kinds of files"
    )
    bundled = ImageDataModule(crop_size=32, batch_size=2, steps=2)
    assert bundled.overview().startswith("the bundled photos: 21 images for training, 3 for validation; 0 of 24 have")
    single = SingleImage(path=str(photos / "0.png"), short_side=16, caption="a lake", steps=1)
    assert single.overview() == f"{photos}/0.png: one picture of 24 x 16 pixels, caption 'a lake'"


def test_bundled_photos() -> None:
    module = ImageDataModule(crop_size=32, batch_size=2, steps=2, default_caption="a photo")
    module.setup("fit")
    assert module.summary() == {
        "train_images": 21, "val_images": 3, "test_images": 2, "captions": 1, "unreadable_images": 0,
        "other_pictures": 0, "bad_captions": 0,
    }  # fmt: skip
    assert [batch["name"] for batch in module.test_dataloader()] == [["chelsea.jpg"], ["coffee.jpg"]]
    flower, *others = list(module.val_dataloader())
    assert [batch["name"] for batch in others] == [["raccoon.jpg"], ["room.jpg"]]
    assert flower["image"].shape == (1, 3, 427, 640)
    assert flower["caption"] == ["a photo"]
    assert len(module.train_dataloader()) == 2
    assert module.captions() == ["a photo"]


def test_of_very_many_unreadable_images_the_first_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    for i in range(50):
        (tmp_path / f"bad{i}.png").touch()
    with caplog.at_level(logging.WARNING):
        assert data(tmp_path, max_unreadable_share=1).summary()["unreadable_images"] == 50
    assert len(caplog.records) == 21
    assert "30 more" in caplog.text


@pytest.mark.parametrize(("parent", "status"), [(os.getpid(), 7), (1, 1)], ids=["alive", "gone"])
def test_a_worker_whose_training_is_gone_before_it_starts_ends(parent: int, status: int) -> None:
    child = os.fork()
    if child == 0:
        end_with(parent, 0)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == status


def test_samples_can_be_sent_to_spawned_workers(photos: Path) -> None:
    loader = data(photos).train_dataloader()
    copy = pickle.loads(pickle.dumps(loader.dataset))
    assert torch.equal(copy[(3, 1)]["image"], loader.dataset[(3, 1)]["image"])
