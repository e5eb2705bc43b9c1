"""``hydra/sweeper=optuna``: a study of Optuna whose trials are jobs of train.py, by whatever launcher.

Everything that a study knows lies in its folder, so that one that was killed goes on: finished trials are kept, those
that were under way go on from their checkpoints, and the sampler draws what it would have drawn.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, QuotedString, RangeSweep
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from smsff.atomic import write_aside
from smsff.config.overrides import quoted
from smsff.errors import RunError, UserError

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)


class Study(Sweeper):
    """Minimizes or maximizes the figure ``returns`` over the overrides that name several values.

    Args:
        direction: ``minimize`` or ``maximize``.
        n_trials: Trials of the whole study, those of an earlier part included.
        n_jobs: Trials at a time; the launcher decides whether they run beside one another.
        seed: Of the sampler (tree-structured Parzen estimator).
        storage: A database as Optuna names it; null: a journal in the folder of the study.
        params: More overrides with several values, by key; those of the command line come first.
    """

    def __init__(
        self,
        *,
        direction: str,
        n_trials: int,
        n_jobs: int,
        seed: int,
        storage: str | None,
        params: dict[str, str] | None,
    ) -> None:
        if direction not in ("minimize", "maximize"):
            raise UserError(f"hydra.sweeper.direction={direction}: must be minimize or maximize")
        for name, value in (("n_trials", n_trials), ("n_jobs", n_jobs)):
            if not isinstance(value, int) or value < 1:
                raise UserError(f"hydra.sweeper.{name}={value}: must be an integer of at least 1")
        self.direction: Any = direction
        self.n_trials, self.n_jobs = n_trials, n_jobs
        self.seed, self.storage, self.params = seed, storage, params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config: DictConfig = config
        self.parser = OverridesParser.create(config_loader=hydra_context.config_loader)
        self.compose: Any = hydra_context.config_loader.load_sweep_config
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the trials that are left.

        Raises:
            UserError: there is nothing to vary or to optimize, or the folder holds another study.
            RunError: the first fault of a trial, after all others are done.
        """
        fixed, space = self.read([f"{key}={value}" for key, value in self.params.items()] + arguments)
        study, folder = self.open(space)
        left = self.n_trials - len(study.get_trials(states=[_state("COMPLETE")]))
        faults: list[JobReturn] = []
        tried: set[int] = set()
        while left > 0:
            batch = self.draw(study, space, min(left, self.n_jobs), tried)
            tried |= {trial.number for trial in batch}
            jobs = [
                [
                    *fixed,
                    *(f"{key}={written(value)}" for key, value in trial.params.items()),
                    f"hydra.sweep.subdir={trial.number}",
                ]
                for trial in batch
            ]
            for words in jobs:
                self.compose(self.config, words)  # for its errors: in a launcher's process they would be tracebacks
            results = self.launcher.launch(jobs, initial_job_idx=batch[0].number)
            for trial, result in zip(batch, results, strict=True):
                faults += [result] if result.status is JobStatus.FAILED else []
                tell(study, trial.number, result)
            left -= len(batch)
            write_aside(
                folder / "study.json", lambda path: path.write_text(json.dumps(summary(study), indent=2) + "\n")
            )
        for fault in faults:
            _ = fault.return_value  # raises
        log.info("best: trial %d, %s, %s", study.best_trial.number, study.best_value, study.best_params)

    def read(self, words: list[str]) -> tuple[list[str], dict[str, Any]]:
        """The overrides of every trial, and the distribution of each key that varies; of a key the last word counts."""
        latest = {override.get_key_element(): override for override in self.parser.parse_overrides(words)}
        space = {key: distribution(one) for key, one in latest.items() if one.is_sweep_override()}
        if not space:
            raise UserError("hydra/sweeper=optuna: no key has several values, such as data.batch_size=choice(4,8)")
        if self.config.returns is None:
            raise UserError("hydra/sweeper=optuna: returns=FIGURE must name the figure of metrics.json to optimize")
        return [one.input_line or "" for key, one in latest.items() if key not in space], space

    def open(self, space: dict[str, Any]) -> tuple[optuna.Study, Path]:
        """The study in its folder."""
        try:
            import optuna
        except ImportError as error:
            raise UserError("hydra/sweeper=optuna needs Optuna: pip install 'smsff[sweep]'") from error
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        folder = Path(self.config.hydra.sweep.dir)
        if (folder / "study.yaml").exists() and self.config.ckpt_path != "last":
            raise UserError(
                f"run_dir: {folder} already holds a study; go on with ckpt_path=last, or take another folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "study.yaml")
        study = optuna.create_study(
            storage=self.storage or JournalStorage(JournalFileBackend(str(folder / "study.journal"))),
            study_name=str(folder),
            direction=self.direction,
            load_if_exists=True,
        )
        wanted = {key: str(one) for key, one in space.items()}
        known = study.user_attrs.get("space", wanted)
        if known != wanted:
            raise UserError(f"run_dir: the study in {folder} varies {known}, not {wanted}; take another folder")
        study.set_user_attr("space", wanted)
        return study, folder

    def draw(
        self, study: optuna.Study, space: dict[str, Any], count: int, tried: set[int]
    ) -> list[optuna.trial.FrozenTrial]:
        """The next trials: first those that were under way when the study was ended, but none twice."""
        import optuna

        def open_trials() -> list[optuna.trial.FrozenTrial]:
            return [one for one in study.get_trials(states=[_state("RUNNING")]) if one.number not in tried]

        for _ in range(count - len(open_trials())):
            # Anew for each trial, by its number: what is drawn does not depend on where a study was killed.
            study.sampler = optuna.samplers.TPESampler(seed=self.seed + len(study.trials), constant_liar=True)
            study.ask(space)
        return open_trials()[:count]


def _state(name: str) -> Any:
    import optuna

    return optuna.trial.TrialState[name]


def distribution(override: Override) -> Any:
    """What an override with several values lets Optuna draw.

    Raises:
        UserError: it cannot be drawn from.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value: Any = override.value()
    if isinstance(value, IntervalSweep):
        kind: Any = IntDistribution if isinstance(value.start, int) else FloatDistribution
        return kind(value.start, value.end, log="log" in value.tags)
    if isinstance(value, RangeSweep) and value.start is not None and value.stop is not None:
        values: Sequence[Any] = list(value.range())
    elif isinstance(value, ChoiceSweep):
        values = [one.text if isinstance(one, QuotedString) else one for one in value.list]
    else:
        raise UserError(f"{override.input_line}: write choice(...), range(...) or interval(...)")
    return CategoricalDistribution(values)


def written(value: object) -> str:
    """A drawn value as it stands in an override."""
    return quoted(value) if isinstance(value, str) else json.dumps(value)


def tell(study: optuna.Study, number: int, result: JobReturn) -> None:
    """Enter what a trial has come to; one that a fault of the machine ended stays under way, and goes on next time."""
    value = result._return_value
    if isinstance(value, RunError) and value.status != RunError.NUMBERS:
        return
    failed = result.status is JobStatus.FAILED or value is None or value != value
    study.tell(number, None if failed else value, _state("FAIL" if failed else "COMPLETE"))


def summary(study: optuna.Study) -> dict[str, Any]:
    """The best trial and all trials, for study.json."""
    trials = [{"number": t.number, "state": t.state.name, "value": t.value, "params": t.params} for t in study.trials]
    done = [one for one in trials if one["state"] == "COMPLETE"]
    return {"best": study.best_trial.number if done else None, "trials": trials}
