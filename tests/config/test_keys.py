"""Every key that a table or a message of the code names is a key of some configuration."""

from __future__ import annotations

import ast
import inspect
import itertools
import pkgutil
import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from smsff import build
from smsff.config import paths, schema, trust
from smsff.config.reference import reference
from smsff.training import resume
from smsff.weights import manifest

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
GROUPS: dict[str, list[str]] = {}
for file in sorted(CONF.glob("*/*.yaml")):
    GROUPS.setdefault(file.parent.name, []).append(file.stem)
OF_STYLE_LORA = ("teacher", "trainer", "logger", "callbacks")
EXPORT = ("ckpt", "format", "precision", "out")
FROM_THE_RUN = ("baseline.teacher", "fake_score.teacher", "generator.image", "generator.z")
"""Arguments that are no keys."""
NOT_CHOSEN = ("task", "experiment", "tuned", "baseline")
FILES = (".json", ".jsonl", ".yaml", ".safetensors", ".py")


def keys(node: Any, key: str = "") -> Iterator[str]:
    """Every node of a tree of containers, elements of lists too, in dotted form."""
    if key:
        yield key
    for name, value in node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ():
        yield from keys(value, f"{key}.{name}" if key else str(name))


def command_lines() -> Iterator[tuple[str, list[str]]]:
    """Few that have every choice of every group among them."""
    yield "export", []
    for choice in GROUPS["baseline"]:
        yield "baseline", [f"baseline={choice}"]
    for task, groups in ("style_matching", set(GROUPS) - set(NOT_CHOSEN)), ("style_lora", OF_STYLE_LORA):
        for index in range(max(len(GROUPS[group]) for group in groups)):
            chosen = [f"{group}={GROUPS[group][index % len(GROUPS[group])]}" for group in sorted(groups)]
            yield "train", [f"task={task}", *chosen]


@cache
def known() -> frozenset[str]:
    """The keys of all configurations, and the arguments of all that they may build."""
    found: set[str] = set()
    for name, overrides in command_lines():
        GlobalHydra.instance().clear()
        with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
            found |= set(keys(OmegaConf.to_container(compose(name, overrides=overrides))))
    for place, targets in trust.TARGETS.items():
        for target in targets:
            node = place.replace("*", "any")
            arguments = inspect.signature(pkgutil.resolve_name(target)).parameters
            found |= {f"{node}.{argument}" for argument in arguments}
    return frozenset(found)


def unknown(patterns: Iterable[str]) -> list[str]:
    """Those that no key fits; ``key.*`` also fits a key whose elements are numbers that nobody has given."""
    return [
        pattern
        for pattern in patterns
        if not any(fnmatchcase(key, one) for key in known() for one in (pattern, pattern.removesuffix(".*")))
    ]


@pytest.mark.parametrize(
    "table",
    [
        resume.REFUSED,
        resume.IGNORED,
        resume.FREE,
        schema.KEYS,
        trust.TARGETS,
        paths.FILES,
        paths.NAMES,
        build.OPTIONS,
        list(itertools.chain(*build.CHEAP.values())),
        [f"trainer.{key}" for key in schema.FIXED],
        [f"teacher.{key}" for key in manifest.KEYS],
        [f"baseline.{key}" for key in manifest.BASELINE],
    ],
    ids=str,
)
def test_every_key_of_a_table_is_a_key(table: Iterable[str]) -> None:
    assert unknown(table) == []


def texts(tree: ast.AST) -> Iterator[str]:
    """The texts of a program, its docstrings left out, with ``{}`` for what is computed."""
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            inside = isinstance(node, ast.JoinedStr | ast.Expr)
            if isinstance(child, ast.Constant) and isinstance(child.value, str) and not inside:
                yield child.value
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)


def test_every_key_that_a_message_names_is_a_key() -> None:
    nodes = "|".join(sorted({key.partition(".")[0] for key in known() if "." in key}))
    named = re.compile(rf"(?<![\w./\-])(?:{nodes})(?:\.[a-z_]\w*)+(?![\w.(/*{{])")
    for path in sorted((ROOT / "src" / "smsff").rglob("*.py")):
        found = {key for text in texts(ast.parse(path.read_text())) for key in named.findall(text)}
        assert unknown(key for key in found if not key.endswith(FILES)) == [], path


def test_every_key_has_a_text() -> None:
    keys = {key for key in known() if not key.endswith("_")} - {*EXPORT, *FROM_THE_RUN}
    assert sorted(key for key in keys if schema.key_of(key) is None) == []


def test_the_reference_of_the_keys_is_up_to_date() -> None:
    assert (ROOT / "docs" / "reference" / "keys.md").read_text() == reference()
