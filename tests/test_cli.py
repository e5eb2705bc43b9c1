from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import network
from PIL import Image

from smsff.cli import main
from smsff.data.images import load_image
from smsff.stylize.export import save_stylizer
from smsff.stylize.stylizer import load_stylizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_stylizer(network(), folder)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for name, mode, size in [("a.png", "RGB", (41, 30)), ("sub/b.jpg", "L", (20, 33)), ("sub/c.bmp", "RGB", (8, 8))]:
        Image.effect_noise(size, 60).convert(mode).save(folder / name)
    return folder


def test_stylizes_a_folder(model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["stylize", str(model), str(photos), "--out", str(out)]) == 0
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.*")) == ["a.png", "sub/b.jpg", "sub/c.png"]
    assert "3 of 3 images stylized" in capsys.readouterr().out
    source, result = load_image(photos / "a.png"), load_image(out / "a.png")
    assert torch.equal(result, load_stylizer(model)(source[None])[0])
    assert not torch.equal(result, source)


def test_larger_images_are_left_out(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["stylize", str(model), str(photos / "a.png"), "--out", str(tmp_path / "out"), "--max-pixels"]
    assert main([*command, "1229"]) == 1
    assert "41 x 30 pixels are more than 1,229" in capsys.readouterr().err
    assert main([*command, "1230"]) == 0


def test_results_are_replaced_only_on_demand(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["stylize", str(model), str(photos / "a.png"), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    (tmp_path / "out/a.png").write_text("mine")
    assert main(command) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "out/a.png").read_text() == "mine"
    assert main([*command, "--overwrite"]) == 0
    assert load_image(tmp_path / "out/a.png").shape == (3, 30, 41)


def test_tiles_and_threads(model: Path, photos: Path, tmp_path: Path) -> None:
    for name, options in {"whole": ["--tile", "0"], "tiled": ["--tile", "8", "--threads", "1"]}.items():
        assert main(["stylize", str(model), str(photos / "a.png"), "--out", str(tmp_path / name), *options]) == 0
    whole, tiled = (load_image(tmp_path / name / "a.png").int() for name in ("whole", "tiled"))
    assert (whole - tiled).abs().max() <= 1


def test_one_file_with_strength_and_quality(model: Path, photos: Path, tmp_path: Path) -> None:
    sizes = {}
    for strength in ("0", "0.5", "1", "1.5"):
        out = tmp_path / f"{strength}.png"
        command = ["stylize", str(model), str(photos / "a.png"), "--strength", strength]
        assert main([*command, "--out", str(out)]) == 0
        expected = load_stylizer(model)(load_image(photos / "a.png")[None], strength=float(strength))[0]
        assert torch.equal(load_image(out), expected)
        assert main([*command, "--out", str(tmp_path / f"{strength}.jpg"), "--quality", "30"]) == 0
        sizes[strength] = (load_image(out).int() - load_image(photos / "a.png").int()).abs().sum()
    assert sizes["0"] == 0
    assert list(sizes.values()) == sorted(sizes.values())
    assert (tmp_path / "1.jpg").stat().st_size < (tmp_path / "1.png").stat().st_size / 2


def test_nothing_is_left_out_in_silence(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("d.HEIC", "e.dng", "sub/f.jxl", "notes.txt"):
        (photos / name).write_bytes(b"no picture")
    (photos / "a.bmp").write_bytes((photos / "sub/c.bmp").read_bytes())
    cutout = Image.new("RGBA", (9, 8), (200, 10, 10, 100))
    for name in ("g.jpg", "h.jpg"):
        cutout.save(photos / name, format="PNG")
    assert main(["stylize", str(model), str(photos / "*"), "--out", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr()
    for name in ("d.HEIC", "e.dng", "f.jxl"):
        assert sum(line.startswith("skipped") and name in line for line in printed.err.splitlines()) == 1
    assert printed.err.count("JPEG has no transparency") == 1
    assert printed.err.count("another result has its name") == 1
    assert (tmp_path / "out/a_2.png").is_file()
    assert "6 of 9 images stylized" in printed.out


def test_an_unforeseen_error_stops_only_its_picture(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (16400, 1)).save(photos / "wide.webp.png")
    (photos / "wide.webp.png").rename(photos / "wide.webp")  # WebP holds at most 16383 pixels a side
    assert main(["stylize", str(model), str(photos), "--out", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr()
    assert "skipped" in printed.err
    assert "wide.webp" in printed.err
    assert "3 of 4 images stylized" in printed.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["stylize", "MODEL", "a.png"], "--out"),
        (["stylize", "MODEL", "PHOTOS", "--out", "OUT", "--tile", "-3"], "--tile"),
        (["stylize", "MODEL", "PHOTOS", "--out", "OUT", "--threads", "0"], "--threads"),
        (["stylize", "MODEL", "PHOTOS", "--out", "OUT", "--strength", "1.6"], "1.6 is not between 0 and 1.5"),
        (["stylize", "MODEL", "PHOTOS", "--out", "OUT", "--strength", "nan"], "nan is not between"),
        (["stylize", "MODEL", "PHOTOS", "--out", "OUT", "--strength", "much"], "--strength"),
        (["stylize", "MODEL", "PHOTOS", "--out", "OUT", "--quality", "0"], "--quality"),
        (["stylize", "MODEL", "PHOTOS", "--out", "OUT.png"], "one file, but there are 3 pictures"),
        (["stylize", "MODEL", "missing.png", "--out", "OUT"], "missing.png does not exist"),
        (["stylize", "nowhere", "PHOTOS", "--out", "OUT"], "nowhere is not an exported model"),
        (["stylize", "MODEL", "PHOTOS/a.png", "--out", "PHOTOS"], "would replace an input"),
    ],
)
def test_bad_usage_is_status_2_and_one_message(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    places = {"MODEL": str(model), "PHOTOS": str(photos), "OUT": str(tmp_path / "out")}
    for name, place in places.items():
        arguments = [a.replace(name, place) if a.startswith(name) else a for a in arguments]
    try:
        status = main(arguments)
    except SystemExit as stop:  # argparse
        status = stop.code
    assert status == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_that_is_not_there(model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stylize", str(model), str(photos), "--out", str(tmp_path / "o"), "--device", "cuda"]) == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys, smsff.cli\n"
        "try: smsff.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'hydra', 'requests', 'diffusers', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for command in ("stylize", "fetch", "doctor", "caption"):
        assert f"\n    {command} " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fetch", "style=demo_oil", "--dry"], None),  # argparse completes options
        (["fetch", "--dry-run", "style=gibli", "--conf"], "expected one argument"),
        (["fetch", "--quiet", "style=demo_oil"], "--quiet: there is no such option"),
        (["doctor", "style=demo_oil", "--verify", "steps=abc", "--steps=3"], "without dashes: steps=3"),
        (["doctor", "style=demo_oil", "seed", "=", "1"], "written KEY=VALUE, without spaces around ="),
        (["stylize", "a", "b", "--out", "c", "--dry"], "unrecognized arguments: --dry"),
        (["doctor", "style=demo_oil", "--verify", "style=gibli"], "nearest: ghibli"),
        (["caption"], "FOLDER"),
        (["caption", "nowhere"], "nowhere"),
    ],
)
def test_commands_with_overrides_take_them_before_and_after_options(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str | None,
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = stop.code
    assert status == (0 if message is None else 2)
    assert message is None or message in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["stylize", "--help"])
    assert stop.value.code == 0
    assert "Exit status" in capsys.readouterr().out


def test_unreadable_images_are_named_and_the_rest_is_done(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "broken.jpg").write_bytes(b"not a picture")
    assert main(["stylize", str(model), str(photos), "--out", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr()
    assert "broken.jpg" in printed.err
    assert printed.err.count("skipped") == 1
    assert "3 of 4 images stylized" in printed.out
