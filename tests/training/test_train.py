"""The training command as it is used: whole runs on a tiny pipeline, in this process and as a command."""

from __future__ import annotations

import csv
import importlib.util
import json
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from patience import Patience
from torchvision.io import decode_image

from smsff.errors import RunError, UserError

ROOT = Path(__file__).parents[2]
OWN_TASK = "style_lora"  # has other keys, and tests of its own
EXPERIMENTS = sorted(p.stem for p in (ROOT / "conf" / "experiment").glob("*.yaml") if p.stem != OWN_TASK)

_spec = importlib.util.spec_from_file_location("train_script", ROOT / "train.py")
assert _spec is not None
assert _spec.loader is not None
train_script = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(train_script)


@pytest.fixture(scope="session")
def tiny(tiny_base: Path, tiny_lora: Path) -> list[str]:
    """Overrides that make any run small: tiny pipeline, small crops, few steps, few threads."""
    return [
        f"teacher.base={tiny_base}",
        f"style.lora={tiny_lora}",
        "style.base=null",
        "resolution=16",
        "trainer=cpu",
        "steps=4",
        "log_every=1",
        "sample_every=2",
        "checkpoint_every=2",
        "callbacks.progress.every=1",
    ]


NETWORK = [
    "+generator.widths=[8,8]",
    "+generator.encoder_blocks=[1,1]",
    "+generator.decoder_blocks=[1]",
    "data.batch_size=2",
    "data.val_max_side=48",
    "warmup.steps=1",
]


def configuration(*overrides: str) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base="1.3"):
        return compose("train", overrides=list(overrides))


def command(*overrides: str, cwd: Path, launcher: Sequence[str] = ()) -> subprocess.Popen[str]:
    """Start the training command in a folder of its own, perhaps by a module (``-m NAME``) that runs scripts."""
    environment = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "WORLD_SIZE", "NODE_RANK")}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, *launcher, str(ROOT / "train.py"), *overrides],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process: subprocess.Popen[str], *, status: int = 0, seconds: float = 400) -> str:
    """Wait for a command and return what it printed."""
    patience = Patience(process.pid, seconds)
    while True:
        try:
            output, _ = process.communicate(timeout=patience.left())
            break
        except subprocess.TimeoutExpired:
            if not patience.left():
                process.kill()
                raise
    assert process.returncode == status, output[-4000:]
    return output


@pytest.fixture(autouse=True)
def _leave_torch_as_it_was() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_runs(
    experiment: str, tiny: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger=train_script.log.name)  # also what it says at its start
    per_image = experiment in ("per_image", "sms_official")
    rest = ["data.short_side=32"] if per_image else NETWORK
    cfg = configuration(*tiny, *rest, f"experiment={experiment}", "steps=2", f"run_dir={tmp_path}", "logger=none")
    train_script.train(cfg)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["status"], metrics["steps"]) == ("finished", 2)
    assert metrics["figures"]["train/matching"] > 0
    assert "  memory " in caplog.text
    assert decode_image(str(tmp_path / "samples" / "step_000002.png")).shape[0] == 3


@pytest.mark.parametrize("logger", ["csv", "tensorboard", "wandb"])
def test_a_run_leaves_what_it_promises(logger: str, tiny: list[str], tmp_path: Path) -> None:
    if logger != "csv":
        pytest.importorskip(logger)
    run = tmp_path / "run"
    cfg = configuration(*tiny, *NETWORK, f"logger={logger}", f"run_dir={run}", "steps=3")
    train_script.train(cfg)
    assert OmegaConf.load(run / "config.yaml").data.steps == 3
    # The last step has its picture though no regular one falls on it.
    assert sorted(path.name for path in (run / "samples").iterdir()) == ["step_000002.png", "step_000003.png"]
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3
    assert checkpoint["hyper_parameters"]["generator"]["config"]["widths"] == [8, 8]
    assert checkpoint["hyper_parameters"]["config"]["seed"] == 0
    frozen = {name for name in checkpoint["state_dict"] if name.startswith("teacher.") and ".fake." not in name}
    assert not frozen
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["images_seen"] == 6
    assert metrics["data"]["unreadable_images"] == 0
    assert {"train/loss", "val/change"} <= metrics["figures"].keys()
    assert list((run / logger).rglob("*"))
    with pytest.raises(UserError, match="holds a run"):
        train_script.train(cfg)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["data=folder", "data.root=EMPTY"], r"data\.root: no images"),  # data before weights
        ([], r"teacher\.base"),
        (["generator=latent"], "data=single"),
    ],
)
def test_missing_files_and_contradictions_are_user_errors(
    options: list[str], message: str, tiny: list[str], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    words = [one.replace("EMPTY", str(tmp_path / "empty")) for one in options]
    network = [] if "generator=latent" in options else NETWORK
    cfg = configuration(*tiny, *network, *words, f"run_dir={tmp_path / 'run'}")
    cfg.teacher.base = str(tmp_path / "no_such_weights")
    with pytest.raises(UserError, match=message):
        train_script.train(cfg)


def test_the_cluster_command_prints_its_configuration(tmp_path: Path) -> None:
    output = finished(command("style=ghibli", "trainer.devices=8", "--cfg", "job", cwd=tmp_path))
    plain = OmegaConf.create(output)
    assert plain.trainer.devices == 8
    assert plain.teacher.base == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert not list(tmp_path.iterdir())


def test_the_cluster_command_without_weights_stops_soon_with_one_message(tmp_path: Path) -> None:
    before = os.times()
    output = finished(command("style=ghibli", "trainer.devices=8", cwd=tmp_path), status=2)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    assert used < 15  # seconds of CPU: how long it takes on an idle machine, however busy this one is
    assert "Traceback" not in output
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "weights/ghibli.safetensors" in errors[0]
    assert "civitai.com/models/54233" in errors[0]


def test_help_and_wrong_names_on_the_command_line(tmp_path: Path) -> None:
    wrong, helpful = command("style=gibli", cwd=tmp_path), command("--help", cwd=tmp_path)
    output = finished(wrong, status=2)
    assert output.startswith("error: style=gibli")
    assert "Traceback" not in output
    text = finished(helpful)
    assert "python train.py -m" in text
    assert "watercolour" in text


@pytest.fixture
def hydra_config() -> Iterator[Callable[..., None]]:
    """``hydra_config(*overrides)`` makes Hydra's own configuration of a run."""
    before = HydraConfig.instance().cfg

    def set_config(*overrides: str) -> None:
        GlobalHydra.instance().clear()
        with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base="1.3"):
            HydraConfig.instance().set_config(compose("train", overrides=list(overrides), return_hydra_config=True))

    yield set_config
    HydraConfig.instance().cfg = before


@pytest.mark.parametrize(("error", "status"), [(UserError("a"), 2), (RunError("b", status=RunError.STORAGE), 3)])
def test_what_ends_a_job_is_the_status_of_a_run_and_reaches_the_end_of_a_sweep_from_any_process(
    error: Exception, status: int, hydra_config: Callable[..., None]
) -> None:
    hydra_config()
    with pytest.raises(SystemExit) as stop:
        train_script.end(error, status=status)
    assert stop.value.code == status
    hydra_config("hydra.job.num=1")
    with pytest.raises(type(error)) as caught:
        train_script.end(error, status=status)
    arrived = pickle.loads(pickle.dumps(caught.value))
    assert (str(arrived), vars(arrived)) == (str(error), vars(error))


def test_the_best_checkpoints_by_a_figure_and_the_newest_are_kept(tiny: list[str], tmp_path: Path) -> None:
    options = ["callbacks=best", "callbacks.best.save_top_k=2", "checkpoint_every=1", "checkpoint_keep=1", "steps=5"]
    cfg = configuration(
        *tiny, *NETWORK, *options, "callbacks.progress.every=1", f"run_dir={tmp_path}", "sample_every=9"
    )
    train_script.train(cfg)
    folder = tmp_path / "checkpoints"
    best = sorted(path.name for path in folder.glob("best_*.ckpt"))
    assert sorted(path.name for path in folder.iterdir()) == [*best, "last.ckpt", "step_000004.ckpt"]
    with (tmp_path / "csv" / "version_0" / "metrics.csv").open() as file:
        losses = {int(row["step"]) + 1: float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]}
    assert best == [f"best_{step:06d}.ckpt" for step in sorted(sorted(losses, key=losses.__getitem__)[:2])]


def test_a_checkpoint_of_another_network_is_refused_by_name(tiny: list[str], tmp_path: Path) -> None:
    common = [*tiny, *NETWORK, "logger=none", "sample_every=9"]
    train_script.train(configuration(*common, f"run_dir={tmp_path / 'a'}"))
    last = tmp_path / "a" / "checkpoints" / "last.ckpt"
    other = configuration(*common, "generator.widths=[8,16]", f"ckpt_path={last}", f"run_dir={tmp_path / 'b'}")
    with pytest.raises(UserError, match=r"generator\.widths=\[8, 16\] contradicts ckpt_path="):
        train_script.train(other)
