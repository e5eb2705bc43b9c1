"""The commands of the README: every train.py command composes, every make target and file exists."""

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from smsff.config.check import check_config, resolve

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```bash\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [line.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]


def overrides_of(command: str) -> list[str]:
    """The overrides of one job: of a sweep, the first value of each."""
    words = shlex.split(command)[2:]
    if "-m" in words:
        words = [word.split(",")[0] for word in words if word != "-m"]
    return [word for word in words if not word.startswith("--")]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python train.py")])
def test_train_commands_compose(command):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", overrides=overrides_of(command))
    OmegaConf.set_struct(cfg, True)
    check_config(resolve(cfg))


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python export.py")])
def test_export_commands_compose(command):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("export", overrides=overrides_of(command))
    resolve(cfg)


def test_all_kinds_of_commands_are_covered():
    kinds = {" ".join(command.split()[:2]) for command in COMMANDS}
    assert kinds == {"make demo", "make test", "pip install", "python train.py", "python export.py", "smsff stylize"}


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", " ".join(COMMANDS))) <= targets
    tests = {"test", "test-slow", "test-slurm", "test-faults", "lint"}
    work = {"demo", "style-lora", "teacher", "bench", "bench-styles"}
    assert targets == tests | work | {"help", "faults-table", "clean"}


def test_files_of_the_table_exist():
    table = README[README.index("## Where things are") : README.index("Guide: ")]
    for row in table.splitlines():
        if row.startswith("|") and not row.startswith(("| Concept", "|---")):
            files = re.findall(r"`([^`]+)`", row.split("|")[2])
            assert files
            for file in files:
                assert (ROOT / "src" / "smsff" / file).exists(), file
