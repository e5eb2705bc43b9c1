"""Configurations: the shipped ones with keys changed, added, removed and moved, and YAML of a stranger."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import torch
from fuzz_edits import byte_edits, edit_bytes, edit_tree, tree_edits
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
COMMANDS: tuple[tuple[str, ...], ...] = (
    (),
    ("style=ghibli", "trainer=gpu"),
    ("experiment=per_image",),
    ("experiment=sms_official",),
    ("experiment=ablation_full", "data.batch_size=2"),
    ("experiment=style_lora", "data.root=x"),
    ("generator=resnet", "logger=tensorboard", "trainer=cpu"),
    ("objective=dmd", "callbacks=best"),
)
EXPERIMENTS = sorted((ROOT / "conf" / "experiment").glob("*.yaml"))

cases = st.one_of(
    st.tuples(st.just("tree"), st.integers(0, len(COMMANDS) - 1), st.lists(tree_edits, min_size=1, max_size=4)),
    st.tuples(st.just("tree"), st.integers(0, len(COMMANDS) - 1), st.lists(tree_edits, min_size=1, max_size=4)),
    st.tuples(st.just("yaml"), st.integers(0, len(EXPERIMENTS) - 1), st.lists(byte_edits, min_size=1, max_size=4)),
)


@cache
def train_script() -> Any:
    from smsff.config.hydra_guard import install

    install()
    spec = importlib.util.spec_from_file_location("train_script", ROOT / "train.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def compose(overrides: list[str]) -> Any:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    train_script()
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base="1.3"):
        return hydra_compose("train", overrides=overrides)


@cache
def shipped(which: int) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(compose(["run_dir=run", *COMMANDS[which]]), resolve=False)


def run(case: Any, folder: Path) -> None:
    """What train.py does with a configuration before it loads weights."""
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from smsff.config.check import check_config, resolve
    from smsff.errors import UserError

    kind, which, edits = case
    if kind == "tree":
        try:
            cfg = OmegaConf.create(edit_tree(shipped(which), edits))
        except (OmegaConfBaseException, RecursionError, ValueError) as error:  # no YAML could say this
            raise UserError(str(error)) from error
    else:
        theirs = folder / "conf" / "experiment" / "theirs.yaml"
        theirs.parent.mkdir(parents=True)
        theirs.write_bytes(edit_bytes(EXPERIMENTS[which].read_bytes(), edits))
        try:
            cfg = compose([f"hydra.searchpath=[file://{folder / 'conf'}]", "experiment=theirs", "run_dir=run"])
        except HydraException as error:
            raise UserError(str(error)) from error
    plain = resolve(cfg)
    check_config(plain)
    build_cheap(plain, folder)


def build_cheap(plain: dict[str, Any], folder: Path) -> None:
    """Everything of a run but the weights and the pictures of a folder."""
    from smsff.build import build, build_parts

    script = train_script()
    data = dict(plain["data"])
    if data.get("root") is not None or data.get("photos") is not None or data.get("path") is not None:
        (folder / "photos").mkdir(exist_ok=True)  # whatever folder is named: an empty one
        data |= {key: str(folder / "photos") for key in ("root", "photos", "path") if data.get(key) is not None}
    plain = {**plain, "data": data}
    if isinstance(plain["logger"], dict) and str(plain["logger"].get("_target_", "")).endswith("wandb_logger"):
        plain["logger"] = None
    script.build_trainer(plain)
    if plain["task"] == "style_matching":
        with torch.device("meta"):
            build(plain["generator"])
    build_parts(plain)
