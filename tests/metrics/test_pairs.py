from __future__ import annotations

from pathlib import Path

import pytest
from network_files import write_pictures

from smsff.errors import UserError
from smsff.metrics.pairs import pair_up, set_sha256


def make(root: Path, folder: str, *names: str, first: int = 0) -> Path:
    return write_pictures(root / folder, names, first=first, height=8, width=8)


def test_pairs_have_one_relative_name(tmp_path: Path) -> None:
    results = make(tmp_path, "results", "a.png", "sub/a.png", "b.png")
    content = make(tmp_path, "content", "a.png", "sub/a.png", "b.bmp")
    (content / "a.txt").write_text("a cat")
    pairing = pair_up(results, content)
    found = {pair.name: pair for pair in pairing.pairs}
    assert {name: pair.content for name, pair in found.items()} == {
        "a.png": content / "a.png",
        "sub/a.png": content / "sub/a.png",
        "b.png": content / "b.bmp",  # stylize writes png for what it cannot write as it is
    }
    assert found["a.png"].caption == "a cat"
    assert found["b.png"].caption == ""
    assert pairing.left_out == {}


def test_files_in_no_pair_are_named(tmp_path: Path) -> None:
    results = make(tmp_path, "results", "a.png", "only.png", "two.webp")
    content = make(tmp_path, "content", "a.png", "lonely.png", "two.png", "two.bmp")
    left_out = pair_up(results, content).left_out
    assert set(left_out) == {"only.png", "two.webp", "lonely.png (content)", "two.bmp (content)", "two.png (content)"}
    assert str(content) in left_out["only.png"]
    assert str(results) in left_out["lonely.png (content)"]


def test_truth_and_rivals(tmp_path: Path) -> None:
    results = make(tmp_path, "results", "a.png", "b.png")
    content = make(tmp_path, "content", "a.png", "b.png")
    truth = make(tmp_path, "truth", "a.png")
    rivals = [make(tmp_path, "r1", "a.png", "b.png"), make(tmp_path, "r2", "b.png")]
    pairing = pair_up(results, content, truth=truth, rivals=rivals)
    assert [(pair.name, pair.truth, pair.rivals) for pair in pairing.pairs] == [
        ("a.png", truth / "a.png", (rivals[0] / "a.png", None))
    ]
    assert str(truth) in pairing.left_out["b.png"]


def test_nothing_to_pair_is_an_error_that_names_both_sides(tmp_path: Path) -> None:
    results, content = make(tmp_path, "results", "a.png"), make(tmp_path, "content", "b.png")
    with pytest.raises(UserError, match=r"first result is a.png, the first content picture b.png"):
        pair_up(results, content)
    with pytest.raises(UserError, match=r"--content .*nowhere: not a folder"):
        pair_up(results, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"--truth .*empty: there are no images"):
        pair_up(results, content, truth=tmp_path / "empty")


def test_pictures_of_the_report_are_no_results(tmp_path: Path) -> None:
    results = make(tmp_path, "results", "a.png", "report/b.png")
    content = make(tmp_path, "content", "a.png", "report/b.png")
    pairing = pair_up(results, content, skip=results / "report")
    assert [pair.name for pair in pairing.pairs] == ["a.png"]


def test_the_hash_of_a_set_changes_with_its_content_alone(tmp_path: Path) -> None:
    one = make(tmp_path, "one", "a.png", "b.png")
    renamed = make(tmp_path, "renamed", "y.png")
    renamed = make(tmp_path, "renamed", "x.png", first=1)
    other = make(tmp_path, "other", "a.png", "b.png", first=1)

    def digest(folder: Path) -> str:
        return set_sha256(sorted(folder.glob("*.png")))

    assert digest(one) == digest(renamed)
    assert digest(one) != digest(other)
    assert set_sha256([one / "a.png"]) != set_sha256([one / "a.png", one / "a.png"])
