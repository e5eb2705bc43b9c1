"""What Hydra itself would do on behalf of a configuration, checked before it does it.

Hydra composes the configuration and then acts on the node ``hydra`` in it, before any code of ours runs: it builds the
launcher, the sweeper and callbacks from their ``_target_``, handlers of log messages from their class names, sets
environment variables, and reads further packages named as search paths. All of that may stand in a file of a stranger.

Importing this module guards the process. A launcher's process imports it with the pickled job, before it composes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import wraps
from pathlib import PurePath
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from smsff.config.trust import PERMISSION, limit_resolvers, permitted
from smsff.errors import UserError, shown

TARGETS = {
    "hydra.launcher._target_": (
        "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
        "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
        "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher",
        "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
    ),
    "hydra.sweeper._target_": (
        "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
        "hydra_plugins.smsff_study.Study",
    ),
}
TYPED = (
    "hydra.launcher.setup",
    "hydra.launcher.python",
    "hydra.launcher.srun_args",
    "hydra.launcher.additional_parameters",
    "hydra.sweeper.custom_search_space",
    "hydra.sweeper.storage",
)
"""What launchers and sweepers run as a command, import, or connect to: from the command line alone."""
LOG_CLASSES = ("logging.StreamHandler", "logging.FileHandler", "logging.NullHandler", "logging.Formatter")
LOG_STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
RUN_FOLDER = "${hydra.runtime.output_dir}/"
SEARCH_PATHS = ("file://", "pkg://hydra.conf")


def install() -> None:
    """From now on every configuration that Hydra composes in this process is checked first; calling again is free."""
    limit_resolvers()
    if getattr(ConfigLoaderImpl._load_configuration_impl, "guarded", False):
        return
    # Private, but where all roads meet: the run, each job of a sweep, --cfg. `test_hydra_guard` runs real commands.
    load, search = ConfigLoaderImpl._load_configuration_impl, ConfigLoaderImpl._process_config_searchpath

    @wraps(load)
    def guarded_load(self: ConfigLoaderImpl, *args: Any, **kwargs: Any) -> DictConfig:
        limit_resolvers()
        try:
            cfg = load(self, *args, **kwargs)
        except (HydraException, OmegaConfBaseException, UserError):
            raise
        except Exception as error:  # nothing but the text of the configuration is at work here
            raise _unreadable(error) from error
        check_hydra(cfg, kwargs["overrides"])
        return cfg

    @wraps(search)
    def guarded_search(self: ConfigLoaderImpl, config_name: str | None, overrides: Any, repo: Any) -> None:
        loaded = repo.load_config(config_path=config_name) if config_name is not None else None
        check_search_path(loaded.config if loaded is not None else None)
        search(self, config_name, overrides, repo)

    guarded_load.guarded = True  # type: ignore[attr-defined]
    ConfigLoaderImpl._load_configuration_impl = guarded_load  # type: ignore[method-assign]
    ConfigLoaderImpl._process_config_searchpath = guarded_search  # type: ignore[assignment,method-assign]


def check_search_path(primary: Any) -> None:
    """Whether the search path of a primary configuration has folders alone: a package is imported to be searched.

    Raises:
        UserError: names the entry.
    """
    entries = OmegaConf.select(primary, "hydra.searchpath") if OmegaConf.is_dict(primary) else None
    for entry in entries or []:
        name = str(entry)
        if "://" in name and not name.startswith(SEARCH_PATHS) and not permitted("hydra.searchpath"):
            raise _refusal("hydra.searchpath", entry, "only folders (file://) can be searched")


def check_hydra(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse a composed configuration whose ``hydra`` node would run code, set variables or write elsewhere.

    Args:
        cfg: With its ``hydra`` node.
        overrides: Those that it was composed with.

    Raises:
        UserError: names the key.
    """
    hydra = OmegaConf.to_container(cfg, resolve=False).get("hydra", {})  # type: ignore[union-attr]
    if not isinstance(hydra, Mapping):
        raise _refusal("hydra", hydra, "must be a node")
    for key, value in _leaves(hydra, "hydra"):
        last = key.rpartition(".")[2]
        if last in ("_target_", "()") and value not in TARGETS.get(key, ()) and not permitted(str(value)):
            raise _refusal(key, value, "would build something while the configuration is read", name=str(value))
    for key in TARGETS:
        part = hydra.get(key.split(".")[1])
        if not isinstance(part, Mapping):
            raise _refusal(key.rpartition(".")[0], part, "must be a node")
    _check_typed(hydra, overrides)
    if not isinstance(hydra.get("callbacks") or {}, Mapping):
        raise _refusal("hydra.callbacks", hydra["callbacks"], "must be a node")
    job = hydra.get("job") or {}
    for name in ("env_set", "env_copy"):
        if job.get(name) and not permitted(f"hydra.job.{name}"):
            raise _refusal(f"hydra.job.{name}", job[name], "the environment is no matter of a configuration")
    for name, value in (
        ("hydra.job.name", job.get("name")),
        ("hydra.output_subdir", hydra.get("output_subdir")),
        ("hydra.sweep.subdir", (hydra.get("sweep") or {}).get("subdir")),
    ):
        if isinstance(value, str) and (".." in PurePath(value).parts or PurePath(value).is_absolute()):
            raise _refusal(name, value, "leads out of the folder of the run")
    for name in ("job_logging", "hydra_logging"):
        _check_logging(hydra.get(name), f"hydra.{name}")


def _check_typed(hydra: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Hold what only the command line may say against what it says."""
    recorded = hydra.get("overrides") or {}
    if sorted([*recorded.get("hydra", []), *recorded.get("task", [])]) != sorted(overrides):
        raise _refusal("hydra.overrides", recorded, "a file says what the command line alone can say")
    params = hydra["sweeper"].get("params") or {}
    for key in params if isinstance(params, Mapping) else ():
        if _key(str(key)).startswith("hydra"):
            raise _refusal(f"hydra.sweeper.params.{key}", params[key], "Hydra's own keys are given on the command line")
    for key, value in _leaves({name: hydra[name] for name in ("launcher", "sweeper")}, "hydra"):
        typed = any(key == one or key.startswith(f"{one}.") for one in map(_key, overrides))
        if value is None or typed or permitted(key):
            continue
        if any(key == one or key.startswith(f"{one}.") for one in TYPED):
            raise _refusal(key, value, "runs commands or leaves this machine: give it on the command line")
        if isinstance(value, str) and not value.isprintable():
            raise _refusal(key, value, "a second line would run as a command")


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+")


def _check_logging(node: Any, place: str) -> None:
    if node is None or permitted(place):
        return
    if not isinstance(node, Mapping):
        raise _refusal(place, node, "must be a node")
    for key, value in _leaves(node, place):
        last = key.rpartition(".")[2]
        if last == "class" and value not in LOG_CLASSES:
            raise _refusal(key, value, f"must be one of {', '.join(LOG_CLASSES)}", name=place)
        if last == "filename":
            inside = str(value).startswith(RUN_FOLDER) and ".." not in PurePath(str(value)).parts
            if not inside:
                raise _refusal(key, value, f"log files lie in the folder of the run: {RUN_FOLDER}NAME", name=place)
        elif isinstance(value, str) and ("${" in value or "://" in value) and value not in LOG_STREAMS:
            raise _refusal(key, value, "no references here", name=place)


def _leaves(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything that is no container."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from _leaves(value, f"{key}.{name}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _leaves(value, f"{key}.{index}")
    else:
        yield key, node


def _unreadable(error: Exception) -> UserError:
    if "Config group override" in str(error):
        return UserError("null is no choice of a group; leave it out, or take none where there is such a choice")
    reason = (str(error).splitlines() or [""])[0]
    return UserError(f"the configuration cannot be read: {type(error).__name__} {reason}".strip())


def _refusal(key: str, value: Any, reason: str, *, name: str | None = None) -> UserError:
    return UserError(
        f"{key}={shown(value)}: {reason}. If you trust this configuration, set {PERMISSION}={name or key} in the "
        "environment"
    )


install()
