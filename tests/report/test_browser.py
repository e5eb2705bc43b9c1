"""The page in a real browser: nothing is loaded, nothing is complained about, and mouse and keyboard work.

Needs the package playwright (pip install 'smsff[browser]') and a Chromium or Chrome, its own or the system's. The
screenshots stay in the folder of the environment variable SMSFF_SCREENSHOTS, if there is one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from run_folders import evaluation, training_run

from smsff.data.images import load_image
from smsff.report.html import write_report

pytestmark = pytest.mark.slow
playwright = pytest.importorskip("playwright.sync_api", reason="pip install 'smsff[browser]'")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as api:
        path = next(filter(None, map(shutil.which, BROWSERS)), None)
        if path is None and not Path(api.chromium.executable_path).exists():
            pytest.skip("no Chromium or Chrome found; install one, or run: playwright install chromium")
        # as root, and in containers, Chromium's own sandbox does not start
        started = api.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    runs = [training_run(root / "<script>alert(1)<", seed=0), training_run(root / "second", seed=1)]
    return write_report(root / "report.html", [*runs, evaluation(root / "eval")])


@pytest.fixture(params=["light", "dark"])
def page(request: pytest.FixtureRequest, browser: Any, report: Path) -> Iterator[Any]:
    context = browser.new_context(color_scheme=request.param, viewport={"width": 1280, "height": 900})
    found = context.new_page()
    complaints: list[str] = []
    requests: list[str] = []
    found.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    found.on("pageerror", lambda error: complaints.append(str(error)))
    found.on("dialog", lambda dialog: complaints.append(f"dialog {dialog.message}"))
    found.on("request", lambda one: requests.append(one.url))
    found.goto(report.as_uri())
    yield found
    context.close()
    assert complaints == []
    assert {url.split(":")[0] for url in requests} <= {"file", "data"}
    assert [url for url in requests if url.startswith("file")] == [report.as_uri()]


def colour(page: Any, selector: str, key: str) -> tuple[int, ...]:
    text = page.eval_on_selector(selector, f"e => getComputedStyle(e)['{key}']")
    return tuple(int(float(part)) for part in text[text.index("(") + 1 : -1].split(",")[:3])


def luminance(rgb: tuple[int, ...]) -> float:
    linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_page_is_legible_and_fits(page: Any, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    scheme = request.node.callspec.params["page"]
    ground = luminance(colour(page, "body", "backgroundColor"))
    assert (ground > 0.8) if scheme == "light" else (ground < 0.02)
    for selector in ("h1", "p.muted", "td", "thead th", ".best", "figcaption", "nav a", ".notice li"):
        light, dark = sorted((luminance(colour(page, selector, "color")), ground), reverse=True)
        assert (light + 0.05) / (dark + 0.05) > 4.5, selector
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        folder = Path(os.environ.get("SMSFF_SCREENSHOTS", tmp_path))
        picture = folder / f"report_{scheme}_{width}.png"
        page.screenshot(path=picture, full_page=True)
        pixels = load_image(picture).float()
        assert pixels.shape[2] == width
        assert pixels.shape[1] > 1500
        assert torch.std(pixels) > 10  # something is there
    assert page.evaluate("[...document.images].filter(i => i.src && !i.naturalWidth).length") == 0


def test_the_slider_follows_the_keyboard_and_the_mouse(page: Any, tmp_path: Path) -> None:
    stage = page.locator(".stage").first
    stage.scroll_into_view_if_needed()
    slider = stage.locator("input")
    slider.focus()
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    assert stage.evaluate("e => e.style.getPropertyValue('--split')") == "40%"
    page.keyboard.press("Home")
    only_after = shot(stage, tmp_path)
    page.keyboard.press("End")
    only_before = shot(stage, tmp_path)
    assert (only_after - only_before).abs().mean() > 20
    box = stage.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    assert abs(float(slider.input_value()) - 25) <= 3


def shot(element: Any, folder: Path) -> torch.Tensor:
    path = folder / "part.png"
    element.screenshot(path=path)
    return torch.from_numpy(load_image(path).numpy()).float()


def test_pictures_open_large_by_keyboard_and_the_focus_comes_back(page: Any) -> None:
    button = page.locator("button.zoom").first
    button.focus()
    page.keyboard.press("Enter")
    dialog = page.locator("#lightbox")
    assert dialog.is_visible()
    first = dialog.locator("img").get_attribute("alt")
    page.keyboard.press("ArrowRight")
    assert dialog.locator("img").get_attribute("alt") != first
    page.keyboard.press("f")
    assert dialog.locator("[data-do=size]").get_attribute("aria-pressed") == "true"
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert button.evaluate("e => e === document.activeElement")
    page.locator("button.enlarge").first.click()
    assert "stylized" in (dialog.locator("img").get_attribute("alt") or "")
    dialog.locator("[data-do=close]").click()
    assert not dialog.is_visible()


def test_without_scripts_everything_can_be_seen(browser: Any, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.locator(".stage .before").first.is_visible()
    assert page.locator("table").count() >= 2
    context.close()


def test_a_name_with_markup_is_only_text(page: Any) -> None:
    assert page.locator("h3", has_text="<script>alert(1)<").count() > 0
    assert page.evaluate("document.scripts.length") == 1
