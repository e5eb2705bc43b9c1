"""The measurement of `make demo` on a made-up run: Gaussian teacher, small network, small photos."""

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from smsff.embedded import demo
from smsff.embedded.known_styles import STYLES
from smsff.errors import UserError
from smsff.generator.unet import UNetGenerator
from smsff.metrics.table import CEILING, COLUMNS, IMG2IMG, NOTHING, OURS, ROWS
from smsff.stylize.export import save_stylizer

NETWORK = {"widths": [8, 16], "encoder_blocks": [1, 1], "decoder_blocks": [1], "head_width": 8}
CONFIG = {
    "seed": 0,
    "style": {"name": "sketch"},
    "prompts": {
        "_target_": "smsff.method.prompts.Prompts",
        "words": "sketch style",
        "style": "{words}, {caption}",
        "source": "{caption}",
        "edit": "{words}",
    },
    "teacher": {
        "_target_": "gaussian.GaussianTeacher",
        "mean_base": 0.0,
        "std_base": 1.0,
        "mean_style": 0.5,
        "std_style": 0.2,
    },
    "generator": {"_target_": "smsff.generator.unet.UNetGenerator", **NETWORK},
    "data": {
        "_target_": "smsff.data.datamodule.ImageDataModule",
        "crop_size": 32,
        "batch_size": 2,
        "steps": 1,
        "default_caption": "a photo",
    },
}


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder with the identity as its exported model; photos are cut down to 72 x 96 pixels."""
    OmegaConf.save(OmegaConf.create(CONFIG), tmp_path / "config.yaml")
    monkeypatch.setenv("SMSFF_ALLOW", "gaussian.GaussianTeacher")
    (tmp_path / "metrics.json").write_text(json.dumps({"status": "finished"}))
    save_stylizer(UNetGenerator(**NETWORK), tmp_path / "export")
    load_photos = demo.load_photos
    monkeypatch.setattr(
        demo, "load_photos", lambda part: {name: x[..., 100:172, 100:196] for name, x in load_photos(part).items()}
    )
    return tmp_path


def test_table_pictures_and_metrics(run_folder, capsys):
    assert demo.main(["--run", str(run_folder), "--model", str(run_folder / "export"), "--ceiling-steps", "3"]) == 0
    metrics = json.loads((run_folder / "metrics.json").read_text())
    assert metrics["status"] == "finished"  # what training wrote is kept
    known = metrics["known_style"]
    assert known["style"] == "sketch"
    assert list(known["table"]) == list(ROWS)
    for photos in known["table"].values():
        assert list(photos) == ["chelsea", "coffee", "mean"]
        assert set(COLUMNS) <= set(photos["mean"])
    assert known["table"][OURS]["mean"]["psnr"] == pytest.approx(known["table"][NOTHING]["mean"]["psnr"], abs=1e-3)
    assert known["table"][IMG2IMG] != known["table"][NOTHING]
    assert known["table"][CEILING] != known["table"][OURS]
    assert known["bar"]["passed"] is False
    assert known["img2img"]["prompt"] == "sketch style, a photo"
    assert set(known["img2img"]["validation_psnr_tone_free"]) == {str(t) for t in demo.T_CANDIDATES}
    assert known["paired_ceiling"]["steps"] == 3

    sizes = {path.name: Image.open(path).size for path in (run_folder / "pictures").glob("*.png")}
    assert len(sizes) == 2 * 3 + 3
    assert sizes["room_before_after.png"] == (2 * 96 + 4, 72 + demo.LABEL_HEIGHT)
    assert sizes["coffee_stylized.png"] == (96, 72)
    assert sizes["coffee_before_after.png"] == (2 * 96 + 4, 72 + demo.LABEL_HEIGHT)
    assert sizes["coffee_comparison.png"] == (6 * 96 + 20, 72 + demo.LABEL_HEIGHT)
    said = capsys.readouterr().out
    assert "not reached" in said
    assert str(run_folder / "pictures" / "chelsea_comparison.png") in said
    assert (run_folder / "table.md").read_text().strip() in said


def test_the_truth_measures_as_perfect(run_folder):
    photos = demo.load_photos("test")
    truth = {name: STYLES["sketch"](x) for name, x in photos.items()}
    rows = dict.fromkeys(ROWS, photos) | {OURS: truth, CEILING: truth, "truth": truth}
    figures = demo.measure_pictures(rows)
    assert figures[OURS]["mean"]["psnr"] == 100
    assert demo.table.bar_report(figures)["passed"]


def test_other_runs_are_refused_by_name(tmp_path, capsys):
    assert demo.main(["--run", str(tmp_path), "--model", str(tmp_path)]) == 2
    assert "config.yaml" in capsys.readouterr().err
    OmegaConf.save(OmegaConf.create({**CONFIG, "style": {"name": "ghibli"}}), tmp_path / "config.yaml")
    with pytest.raises(UserError, match=r"ghibli is not known, only of cel"):
        demo.Run.open(tmp_path)


def test_middle_and_picture():
    x = torch.arange(5 * 8).view(1, 1, 5, 8).expand(1, 3, 5, 8) / 40
    assert torch.equal(demo.middle(x, 4), x[..., 0:4, 2:6])
    assert demo.middle(x, 20).shape == x.shape
    image = demo.to_image(torch.tensor([2.0, 0.5, -1.0]).view(3, 1, 1))
    assert image.getpixel((0, 0)) == (255, 128, 0)


def write_measured(folder: Path, style: str, shift: float) -> Path:
    """A run folder with made-up figures, our PSNR `shift` better than doing nothing."""
    figures = {row: dict.fromkeys(COLUMNS, 10.0) for row in ROWS}
    figures[OURS] = {**figures[OURS], "psnr_tone_free": 10.0 + shift}
    table = {row: {"chelsea": value, "mean": value} for row, value in figures.items()}
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps({"known_style": {"style": style, "table": table}}))
    return folder


def test_mean_over_runs(tmp_path, capsys):
    runs = [write_measured(tmp_path / f"run{shift}", "cel", shift) for shift in (1.0, 4.0)]
    assert demo.main(["--mean", *map(str, runs)]) == 0
    printed = capsys.readouterr().out
    assert "cel, mean of 2 runs" in printed
    assert "12.50" in printed
    assert f"{runs[1]}: psnr_tone_free 14.000" in printed


def test_mean_refuses_other_styles_and_unmeasured_runs(tmp_path, capsys):
    runs = [write_measured(tmp_path / style, style, 1.0) for style in ("cel", "sketch")]
    assert demo.main(["--mean", *map(str, runs)]) == 2
    assert "different styles (cel, sketch)" in capsys.readouterr().err
    assert demo.main(["--mean", str(tmp_path)]) == 2
    assert "measure it first" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        demo.main([])
