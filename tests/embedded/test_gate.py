"""The gate: pictures in a known style, and the table that says whether a LoRA can be distilled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from smsff.data.captions import read_captions
from smsff.data.folder import load_photos
from smsff.data.images import find_images, load_image, to_image
from smsff.embedded import style_lora_gate as gate
from smsff.embedded.known_styles import STYLES

ROWS = {
    "do nothing": {"psnr_tone_free": 20.0, "ssim_tone_free": 0.6, "style_tone_free": 5.0},
    "fitted tone curve": {"psnr_tone_free": 20.5, "ssim_tone_free": 0.6, "style_tone_free": 6.0},
    "img2img with the LoRA, t0 100": {"psnr_tone_free": 21.0, "ssim_tone_free": 0.65, "style_tone_free": 4.0},
    "img2img with the base, t0 100": {"psnr_tone_free": 30.0, "ssim_tone_free": 0.9, "style_tone_free": 1.0},
}
HELD_OUT = {"held_out/lora t 0-100": 0.1, "held_out/base t 0-100": 0.2, "held_out/lora t 100-200": 0.3}


def test_the_verdict_needs_every_band_and_one_start_ahead_in_every_figure() -> None:
    held_out = {**HELD_OUT, "held_out/base t 100-200": 0.31}
    good = gate.verdict(ROWS, held_out)
    assert good["passed"]
    assert good["ahead_of_both_controls"] == ["img2img with the LoRA, t0 100"]
    worse_band = gate.verdict(ROWS, {**HELD_OUT, "held_out/base t 100-200": 0.29})
    assert worse_band["bands"] == {"t 0-100": True, "t 100-200": False}
    assert not worse_band["passed"]
    for figure, value in (("psnr_tone_free", 20.4), ("ssim_tone_free", 0.6), ("style_tone_free", 5.5)):
        rows = {**ROWS, "img2img with the LoRA, t0 100": {**ROWS["img2img with the LoRA, t0 100"], figure: value}}
        assert not gate.verdict(rows, held_out)["passed"], figure
    assert not gate.verdict(ROWS, {})["passed"]


def test_pictures_are_in_the_style_varied_captioned_and_reproducible(tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert gate.main(["pictures", "--style", "sketch", "--out", str(tmp_path / name), "--count", "4"]) == 0
    images = find_images(tmp_path / "a")
    loaded = [load_image(image) for image in images]
    assert [tuple(x.shape[1:]) for x in loaded] == [(192, 192), (160, 224), (224, 160), (192, 192)]
    assert [load_image(image).sum() for image in find_images(tmp_path / "b")] == [x.sum() for x in loaded]
    captions = read_captions(tmp_path / "a", [image.name for image in images])
    assert [captions[image.name] for image in images] == ["a picture", "a picture", "a photo", "a picture"]
    photo = torch.rand(3, 9, 7)
    assert to_image(photo).size == (7, 9)
    styled = [x.float().std() for x in loaded]
    assert min(styled) > 0


def test_bad_input_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    to_image(torch.rand(3, 4, 4)).save(tmp_path / "full" / "x.png")
    (tmp_path / "other").mkdir()
    OmegaConf.save({"task": "style_matching"}, tmp_path / "other" / "config.yaml")
    (tmp_path / "other" / "metrics.json").write_text("{}")
    for arguments, message in (
        (["pictures", "--style", "fresco", "--out", str(tmp_path / "x")], "--style fresco"),
        (["pictures", "--style", "cel", "--out", str(tmp_path / "full")], "has pictures already"),
        (["measure", "--run", str(tmp_path)], "config.yaml"),
        (["measure", "--run", str(tmp_path / "other")], "experiment=style_lora"),
    ):
        assert gate.main(arguments) == 2
        assert message in capsys.readouterr().err


def test_controls_and_img2img_are_measured_on_the_same_photo(
    tiny_base: Path, tiny_lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from smsff.teacher.stable_diffusion import load_stable_diffusion

    monkeypatch.setattr(gate, "SIDE", 48)
    monkeypatch.setattr(gate, "T0", (100,))
    monkeypatch.setattr(gate, "STEPS", 1)
    monkeypatch.setattr(gate, "load_photos", lambda part: dict([*load_photos(part).items()][:1]))
    rows = gate.measure(load_stable_diffusion(base=str(tiny_base), lora=str(tiny_lora)), "sketch", "a", "val")
    assert list(rows) == [
        "do nothing",
        "fitted tone curve",
        "img2img with the base, t0 100",
        "img2img with the LoRA, t0 100",
    ]
    (photo,) = gate.photos_of("val").values()
    assert photo.shape == (1, 3, 48, 48)
    from smsff.metrics.known_style import measure

    assert rows["do nothing"] == pytest.approx(measure(photo, STYLES["sketch"](photo), photo))
    assert "| do nothing |" in gate.to_markdown(rows)


@pytest.mark.slow
def test_the_gate_looks_at_a_run_of_the_training_command(tmp_path: Path) -> None:
    from test_train import configuration, train_script

    assert gate.main(["pictures", "--style", "cel", "--out", str(tmp_path / "pictures"), "--count", "12"]) == 0
    options = ["experiment=style_lora", "name=cel", "steps=4", "sample_every=4", "data.batch_size=2", "trainer=cpu"]
    options += ["data.val_max_side=48", "held_out.draws=1", f"data.root={tmp_path / 'pictures'}"]
    train_script.train(configuration(*options, f"run_dir={tmp_path / 'run'}"))
    assert gate.main(["measure", "--run", str(tmp_path / "run")]) == 0
    result: dict[str, Any] = json.loads((tmp_path / "run" / "gate_val.json").read_text())
    assert len(result["bands"]) == 6
    assert len(result["rows"]) == 2 + 2 * len(gate.T0)
