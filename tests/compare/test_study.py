"""The preference study: the page, the votes of a browser, and the arithmetic of the count."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from smsff.cli import main
from smsff.compare.study import QUESTIONS, Z, bradley_terry, wilson

METHODS = {"alpha_method": "red", "beta_method": "blue", "gamma_method": "green"}


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Three methods, each of its own colour, on two photos of which H != W."""
    for name, colour in {**METHODS, "photos": "white", "style": "black"}.items():
        (tmp_path / name).mkdir()
        for photo in ("cat.png", "sea.png"):
            Image.new("RGB", (48, 32), colour).save(tmp_path / name / photo)
    return [tmp_path / name for name in METHODS]


def make(folders: list[Path], *options: str) -> tuple[Path, dict[str, Any]]:
    root = folders[0].parent
    out = root / "study.html"
    words = [*map(str, folders), "--content", str(root / "photos"), "--style", str(root / "style"), "--out", str(out)]
    assert main(["study", "make", *words, *options]) == 0
    return out, json.loads((root / "study-key.json").read_text())


def answers(study: str, voter: str, votes: list[tuple[str, str, list[str]]]) -> dict[str, Any]:
    content = [{"photo": 0, "question": q, "chosen": c, "shown": s, "seconds": 1.0} for q, c, s in votes]
    return {"study": study, "voter": voter, "votes": content}


@pytest.mark.parametrize(("chosen", "shown"), [(0, 20), (7, 20), (20, 20), (196, 300)])
def test_the_interval_holds_the_shares_that_a_test_would_not_reject(chosen: int, shown: int) -> None:
    """Its ends are the roots of (share - p)² = z² p (1 - p) / n: the closed form of the score test."""
    share = chosen / shown
    for p in wilson(chosen, shown):
        assert (share - p) ** 2 == pytest.approx(Z**2 * p * (1 - p) / shown, abs=1e-12)
    low, high = wilson(chosen, shown)
    assert low + 1e-12 >= 0
    assert low < high <= 1 + 1e-12


def test_strengths_equal_their_closed_forms() -> None:
    pairs = [("a", ["a", "b"])] * 6 + [("b", ["b", "a"])] * 2
    assert bradley_terry(pairs) == pytest.approx({"a": 0.75, "b": 0.25})
    whole = [(name, ["a", "b", "c"]) for name in "aaaabbc"]  # all at once: the shares
    assert bradley_terry(whole) == pytest.approx({"a": 4 / 7, "b": 2 / 7, "c": 1 / 7})
    # a round robin whose wins are those that strengths of 4 : 2 : 1 expect
    wins = {("a", "b"): (4, 2), ("b", "c"): (4, 2), ("a", "c"): (4, 1)}
    votes = [
        (name, pair) for pair, numbers in wins.items() for name, n in zip(pair, numbers, strict=True) for _ in range(n)
    ]
    assert bradley_terry(votes) == pytest.approx({"a": 4 / 7, "b": 2 / 7, "c": 1 / 7}, abs=1e-6)
    assert bradley_terry([("a", ["a", "b"])] * 5) == pytest.approx({"a": 1.0, "b": 0.0})


def test_the_page_is_blind_and_self_contained(folders: list[Path]) -> None:
    out, key = make(folders)
    page = out.read_text()
    assert set(key["methods"].values()) == set(METHODS)
    assert not any(name in page for name in (*METHODS, ".png", "http://", "https://"))
    study = json.loads(page.split('id="study">')[1].split("</script>")[0])
    assert study["comparisons"] == [[i, list(key["methods"])] for i in range(2)]
    assert len(study["style"]) == 2
    assert all(set(photo["pictures"]) == set(key["methods"]) for photo in study["photos"])
    out, _ = make(folders, "--pairs", "--most", "4")
    study = json.loads(out.read_text().split('id="study">')[1].split("</script>")[0])
    assert sorted(map(len, (codes for _, codes in study["comparisons"]))) == [2] * 6
    assert study["most"] == 4


def test_votes_are_counted(folders: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    out, key = make(folders)
    a, b, c = key["methods"]
    votes = (
        [("style", a, [a, b, c])] * 3
        + [("style", b, [c, b, a])]
        + [("content", c, [a, b, c]), ("content", c, [c, b, a])]
    )
    one, two = out.with_name("votes-1.json"), out.with_name("votes-2.json")
    one.write_text(json.dumps(answers(key["study"], "1", votes)))
    two.write_text(json.dumps(answers(key["study"], "2", votes[:4])))
    shorter = out.with_name("votes-1 (1).json")  # saved twice by one person
    shorter.write_text(json.dumps(answers(key["study"], "1", votes[:2])))
    capsys.readouterr()
    files = [str(out.with_name("study-key.json")), str(one), str(two), str(shorter)]
    assert main(["study", "count", "--json", *files]) == 0
    counted = json.loads(capsys.readouterr().out)
    assert (counted["votes"], counted["people"]) == (10, 2)
    style = counted["questions"]["style"]
    assert list(style)[:2] == ["alpha_method", "beta_method"]
    low, high = wilson(6, 8)
    assert style["alpha_method"] == pytest.approx(
        {"chosen": 6, "shown": 8, "share": 0.75, "low": low, "high": high, "strength": 0.75}
    )
    assert counted["same"] == 1  # person 1 about content
    assert main(["study", "count", *files]) == 0
    assert f"| alpha_method | 6 / 8 | 0.750 | {low:.3f} to {high:.3f} | 0.750 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c | {"study": "other"}, "those of another study"),
        (lambda c: c | {"votes": []}, "there are no votes"),
        (lambda c: c | {"votes": [c["votes"][0] | {"chosen": "none"}]}, "a picture that was not shown"),
        (lambda c: {"a": 1}, "neither votes nor the key"),
    ],
)
def test_wrong_votes_are_refused(
    change: Any, message: str, folders: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out, key = make(folders)
    codes = list(key["methods"])
    path = out.with_name("votes.json")
    path.write_text(json.dumps(change(answers(key["study"], "1", [("style", codes[0], codes)]))))
    assert main(["study", "count", str(path), str(out.with_name("study-key.json"))]) == 2
    assert message in capsys.readouterr().err


def test_votes_without_their_key_and_studies_of_nothing_are_refused(
    folders: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "make", str(folders[0]), str(folders[1])]) == 2
    assert "--content" in capsys.readouterr().err
    assert main(["study", "make", str(folders[0]), "--content", str(folders[0].parent / "photos")]) == 2
    assert "two methods" in capsys.readouterr().err
    path = folders[0].parent / "votes.json"
    path.write_text(json.dumps(answers("x", "1", [("style", "a", ["a", "b"])])))
    assert main(["study", "count", str(path)]) == 2
    assert "0 keys" in capsys.readouterr().err


@pytest.mark.slow
def test_twenty_votes_in_a_real_browser(folders: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    """From a file, by keyboard and mouse: blue for style, red for content, else the first; taken back and reloaded."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install 'smsff[browser]'")
    out, key = make(folders, "--pairs", "--most", "4")  # 4 comparisons x 2 orders x 3 questions = 24 answers
    blue, red = (next(code for code, name in key["methods"].items() if METHODS[name] == c) for c in ("blue", "red"))
    complaints: list[str] = []
    with playwright.sync_playwright() as api:
        path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        if path is None and not Path(api.chromium.executable_path).exists():
            pytest.skip("no Chromium or Chrome found")
        browser = api.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1200, "height": 800})
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda one: None if one.url.startswith(("file:", "data:", "blob:")) else complaints.append(one.url),
        )
        page.goto(out.as_uri())
        for number in range(20):
            trial = page.evaluate("current()")
            wanted = {"style": blue, "content": red}.get(trial["question"])
            index = trial["shown"].index(wanted) if wanted in trial["shown"] else 0
            assert page.evaluate("document.querySelectorAll('#choices img')[0].naturalWidth") == 48
            if number % 2:
                page.keyboard.press(str(index + 1))
            else:
                page.locator("#choices button").nth(index).click()
            page.keyboard.press("9")  # there is no such picture
            if number == 5:
                page.keyboard.press("Backspace")
                page.keyboard.press(str(index + 1))
            if number == 9:
                page.reload()
            assert page.locator("#progress").inner_text() == f"{number + 1} of 24 answers"
        for _ in range(4):
            page.keyboard.press("1")
        assert page.locator("#choices").is_hidden()
        with page.expect_download() as saved:
            page.keyboard.press("Enter")
        saved.value.save_as(out.with_name("votes.json"))
        browser.close()
    assert complaints == []
    content = json.loads(out.with_name("votes.json").read_text())
    assert len(content["votes"]) == 24
    assert not set(METHODS) & set(json.dumps(content).split('"'))
    content["votes"] = content["votes"][:20]
    out.with_name("votes.json").write_text(json.dumps(content))
    capsys.readouterr()
    assert (
        main(["study", "count", "--json", str(out.with_name("votes.json")), str(out.with_name("study-key.json"))]) == 0
    )
    counted = json.loads(capsys.readouterr().out)
    assert counted["votes"] == 20
    for question, colour in (("style", "blue"), ("content", "red")):
        row = next(row for name, row in counted["questions"][question].items() if METHODS[name] == colour)
        assert (
            row["chosen"]
            == row["shown"]
            == sum(
                v["question"] == question and (blue if colour == "blue" else red) in v["shown"]
                for v in content["votes"]
            )
        )
        assert (row["low"], row["high"]) == pytest.approx(wilson(row["chosen"], row["shown"]))
    shown = [tuple(v["shown"]) for v in content["votes"] if v["question"] == "style"]
    assert any(codes[::-1] in shown for codes in shown)  # both orders
    assert math.isclose(sum(row["strength"] for row in counted["questions"]["overall"].values()), 1)
    assert list(QUESTIONS) == [vote["question"] for vote in content["votes"][:3]]
