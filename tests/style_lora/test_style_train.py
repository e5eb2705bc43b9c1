"""A style LoRA through the training command: learning, files, resuming, processes."""

from __future__ import annotations

import csv
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from styled import LAYERS, write_pictures
from test_train import _leave_torch_as_it_was, command, configuration, finished, train_script  # noqa: F401

from smsff.errors import UserError
from smsff.style_lora.saving import SaveLora
from smsff.stylize.export import load_generator_from_checkpoint
from smsff.teacher.stable_diffusion import load_stable_diffusion

SMALL = [
    "experiment=style_lora",
    "trainer=cpu",
    "name=tiny",
    "steps=20",
    "log_every=1",
    "sample_every=10",
    "checkpoint_every=10",
    "callbacks.progress.every=10",
    "callbacks.lora.dtype=float32",
    "data.resolution=32",
    "data.batch_size=3",
    "data.val_max_side=48",
    "data.margin=0",
    "data.val_fraction=0.2",
    f"lora.target_modules=[{','.join(LAYERS)}]",
    "lora.rank=4",
    "lora.alpha=8",
    "optimizer.unet.lr=5e-3",
    "optimizer.unet.warmup_steps=0",
    "held_out.draws=1",
    "samples.steps=1",
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("styled"))


def losses(run: Path) -> list[float]:
    rows = [row for path in sorted(run.glob("csv/version_*/metrics.csv")) for row in csv.DictReader(path.open())]
    return [float(row["train/loss"]) for row in rows if row.get("train/loss")]


def test_twenty_steps_learn_and_leave_files_that_load(
    pictures: Path,
    tiny_base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger=train_script.log.name)
    run = tmp_path / "run"
    fixed = ["timesteps.t_min=200", "timesteps.t_max=400", "data.degraded.share=0", "callbacks.lora.history=true"]
    cfg = configuration(*SMALL, *fixed, f"teacher.base={tiny_base}", f"data.root={pictures}", f"run_dir={run}")
    train_script.train(cfg)
    found = losses(run)
    assert len(found) == 20
    assert sum(found[-5:]) < 0.9 * sum(found[:5])
    figures = json.loads((run / "metrics.json").read_text())["figures"]
    assert figures["held_out/lora t 200-300"] < figures["held_out/base t 200-300"]
    assert "trigger 'tiny style'" in caplog.text
    printed = capsys.readouterr().out
    assert "held-out loss, LoRA / base: t 0-50 " in printed
    assert (run / "samples" / "step_000020.png").is_file()
    names = ["tiny.safetensors", "tiny_000010.safetensors", "tiny_000020.safetensors", "tiny_diffusers.safetensors"]
    assert sorted(path.name for path in (run / "lora").iterdir()) == names
    with safe_open(run / "lora" / "tiny.safetensors", "pt") as file:
        assert file.metadata()["modelspec.trigger_phrase"] == "tiny style"
        assert file.metadata()["ss_steps"] == "20"
    assert_files_are_the_lora(run, tiny_base)
    with pytest.raises(UserError, match="a style LoRA, not a stylizer"):
        load_generator_from_checkpoint(run / "checkpoints" / "last.ckpt")


def assert_files_are_the_lora(run: Path, base: Path) -> None:
    """Both files, loaded as a style, predict what the weights of the checkpoint do: W + alpha / rank * up @ down."""
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    merged = load_stable_diffusion(base=str(base))
    for name, layer in merged.unet.named_modules():
        down = state.get(f"teacher.unet.{name}.lora_A.style.weight")
        if down is not None:
            up = state[f"teacher.unet.{name}.lora_B.style.weight"]
            weight = layer.weight  # type: ignore[union-attr]
            weight.data.add_(8 / 4 * (up.flatten(1) @ down.flatten(1)).view_as(weight))  # type: ignore[operator, arg-type]
    z, t, cond = torch.randn(2, 8, 8, 12), torch.tensor([30, 700]), merged.encode_prompts(["tiny style", ""])
    expected = merged.base(z, t, cond)
    for name in ("tiny.safetensors", "tiny_diffusers.safetensors"):
        styled = load_stable_diffusion(base=str(base), lora=str(run / "lora" / name))
        assert (styled.style(z, t, cond) - expected).abs().max() < 1e-5, name
        assert (styled.base(z, t, cond) - expected).abs().max() > 1e-3, name


@pytest.mark.parametrize("family", [pytest.param("sd1", marks=pytest.mark.slow), "sd2", "sdxl"])
def test_four_steps_on_every_family(
    family: str, pictures: Path, family_pipeline: Callable[[str], Path], tmp_path: Path
) -> None:
    options = [
        "teacher=sd15",
        "data.stride=16",
        "data.num_workers=0",
        "lora.text_rank=2",
        "lora.gradient_checkpointing=false",
    ]
    base = family_pipeline(family)
    cfg = configuration(
        *SMALL,
        *options,
        "steps=4",
        "sample_every=4",
        "checkpoint_every=4",
        "data.batch_size=1",
        f"teacher.base={base}",
        f"data.root={pictures}",
        f"run_dir={tmp_path}",
    )
    train_script.train(cfg)
    found = losses(tmp_path)
    assert len(found) == 4
    assert all(value == value for value in found)
    styled = load_stable_diffusion(base=str(base), lora=str(tmp_path / "lora" / "tiny.safetensors"))
    (report,) = styled.lora_reports
    assert not report.unmatched
    assert report.adapts_text


def test_a_resumed_run_is_the_uninterrupted_one(pictures: Path, tiny_base: Path, tmp_path: Path) -> None:
    common = [*SMALL, "steps=8", "checkpoint_every=4", "sample_every=8", "data.degraded.share=0.5"]
    common += [f"teacher.base={tiny_base}", f"data.root={pictures}"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train_script.train(configuration(*common, f"run_dir={whole}"))
    kept = next((whole / "checkpoints").glob("*00004*.ckpt"))
    train_script.train(configuration(*common, f"run_dir={broken}", f"ckpt_path={kept}"))
    a, b = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (whole, broken))
    assert a["global_step"] == b["global_step"] == 8
    assert all(torch.equal(a["state_dict"][name], b["state_dict"][name]) for name in a["state_dict"])
    assert losses(whole)[4:] == losses(broken)


@pytest.mark.slow
def test_two_processes_are_one_with_the_whole_batch(pictures: Path, tiny_base: Path, tmp_path: Path) -> None:
    common = [*SMALL, "steps=6", "sample_every=6", "data.degraded.share=0.5", "trainer.precision=64-true"]
    common += [f"teacher.base={tiny_base}", f"data.root={pictures}", f"data.prior.root={pictures}"]
    finished(command(*common, "trainer.devices=2", "data.batch_size=1", f"run_dir={tmp_path / 'two'}", cwd=tmp_path))
    train_script.train(configuration(*common, "data.batch_size=2", f"run_dir={tmp_path / 'one'}"))
    one, two = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("one", "two")
    )
    for name, weights in one.items():
        assert (two[name] - weights).abs().max() < 1e-6 * max(1.0, float(weights.abs().max())), name


def test_an_empty_folder_and_missing_weights_are_user_errors(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"data\.root: no images"):
        train_script.train(configuration(*SMALL, f"data.root={tmp_path / 'empty'}", f"run_dir={tmp_path / 'a'}"))
    cfg = configuration(*SMALL, f"data.root={pictures}", f"run_dir={tmp_path / 'b'}", f"teacher.base={tmp_path / 'no'}")
    with pytest.raises(UserError, match=r"teacher\.base"):
        train_script.train(cfg)
    with pytest.raises(UserError, match="name='a/b'"):
        SaveLora(folder=tmp_path, name="a/b")
    shutil.rmtree(tmp_path / "empty")
