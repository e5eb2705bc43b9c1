"""The same training, whoever starts its processes: Lightning, torchrun, joblib, an agent of Weights & Biases."""

from __future__ import annotations

import json
import os
import queue
import re
import sys
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf
from same_run import assert_bit_equal
from test_train import NETWORK, ROOT, command, finished, tiny  # noqa: F401

GUIDE = (ROOT / "docs" / "guide" / "cluster.md").read_text()


@pytest.mark.slow
def test_torchrun_trains_as_trainer_devices_does_and_prints_no_more(tmp_path: Path) -> None:
    words = ["trainer=cpu", "trainer.devices=2", *NETWORK, "data.batch_size=1", "steps=4", "log_every=1"]
    common = [*words, "checkpoint_every=2", "sample_every=4", "data.crop_size=64"]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2"]
    plain = finished(command(*common, "run_dir=plain", cwd=tmp_path))
    output = finished(command(*common, cwd=tmp_path, launcher=torchrun))
    (run,) = (tmp_path / "outputs").iterdir()
    assert_bit_equal(run, tmp_path / "plain")

    def lines(text: str) -> list[str]:
        """Its lines without times and folders."""
        return sorted(re.sub(r"\d\S*|folder .*", "", line) for line in text.splitlines())

    assert lines(output) == lines(plain)


@pytest.mark.parametrize(
    ("plugin", "options"),
    [("submitit", ["hydra/launcher=local"]), ("joblib", ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"])],
)
def test_a_sweep_beside_one_another_is_that_of_the_guide(
    tiny: list[str],  # noqa: F811
    tmp_path: Path,
    plugin: str,
    options: list[str],
) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{plugin}_launcher")
    words = [*tiny, *NETWORK, "-m", *options, "run_dir=sweep", "ckpt_path=last"]
    output = finished(command(*words, "seed=0,-1", cwd=tmp_path), status=2)
    assert "seed=-1" in output
    assert "Traceback" not in output
    last = tmp_path / "sweep/0/checkpoints/last.ckpt"
    first = last.stat().st_mtime_ns
    finished(command(*words, "seed=0,1", cwd=tmp_path))
    assert last.stat().st_mtime_ns == first, "it was finished"
    assert [path.name for path in tmp_path.iterdir()] == ["sweep"]
    for number in range(2):
        assert OmegaConf.load(tmp_path / f"sweep/{number}/config.yaml").seed == number
        assert json.loads((tmp_path / f"sweep/{number}/metrics.json").read_text())["status"] == "finished"


@pytest.mark.slow
def test_the_command_that_an_agent_of_wandb_makes_of_the_guide_runs_offline(
    tiny: list[str],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agents = pytest.importorskip("wandb.wandb_agent")
    (text,) = re.findall(r"```yaml\n(program: .*?)```", GUIDE, flags=re.DOTALL)
    sweep = yaml.safe_load(text)
    monkeypatch.chdir(ROOT)  # where the program is
    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SWEEP_ID": "s"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    for name in ("RUN_ID", "SWEEP_PARAM_PATH"):  # the agent sets them
        monkeypatch.setenv(f"WANDB_{name}", "")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    run, (key, space) = tmp_path / "run", *sweep["parameters"].items()
    agent = agents.Agent(None, queue.Queue(), sweep_id="s")  # without a server; it is told its command
    agent._sweep_command = [*sweep["command"], *tiny, *NETWORK, f"run_dir={run}"]
    agent._command_run({"run_id": "r1", "program": sweep["program"], "args": {key: {"value": space["max"] / 2}}})
    assert agent._run_processes["r1"].wait() == 0
    assert OmegaConf.select(OmegaConf.load(run / "config.yaml"), key) == space["max"] / 2
    assert sweep["metric"]["name"] in json.loads((run / "metrics.json").read_text())["figures"]
    (log,) = run.glob("wandb/offline-run-*/run-r1.wandb")
    assert sweep["metric"]["name"].encode() in log.read_bytes()


def test_a_trial_that_cannot_be_composed_is_refused_before_it_is_launched(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/theirs.yaml").write_text("# @package _global_\nhydra: {job: {env_set: {A: b}}}\n")
    study = ["-m", "hydra/sweeper=optuna", "returns=train/matching", "hydra.sweeper.n_trials=1", "run_dir=study"]
    words = [*study, "experiment=choice(theirs)", f"--config-dir={tmp_path}"]
    assert finished(command(*words, cwd=tmp_path), status=2).startswith("error: hydra.job.env_set=")
    assert not (tmp_path / "study/0").exists()
