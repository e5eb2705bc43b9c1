"""A killed run goes on as if nothing had happened: weights, losses and optimizer state equal to the bit."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from same_run import assert_bit_equal, content, losses
from test_train import NETWORK, command, configuration, finished, tiny, train_script  # noqa: F401

STEPS = 24


@pytest.mark.slow  # tests/faults kills runs on a closed-form teacher in the everyday suite
def test_sigkill_at_a_random_step_then_resume_is_bit_equal(tiny: list[str], tmp_path: Path) -> None:  # noqa: F811
    options = [*tiny, *NETWORK, f"steps={STEPS}", "checkpoint_every=3", "sample_every=7", "fake_draws=2"]
    options += ["data.num_workers=1", "warmup.steps=5"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"

    process = command(*options, f"run_dir={broken}", cwd=tmp_path)
    assert process.stdout is not None
    wanted = random.randint(4, STEPS // 2)  # far from the end: on a busy machine the kill comes some steps later
    while f"step {wanted}/" not in process.stdout.readline():
        assert process.poll() is None
    process.kill()
    process.communicate()
    reached = content(broken)["global_step"]
    assert 0 < reached < STEPS

    finished(command(*options, f"run_dir={broken}", "ckpt_path=last", cwd=tmp_path))
    train_script.train(configuration(*options, f"run_dir={whole}"))

    assert_bit_equal(broken, whole)
    assert len(losses(whole)) == STEPS
