"""The styles of the embedded teacher that ship: named as they were taught."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from smsff.embedded import teacher as embedded
from smsff.embedded.known_styles import STYLES

FILES = sorted((Path(__file__).parents[2] / "conf" / "style").glob("demo_*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_demo_style_has_a_lora_a_truth_and_the_prompts_it_was_taught(file: Path) -> None:
    style = yaml.safe_load(file.read_text())["style"]
    name = file.stem.removeprefix("demo_")
    assert style["name"] == file.stem
    assert (style["words"], style["edit"]) == embedded.PROMPTS[name]
    assert (embedded.ASSETS / "loras" / f"{name}.safetensors").is_file()
    assert name in STYLES


def test_what_ships_is_small() -> None:
    assert sum(path.stat().st_size for path in embedded.ASSETS.rglob("*") if path.is_file()) < 15e6
