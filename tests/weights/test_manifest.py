"""What a configuration needs, and that the shipped manifest speaks of exactly what the shipped configuration names."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from smsff.errors import UserError
from smsff.weights.compose import composed
from smsff.weights.files import FileRecord
from smsff.weights.manifest import LOCK, Locked, needs, read_lock, write_lock
from smsff.weights.pipeline import MODELS

CONF = Path(__file__).parents[2] / "conf"
CHOICES = [f"{group}={path.stem}" for group in ("style", "teacher") for path in sorted((CONF / group).glob("*.yaml"))]


@pytest.mark.parametrize("choice", CHOICES)
def test_the_manifest_knows_all_that_a_style_or_teacher_needs(choice: str) -> None:
    for need in needs(composed(CONF, [choice])):
        weight = need.weight
        assert weight is not None, need.name
        assert weight.licence or weight.page or weight.source is None
        assert weight.source is None or weight.source in ("hub", "package") or weight.source.startswith("https://")
        assert need.hub == (weight.source == "hub")
        assert weight.sha256 is None or len(weight.sha256) == 64


def test_what_the_user_names_is_the_users_own() -> None:
    plain = composed(CONF, ["style=ghibli", "style.lora=mine.safetensors", "teacher.base=me/model", "style.base=./m"])
    assert [(need.key, need.name, need.hub, need.weight) for need in needs(plain)] == [
        ("teacher.base", "me/model", True, None),
        ("teacher.style_base", "./m", False, None),
        ("teacher.lora", "mine.safetensors", False, None),
    ]


def test_revision_and_variant_are_those_of_the_configuration() -> None:
    base, style_base, lora = needs(composed(CONF, ["style=ghibli", "teacher.revision=abc", "teacher.variant=fp16"]))
    assert (base.revision, base.variant) == ("abc", "fp16")
    assert (style_base.revision, style_base.variant) == (None, "fp16")
    assert (lora.revision, lora.variant) == (None, None)


def test_several_loras_and_the_settings_of_a_single_file() -> None:
    teacher = {"base": "a.safetensors", "config": "me/model", "lora": [{"path": "b.safetensors", "strength": 0.5}]}
    teacher["lora"].append({"path": "c.safetensors"})  # type: ignore[attr-defined]
    beside = set(MODELS) - {"transformer"}  # all that is not in a flow's file
    for target, weights in (("smsff.x.load_stable_diffusion", set()), ("smsff.x.load_flow", beside)):
        found = [
            (need.key, need.name, set(need.weights)) for need in needs({"teacher": teacher | {"_target_": target}})
        ]
        assert found == [
            ("teacher.base", "a.safetensors", set(MODELS)),
            ("teacher.config", "me/model", weights),
            ("teacher.lora", "b.safetensors", set(MODELS)),
            ("teacher.lora", "c.safetensors", set(MODELS)),
        ]


def test_an_auto_encoder_of_its_own() -> None:
    one, vae = needs(
        composed(CONF, ["style=demo_ink", "style.lora=null", "teacher.vae=some/vae", "teacher.variant=fp16"])
    )[:2]
    assert (one.part, vae.key, vae.hub, vae.part, vae.variant) == (None, "teacher.vae", True, "vae", None)


def test_weights_that_are_named_twice_are_needed_once() -> None:
    teacher = {"base": "me/model", "style_base": "me/model", "lora": None}
    assert [need.key for need in needs({"teacher": teacher})] == ["teacher.base"]


@pytest.mark.parametrize(
    "name", ["owner/name", "owner/name.safetensors", "folder", "a/b/c", "../name", "~/name", "dir\\name"]
)
def test_what_looks_like_a_hub_id(name: str) -> None:
    (need,) = needs({"teacher": {"base": name}})
    assert need.hub is (name == "owner/name")


def test_an_entry_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match=r"weights\.base: source missing"):
        needs({"teacher": {"base": "x"}, "weights": {"base": {"name": "x"}}})


def record(letter: str) -> Locked:
    return Locked(source=None, revision=None, files={"a": FileRecord(1, letter * 64)})


def test_records_are_read_as_they_were_written_and_added_by_several_at_once(tmp_path: Path) -> None:
    path = tmp_path / LOCK
    assert read_lock(path) == {}
    threads = [threading.Thread(target=write_lock, args=(letter, record(letter), path)) for letter in "abcdef"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_lock(path) == {letter: record(letter) for letter in "abcdef"}
    write_lock("a", record("f"), path)
    assert read_lock(path)["a"] == record("f")
    assert sorted(one.name for one in tmp_path.iterdir()) == [".smsff.lock", LOCK]


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"weights": {"a": {"source": 1}}})])
def test_a_damaged_record_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / LOCK).write_text(content)
    with pytest.raises(UserError, match=r"weights\.lock\.json: cannot be read .* mend it, or remove it"):
        read_lock(tmp_path / LOCK)
