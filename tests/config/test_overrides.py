"""Command lines as people type them: what Hydra cannot read is the text that it is."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from hydra.errors import HydraException
from hypothesis import given
from hypothesis import strategies as st

from smsff.config.overrides import prepared, quoted, readable
from smsff.config.paths import absolute
from smsff.errors import UserError
from smsff.training.processes import loader_workers
from smsff.weights.compose import composed

ROOT = Path(__file__).parents[2]
HOME = Path("~").expanduser()


def value(word: str) -> Any:
    """What Hydra reads: the value, or the list of those of a sweep."""
    override = OverridesParser.create().parse_override(word)
    assert override.get_key_element().lstrip("+") in word
    if not override.is_sweep_override():
        return override.value()
    if not isinstance(override.value(), ChoiceSweep):
        return override.value()
    return [OverridesParser.create().parse_override(f"x={one}").value() for one in override.sweep_string_iterator()]


ODD = [
    "写真",
    "größe",
    "epoch=0-step=12.ckpt",
    "set [1]",
    "a{b}c",
    "Fotos (2023)",
    "100% & more",
    "it's",
    'say "so"',
    "'a' b",
    "it's \"both\\",
    "#1!;<>^`~",
    "a\nb\tc",
    "\udcff.jpg",
    "f(1)",
    "tail=\\",
    "a = b",
]


@pytest.mark.parametrize("text", ODD)
@pytest.mark.parametrize("key", ["data.root", "+prompts.words", "name"])
@pytest.mark.parametrize("sweep", [False, True])
def test_what_hydra_cannot_read_is_the_text_that_was_typed(text: str, key: str, sweep: bool) -> None:
    with pytest.raises(HydraException):
        value(f"{key}={text}")
    assert value(readable(f"{key}={text}", sweep=sweep)) == text


@pytest.mark.parametrize(
    "word",
    [
        "seed=3",
        "steps=1e3",
        "run_dir=null",
        "data.root=",
        "data.root=a/b.c-d_e",
        "data.root='set [1]'",
        'data.root="a b"',
        r"data.root=my\ photos",
        "data.root=${run_dir}/photos",
        "data.root=str(3)",
        "+generator.widths=[8,8]",
        "teacher.lora=[{path:a.safetensors,strength:1}]",
        "x={a:1,b:[c,d]}",
        "seed=1,2",
        "seed=choice(1,2)",
        "seed=range(1,4)",
        "data.root=choice(a,b)",
        "style=glob(*)",
        "~callbacks.samples",
        "style=ghibli",
        "hydra/launcher=joblib",
        "写=1",
    ],
)
def test_what_hydra_can_read_stays_as_it_is(word: str) -> None:
    assert readable(word, sweep=True) == word


@pytest.mark.parametrize("text", ["2024", "[v2]", "true", "1e3", "{a:b}", "a,b", "2024,[v2]", "1_000"])
def test_a_path_is_a_text(text: str) -> None:
    assert value(readable(f"data.root={text}", sweep=False)) == text


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("data.root=写真,b", ["写真", "b"]),
        ("data.root=set [1], set [2]", ["set [1]", "set [2]"]),
        ("data.root=2024,[v2]", ["2024", "[v2]"]),
        ("data.root=~/a,'b,c',d", [str(HOME / "a"), "b,c", "d"]),
        ("data.root=choice(写真,[v2],'c,d')", ["写真", "[v2]", "c,d"]),
        ("ckpt_path=epoch=1.ckpt,epoch=2.ckpt", ["epoch=1.ckpt", "epoch=2.ckpt"]),
        ("prompts.words=ö,[a,b],${x:1,2}", ["ö", ["a", "b"], "${x:1,2}"]),
        ("seed=1,2", [1, 2]),
    ],
)
def test_a_comma_separates_the_values_of_a_sweep(word: str, expected: list[Any]) -> None:
    assert value(readable(word, sweep=True)) == expected


@pytest.mark.parametrize("sweep", [False, True])
def test_the_elements_of_a_list_are_texts_too(sweep: bool) -> None:
    word = "teacher.lora=[{path:größe=1.safetensors,strength:0.5}, {path: '~/b'}, {path:~/c d}]"
    expected = [{"path": "größe=1.safetensors", "strength": 0.5}, {"path": "~/b"}, {"path": "~/c d"}]
    assert value(readable(word, sweep=sweep)) == expected


@pytest.mark.parametrize("text", ["~", "~/写真", "'~/x'"])
@pytest.mark.parametrize("key", ["run_dir", "ckpt", "out", "style.lora", "teacher.base", "hydra.run.dir"])
def test_a_tilde_is_the_home_folder(key: str, text: str) -> None:
    assert value(readable(f"{key}={text}", sweep=False)) == str(Path(text.strip("'")).expanduser())


def test_a_tilde_before_no_users_name_is_part_of_a_name() -> None:
    assert value(readable("data.root=~nobody-is-called-so/x", sweep=False)) == "~nobody-is-called-so/x"


@given(st.text())
def test_quoting_is_undone_by_hydra(text: str) -> None:
    assert value(f"x={quoted(text)}") == text


@given(st.text(min_size=1))
def test_every_text_is_read_and_reading_twice_changes_nothing(text: str) -> None:
    once = readable(f"data.root={text}", sweep=False)
    value(once)
    assert readable(once, sweep=False) == once


def test_options_may_stand_anywhere() -> None:
    assert prepared(["seed=0", "-m", "seed=1,2"]) == ["seed=0", "seed=1,2", "-m"]
    words = [
        "--config-dir",
        "a=b",
        "seed=0",
        "--cfg",
        "job",
        "~callbacks.samples",
        "--config-name=x",
        "-cn",
        "y",
        "s=1",
    ]
    assert prepared(words) == [
        *["seed=0", "~callbacks.samples", "s=1"],
        *["--config-dir", "a=b", "--cfg", "job", "--config-name=x", "-cn", "y"],
    ]
    assert prepared(["data.root=写真,b", "--multi"]) == ['data.root="写真",b', "--multi"]
    assert prepared(["data.root=写真,b", "hydra.mode=MULTIRUN"])[0] == 'data.root="写真",b'
    assert prepared(["data.root=写真,b"]) == ['data.root="写真,b"']


@pytest.mark.parametrize(
    ("words", "paste"),
    [
        (["--steps=3"], "steps=3"),
        (["-steps=3"], "steps=3"),
        (["--steps", "3"], "steps=3"),
        (["--data.root=a b"], "'data.root=a b'"),
        (["seed=1", "--verbose"], "verbose=VALUE"),
        (["--verbose", "seed=1"], "verbose=VALUE"),
        (["data.root=set", "[1]"], "'data.root=set [1]'"),
        (["seed", "=", "3"], "seed=VALUE"),
    ],
)
def test_what_is_no_override_is_shown_as_one(words: list[str], paste: str) -> None:
    with pytest.raises(UserError) as caught:
        prepared(words)
    assert str(caught.value).endswith(paste)
    assert "\n" not in str(caught.value)


def test_several_values_without_a_sweep_are_explained_ready_to_paste() -> None:
    with pytest.raises(UserError, match=r"^style\.words=a cat, a dog: .* needs -m; a list is .*, a text ") as caught:
        composed(ROOT / "conf", ["style.words=a cat, a dog"])
    (word,) = shlex.split(str(caught.value).rpartition("a text ")[2])
    assert value(word) == "a cat, a dog"


def test_an_unreadable_key_is_named() -> None:
    with pytest.raises(UserError, match="写"):
        composed(ROOT / "conf", ["写=1"])


def test_paths_are_absolute_and_names_of_weights_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plain = composed(
        ROOT / "conf", ["data=folder", "data.root=写 [1]", "style.lora=weights/a=1.safetensors", "run_dir=o"]
    )
    assert plain["data"]["root"] == str(tmp_path / "写 [1]")
    assert plain["run_dir"] == str(tmp_path / "o")
    assert plain["teacher"]["lora"] == plain["style"]["lora"] == "weights/a=1.safetensors"
    kept = {"ckpt_path": "last", "out": None, "data": {"root": "???", "caption": "~"}}
    assert absolute(kept) == kept
    assert absolute({"ckpt_path": "~/a.ckpt"}) == {"ckpt_path": str(HOME / "a.ckpt")}


@pytest.mark.parametrize(
    ("cores", "devices", "expected"),
    [(1, 1, 0), (2, 1, 1), (16, 1, 4), (16, 8, 1), (64, 8, 4), (4, 8, 0), (8, [0, 1], 3), (8, "0,1", 3), (8, -1, 4)],
)
def test_loader_workers_follow_the_cores(
    cores: int, devices: Any, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert loader_workers(devices) == expected


@pytest.mark.parametrize(
    "command",
    [
        ["train.py", "--help"],
        ["train.py", "--cfg", "job"],
        ["export.py", "--help"],
        ["-m", "smsff.cli", "stylize", "-h"],
    ],
    ids=" ".join,
)
def test_a_closed_pipe_ends_a_command_quietly(command: list[str]) -> None:
    script, *rest = command
    words = [sys.executable, str(ROOT / script) if script.endswith(".py") else script, *rest]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
