"""A configuration from a stranger does nothing by itself: every payload here would write a file."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.basecontainer import BaseContainer
from omegaconf.resolvers import oc

from smsff.config.check import check_config, resolve
from smsff.config.hydra_guard import install
from smsff.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("SMSFF_ALLOW", raising=False)
    for name in ("load_configuration", "_process_config_searchpath"):
        monkeypatch.setattr(ConfigLoaderImpl, name, getattr(ConfigLoaderImpl, name))  # put back afterwards
    install()
    yield
    GlobalHydra.instance().clear()


def strangers(tmp_path: Path, text: str, *, plugins: Sequence[str] = ()) -> DictConfig:
    """Compose the shipped training configuration with a file of a stranger as the experiment."""
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "theirs.yaml").write_text("# @package _global_\n" + text.replace("FILE", str(tmp_path / "payload")))
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base="1.3"):
        overrides = [f"hydra.searchpath=[file://{tmp_path / 'conf'}]", "experiment=theirs", "run_dir=unused"]
        overrides += plugins
        return compose("train", overrides=overrides, return_hydra_config=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hydra: {callbacks: {x: {_target_: os.system, _args_: [touch FILE]}}}", r"hydra\.callbacks\.x\._target_"),
        ("hydra: {launcher: {_target_: os.system}}", r"hydra\.launcher\._target_.*os\.system"),
        ("hydra: {overrides: {hydra: ['hydra.launcher.setup=[touch FILE]']}}", r"hydra\.overrides=.*command line"),
        ("hydra: {sweeper: {_target_: subprocess.run}}", r"hydra\.sweeper\._target_.*subprocess\.run"),
        ("hydra: {job_logging: {handlers: {console: {(): os.system, command: touch FILE}}}}", r"job_logging.*\(\)"),
        ("hydra: {job_logging: {handlers: {x: {class: logging.handlers.SocketHandler}}}}", r"handlers\.x\.class"),
        ("hydra: {job_logging: {handlers: {file: {filename: FILE}}}}", r"filename.*folder of the run"),
        ("hydra: {job_logging: {handlers: {console: {stream: 'ext://os.environ'}}}}", r"no references"),
        ("hydra: {hydra_logging: {handlers: {console: {class: '${oc.env:HOME}'}}}}", r"hydra_logging.*class"),
        ("hydra: {job: {env_set: {LD_PRELOAD: FILE}}}", r"hydra\.job\.env_set"),
        ("hydra: {job: {env_copy: [HOME]}}", r"hydra\.job\.env_set=.*HOME"),
        ("hydra: {job: {name: ../../x}}", r"hydra\.job\.name"),
        ("hydra: {output_subdir: /tmp}", r"hydra\.output_subdir"),
        ("hydra: {callbacks: '${x}'}", r"hydra\.callbacks"),
        ("x: !!python/object/apply:os.system ['touch FILE']", r"cannot be read"),
        ("x: &a [*a]", r"cannot be read"),
    ],
)
def test_hydra_does_nothing_for_a_stranger(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        strangers(tmp_path, text)
    assert not (tmp_path / "payload").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("generator: {_target_: os.system, command: touch FILE}", r"generator\._target_=os\.system"),
        ("data: {root: {_target_: os.system, command: touch FILE}}", r"data\.root="),
        ("regularizer: {lambda_freq: {_target_: os.system, command: touch FILE}}", r"regularizer\.lambda_freq"),
        ("callbacks: {x: {_target_: torch.load, f: FILE}}", r"callbacks\.x\._target_=torch\.load"),
        ("callbacks: {x: {_target_: torch.hub.load, repo_or_dir: FILE}}", r"torch\.hub\.load"),
        ("callbacks: {x: {_target_: smsff.training.callbacks.summary.write_json, path: FILE}}", r"write_json"),
        ("callbacks: {x: {_target_: lightning.pytorch.callbacks.LambdaCallback}}", r"LambdaCallback"),
        ("trainer: {profiler: {_target_: os.system, command: touch FILE}}", r"trainer\.profiler\._target_"),
        ("trainer: {plugins: [{_target_: os.system, command: touch FILE}]}", r"trainer\.plugins\.0\._target_"),
        ("generator: {_target_: smsff.generator.image.nn.Module}", r"generator\._target_"),
        ("generator: {_args_: [1]}", r"generator\._args_: there is no such key"),
        ("generator: {_recursive_: false}", r"generator\._recursive_: there is no such key"),
        ("objective: {_partial_: true}", r"objective\._partial_=True: must be false"),
        ("a: os\nb: system\ngenerator: {_target_: '${a}.${b}'}", r"a: there is no such key"),
        ("prompts: {words: '${oc.env:HOME}'}", r"prompts\.words: .*oc\.env"),
        ("a: env\nprompts: {words: '${oc.${a}:HOME}'}", r"oc\.env"),
        ("prompts: {words: '\\${oc.env:HOME}'}", r"prompts\.words.*must not stand"),
        ("prompts: {words: '${oc.decode:\"[1]\"}'}", r"oc\.decode"),
        ("style: {lora: '${asset:../../../../../etc/passwd}'}", r"lora: .*outside the package"),
        ("callbacks: {samples: {folder: FILE}}", r"callbacks\.samples\.folder.*run_dir"),
        ("callbacks: {checkpoint: {dirpath: '${run_dir}/../..'}}", r"callbacks\.checkpoint\.dirpath"),
        ("logger: {name: ../../x}", r"logger\.name"),
    ],
)
def test_a_run_does_nothing_for_a_stranger(tmp_path: Path, text: str, message: str) -> None:
    cfg = strangers(tmp_path, text)
    with pytest.raises(UserError, match=message):
        check_config(resolve(without_hydra(cfg)))
    assert not (tmp_path / "payload").exists()


@pytest.fixture
def plugins() -> Iterator[list[str]]:
    """Overrides that choose a launcher and a sweeper with the keys of submitit's and Optuna's."""
    keys = {"setup": None, "python": None, "srun_args": None, "additional_parameters": {}, "partition": None}
    launcher = {"_target_": "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher", **keys}
    target = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
    sweeper = {"_target_": target, "params": None, "custom_search_space": None, "storage": None}
    store = ConfigStore.instance()
    before = copy.deepcopy(store.repo)
    store.store(group="hydra/launcher", name="like_submitit", node=launcher)
    store.store(group="hydra/sweeper", name="like_optuna", node=sweeper)
    yield ["hydra/launcher=like_submitit", "hydra/sweeper=like_optuna"]
    store.repo = before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hydra: {launcher: {setup: [touch FILE]}}", r"hydra\.launcher\.setup\.0=.*command line"),
        ("hydra: {launcher: {python: touch FILE}}", r"hydra\.launcher\.python=.*command line"),
        ("hydra: {launcher: {srun_args: [--prolog=FILE]}}", r"hydra\.launcher\.srun_args\.0=.*command line"),
        ("hydra: {launcher: {additional_parameters: {prolog: FILE}}}", r"additional_parameters\.prolog=.*line"),
        ('hydra: {launcher: {partition: "x\\ntouch FILE #"}}', r"hydra\.launcher\.partition=.*second line"),
        ("hydra: {sweeper: {custom_search_space: os.system}}", r"hydra\.sweeper\.custom_search_space=.*command line"),
        ("hydra: {sweeper: {params: {+hydra.launcher.setup: '[touch FILE]'}}}", r"params\.\+hydra.*command line"),
        ("hydra: {sweeper: {storage: 'mysql://elsewhere'}}", r"hydra\.sweeper\.storage=.*command line"),
    ],
)
def test_launchers_and_sweepers_take_commands_from_the_command_line_alone(
    tmp_path: Path, plugins: list[str], text: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        strangers(tmp_path, text, plugins=plugins)


@pytest.mark.parametrize("key", ["launcher.setup", "launcher.python", "sweeper.storage"])
def test_what_the_command_line_says_is_done(tmp_path: Path, plugins: list[str], key: str) -> None:
    cfg = strangers(tmp_path, "seed: 1\n", plugins=[*plugins, f"hydra.{key}=x"])
    assert OmegaConf.select(cfg.hydra, key) == "x"


def without_hydra(cfg: DictConfig) -> DictConfig:
    with flag_override(cfg, ["struct", "readonly"], [False, False]):
        del cfg["hydra"]
    return cfg


def test_a_search_path_may_not_name_a_package(tmp_path: Path) -> None:
    (tmp_path / "conf.yaml").write_text("hydra: {searchpath: ['pkg://antigravity']}\n")
    GlobalHydra.instance().clear()
    with (
        initialize_config_dir(config_dir=str(tmp_path), version_base="1.3"),
        pytest.raises(UserError, match=r"hydra\.searchpath='pkg://antigravity'"),
    ):
        compose("conf")
    assert "antigravity" not in sys.modules


def test_what_the_user_permits_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "generator: {_target_: collections.OrderedDict}\nprompts: {words: '${oc.env:WORDS}'}\n"
    monkeypatch.setenv("SMSFF_ALLOW", "collections.OrderedDict, oc.env")
    monkeypatch.setenv("WORDS", "mine")
    # Other tests have removed it already, and shall find those that are there now.
    monkeypatch.setattr(BaseContainer, "_resolvers", dict(BaseContainer._resolvers))
    OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)
    plain = resolve(without_hydra(strangers(tmp_path, text)))
    check_config(plain)
    assert plain["prompts"]["words"] == "mine"
    monkeypatch.setenv("SMSFF_ALLOW", "collections")
    check_config(plain)
    monkeypatch.setenv("SMSFF_ALLOW", "collection")
    with pytest.raises(UserError, match="OrderedDict"):
        check_config(plain)


def test_the_shipped_configuration_passes(tmp_path: Path) -> None:
    strangers(tmp_path, "seed: 1\n")


@pytest.mark.parametrize("script", ["train.py", "export.py"])
def test_the_commands_themselves_are_guarded(tmp_path: Path, script: str) -> None:
    primary = script.removesuffix(".py")
    payload = "hydra: {callbacks: {x: {_target_: pathlib.Path.touch}}}"
    (tmp_path / "theirs.yaml").write_text(f"defaults: [{primary}, _self_]\n{payload}\n")
    environment = {k: v for k, v in os.environ.items() if k != "SMSFF_ALLOW"}
    done = subprocess.run(
        [sys.executable, str(ROOT / script), "--config-dir", str(tmp_path), "--config-name", "theirs"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: hydra.callbacks.x._target_='pathlib.Path.touch'")
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.yaml"]
