"""What is trained on without a word about data."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from smsff.build import build, build_parts, warn_of_samples
from smsff.config.check import check_config, resolve
from smsff.errors import UserError
from smsff.training.opening import opening

ROOT = Path(__file__).parent.parent.parent
LOG = "smsff.build"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    GlobalHydra.instance().clear()


def photos(folder: str, count: int = 3) -> None:
    os.makedirs(folder)
    for number in range(count):
        Image.new("RGB", (300, 200), (number, 0, 0)).save(f"{folder}/{number}.jpg")


def composed(*overrides: str) -> dict[str, Any]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base="1.3"):
        plain = resolve(compose("train", overrides=["run_dir=unused", *overrides]))
    check_config(plain)
    return plain


@pytest.mark.parametrize("style", [[], ["style=ghibli"]])
def test_photos_of_ones_own_are_used_if_there_are_any(style: list[str]) -> None:
    assert composed(*style)["data"]["root"] is None
    os.makedirs("data/photos/empty")
    Path("data/photos/README.txt").touch()
    assert composed(*style)["data"]["root"] is None
    photos("data/photos/sub")
    assert composed(*style)["data"]["root"] == str(Path.cwd() / "data" / "photos")
    assert composed(*style, "data=bundled")["data"]["root"] is None
    assert composed(*style, "data.root=elsewhere")["data"]["root"] == str(Path.cwd() / "elsewhere")


def test_pictures_of_a_kind_that_is_not_read_are_no_reason_to_train_on_others() -> None:
    os.makedirs("data/photos")
    Path("data/photos/a.cr2").write_bytes(b"II*")
    with pytest.raises(UserError, match=r"data\.root: no images in .*data/photos .*a\.cr2"):
        build_parts(composed())


def test_the_choices_of_data_differ_in_the_folder_alone() -> None:
    bundled, folder, own = composed("data=bundled"), composed("data=folder", "data.root=x"), composed("data.root=x")
    assert folder == own
    assert {key for key, value in bundled["data"].items() if value != folder["data"][key]} <= {"root", "num_workers"}


def test_the_screen_at_the_start_of_a_run() -> None:
    photos("data/photos")
    Path("data/photos/1.txt").write_text("a lake")
    plain = composed(
        "style=ghibli", "experiment=ablation_spectrum", "trainer.devices=8", "trainer.precision=bf16-mixed"
    )
    strategy = type("DDPStrategy", (), {"root_device": torch.device("cpu")})()
    trainer: Any = SimpleNamespace(strategy=strategy, world_size=8, accumulate_grad_batches=2)
    module: Any = SimpleNamespace(teacher=SimpleNamespace(lora_reports=["a LoRA, all of it"]))
    lines = dict(line.split(None, 1) for line in opening(plain, trainer, module, build(plain["data"])).splitlines())
    assert lines["method"].startswith("StyleMatchingObjective: weight posterior_variance, style_guidance 4.5")
    assert lines["off"] == "relevance map"
    assert lines["LoRA"] == "a LoRA, all of it"
    assert lines["base"].startswith("stable-diffusion-v1-5/stable-diffusion-v1-5, float32; the style's: gsdf/")
    assert lines["devices"] == "8 cpu (DDP), bf16-mixed"
    assert "2 images for training, 1 for validation; 1 of 3 have captions of their own" in lines["data"]
    assert lines["length"].startswith("20000 steps of 64 pictures, 500 of them warm-up")
    assert "on each device" in lines["memory"]


@pytest.mark.parametrize(
    ("overrides", "warned"),
    [
        (["style=ghibli"], True),
        (["style=ghibli", "data=bundled", "teacher.base=models/sd"], True),
        (["style=ghibli", "data.root=data/photos"], False),
        (["style=ghibli", "experiment=per_image"], False),
        ([], False),
    ],
)
def test_bundled_photos_with_a_base_they_are_too_few_for(
    overrides: list[str], warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    plain = composed(*overrides)
    photos("data/photos")
    with caplog.at_level(logging.WARNING, logger=LOG):
        warn_of_samples(plain, build(plain["data"]))
    said = [line for line in caplog.messages if "21 PHOTOS MAKE NO STYLIZER" in line]
    assert len(said) == warned
    assert all("data.root=FOLDER" in line and plain["teacher"]["base"] in line for line in said)
