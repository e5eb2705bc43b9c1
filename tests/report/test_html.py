from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from run_folders import SIZE, benchmark, evaluation, picture, training_run

from smsff.cli import main
from smsff.errors import UserError
from smsff.report.collect import collect
from smsff.report.content import Source
from smsff.report.html import write_report
from smsff.report.pictures import embed
from smsff.report.tables import known_style_tables, settings_table

EVIL = "<script>alert(1)<%2Fscript>\"'{{7*7}}"


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def test_a_run_has_every_section_and_is_self_contained(tmp_path: Path) -> None:
    page = read(write_report(tmp_path / "new" / "report.html", [training_run(tmp_path / "run")]))
    sections = [s["id"] for s in page.all("section")]
    assert sections == ["figures", "before-after", "pictures", "curves", "runs"]
    addresses = [a[key] for _, a in page.elements for key in ("src", "href", "srcset", "data", "action") if key in a]
    assert all(address is None or address.startswith(("data:", "#")) for address in addresses)
    assert not re.search(r"@import|url\(", (tmp_path / "new" / "report.html").read_text())
    assert not page.all("link")[1:]
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy


def test_pictures_have_words_and_controls_have_names(tmp_path: Path) -> None:
    page = read(write_report(tmp_path / "r.html", [training_run(tmp_path / "run"), evaluation(tmp_path / "eval")]))
    images = [a for a in page.all("img") if "src" in a]
    assert len(images) > 10
    assert all(a["alt"] for a in images)
    sliders = page.all("input")
    assert len(sliders) == 2 + 3
    assert all(a["type"] == "range" and a["aria-label"] for a in sliders)
    assert all(a["aria-label"] for a in page.all("svg") if a.get("role") == "img")
    identifiers = [a["id"] for _, a in page.elements if "id" in a]
    assert len(identifiers) == len(set(identifiers))
    assert {a["href"] for a in page.all("a")} <= {f"#{identifier}" for identifier in identifiers}
    assert page.all("html")[0]["lang"] == "en"


def test_names_do_no_harm(tmp_path: Path) -> None:
    run = training_run(tmp_path / EVIL, photos=[EVIL.replace("/", "")], style="<b>")
    (run / "config.yaml").write_text(f"style:\n  name: '</pre><script>x</script>'\n  words: {json.dumps(EVIL)}\n")
    evil = evaluation(tmp_path / "e<img src=x onerror=y>", names=[EVIL, "<svg/onload=1>"])
    path = write_report(tmp_path / "r.html", [run, evil], title="</title><script>t</script>")
    page = read(path)
    assert len(page.all("script")) == 1
    assert not page.all("b")
    assert not [a for _, a in page.elements if any(key.startswith("on") for key in a)]
    assert EVIL in page.text
    assert "49" not in re.findall(r"alert\(1\)[^ ]*", page.text)[0]
    assert "</title><script>t</script>" in page.text


def test_the_script_and_style_are_those_of_the_policy(tmp_path: Path) -> None:
    html = write_report(tmp_path / "r.html", [evaluation(tmp_path / "eval")]).read_text()
    for tag in ("script", "style"):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, flags=re.S)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in html.replace("&#39;", "'")
    assert 'style="' not in html


def test_a_comparison_shows_differences_and_pictures_side_by_side(tmp_path: Path) -> None:
    runs = [training_run(tmp_path / f"run{seed}", seed=seed) for seed in range(3)]
    page = read(write_report(tmp_path / "r.html", runs))
    assert "side-by-side" in [s["id"] for s in page.all("section")]
    assert "Comparison of 3 runs" in page.text
    entries = collect(runs)
    settings = settings_table(entries)
    assert settings is not None
    assert [(heading.title, [cell.text for cell in cells]) for heading, cells in settings.rows] == [
        ("seed", ["0", "1", "2"])
    ]
    (table,) = known_style_tables(entries)
    assert [heading.title for heading, _ in table.rows][4:7] == ["run0", "run1", "run2"]
    assert table.rows[0][1][0].text == "0.10"  # do nothing: mean of 0, 0.1 and 0.2
    assert (6, 0) in table.best  # PSNR: higher is better
    assert {(4, 6), (4, 7)} <= table.best  # content distances: lower is better
    assert table.marked == {4, 5, 6}


def test_evaluations_stand_beside_each_other_with_counts_and_warnings(tmp_path: Path) -> None:
    folders = [evaluation(tmp_path / "one", lpips=0.3), evaluation(tmp_path / "two", lpips=0.2)]
    page = read(write_report(tmp_path / "r.html", folders))
    assert "n = 3, ± 0.0100" in page.text
    assert len([a for a in page.all("td") if a.get("class") == "best"]) == 1
    assert "LPIPS to the content : n = 3: too few" in page.text
    assert page.all("abbr")[0]["title"] == "n = 3: too few"


def test_a_comparison_has_its_tables_and_one_line_of_pictures_for_each_photo(tmp_path: Path) -> None:
    page = read(write_report(tmp_path / "r.html", [benchmark(tmp_path / "bench", rows={"SMS": 1.0, "SDS": 2.0})]))
    assert "Mean of 2 styles" in page.text
    alts = [a["alt"] for a in page.all("img") if "src" in a]
    assert alts[:3] == ["cel, cat: photo", "cel, cat: SMS", "cel, cat: SDS"]
    assert [a["class"] for a in page.all("div") if "grid" in a.get("class", "")] == ["grid line"] * 2


def test_pictures_shrink_until_all_of_them_fit(tmp_path: Path) -> None:
    sources = []
    for i in range(4):
        path = tmp_path / f"{i}.png"
        Image.effect_noise((600, 400), 80).convert("RGB").save(path)
        sources.append(Source(path=path, alt=str(i)))
    sources.append(Source(path=tmp_path / "gone.png", alt="gone"))
    large, small = embed(sources), embed(sources, limit=100_000)
    assert len(large) == len(small) == 4
    assert {(p.width, p.height) for p in large.values()} == {(600, 400)}
    assert sum(len(p.uri) for p in small.values()) <= 100_000
    assert {p.original for p in small.values()} == {(600, 400)}


def test_a_cut_out_picture_is_the_part_that_was_asked_for(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a.png")
    source = Source(path=tmp_path / "a.png", alt="a", box=(12, 0, 18, 10))
    uri = embed([source])[source].uri
    pixels = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB")
    assert pixels.size == (6, 10)
    assert pixels.getpixel((3, 5))[0] > 200  # the bright stripe
    assert SIZE[0] > 18


def test_the_command_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = training_run(tmp_path / "run"), tmp_path / "r.html"
    assert main(["report", str(run), "--out", str(out), "--title", "My report"]) == 0
    assert "My report" in read(out).text
    assert str(out) in capsys.readouterr().out
    assert main(["report", str(tmp_path / "no"), "--out", str(out)]) == 2
    assert main(["report", str(run), "--out", str(tmp_path)]) == 2
    with pytest.raises(UserError, match="the report cannot be written"):
        write_report(out / "below" / "r.html", [run])
