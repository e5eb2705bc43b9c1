"""Style matching, per-image mode and style LoRAs on small flow transformers, through train.py itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from flow_files import original_names
from safetensors.torch import save_file
from same_run import PARTS, content, difference, losses
from styled import write_pictures
from test_families_train import NETWORK, ROOT, check
from test_flow_lora import LAYERS, Files
from test_train import _leave_torch_as_it_was, command, configuration, finished, train_script  # noqa: F401
from tiny_flow import FAMILIES, build_flow

from smsff.stylize.export import load_generator_from_checkpoint
from smsff.teacher.flow.load import load_flow

Flows = Callable[..., Path]


@pytest.fixture
def options(flow_pipeline: Flows, tmp_path: Path) -> Callable[[str], list[str]]:
    """Overrides for a small run on a family, with a style LoRA."""

    def of(family: str) -> list[str]:
        files = Files(build_flow(family).transformer, family)
        save_file(files.peft("transformer.", files.pairs), tmp_path / "style.safetensors")
        return [
            "style=ghibli",
            f"teacher={family}",
            f"teacher.base={flow_pipeline(family)}",
            f"style.lora={tmp_path / 'style.safetensors'}",
            "style.base=null",
            "resolution=64",
            "trainer=cpu",
            "log_every=1",
            "sample_every=1000",
        ]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_twenty_steps_then_resumed_and_exported(
    family: str, options: Callable[[str], list[str]], tmp_path: Path
) -> None:
    common = [*options(family), *NETWORK, "steps=20", "checkpoint_every=10", "fake_draws=2"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train_script.train(configuration(*common, f"run_dir={whole}"))
    metrics = json.loads((whole / "metrics.json").read_text())
    check(metrics["figures"])
    assert 0 < metrics["figures"]["train/relevance"] < 1
    kept = next((whole / "checkpoints").glob("*00010*.ckpt"))
    train_script.train(configuration(*common, f"run_dir={broken}", f"ckpt_path={kept}"))
    a, b = content(whole), content(broken)
    assert difference({part: a[part] for part in PARTS}, {part: b[part] for part in PARTS}) is None
    network, _ = load_generator_from_checkpoint(whole)
    x = torch.rand(1, 3, 40, 56) * 2 - 1
    assert network(x).shape == x.shape


@pytest.mark.slow
def test_two_processes_with_a_single_file_equal_one_with_the_folder_and_the_whole_batch(
    options: Callable[[str], list[str]], flow_pipeline: Flows, tmp_path: Path
) -> None:
    file, runs = tmp_path / "mine.safetensors", (tmp_path / "one", tmp_path / "two")
    save_file(original_names(build_flow("sd35").transformer, "sd35"), file)
    common = [*options("sd35"), *NETWORK, "steps=5", "trainer.precision=64-true", "fake_draws=2"]
    train_script.train(configuration(*common, f"run_dir={runs[0]}"))
    single = [f"teacher.base={file}", f"teacher.config={flow_pipeline('sd35')}"]
    split = ["trainer.devices=2", "data.batch_size=1", f"run_dir={runs[1]}"]
    words = [word for word in common if not word.startswith(("data.batch_size", "teacher.base"))]
    finished(command(*words, *single, *split, cwd=tmp_path))
    one, two = (content(run)["state_dict"] for run in runs)
    assert one.keys() == two.keys()
    for name, weights in one.items():
        assert (two[name] - weights).abs().max() <= 1e-5 * weights.abs().max(), name
    assert any("lora_B" in name and weights.any() for name, weights in one.items())  # of the fake: zero at the start


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_ten_steps_on_one_picture_that_is_not_square(
    family: str, options: Callable[[str], list[str]], tmp_path: Path
) -> None:
    photo = ROOT / "src" / "smsff" / "data" / "photos" / "val" / "flower.jpg"
    picture = ["experiment=per_image", f"data.path={photo}", "data.short_side=64", "steps=10", "fake_draws=1"]
    train_script.train(configuration(*options(family), *picture, f"run_dir={tmp_path / 'run'}"))
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["status"] == "finished"
    check(metrics["figures"])


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_twenty_steps_of_a_style_lora_whose_files_give_the_trained_score(
    family: str, flow_pipeline: Flows, tmp_path: Path
) -> None:
    base, run = str(flow_pipeline(family)), tmp_path / "run"
    small = ["data.resolution=64", "data.val_max_side=64", "data.batch_size=2", "lora.rank=4", "held_out.draws=1"]
    small += ["samples.steps=1", "callbacks.lora.dtype=float32", "optimizer.unet.lr=1e-2", "data.num_workers=0"]
    pictures = write_pictures(tmp_path / "pictures")
    train_script.train(
        configuration(
            *("experiment=style_lora", f"teacher={family}", f"teacher.base={base}", f"data.root={pictures}"),
            *("name=tiny", "trainer=cpu", "steps=20", "log_every=1", "sample_every=20", "checkpoint_every=20"),
            *small,
            f"run_dir={run}",
        )
    )
    found = [float(row["train/loss"]) for row in losses(run).values()]
    assert len(found) == 20
    assert all(value == value for value in found)
    styles = []
    for name in ("tiny.safetensors", "tiny_diffusers.safetensors"):
        teacher = load_flow(base=base, lora=str(run / "lora" / name))
        (report,) = teacher.lora_reports
        assert (report.unmatched, report.info.unusable) == ((), ())
        torch.manual_seed(1)
        z_t, t = torch.randn(2, teacher.latent.channels, 8, 12), torch.tensor([100, 600])
        cond = teacher.encode_prompts(["tiny style", "tiny style, caption 1"])
        styles.append(teacher.style(z_t, t, cond))
        assert (styles[0] - teacher.base(z_t, t, cond)).abs().max() > 1e-3
    torch.testing.assert_close(*styles, atol=1e-5, rtol=0)


def test_layers_of_the_presets_are_those_of_the_transformers() -> None:
    """A name that fits no layer would stop a run only after the weights are there."""
    from omegaconf import OmegaConf

    for family in FAMILIES:
        names = [name for name, _ in build_flow(family).transformer.named_modules()]
        for preset in ("style_lora", "style_matching"):
            plain = OmegaConf.load(ROOT / "conf" / "tuned" / preset / f"{family}.yaml")
            node = plain.lora if preset == "style_lora" else plain.fake_score
            for target in node.target_modules:
                assert any(name.endswith(f".{target}") for name in names), (family, preset, target)
    assert LAYERS.keys() == set(FAMILIES)
