"""Style matching on small pipelines of the published structures, through train.py itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from single_files import write_single_file
from test_train import command, finished, train_script
from tiny_pipelines import ATTENTION, write_kohya_lora

ROOT = Path(__file__).parents[2]
TEACHERS = {"sd15": "sd1", "sd2": "sd2", "sdxl": "sdxl"}

NETWORK = [
    "data.batch_size=2",
    "data.val_max_side=48",
    "warmup.steps=1",
    "+generator.widths=[8,8]",
    "+generator.encoder_blocks=[1,1]",
    "+generator.decoder_blocks=[1]",
]

Families = Callable[..., Path]


@pytest.fixture(autouse=True)
def _leave_torch_as_it_was() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(teacher: str, folder: Path, tmp_path: Path, *overrides: str) -> dict[str, float]:
    """The figures at the end of a small run, with a style LoRA that is made here."""
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    write_kohya_lora(tmp_path / "style.safetensors", unet, targets=ATTENTION)
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base="1.3"):
        cfg = compose(
            "train",
            overrides=[
                "style=ghibli",
                f"teacher={teacher}",
                f"teacher.base={folder}",
                f"style.lora={tmp_path / 'style.safetensors'}",
                "style.base=null",
                "resolution=32",
                "trainer=cpu",
                "logger=none",
                "log_every=1",
                "sample_every=1000",
                f"run_dir={tmp_path / 'run'}",
                *overrides,
            ],
        )
    train_script.train(cfg)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["status"] == "finished"
    return metrics["figures"]


def check(figures: dict[str, float]) -> None:
    assert figures["train/matching"] > 0
    assert figures["train/fake"] > 0
    assert figures["train/grad_norm_generator"] > 0
    assert figures["train/grad_norm_fake"] > 0


@pytest.mark.parametrize("teacher", TEACHERS)
def test_a_few_steps(teacher: str, family_pipeline: Families, tmp_path: Path) -> None:
    check(run(teacher, family_pipeline(TEACHERS[teacher]), tmp_path, *NETWORK, "steps=2"))


@pytest.mark.slow
@pytest.mark.parametrize("teacher", TEACHERS)
def test_twenty_steps_in_bfloat16(teacher: str, family_pipeline: Families, tmp_path: Path) -> None:
    folder = family_pipeline(TEACHERS[teacher])
    check(run(teacher, folder, tmp_path, *NETWORK, "steps=20", "teacher.dtype=bfloat16", "fake_draws=2"))


@pytest.mark.slow
def test_a_single_file_under_the_style(family_pipeline: Families, tmp_path: Path) -> None:
    folder = family_pipeline("sd1")
    file = write_single_file(tmp_path / "other.safetensors", family_pipeline("sd1", seed=1))
    bases = [f"style.base={file}", f"teacher.config={folder}"]
    check(run("sd15", folder, tmp_path, *NETWORK, "steps=20", *bases, "teacher.lora_text=false"))


@pytest.mark.slow
def test_one_picture_that_is_not_square(family_pipeline: Families, tmp_path: Path) -> None:
    photo = ROOT / "src" / "smsff" / "data" / "photos" / "val" / "flower.jpg"
    overrides = ["experiment=per_image", f"data.path={photo}", "data.short_side=48", "steps=20"]
    figures = run("sdxl", family_pipeline("sdxl"), tmp_path, *overrides)
    assert figures["train/matching"] > 0


@pytest.mark.slow
def test_the_command_of_the_readme_on_two_processes_and_on_one_picture(
    family_pipeline: Families, tmp_path: Path
) -> None:
    folder, lora = family_pipeline("sd1"), tmp_path / "style.safetensors"
    write_kohya_lora(lora, UNet2DConditionModel.from_pretrained(folder, subfolder="unet"), targets=ATTENTION)
    paths = [f"teacher.base={folder}", f"style.lora={lora}", f"style.base={family_pipeline('sd1', seed=1)}"]
    small = ["resolution=32", "steps=20", "log_every=1", "trainer.accelerator=cpu", *paths]
    text = finished(command("style=ghibli", "trainer.devices=2", *small, *NETWORK, "run_dir=two", cwd=tmp_path))
    assert "2 cpu (DDP), 32-true" in text
    assert "off      nothing" in text
    one = ["experiment=per_image", "data.short_side=32", "run_dir=one"]
    finished(command("style=ghibli", *small, *one, cwd=tmp_path))
    for run_dir in ("two", "one"):
        metrics = json.loads((tmp_path / run_dir / "metrics.json").read_text())
        assert (metrics["status"], metrics["steps"]) == ("finished", 20)
        check(metrics["figures"])
        assert 0 < metrics["figures"]["train/relevance"] < 1
