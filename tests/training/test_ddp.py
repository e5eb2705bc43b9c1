"""Several processes: the same training as one process with the whole batch, and one folder for each job of a sweep."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies.launchers import subprocess_script
from test_train import NETWORK, command, configuration, finished, tiny, train_script  # noqa: F401

from smsff.training import launch


@pytest.mark.slow  # tests/faults compares two processes on a closed-form teacher in the everyday suite
def test_a_sweep_of_two_processes_each_equals_one_process_and_leaves_one_folder_a_job(
    tiny: list[str],  # noqa: F811
    tmp_path: Path,
) -> None:
    network = [option for option in NETWORK if not option.startswith("data.batch_size")]
    common = [*tiny, *network, "steps=20", "sample_every=100", "trainer.precision=64-true", "warmup.steps=3"]
    sweep = ["-m", "seed=0,1", "trainer.devices=2", "data.batch_size=1", f"run_dir={tmp_path / 'sweep'}"]
    finished(command(*sweep, *common, cwd=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["sweep"]
    jobs = sorted(path for path in (tmp_path / "sweep").iterdir() if path.is_dir())
    assert [job.name for job in jobs] == ["0", "1"]

    single = tmp_path / "single"
    train_script.train(configuration(*common, "seed=1", "data.batch_size=2", f"run_dir={single}"))
    one = torch.load(single / "checkpoints" / "last.ckpt", weights_only=True)
    two = torch.load(jobs[1] / "checkpoints" / "last.ckpt", weights_only=True)
    other_seed = torch.load(jobs[0] / "checkpoints" / "last.ckpt", weights_only=True)
    assert one["global_step"] == two["global_step"] == 20
    assert one["state_dict"].keys() == two["state_dict"].keys()
    moved = False
    for name, weights in one["state_dict"].items():
        if weights.is_floating_point():
            scale = weights.abs().max().clamp(min=1e-12)
            assert (two["state_dict"][name] - weights).abs().max() / scale < 1e-5, name
            moved |= bool((other_seed["state_dict"][name] - weights).abs().max() / scale > 1e-3)
    assert moved  # another seed is another result: the comparison can fail


def test_a_child_gets_the_overrides_of_its_job_and_the_folder_of_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    config: Any = SimpleNamespace(
        overrides=SimpleNamespace(task=["seed=1", "ckpt_path=last", "+data.flip=false"]),
        runtime=SimpleNamespace(
            output_dir="/run folder/3",
            config_sources=[
                SimpleNamespace(provider="main", path="conf"),
                SimpleNamespace(provider="command-line", path="mine"),
            ],
        ),
        job=SimpleNamespace(name="train", config_name="train"),
    )
    monkeypatch.setattr(launch.HydraConfig, "get", lambda: config)
    words = launch.child_command(Path("train.py"), 2, replace={"ckpt_path": '/a/"b"/epoch=1.ckpt'})
    assert words[1:] == [
        "train.py",
        "--config-name",
        "train",
        "--config-dir",
        "mine",
        "seed=1",
        "+data.flip=false",
        r'ckpt_path="/a/\"b\"/epoch=1.ckpt"',
        'hydra.run.dir="/run folder/3"',
        "hydra.mode=RUN",
        "hydra.output_subdir=null",
        "hydra.job.name=train_rank2",
    ]


def test_the_private_names_of_lightning_that_launch_sets_are_still_there() -> None:
    names = set(subprocess_script._SubprocessScriptLauncher._call_children_scripts.__code__.co_names)
    names |= set(subprocess_script._SubprocessScriptLauncher.launch.__code__.co_names)
    assert {"_hydra_subprocess_cmd", "_launch_process_observer"} <= names
    trainer = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False)
    assert "_timeout" in vars(trainer.strategy)
    launch.limit_waiting(trainer, seconds=7)
    assert vars(trainer.strategy)["_timeout"].total_seconds() == 7


def test_a_finished_job_leaves_no_rank_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in launch.RANK_VARIABLES:
        monkeypatch.setenv(name, "0")
    monkeypatch.setattr(launch, "STARTED_BY_OTHERS", True)
    launch.end_of_job()
    assert os.environ["LOCAL_RANK"] == "0"
    monkeypatch.setattr(launch, "STARTED_BY_OTHERS", False)
    launch.end_of_job()
    assert not set(launch.RANK_VARIABLES) & set(os.environ)
