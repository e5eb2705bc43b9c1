"""What the gradient of a run is made of: the arithmetic, and all of it on runs with a tiny teacher."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_train import NETWORK, command, tiny  # noqa: F401

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
pytest.importorskip("matplotlib")
diagnostics = importlib.import_module("diagnostics")


def test_a_cosine_is_blind_to_means_and_taken_sample_by_sample() -> None:
    a = torch.randn(3, 2, 5, 7, dtype=torch.float64)
    shifted = 4 * a + torch.randn(3, 2, 1, 1)
    assert diagnostics.flat_cosine(a, shifted) == pytest.approx(1)
    signs = torch.tensor([1.0, 1.0, -1.0])[:, None, None, None]
    assert diagnostics.flat_cosine(a, signs * a) == pytest.approx(1 / 3)


def test_rms() -> None:
    assert diagnostics.rms(torch.tensor([3.0, -4.0])) == pytest.approx(12.5**0.5)


def test_a_folder_without_a_run_or_a_checkpoint_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert diagnostics.main([str(tmp_path)]) == 2
    assert "there is no config.yaml in it" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text("style: {name: cel}")
    assert diagnostics.main([str(tmp_path)]) == 2
    assert f"{tmp_path / 'checkpoints'}: no checkpoint in it" in capsys.readouterr().err


@pytest.mark.slow
def test_runs_are_examined_at_every_checkpoint(tiny: list[str], tmp_path: Path) -> None:  # noqa: F811
    runs = {"SMS": [], "DDS": ["objective=dds"]}
    for name, own in runs.items():
        run = command(*tiny, *NETWORK, *own, "style=demo_oil", f"run_dir={tmp_path / name}", cwd=tmp_path)
        assert run.wait() == 0, run.communicate()[0]
    folders = [str(tmp_path / name) for name in runs]
    assert diagnostics.main([*folders, "--out", str(tmp_path / "out"), "--draws", "1", "--fit", "2"]) == 0
    sms, dds = json.loads((tmp_path / "out" / "diagnostics.json").read_text())["runs"]
    assert (sms["run"], list(sms["steps"]), list(dds["steps"])) == ("SMS", ["2", "4"], ["2", "4"])
    for run in (sms, dds):
        for step in run["steps"].values():
            assert step["t"].keys() == {str(t) for t in diagnostics.TIMES}
            for figures in step["t"].values():
                assert figures.keys() == diagnostics.FIGURES.keys()
                assert figures["g"] > 0
                assert -1 <= figures["cosine"] <= 1
                assert 0 < figures["relevance_mean"] < 1
    late, early = (sms["steps"]["4"]["t"][t]["spectrum"] for t in ("5", "300"))
    assert late < early  # at small t only the coarsest frequencies are held
    assert all(figures["spectrum"] == 0 for figures in dds["steps"]["4"]["t"].values())
    fake = sms["steps"]["4"]["fake"]
    assert fake["fitted"] < fake["base"]
    assert fake["fitted"] < fake["fake"]
    assert "fake" not in dds["steps"]["4"]
    picture = Image.open(tmp_path / "out" / "diagnostics.png")
    assert picture.height > 500
