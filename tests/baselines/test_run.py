"""``smsff baseline``: folder in, folder out, resumed; what is missing or wrong is named before anything is loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from smsff.baselines import run
from smsff.cli import main
from smsff.data.images import load_image
from smsff.errors import UserError
from smsff.generator import ResNetGenerator
from smsff.weights.manifest import needs

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(path.stem for path in (CONF / "baseline").glob("*.yaml"))
QUICK = ["baseline.steps=2", "baseline.resolution=64", "device=cpu"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for name, size in [("a.png", (70, 50)), ("sub/b.jpg", (40, 66)), ("c.png", (48, 48))]:
        Image.effect_noise(size, 60).convert("RGB").save(folder / name)
    (folder / "a.txt").write_text("a hill")
    (folder / "c.png").write_bytes(b"no picture")
    return folder


def command(name: str, *words: str) -> list[str]:
    return ["baseline", name, *words, "--conf", str(CONF)]


def test_the_embedded_teacher_stylizes_a_folder_and_goes_on(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, load = tmp_path / "out", cache(lambda _: run_load(plain))
    plain, run_load = run.configuration("lora_img2img", ["style=demo_ink", *QUICK], conf=str(CONF)), run.load
    monkeypatch.setattr(run, "load", lambda _: load(0))  # once for all four commands
    words = command("lora_img2img", "--content", str(photos), "--out", str(out), "style=demo_ink", *QUICK)
    assert main(words) == 1  # c.png
    assert "c.png" in (said := capsys.readouterr()).err
    assert "2 of 3 pictures" in said.out
    first = {name: load_image(out / name) for name in ("a.png", "sub/b.jpg")}
    assert {name: tuple(x.shape) for name, x in first.items()} == {"a.png": (3, 50, 70), "sub/b.jpg": (3, 66, 40)}
    (out / "a.png").unlink()
    (photos / "c.png").unlink()
    kept = (out / "sub/b.jpg").stat().st_mtime_ns
    assert main(words) == 0
    assert (out / "sub/b.jpg").stat().st_mtime_ns == kept
    assert torch.equal(load_image(out / "a.png"), first["a.png"])  # seeds by picture: not by its place in the run
    assert main([*words, "seed=1"]) == 2
    assert "baseline.json has other settings" in capsys.readouterr().err
    assert main([*words, "seed=1", "--overwrite"]) == 0
    assert not torch.equal(load_image(out / "a.png"), first["a.png"])


def test_style_pictures_give_a_folder_of_results_each(
    photos: Path, tmp_path: Path, family_pipeline: Callable[..., Path]
) -> None:
    styles = tmp_path / "styles"
    styles.mkdir()
    for name in ("ink", "oil"):
        Image.effect_noise((60, 40), 90).convert("RGB").save(styles / f"{name}.png")
    base = f"teacher.base={family_pipeline('sd1')}"
    words = command("styleid", "--content", str(photos / "a.png"), "--style", str(styles), "--out", "out", base, *QUICK)
    assert main(words) == 0
    found = {path.relative_to("out").as_posix() for path in Path("out").rglob("*.png")}
    assert found == {"ink/a.png", "oil/a.png"}
    assert not torch.equal(load_image("out/ink/a.png"), load_image("out/oil/a.png"))


def test_scenimefy_is_its_network(photos: Path, tmp_path: Path) -> None:
    network = ResNetGenerator(width=4, blocks=1).eval()
    torch.save(network.state_dict(), tmp_path / "G.pth")
    plain = run.configuration("scenimefy", ["baseline.network=G.pth"], conf=str(CONF))
    assert run.missing(plain, "scenimefy") == []
    x = torch.rand(2, 3, 20, 29)
    wanted = (network(2 * x - 1) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(run.load(plain)(x, ["", ""], seeds=[0, 1]), wanted)


@pytest.mark.parametrize("name", NAMES)
def test_each_names_its_weights_with_their_terms(name: str) -> None:
    plain = run.configuration(name, conf=str(CONF))
    found = {need.key: need for need in needs(plain)}
    assert all(need.weight is not None and (need.weight.licence or need.weight.page) for need in found.values())
    own = {key for key in plain["baseline"] if key in ("controlnet", "ip_adapter", "image_encoder", "network")}
    assert {f"baseline.{key}" for key in own} <= found.keys()
    assert run.needs_style(plain) is (name in ("styleid", "instantstyle_plus"))
    assert len(run.missing(plain, name)) == len(found)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "baseline"),
        (["styleid", "baseline.gama=1"], "gamma"),
        (["styleid", "baseline.gamma=2"], "baseline.gamma=2"),
        (["styleid", "baseline.layers=[a]"], "baseline.layers"),
        (["styleid"], "takes style pictures"),
        (["freestyle", "--style", "photos"], "takes no style pictures"),
        (["freestyle"], r"teacher.base=.*missing; run `smsff fetch baseline=freestyle`"),
        (["scenimefy"], r"baseline.network=.*missing; run `smsff fetch baseline=scenimefy`"),
        (["lora_controlnet", "style=demo_ink"], r"baseline.controlnet=lllyasviel.*missing"),
    ],
)
def test_what_is_wrong_is_one_message_before_anything_is_loaded(
    words: list[str], message: str, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(_: Any) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(run, "load", load)
    (photos / "c.png").unlink()
    assert main(command(*words, "--content", str(photos), "--out", "out")) == 2
    error = capsys.readouterr().err
    assert error.startswith("smsff: ")
    assert re.search(message, error), error
    assert not list(Path("out").rglob("*.png"))


def test_doctor_looks_at_a_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(ResNetGenerator(width=4, blocks=1).state_dict(), tmp_path / "G.pth")
    words = ["doctor", "--conf", str(CONF), "baseline=scenimefy"]
    assert main([*words, "baseline.network=G.pth"]) == 0
    assert "Nothing is missing." in capsys.readouterr().out
    assert main([*words, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert [(one["key"], one["state"]) for one in report["weights"]] == [("baseline.network", "missing")]
    assert "NON-COMMERCIAL" in report["weights"][0]["terms"]


def test_cuda_that_is_not_there() -> None:
    with pytest.raises(UserError, match="device=cuda"):
        run.device_of({"device": "cuda"})
