"""The presets of conf/speed, and a whole run with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_config import composed
from test_train import NETWORK, configuration, tiny, train_script  # noqa: F401

from smsff.build import build
from smsff.training.speed import Speed, to_device

PRESETS = {  # on a machine without a GPU
    "auto": (Speed(), "float32", "32-true"),
    "plain": (Speed(channels_last=False), "float32", "32-true"),
    "shared": (Speed(share_draw=True), "float32", "32-true"),
    "half": (Speed(channels_last=True), "bfloat16", "bf16-mixed"),
    "fast": (Speed(share_draw=True, channels_last=True), "bfloat16", "bf16-mixed"),
}


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize("name", sorted(p.stem for p in Path(__file__).parents[2].glob("conf/speed/*.yaml")))
def test_a_preset_is_what_it_says(name: str) -> None:
    plain = composed(f"speed={name}")
    built = build(plain["speed"])
    assert (built, plain["teacher"]["dtype"], plain["trainer"]["precision"]) == (
        Speed(**{**vars(PRESETS[name][0]), "compile": []}),
        *PRESETS[name][1:],
    )
    assert plain["trainer"]["accelerator"] == "auto"


@pytest.mark.parametrize(
    ("words", "bf16", "expected"),
    [
        ([], True, ("bfloat16", "bf16-mixed")),
        ([], False, ("float32", "32-true")),
        (["trainer=cpu"], True, ("float32", "32-true")),
        (["speed=plain"], True, ("float32", "32-true")),
        (["teacher.dtype=float16"], True, ("float16", "bf16-mixed")),
    ],
)
def test_on_a_gpu_the_precision_follows_the_device(
    words: list[str], bf16: bool, expected: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    plain = composed("style=ghibli", *words)
    assert (plain["teacher"]["dtype"], plain["trainer"]["precision"]) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_layout_follows_the_teacher_unless_it_is_given(dtype: torch.dtype) -> None:
    def laid_out(channels_last: bool | None) -> bool:
        teacher, generator = torch.nn.Module(), torch.nn.Conv2d(3, 4, 3)
        teacher.unet = torch.nn.Conv2d(3, 4, 3, dtype=dtype)
        Speed(channels_last=channels_last).set_memory_format(generator, teacher)
        return generator.weight.is_contiguous(memory_format=torch.channels_last)

    assert [laid_out(value) for value in (None, True, False)] == [dtype == torch.bfloat16, True, False]


@pytest.mark.parametrize("relevance", ["semantic", "uniform"])
def test_the_fast_preset_trains_and_learns(relevance: str, tiny: list[str], tmp_path: Path) -> None:  # noqa: F811
    cfg = configuration(
        *tiny,
        *NETWORK,
        "speed=fast",
        f"relevance={relevance}",
        "steps=3",
        "logger=none",
        f"run_dir={tmp_path}",
    )
    train_script.train(cfg)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["steps"] == 3
    assert metrics["figures"]["train/matching"] > 0
    assert metrics["figures"]["train/grad_norm_fake"] > 0
    assert metrics["figures"]["train/grad_norm_generator"] > 0
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert {value.dtype for name, value in state.items() if value.is_floating_point()} == {torch.float32}


def test_what_is_sent_is_the_same() -> None:
    x = torch.arange(3.0)
    assert torch.equal(to_device(x, torch.device("cpu")), x)
    assert to_device(x, torch.device("meta")).is_meta
