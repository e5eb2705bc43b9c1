from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "metrics"))

from network_files import write_alexnet, write_pictures

from smsff.cli import main
from smsff.metrics import networks
from smsff.metrics.networks import PUBLISHED, Found
from smsff.metrics.pairs import pair_up
from smsff.report.evaluate import notes

NAMES = ["a.png", "b.png", "sub/c.png"]


@pytest.fixture(autouse=True)
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv(networks.FOLDER, raising=False)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for i, folder in enumerate(("results", "content", "style")):
        write_pictures(tmp_path / folder, NAMES, first=100 * i)
    return tmp_path


def evaluate(root: Path, *options: str) -> tuple[int, dict[str, Any]]:
    status = main(["evaluate", str(root / "results"), "--content", str(root / "content"), *options])
    path = root / "results-evaluation" / "evaluation.json"
    return status, json.loads(path.read_text()) if path.is_file() else {}


def test_what_needs_no_network_is_measured_and_the_rest_is_named(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, content = evaluate(folders, "--style", str(folders / "style"), "--prompt", "in oil")
    assert status == 0
    assert list(content["figures"]) == ["ssim"]
    assert content["figures"]["ssim"]["count"] == 3
    assert set(content["not_measured"]) == {"lpips", "artfid", "fid", "kid", "pickscore", "clip", "truth"}
    assert "weights-inception-2015-12-05-6726825d.pth is not here (95.6 MB" in content["not_measured"]["fid"]
    assert content["not_measured"]["truth"] == "needs --truth"
    out = capsys.readouterr().out
    assert "| SSIM to the content ↑ (!) |" in out
    assert "n = 3, at least 30 are needed" in out
    text = (folders / "results-evaluation" / "evaluation.md").read_text()
    assert text in out
    page = (folders / "results-evaluation" / "report.html").read_text()
    assert "SSIM to the content" in page
    assert page.count("data:image/jpeg") == 6


def test_a_missing_network_asked_for_by_name_is_an_error(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(folders, "--figures", "ssim,lpips") == (2, {})
    error = capsys.readouterr().err
    assert error.startswith("smsff: --figures: lpips cannot be measured: the file alexnet-owt-7be5be79.pth is not here")
    assert error.count("\n") == 1


def test_lpips_with_a_file_of_the_user_is_marked_as_not_comparable(folders: Path) -> None:
    path = write_alexnet(folders / "mine.pth")
    status, content = evaluate(folders, "--figures", "lpips", "--weights", f"alexnet={path}")
    assert status == 0
    assert content["figures"]["lpips"]["value"] > 0
    assert content["networks"]["alexnet"]["published"] is False
    assert "not the published file" in content["notes"][0]
    assert set(content["pairs"]["sub/c.png"]["figures"]) == {"lpips"}


def test_the_style_set_is_hashed_into_the_result(folders: Path) -> None:
    style = ("--style", str(folders / "style"))
    first = evaluate(folders, *style)[1]["sets"]["style"]
    assert first["images"] == 3
    Image.new("RGB", (80, 80), "red").save(folders / "style" / "a.png")
    assert evaluate(folders, *style)[1]["sets"]["style"]["sha256"] != first["sha256"]


def test_known_style_figures_come_with_a_truth(folders: Path) -> None:
    write_pictures(folders / "truth", NAMES)  # the same pictures as the results
    _, content = evaluate(folders, "--figures", "truth", "--truth", str(folders / "truth"))
    figures = {name: figure["value"] for name, figure in content["figures"].items()}
    assert figures["psnr"] == pytest.approx(100)
    assert figures["style_tone_free"] == pytest.approx(0, abs=1e-3)
    assert figures["content"] > 1


def test_pictures_left_out_are_named_and_end_with_status_1(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (33, 33)).save(folders / "results" / "a.png")
    Image.new("RGB", (33, 33)).save(folders / "results" / "stray.png")
    status, content = evaluate(folders)
    assert status == 1
    assert set(content["left_out"]) == {"a.png", "stray.png"}
    assert set(content["pairs"]) == {"b.png", "sub/c.png"}
    assert "the result has 33 x 33 pixels, its content 88 x 80" in capsys.readouterr().out


def test_a_style_set_of_another_scale_is_noted_where_artfid_sees_it(folders: Path) -> None:
    large = write_pictures(folders / "large", ["x.png", "y.png"], height=200, width=220)
    pairing, file = pair_up(folders / "results", folders / "content"), PUBLISHED["art_inception"]
    found = {"art_inception": Found(file=file, path=folders, sha256=file.sha256 or "")}
    (note,) = notes(pairing, sorted(large.glob("*")), found)
    assert "median shorter side is 80 pixels, that of the style set 200" in note
    assert notes(pairing, sorted((folders / "style").glob("*")), found) == []
    assert notes(pairing, sorted(large.glob("*")), {}) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--figures", "ssim,beauty"], "there is no beauty; there are lpips, ssim"),
        (["--figures", "fid"], "--figures: fid needs --style"),
        (["--figures", "pickscore"], "--figures: pickscore needs --prompt"),
        (["--content", "nowhere"], "--content nowhere: not a folder"),
        (["--weights", "alexnet"], "expected KEY=PATH"),
    ],
)
def test_bad_usage_is_one_sentence(
    folders: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(folders, *options)[0] == 2
    assert message in capsys.readouterr().err
    assert not (folders / "results-evaluation").exists()


def test_out_may_lie_below_the_results(folders: Path) -> None:
    out = folders / "results" / "figures"
    for _ in range(2):
        assert evaluate(folders, "--out", str(out))[0] == 0
    assert len(json.loads((out / "evaluation.json").read_text())["pairs"]) == 3
    file = folders / "file"
    file.write_text("")
    assert evaluate(folders, "--out", str(file))[0] == 2


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; sys.argv = ['smsff', 'evaluate', '--help']\nfrom smsff.cli import main\n"
    code += "try:\n    main()\nexcept SystemExit:\n    pass\n"
    code += "print([m for m in ('torch', 'numpy', 'PIL', 'jinja2', 'transformers') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "--content DIR" in out
    assert out.splitlines()[-1] == "[]"
