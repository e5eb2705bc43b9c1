from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from models import checkpoint, network

from smsff.stylize.stylizer import load_stylizer

ROOT = Path(__file__).parents[1]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, str(ROOT / "export.py"), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "checkpoints" / "last=1.ckpt"  # "=" as in Lightning's file names
    return checkpoint(path, network())


def test_exports_and_prints_size_and_parity(trained: Path, tmp_path: Path) -> None:
    done = run(tmp_path, f"ckpt='{trained}'", "out=model")
    assert done.returncode == 0, done.stderr
    assert "model/model.safetensors: 0." in done.stdout
    assert "MB" in done.stdout
    assert "largest difference from the checkpoint at 101 x 135: 0.0e+00" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["model"]  # no log, no run folder
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]
    load_stylizer(tmp_path / "model")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "ckpt: no value given"),
        (["ckpt=x", "fromat=onnx"], "nearest: format"),
        (["ckpt=写真=[1].ckpt", "precision=3"], "precision=3: must be text"),
        (["ckpt=x", "--format=onnx"], "without dashes: format=onnx"),
    ],
)
def test_bad_input_is_status_2_and_one_message(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = run(tmp_path, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_help_names_the_keys(tmp_path: Path) -> None:
    done = run(tmp_path, "--help")
    assert done.returncode == 0
    assert "ckpt" in done.stdout
    assert "onnx" in done.stdout
