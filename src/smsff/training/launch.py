"""Hydra: what a wrong command line means, and how Lightning starts its child processes.

With ``trainer.devices=N`` Lightning runs the script again for every further process. Stock Lightning repeats the whole
command line, so the children of a sweep (``-m``) would run the sweep again, in folders of their own. Here a child gets
the overrides of its one job and the folder of its parent, and a finished job leaves no rank in the environment.

Lightning 2.6 has no public means to choose the command of a child process, what watches the children, or, once the
trainer is built, the timeout of a process group. `use_child_command` and `limit_waiting` set these by private names;
``tests/training/test_ddp.py`` fails first when Lightning moves them.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf

from smsff.config.overrides import quoted
from smsff.config.trust import nearest
from smsff.errors import UserError
from smsff.training import processes, slurm

if TYPE_CHECKING:
    import lightning.pytorch as pl

RANK_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")
STARTED_BY_OTHERS = "LOCAL_RANK" in os.environ
"""Whether this process is one of several that Lightning, torchrun or a cluster started."""


def check_processes(trainer: Mapping[str, Any], *, sweep: bool) -> None:
    """Compare the processes that ``srun`` or torchrun has started with those that the configuration wants.

    Args:
        sweep: Whether this is one job of several of the same command.

    Raises:
        UserError: each would be a training of its own in the same folder, or wait for one that never comes.
    """
    elastic = "TORCHELASTIC_RUN_ID" in os.environ
    if elastic and sweep:
        raise UserError("-m: start a sweep without torchrun; trainer.devices=N starts the processes of each job")
    devices, nodes = processes.device_count(trainer["devices"]), trainer["num_nodes"]
    if devices is None or not (elastic or slurm.in_job()):
        return
    started = int(os.environ["WORLD_SIZE"] if elastic else os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    if started != devices * nodes:
        raise UserError(
            f"trainer.devices={devices} trainer.num_nodes={nodes} is a training of {devices * nodes} processes, and "
            f"{'torchrun' if elastic else 'srun'} has started {started}; make them equal"
        )
    if not elastic:
        os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(devices))  # Lightning wants it, and srun -n 8 has none


def child_command(script: Path, local_rank: int, *, replace: Mapping[str, str] | None = None) -> list[str]:
    """The command of one further process of the Hydra job that is running.

    `local_rank` is from 1; `replace` has overrides instead of what stood on the command line.
    """
    config, replaced = HydraConfig.get(), replace or {}
    kept = [text for text in config.overrides.task if text.partition("=")[0].lstrip("+~") not in replaced]
    added = [f"{key}={quoted(value)}" for key, value in replaced.items()]
    sources = [s.path for s in config.runtime.config_sources if s.provider == "command-line"]
    flags = [part for path in sources for part in ("--config-dir", path)]
    hydra = [
        f"hydra.run.dir={quoted(config.runtime.output_dir)}",
        "hydra.mode=RUN",
        "hydra.output_subdir=null",
        f"hydra.job.name={config.job.name}_rank{local_rank}",
    ]
    name = ["--config-name", str(config.job.config_name)]
    return [sys.executable, str(script), *name, *flags, *kept, *added, *hydra]


def use_child_command(script: Path, *, replace: Mapping[str, str] | None = None) -> None:
    """Make Lightning start further processes with `child_command`, and watch them with `processes`."""
    from lightning.pytorch.strategies.launchers import subprocess_script

    processes.watch_main()
    if slurm.is_main_process():
        os.environ[processes.MAIN_PROCESS] = str(os.getpid())

    def command(local_rank: int) -> tuple[list[str], str]:
        return child_command(script, local_rank, replace=replace), os.getcwd()

    subprocess_script._hydra_subprocess_cmd = command
    subprocess_script._launch_process_observer = processes.watch_children


def limit_waiting(trainer: pl.Trainer, *, seconds: float) -> None:
    """Let a process that waits for another give up after so many seconds (Lightning and torch wait for 30 minutes)."""
    from lightning.pytorch.strategies import DDPStrategy

    if isinstance(trainer.strategy, DDPStrategy):
        trainer.strategy._timeout = timedelta(seconds=seconds)


def end_of_job(*, grace: float = 60.0) -> None:
    """Leave the process group and forget the ranks, so that the next job of a sweep starts its own children.

    Args:
        grace: Seconds that the children have to end.
    """
    import torch.distributed

    processes.end_children(grace=grace)
    processes.end_workers()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if not STARTED_BY_OTHERS:
        for name in RANK_VARIABLES:
            os.environ.pop(name, None)


def flat_keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Every key of a tree of plain containers in dotted form, inner nodes included."""
    if isinstance(node, dict):
        for name, value in node.items():
            key = f"{prefix}.{name}" if prefix else str(name)
            yield key
            yield from flat_keys(value, key)


def explain(error: Exception, *, config_dir: Path, config_name: str, words: Sequence[str] = ()) -> str:
    """A message for a command line that Hydra could not turn into a configuration, with the nearest valid name.

    Args:
        words: The command line: the task or baseline that it chooses decides which keys exist.
    """
    text = str(error)
    first = text.strip().splitlines()[0]
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        if choice in ("submitit_slurm", "submitit_local"):
            return f"{group}={choice.removeprefix('submitit_')} needs submitit: pip install 'smsff[cluster]'"
        choices = ", ".join(error.options)
        return f"{group}={choice}: there is no such choice; {nearest(choice, error.options)}\nchoices: {choices}"
    ambiguous = re.match(r"Ambiguous value for argument '([^=]*)=(.*)'$", first)
    if ambiguous:
        key, value = ambiguous.groups()
        written = f"a list is {key}=[{value}], a text {shlex.quote(f'{key}={quoted(value)}')}"
        return f"{key}={value}: several values are a sweep, which needs -m; {written}"
    found = re.search(r"Could not (?:override|append to config|delete from config)[^'\n]*'([^'\n]+)'", text)
    if not found:
        return first
    key = found.group(1).partition("=")[0].partition("@")[0]
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(config_dir), version_base="1.3"):
        chosen = [word for word in words if re.fullmatch(r"(task|experiment)=style_lora|baseline=\w+", word)]
        known = set(flat_keys(OmegaConf.to_container(compose(config_name, overrides=chosen))))
    groups = {str(path.relative_to(config_dir)) for path in config_dir.iterdir() if path.is_dir()}
    if key in known:
        return f"{key}: {first}"
    siblings = {name for name in known | groups if name.rpartition(".")[0] == key.rpartition(".")[0]}
    return f"{key}: there is no such key; {nearest(key, siblings or known)}"
