from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from smsff.data.images import Picture, load_image
from smsff.errors import UserError
from smsff.stylize.files import plan, save_image


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def names(root: Path, *inputs: str | Path) -> list[tuple[str, str]]:
    jobs = plan(inputs, root / "out")
    return [(s.relative_to(root).as_posix(), r.relative_to(root / "out").as_posix()) for s, r in jobs]


def test_names_and_folders_are_kept(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.jpg", "in/sub/b.PNG", "in/sub/c.tif", "one.webp", "in/notes.txt")
    assert sorted(names(tmp_path, tmp_path / "in", tmp_path / "one.webp")) == [
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
        (["*.jpg"], "out", "does not exist"),
        (["in/a.png"], "in/a.png", "would replace an input"),
        (["in/a.png"], "done/a.png", "1 of 1 results exist"),
        (["in/a.png"], "plain", "is a file"),
        (["in/a.png"], "out.tif", "are written as .jpg"),
        (["in/a.png", "two"], "out.png", "one file, but there are 2 pictures"),
        (["in/a.png"], "done", "1 of 1 results exist"),
    ],
)
def test_refused_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: list[str], out: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    touch(tmp_path, "in/a.png", "two/a.png", "done/a.png", "plain")
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
    save_image(Picture(pixels), path)
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
    save_image(Picture(torch.zeros(3, 4, 4, dtype=torch.uint8)), result)
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
        save_image(Picture(torch.zeros(3, 4, 4, dtype=torch.uint8)), result)
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_one_picture_can_be_given_its_file(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.tif", "done/b.png")
    for out in ("result.png", "new/result.JPG"):
        assert plan([tmp_path / "in"], tmp_path / out) == [(tmp_path / "in/a.tif", tmp_path / out)]
    (tmp_path / "folder.png").mkdir()
    assert plan([tmp_path / "in"], tmp_path / "folder.png")[0][1] == tmp_path / "folder.png/a.png"
    assert plan([tmp_path / "in/a.tif"], tmp_path / "done/b.png", overwrite=True)
    with pytest.raises(UserError, match="1 of 1 results exist"):
        plan([tmp_path / "in/a.tif"], tmp_path / "done/b.png")


def test_quoted_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "in/a.jpg", "in/a.txt", "in/sub/b.jpg", "in/sub/c.png", "in/[x] 1.jpg", "out/z.jpg")
    assert names(tmp_path, tmp_path / "in/*.jpg") == [("in/[x] 1.jpg", "[x] 1.jpg"), ("in/a.jpg", "a.jpg")]
    assert [r for _, r in names(tmp_path, tmp_path / "in/**/*.jpg")] == ["[x] 1.jpg", "a.jpg", "sub/b.jpg"]
    assert [r for _, r in names(tmp_path, tmp_path / "in/s*")] == ["sub/b.jpg", "sub/c.png"]
    assert names(tmp_path, tmp_path / "in/[x] 1.jpg") == [("in/[x] 1.jpg", "[x] 1.jpg")]  # a file comes first
    assert len(names(tmp_path, tmp_path / "**/*")) == 4  # nothing of out
    monkeypatch.setenv("HOME", str(tmp_path))
    assert names(tmp_path, "~/in/a.*") == [("in/a.jpg", "a.jpg")]
    with pytest.raises(UserError, match="has no images"):
        plan([tmp_path / "in/*.txt"], tmp_path / "out")


def test_results_that_would_have_one_name_are_numbered(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.bmp", "in/a.png", "in/a.tif", "in/a_2.png", "two/a.png")
    assert sorted(names(tmp_path, tmp_path / "in", tmp_path / "two/a.png", tmp_path / "in/a.png")) == [
        ("in/a.bmp", "a_4.png"),
        ("in/a.png", "a.png"),  # keeps its name, and comes once
        ("in/a.tif", "a_5.png"),
        ("in/a_2.png", "a_2.png"),
        ("two/a.png", "a_3.png"),
    ]


def test_quality(tmp_path: Path) -> None:
    picture = Picture(torch.randint(256, (3, 40, 40), dtype=torch.uint8))
    for kind in ("jpg", "webp"):
        sizes = []
        for quality in (10, 95, 100):
            save_image(picture, tmp_path / f"{quality}.{kind}", quality=quality)
            sizes.append((tmp_path / f"{quality}.{kind}").stat().st_size)
        assert sizes == sorted(set(sizes))
    save_image(picture, tmp_path / f"usual.{kind}")
    assert (tmp_path / f"usual.{kind}").read_bytes() == (tmp_path / f"95.{kind}").read_bytes()
