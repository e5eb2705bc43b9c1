"""What nothing happened to: the jobs of a sweep, and two processes, which are one with the whole batch."""

from __future__ import annotations

import json
import socket
from pathlib import Path

from omegaconf import OmegaConf
from runner import Training
from same_run import content

SHORT = ["steps=2", "warmup.steps=1"]


def test_a_sweep_leaves_one_complete_folder_for_each_job(tmp_path: Path) -> None:
    training = Training(tmp_path / "sweep", "-m", "seed=0,1", "regularizer.lambda_freq=0.1,1", *SHORT)
    assert training.ended() == 0, training.text()
    jobs = sorted(path for path in (tmp_path / "sweep").iterdir() if path.is_dir())
    assert [job.name for job in jobs] == ["0", "1", "2", "3"]
    settings = []
    for job in jobs:
        config = OmegaConf.load(job / "config.yaml")
        settings.append((config.seed, config.regularizer.lambda_freq))
        assert json.loads((job / "metrics.json").read_text())["status"] == "finished"
        assert (job / "checkpoints" / "last.ckpt").is_file()
        assert (job / "samples" / "step_000002.png").is_file()
    assert settings == [(0, 0.1), (0, 1), (1, 0.1), (1, 1)]
    assert set(tmp_path.iterdir()) == {tmp_path / "sweep", training.output}


def test_two_processes_are_one_with_the_whole_batch(tmp_path: Path) -> None:
    """Started by somebody else, as by torchrun; tests/training/test_ddp.py has those that Lightning starts."""
    common = ["steps=20", "sample_every=100", "trainer.precision=64-true", "warmup.steps=3"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "NODE_RANK": "0"}
    words = [*common, "trainer.devices=2", "data.batch_size=1"]
    both = [Training(tmp_path / "two", *words, environment={**world, "LOCAL_RANK": str(rank)}) for rank in range(2)]
    runs = [Training(tmp_path / str(seed), *common, f"seed={seed}") for seed in range(2)]
    for training in (*both, *runs):
        assert training.ended() == 0, training.text()
    two, one, other = (content(tmp_path / name) for name in ("two", "0", "1"))
    assert one["global_step"] == two["global_step"] == 20
    assert one["state_dict"].keys() == two["state_dict"].keys()
    moved = 0.0
    for name, weights in one["state_dict"].items():
        scale = weights.abs().max().clamp(min=1e-12)
        assert (two["state_dict"][name] - weights).abs().max() / scale < 1e-5, name
        moved = max(moved, float((other["state_dict"][name] - weights).abs().max() / scale))
    assert moved > 1e-3  # another seed is another result: the comparison can fail
