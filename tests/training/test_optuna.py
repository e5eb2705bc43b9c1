from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from hydra_plugins.smsff_study import Study, distribution
from smsff.config.check import check_config, resolve
from smsff.errors import RunError, UserError

pytest.importorskip("optuna")
CONF = Path(__file__).parents[2] / "conf"
WORDS = ["x=interval(0,10)", "n=int(tag(log,interval(1,100)))", "kind=choice(a,true,2)", "seed=3", "returns=f"]


class Launcher:
    """Runs the function of a trial in this process, and notes its overrides."""

    def __init__(self, function: Callable[[dict[str, str]], float | None]) -> None:
        self.function = function
        self.jobs: list[dict[str, str]] = []

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        results = []
        for overrides in job_overrides:
            self.jobs.append(dict(one.partition("=")[::2] for one in overrides))
            result = JobReturn(status=JobStatus.COMPLETED)
            try:
                result.return_value = self.function(self.jobs[-1])
            except (RunError, UserError) as error:
                result.return_value, result.status = error, JobStatus.FAILED
            results.append(result)
        return results


def study(
    folder: Path, function: Any, *words: str, returns: str | None = "f", last: bool = False, **options: Any
) -> Launcher:
    """Run a study; what its trials were."""
    settings: dict[str, Any] = {"direction": "minimize", "n_trials": 12, "n_jobs": 1, "seed": 0, "storage": None}
    one = Study(**{**settings, "params": {"x": "interval(-1,1)"}, **options})
    sweep = {"sweep": {"dir": str(folder)}}
    one.config = OmegaConf.create({"hydra": sweep, "returns": returns, "ckpt_path": "last" if last else None})
    one.parser = OverridesParser.create()
    one.compose = lambda config, words: None
    one.launcher = Launcher(function)  # type: ignore[assignment]
    one.sweep(list(words or WORDS))
    return one.launcher  # type: ignore[return-value]


def parabola(job: dict[str, str]) -> float:
    return (float(job["x"]) - 3) ** 2 + 1


def read(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "study.json").read_text())
    return content


def test_a_study_draws_from_what_the_overrides_say_and_finds_the_best(tmp_path: Path) -> None:
    jobs = study(tmp_path, parabola, n_trials=40).jobs
    assert [job["hydra.sweep.subdir"] for job in jobs] == [str(number) for number in range(40)]
    assert all(job["seed"] == "3" and 0 <= float(job["x"]) <= 10 and 1 <= int(job["n"]) <= 100 for job in jobs)
    assert {job["kind"] for job in jobs} == {'"a"', "true", "2"}
    values = [parabola(job) for job in jobs]
    assert read(tmp_path)["best"] == values.index(min(values))
    assert min(values) < 1.1
    upwards = study(tmp_path / "up", parabola, direction="maximize").jobs
    assert read(tmp_path / "up")["best"] == max(range(12), key=lambda k: parabola(upwards[k]))


@pytest.mark.parametrize("at_a_time", [1, 3])
def test_a_killed_study_goes_on_as_if_nothing_had_happened(tmp_path: Path, at_a_time: int) -> None:
    whole = study(tmp_path / "whole", parabola, n_jobs=at_a_time)
    done = 0

    def killed(job: dict[str, str]) -> float:
        nonlocal done
        done += 1
        if done == 8:
            raise KeyboardInterrupt
        return parabola(job)

    with pytest.raises(KeyboardInterrupt):
        study(tmp_path / "run", killed, n_jobs=at_a_time)
    with pytest.raises(UserError, match="already holds a study"):
        study(tmp_path / "run", parabola)
    rest = study(tmp_path / "run", parabola, n_jobs=at_a_time, last=True)
    assert rest.jobs == whole.jobs[-len(rest.jobs) :]
    assert len(rest.jobs) == {1: 5, 3: 6}[at_a_time]
    assert read(tmp_path / "run") == read(tmp_path / "whole")
    assert study(tmp_path / "run", parabola, last=True).jobs == []
    assert len(study(tmp_path / "run", parabola, n_trials=14, last=True).jobs) == 2


def test_a_trial_that_the_machine_ended_goes_on_next_time_and_its_status_is_that_of_the_study(tmp_path: Path) -> None:
    def faulty(job: dict[str, str]) -> float | None:
        number = int(job["hydra.sweep.subdir"])
        if number == 1:
            raise RunError("gone", status=RunError.PROCESS)
        if number == 2:
            raise UserError("contradiction")
        return None if number == 3 else float("nan") if number == 4 else parabola(job)

    with pytest.raises(RunError, match="gone"):
        study(tmp_path, faulty, n_trials=6)
    states = [trial["state"] for trial in read(tmp_path)["trials"]]
    assert states == ["COMPLETE", "RUNNING", "FAIL", "FAIL", "FAIL", "COMPLETE"]
    jobs = study(tmp_path, parabola, n_trials=6, last=True).jobs
    assert [job["hydra.sweep.subdir"] for job in jobs] == ["1", "6", "7", "8"]


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        (["seed=1"], {"params": None}, "no key has several values"),
        (["x=glob(*)"], {}, r"x=glob\(\*\): write choice"),
        (WORDS, {"returns": None}, "returns=FIGURE"),
        (WORDS, {"direction": "down"}, "direction=down"),
        (WORDS, {"n_jobs": 0}, "n_jobs=0"),
    ],
)
def test_what_cannot_be_a_study_is_refused(
    tmp_path: Path, words: list[str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        study(tmp_path, parabola, *words, **options)


def test_another_space_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    study(tmp_path, parabola, n_trials=1)
    with pytest.raises(UserError, match="take another folder"):
        study(tmp_path, parabola, "x=interval(0,9)", last=True)


@pytest.mark.parametrize("name", ["objective", "timesteps", "rates"])
def test_the_ready_spaces_lie_within_what_the_keys_allow(tmp_path: Path, name: str) -> None:
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        words = ["hydra/sweeper=optuna", f"hydra/sweeper/params={name}", "returns=train/matching"]
        params = compose("train", words, return_hydra_config=True).hydra.sweeper.params
        words = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
        space = {one.get_key_element(): distribution(one) for one in words if one.is_sweep_override()}
        fixed = [one.input_line for one in words if not one.is_sweep_override()]
        assert space
        for end in ("low", "high"):
            values = [*fixed, *(f"{key}={getattr(one, end)}" for key, one in space.items())]
            check_config(resolve(compose("train", [*values, f"run_dir={tmp_path}"])))
