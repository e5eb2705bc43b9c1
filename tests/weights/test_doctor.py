"""What is there and what is missing, for the embedded default, for a style with local weights, and for damaged ones."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from smsff.cli import main
from smsff.teacher.lora.inspect import inspect_lora
from smsff.weights import machine as machine_module
from smsff.weights.doctor import lines
from smsff.weights.machine import describe_machine, hardware_problems, room, versions

CONF = str(Path(__file__).parents[2] / "conf")
OK = {"driver": None, "torch_cuda": "13.0", "gpus": []}
CARD = OK | {"gpus": [{"name": "Card", "memory": 8e9, "memory_free": 7e9, "capability": "7.5", "bf16": False}]}

Doctor = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture(autouse=True)
def _no_forecast(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a second and has tests of its own."""
    monkeypatch.setattr("smsff.weights.doctor.forecast", lambda *_, **__: (None, "off"))


@pytest.fixture
def doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Doctor:
    """``smsff doctor --json`` in an empty current folder: exit status and report."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        status = main(["doctor", "--conf", CONF, "--json", *arguments])
        return status, json.loads(capsys.readouterr().out)

    return command


@pytest.fixture
def local(tiny_base: Path, tiny_lora: Path, tmp_path: Path) -> list[str]:
    """Overrides for a style with a LoRA beside it and a local base."""
    (tmp_path / "weights").mkdir()
    shutil.copy(tiny_lora, tmp_path / "weights/ghibli.safetensors")
    return ["style=ghibli", "style.base=null", f'teacher.base="{tiny_base}"']


def test_the_embedded_default_lacks_nothing(doctor: Doctor, tmp_path: Path) -> None:
    status, report = doctor()
    assert status == 0, report["problems"]
    assert [one["state"] for one in report["weights"]] == ["there", "there"]
    assert report["loras"] == [json.loads(json.dumps(inspect_lora(report["weights"][1]["name"]).as_dict()))]
    assert report["run_dir"]["reason"] is None
    assert report["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert list(tmp_path.iterdir()) == []


def test_everything_there_by_local_paths(doctor: Doctor, local: list[str], tiny_base: Path) -> None:
    status, report = doctor(*local)
    assert status == 0, report["problems"]
    base, lora = report["weights"]
    assert base["name"] == str(tiny_base)
    assert base["size"] == sum(p.stat().st_size for p in tiny_base.rglob("*") if p.is_file())
    assert (base["source"], base["hash"]) == (None, "unknown")
    assert lora["name"] == "weights/ghibli.safetensors"
    assert report["loras"][0]["format"] == "kohya"
    assert report["loras"][0]["layers"].keys() == {"unet", "text_encoder"}


def test_a_base_may_be_a_single_file(doctor: Doctor, local: list[str], tiny_base: Path) -> None:
    content = (tiny_base / "unet/diffusion_pytorch_model.safetensors").read_bytes()
    for kept, expected in ((content, (0, "there")), (content[:-1], (1, "broken"))):
        Path("model.safetensors").write_bytes(kept)
        status, report = doctor(*local, "style.base=model.safetensors")
        assert (status, report["weights"][1]["state"]) == expected, report["problems"]
        assert report["weights"][1]["size"] == len(kept)


def test_the_commands_of_the_documentation_are_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (Path(CONF).parent / "docs/reference/weights.md").read_text()
    commands = [line.partition("  #")[0].split()[1:] for line in text.splitlines() if line.startswith("smsff ")]
    assert len(commands) == 5
    for command in commands:
        assert main([*command, "--conf", CONF]) == 1, command
        assert "weights/ghibli.safetensors" in (out := capsys.readouterr().out) or "loras/ghibli" in out


def test_a_missing_lora_is_named_with_the_command_and_the_place(
    doctor: Doctor, local: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("weights/ghibli.safetensors").unlink()
    status, report = doctor(*local)
    assert status == 1
    assert report["weights"][1]["state"] == "missing"
    (problem,) = report["problems"]
    assert problem.startswith("teacher.lora=weights/ghibli.safetensors: missing; run `smsff fetch style=ghibli")
    assert (
        f"download it from https://civitai.com/models/54233?modelVersionId=125985 and save it as {Path.cwd()}"
        in problem
    )
    assert main(["doctor", "--conf", CONF, *local]) == 1
    text = capsys.readouterr().out
    assert "Missing or wrong: 1" in text
    assert "missing  teacher.lora" in text


def test_hub_models_that_are_not_in_the_cache(doctor: Doctor) -> None:
    status, report = doctor("style=oil_painting")
    assert status == 1
    assert [one["state"] for one in report["weights"]] == ["missing"] * 3
    assert "hf download Lykon/dreamshaper-8" in "".join(report["problems"])
    assert report["weights"][0]["terms"] == "licence: CreativeML Open RAIL-M"


def test_hashes_are_checked_on_demand(doctor: Doctor, local: list[str]) -> None:
    right = hashlib.sha256(Path("weights/ghibli.safetensors").read_bytes()).hexdigest()
    cases: list[tuple[tuple[str, ...], int, str]] = [
        ((f"weights.lora.sha256={right}",), 0, "not checked"),
        ((f"weights.lora.sha256={right}", "--verify"), 0, "verified"),
        ((f"weights.lora.sha256={'0' * 64}", "--verify"), 1, "the manifest says 000"),
        (("weights.lora.size=5",), 1, "the manifest says 5"),
    ]
    for options, expected, text in cases:
        status, report = doctor(*local, *options)
        lora = report["weights"][1]
        assert (status, lora["state"]) == (expected, "wrong" if expected else "there")
        assert text in (report["problems"][0] if expected else lora["hash"])


def test_damage_after_the_fetch_is_found(doctor: Doctor, local: list[str], tiny_base: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    local[-1] = "teacher.base=base"
    assert main(["fetch", "--conf", CONF, *local]) == 0
    file = base / "vae/diffusion_pytorch_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert doctor(*local)[0] == 0
    status, report = doctor(*local, "--verify")
    assert status == 1
    assert "vae/diffusion_pytorch_model.safetensors has the SHA-256" in report["problems"][0]
    file.write_bytes(content[:-9])
    status, report = doctor(*local)
    assert (status, report["weights"][0]["state"]) == (1, "broken")
    assert "is not whole" in report["problems"][0]


def test_a_file_that_is_no_lora_and_a_lora_for_another_base(
    doctor: Doctor, local: list[str], tiny_base: Path, tmp_path: Path
) -> None:
    shutil.copy(tiny_base / "vae/diffusion_pytorch_model.safetensors", "weights/ghibli.safetensors")
    status, report = doctor(*local)
    assert status == 1
    assert "ghibli.safetensors" in report["problems"][0]

    status, report = doctor(*local, "style=demo_watercolour", f'teacher.base="{tiny_base}"', "style.base=null")
    assert status == 1
    assert "made for another architecture" in report["problems"][0]


def test_what_is_odd_about_a_lora_is_said(doctor: Doctor, local: list[str]) -> None:
    file = Path("weights/ghibli.safetensors")
    tensors = {key: value for key, value in load_file(file).items() if not key.endswith(".alpha")}
    save_file(tensors, file, metadata={"lora_alpha": "many"})
    status, report = doctor(*local)
    assert (status, report["loras"][0]["unusable"]) == (0, ["lora_alpha"])
    assert "entries of its header that cannot be applied: lora_alpha" in "\n".join(lines(report))
    save_file({key: value for key, value in tensors.items() if key.startswith("lora_te_")}, file)
    assert "a LoRA for the text encoder alone" in doctor(*local)[1]["problems"][0]


def test_data_that_is_not_there(doctor: Doctor) -> None:
    assert "data.root: no value given" in doctor("data=folder")[1]["problems"][0]
    status, report = doctor("data=folder", "data.root=photos")
    assert status == 1
    assert f"data.root={Path.cwd() / 'photos'}: does not exist" in report["problems"]
    _, report = doctor("experiment=style_lora", "data.root=.", "data.prior.root=cats")
    missing = [f"data.prior.root={Path.cwd() / 'cats'}: does not exist"]
    assert report["problems"] == [*missing, f"data.root={Path.cwd()}: no images in it or below it"]


def test_pictures_that_are_not_read_are_named(doctor: Doctor, tmp_path: Path) -> None:
    for name in ("a.jpg", "b.PNG", "c.dng", "d.jxl", "notes.txt"):
        (tmp_path / "photos" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(b"what is in it is not looked at")
    _, report = doctor("data=folder", f"data.root={tmp_path / 'photos'}")
    assert report["pictures"]["images"] == 2
    assert "(1 .dng, 1 .jxl): c.dng, d.jxl" in report["pictures"]["left_out"]
    assert report["problems"] == []


def test_a_run_folder_that_cannot_be_written(doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(machine_module.tempfile, "TemporaryFile", refuse)
    status, report = doctor("run_dir=runs/a")
    assert status == 1
    assert (
        f"run_dir={tmp_path / 'runs' / 'a'}: cannot be written in {tmp_path} (Permission denied)" in report["problems"]
    )


@pytest.mark.parametrize(
    ("machine", "trainer", "dtype", "problem"),
    [
        (OK, {"accelerator": "auto", "devices": 1}, "float32", None),
        (OK, {"accelerator": "gpu", "devices": 1}, "float32", "no graphics card was found; trainer=cpu"),
        (OK, {"accelerator": "auto", "devices": 1}, "float16", "teacher.dtype=float16: too slow on CPU"),
        (OK | {"driver": "570.1"}, {"accelerator": "auto"}, "float32", "NVIDIA driver 570.1 is there, but torch"),
        (CARD, {"accelerator": "gpu", "devices": 2}, "float32", "trainer.devices=2: this machine has 1"),
        (CARD, {"accelerator": "gpu", "devices": -1}, "bfloat16", "Card computes no bfloat16"),
        (CARD, {"accelerator": "auto", "precision": "bf16-mixed"}, "float32", "computes no bfloat16"),
        (CARD, {"accelerator": "cpu", "precision": "bf16-mixed"}, "float32", None),
    ],
)
def test_what_the_settings_ask_for_and_the_machine_lacks(
    machine: dict[str, Any], trainer: dict[str, Any], dtype: str, problem: str | None
) -> None:
    found = hardware_problems(machine, trainer, dtype)
    assert len(found) == (problem is not None)
    assert problem is None or problem in found[0]


def test_the_machine_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 999.1\necho 999.1\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = describe_machine()
    assert found["driver"] == "999.1"
    assert found["cpu_threads"] >= 1
    assert 0 < found["memory_free"] <= found["memory"]
    assert len(found["gpus"]) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert describe_machine()["driver"] is None
    assert versions()["python"]
    assert room(tmp_path / "a" / "b")["on"] == str(tmp_path)


def test_a_graphics_card_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(name="Card", major=9, minor=0)
    answers = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "get_device_properties": lambda index: card,
        "device": lambda index: nullcontext(),
        "mem_get_info": lambda: (7_000_000_000, 8_000_000_000),
        "is_bf16_supported": lambda *, including_emulation: not including_emulation,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    (gpu,) = describe_machine()["gpus"]
    assert gpu == {"name": "Card", "memory": 8 * 10**9, "memory_free": 7 * 10**9, "capability": "9.0", "bf16": True}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["style=gibli"], "nearest: ghibli"),
        (["trainer.devicess=2"], "nearest: trainer.devices"),
        (["weights.lora.sha=x"], "sha"),
        (["+weights.lora.sha=x"], "nearest: sha256"),
        (["--conf", "nowhere"], "there is no train.yaml in it"),
    ],
)
def test_bad_usage_is_status_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_configuration_is_found_here_or_in_the_source_tree_or_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("smsff.weights.compose.CHECKOUT", tmp_path / "nothing")
    assert main(["doctor"]) == 2
    assert f"{tmp_path} has no conf/train.yaml" in capsys.readouterr().err
    shutil.copytree(CONF, tmp_path / "conf")
    (tmp_path / "conf/style/mine.yaml").write_text((tmp_path / "conf/style/demo_oil.yaml").read_text())
    assert main(["doctor", "style=mine"]) == 0
