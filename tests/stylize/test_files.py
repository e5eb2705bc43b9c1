from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from smsff.data.images import load_image
from smsff.errors import UserError
from smsff.stylize.files import plan, save_image


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_names_and_folders_are_kept(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.jpg", "in/sub/b.PNG", "in/sub/c.tif", "one.webp", "in/notes.txt")
    jobs = plan([tmp_path / "in", tmp_path / "one.webp"], tmp_path / "out")
    names = [(s.relative_to(tmp_path).as_posix(), r.relative_to(tmp_path / "out").as_posix()) for s, r in jobs]
    assert sorted(names) == [
        ("in/a.jpg", "a.jpg"),
        ("in/sub/b.PNG", "sub/b.PNG"),
        ("in/sub/c.tif", "sub/c.png"),
        ("one.webp", "one.webp"),
    ]
    assert not (tmp_path / "out").exists()


def test_results_of_an_earlier_run_are_no_inputs(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "out/a.png")
    assert len(plan([tmp_path], tmp_path / "out", overwrite=True)) == 1


@pytest.mark.parametrize(
    ("inputs", "out", "message"),
    [
        (["missing.png"], "out", "does not exist"),
        (["empty"], "out", "has no images"),
        (["in/a.png"], "in", "would replace an input"),
        (["in"], "in", "has no images"),
        (["in/a.png", "two/a.png"], "out", "would both become"),
        (["in/a.png"], "in/a.png", "is a file"),
        (["in/a.png"], "done", "1 of 1 results exist"),
    ],
)
def test_refused_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: list[str], out: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    touch(tmp_path, "in/a.png", "two/a.png", "done/a.png")
    with pytest.raises(UserError, match=message):
        plan(inputs, out)


def test_overwrite_never_replaces_an_input(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "out/a.png")
    (tmp_path / "link").symlink_to(tmp_path)
    assert plan([tmp_path / "a.png"], tmp_path / "out", overwrite=True)
    with pytest.raises(UserError, match="would replace an input"):
        plan([tmp_path / "a.png"], tmp_path / "link", overwrite=True)


@pytest.mark.parametrize(("name", "tolerance"), [("a.png", 0), ("b.JPG", 12), ("c.jpeg", 12), ("d.webp", 25)])
def test_written_images_read_back(tmp_path: Path, name: str, tolerance: int) -> None:
    ramp = torch.arange(32).repeat(24, 1) * 8
    pixels = torch.stack((ramp, ramp.flip(1), torch.full_like(ramp, 90))).to(torch.uint8)
    path = tmp_path / "new" / name
    save_image(pixels, path)
    assert (load_image(path).int() - pixels.int()).abs().max() <= tolerance
    with Image.open(path) as image:
        assert image.format == {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}[name[2:].lower()]
    assert [p.name for p in path.parent.iterdir()] == [name]


def test_nothing_is_written_outside_the_folder(tmp_path: Path) -> None:
    touch(tmp_path, "in/sub/a.png", "elsewhere/keep.txt")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"outside --out: there is a link in it"):
        plan([tmp_path / "in"], tmp_path / "out")
    (tmp_path / "out/sub").unlink()
    (tmp_path / "out/sub").symlink_to("..")
    with pytest.raises(UserError, match=r"outside --out"):
        plan([tmp_path / "in"], tmp_path / "out", overwrite=True)


def test_a_result_that_is_a_link_is_replaced_itself(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.png", "precious.txt")
    (tmp_path / "precious.txt").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.png").symlink_to(tmp_path / "precious.txt")
    with pytest.raises(UserError, match="1 of 1 results exist"):
        plan([tmp_path / "in"], tmp_path / "out")
    ((_, result),) = plan([tmp_path / "in"], tmp_path / "out", overwrite=True)
    save_image(torch.zeros(3, 4, 4, dtype=torch.uint8), result)
    assert (tmp_path / "precious.txt").read_text() == "mine"
    assert not (tmp_path / "out/a.png").is_symlink()


def test_dots_in_inputs_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "in/sub/a.png", "b.png")
    monkeypatch.chdir(tmp_path / "in")
    jobs = plan(["sub/..", "../b.png", Path("sub/../../in/sub")], "../out")
    inside = (tmp_path / "out").resolve()
    assert len(jobs) == 3
    assert all(inside in result.resolve().parents for _, result in jobs)


def test_odd_names_are_kept(tmp_path: Path) -> None:
    long = "n" * 250 + ".png"
    touch(tmp_path, f"in/{long}", "in/\udcff.png", "in/a b\n.png")
    (tmp_path / "in/loop.png").symlink_to("loop.png")
    jobs = plan([tmp_path / "in"], tmp_path / "out")
    assert len(jobs) == 4
    for source, result in jobs:
        assert source.name == result.name
        save_image(torch.zeros(3, 4, 4, dtype=torch.uint8), result)
    assert len(list((tmp_path / "out").iterdir())) == 4
