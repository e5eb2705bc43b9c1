"""The arguments of the prediction of memory by configuration, and the problems where it is more than there is."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors import safe_open

from smsff.cli import main
from smsff.generator import ResNetGenerator, UNetGenerator
from smsff.generator.image import ImageGenerator
from smsff.weights import memory
from smsff.weights.compose import composed
from smsff.weights.doctor import lines
from smsff.weights.files import spell_size
from smsff.weights.forecast import fitting, forecast, room_problems
from smsff.weights.manifest import look, needs

CONF = Path(__file__).parents[2] / "conf"
GIGABYTE = 10**9


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., SimpleNamespace]:
    """``predicted(*overrides)`` gives what `predict` is called with: `base`, and its keyword arguments."""
    seen: dict[str, Any] = {}

    def predict(base: Any, **arguments: Any) -> memory.MemoryEstimate:
        seen.update(arguments, base=base)
        networks = (
            memory.Network("U-Net", 1000, "float32", 4000),
            memory.Network("style's U-Net", 500, "float32", 2000),
        )
        numbers = {field.name: 0 for field in fields(memory.MemoryEstimate)}
        return memory.MemoryEstimate(**numbers | {"networks": networks, "frozen": 6000, "trained": 100, "step": 20})

    monkeypatch.setattr(memory, "predict", predict)

    def ask(*overrides: str, gpus: int = 0) -> SimpleNamespace:
        plain = composed(CONF, overrides)
        found = [look(need, None, verify=False) for need in needs(plain)]
        report, reason = forecast(plain, found, gpus=gpus)
        assert reason is None
        return SimpleNamespace(**seen, report=report)

    return ask


def test_the_default(predicted: Callable[..., SimpleNamespace]) -> None:
    one, plain = predicted(), composed(CONF, [])
    side, rank = plain["data"]["crop_size"], plain["fake_score"]["rank"]
    assert (one.batch, one.size, one.dtype) == (plain["data"]["batch_size"], (side, side), "float32")
    assert (one.base.family, one.base.unet["in_channels"]) == ("sd1", 8)
    assert one.adapter == memory.Adapter(
        rank=rank, target_modules=one.adapter.target_modules, gradient_checkpointing=False, draws=1
    )
    assert isinstance(one.generator(), UNetGenerator)
    with safe_open(plain["teacher"]["lora"], "numpy") as file:
        assert one.style_lora == sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
    assert (one.style_base, one.mixed, one.doubled, one.gradient_checkpointing, one.processes) == (
        *(None, False, True, False, 1),
    )
    assert one.report["total"] == 6120
    assert one.report["run"] == 100 * (plain["checkpoint_keep"] + 2)
    assert one.report["to_fetch"] == 0


def test_published_shapes_stand_in_for_models_that_are_not_there(predicted: Callable[..., SimpleNamespace]) -> None:
    for teacher, family in (("sd15", "sd1"), ("sd2", "sd2"), ("sdxl", "sdxl")):
        assert predicted("style=ghibli", f"teacher={teacher}", "style.base=null").base.family == family
    for teacher in ("klein", "zimage", "flux1", "sd35", "qwen"):
        one = predicted("style=ghibli", f"teacher={teacher}", "style.base=null", "teacher.quantise=int8")
        assert (one.base.family.name, one.quantise) == (teacher, "int8")
        totals = one.report["quantised"]
        assert totals["int8"] == one.report["total"]
        assert totals["nf4"] < totals["int8"] < totals["null"]
    one = predicted("style=ghibli", "teacher.variant=fp16", "teacher.dtype=bfloat16")
    assert one.style_base is one.base
    assert one.report["assumed"] == ["teacher.style_base is of the shape of teacher.base"]
    assert one.report["to_fetch"] == 1500 * 2
    assert (one.dtype, one.size, one.gradient_checkpointing) == ("bfloat16", (512, 512), True)
    assert predicted("style=pixel_art", "style.base=null").report["to_fetch"] == 1000 * 4


def test_what_fits_a_card_is_said_by_quantisation() -> None:
    memory = {"total": 30 * GIGABYTE, "quantised": {"null": 30 * GIGABYTE, "int8": 20 * GIGABYTE, "nf4": 9 * GIGABYTE}}
    sizes = {48: "yes", 24: "with teacher.quantise=int8 or nf4", 12: "with teacher.quantise=nf4", 9: "no"}
    assert {size: fitting(memory, size * 10**9) for size in sizes} == sizes
    assert fitting(memory | {"quantised": {}}, 24 * 10**9) == "no"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data.batch_size=7", "data.crop_size=64", "fake_draws=3"], {"batch": 7, "size": (64, 64), "draws": 3}),
        (["trainer.precision=bf16-mixed"], {"mixed": True}),
        (["trainer.devices=-1"], {"processes": 3}),
        (["trainer.devices=[0,1]", "trainer.num_nodes=4"], {"processes": 8}),
        (["relevance=semantic"], {"doubled": True}),
        (["objective.style_guidance=4.5"], {"doubled": True}),
        (["objective=dds"], {"doubled": True, "adapter": None}),
        (["pullback=decoder"], {"through_decoder": True, "decoder": True, "share_draw": False}),
        (["pullback=encoder"], {"through_decoder": False, "decoder": False}),
        (["pullback=encoder", "experiment=per_image"], {"decoder": True, "encoder": False}),
        (["speed=shared"], {"share_draw": True}),
        (["experiment=per_image", "data.short_side=48"], {"batch": 1, "size": (48, 48), "generator": None}),
        (
            ["experiment=style_lora", "data.resolution=64", "lora.rank=5"],
            {"size": (64, 64), "generator": None, "rank": 5},
        ),
    ],
)
def test_settings_reach_the_prediction(
    predicted: Callable[..., SimpleNamespace], overrides: list[str], expected: dict[str, Any]
) -> None:
    one = predicted(*overrides, gpus=3)
    found = vars(one) | (vars(one.adapter) if one.adapter else {})
    assert {key: found[key] for key in expected} == expected


def test_the_generator_is_the_configured_one(predicted: Callable[..., SimpleNamespace]) -> None:
    assert isinstance(predicted("generator=resnet").generator(), ResNetGenerator)
    made = predicted("generator=image", "data=single", "data.short_side=96").generator()
    assert isinstance(made, ImageGenerator)
    assert made.value.shape == (1, 3, 96, 96)


def test_a_base_of_unknown_shape_has_no_forecast() -> None:
    plain = composed(CONF, ["style=ghibli", "teacher.base=me/model"])
    assert forecast(plain, [], gpus=0) == (None, "teacher.base=me/model is not there, and its shape is not known")


@pytest.mark.parametrize(
    ("change", "on_gpu", "problem"),
    [
        ({}, True, None),
        (
            {"total": 9 * GIGABYTE},
            True,
            "about 9.00 GB on each card are needed for 4 pictures of 512 pixels, and 7.50 GB",
        ),
        ({"total": 9 * GIGABYTE}, False, None),
        ({"total": 99 * GIGABYTE}, False, "about 99.00 GB of main memory are needed"),
        ({"run": 50 * GIGABYTE}, True, "run_dir=x: checkpoints need about 50.00 GB, and 40.00 GB are free there"),
    ],
)
def test_what_is_more_than_there_is(change: dict[str, int], on_gpu: bool, problem: str | None) -> None:
    needed = {"batch": 4, "size": 512, "total": 7 * GIGABYTE, "run": GIGABYTE} | change
    machine = {"memory": 16 * GIGABYTE, "gpus": [{"memory": 8 * GIGABYTE}, {"memory": 80 * GIGABYTE}]}
    found = room_problems(needed, machine, {"path": "x", "free": 40 * GIGABYTE}, on_gpu=on_gpu)
    assert len(found) == (problem is not None)
    assert problem is None or problem in found[0]


def test_the_report_of_the_embedded_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "--json", "data.crop_size=32", "data.batch_size=2"]) == 0
    whole = json.loads(capsys.readouterr().out)
    report, text = whole["memory"], "\n".join(lines(whole))
    generator = sum(p.numel() for p in UNetGenerator().parameters())
    unet = next(one for one in report["networks"] if one["name"] == "U-Net")
    assert unet["bytes"] == 4 * unet["parameters"]
    assert report["trained"] > 4 * 4 * generator
    assert report["total"] == report["frozen"] + report["trained"] + report["step"]
    assert "on each device for 2 pictures of 32 x 32 pixels" in text
    assert f"network  U-Net: {unet['parameters'] / 1e6:.1f} M parameters, {spell_size(unet['bytes'])} (float32)" in text
