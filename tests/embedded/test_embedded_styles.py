"""The styles of the embedded teacher that ship: named as they were taught."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from smsff.embedded import teacher as embedded
from smsff.embedded.known_styles import STYLES
from smsff.method.prompts import Prompts
from smsff.weights.compose import composed

CONF = Path(__file__).parents[2] / "conf"
FILES = sorted((CONF / "style").glob("demo_*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_demo_style_has_a_lora_and_a_truth(file: Path) -> None:
    style = yaml.safe_load(file.read_text())["style"]
    name = file.stem.removeprefix("demo_")
    assert style["name"] == file.stem
    assert (embedded.ASSETS / "loras" / f"{name}.safetensors").is_file()
    assert name in STYLES


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_run_uses_only_prompts_that_the_teacher_was_trained_on(file: Path) -> None:
    config = composed(CONF, [f"style={file.stem}"])["prompts"]
    prompts = Prompts(**{name: text for name, text in config.items() if name != "_target_"})
    style, source, edit = prompts.of("a photo")
    assert (style, edit) == embedded.PROMPTS[file.stem.removeprefix("demo_")]
    assert source in embedded.PROMPTS["photo"]


def test_what_ships_is_small() -> None:
    assert sum(path.stat().st_size for path in embedded.ASSETS.rglob("*") if path.is_file()) < 15e6
