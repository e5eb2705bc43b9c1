"""Train a stylizer: ``python train.py [group=choice ...] [key=value ...]``, see ``--help`` and ``conf/``.

Exit status: 0 when the run is finished, 2 for a wrong command or missing files (with one message that names the key),
3 if the last checkpoint could not be written, 4 if a process of the run was lost, 5 if memory was not enough, 130 after
Ctrl-C, 138 after SIGUSR1, 140 after SIGUSR2 and 143 after SIGTERM (these leave a checkpoint), 1 for too many steps with
NaN or Inf and for anything unforeseen. See docs/reference/reliability.md.
"""

from __future__ import annotations

if __name__ == "__main__":  # first: the imports below take seconds
    import atexit

    from smsff.training import signals

    signals.listen()
    atexit.register(signals.ignore)  # at its end Python restores the default: the status would be that of a signal

import logging
import multiprocessing
import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

import smsff.pipes
from smsff.build import build, build_task
from smsff.config import check, hydra_guard, overrides
from smsff.config.trust import nearest
from smsff.errors import RunError, UserError
from smsff.training import faults, launch, processes, resume, run_folder, signals, slurm

if TYPE_CHECKING:
    import lightning.pytorch as pl

SCRIPT = Path(__file__).resolve()

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    signals.listen()  # a launcher's process had other handlers
    multiprocessing.set_start_method(None, force=True)  # by that of joblib's processes no loader worker starts
    hydra_guard.install()  # named here: a launcher's process imports, and so guards, before it composes
    os.chdir(HydraConfig.get().runtime.cwd)  # paths are meant from there, also with hydra.job.chdir=True
    cfg.run_dir = HydraConfig.get().runtime.output_dir  # in a sweep: the folder of this job
    grace = 3.0  # others wait in vain for a process that has failed
    try:
        figure = train(cfg, sweep=in_sweep())
        grace = cfg.process_timeout
        return figure
    except UserError as error:
        refuse(error)
        end(error, status=2)
    except Exception as error:
        fault = end_by_fault(error, cfg)
        end(fault, status=fault.status)
    finally:
        launch.end_of_job(grace=grace)


def in_sweep() -> bool:
    """Whether this is one of the jobs of ``-m``."""
    return not OmegaConf.is_missing(HydraConfig.get().job, "num")


def train(cfg: DictConfig, *, sweep: bool = False) -> float | None:
    """Check everything that needs no weights, then the data, then load the teacher, then train.

    Returns:
        The figure that ``returns`` names; None if it names none.
    """
    quiet()
    plain = check.resolve(cfg)
    check.check_config(plain, files=True)
    launch.check_processes(plain["trainer"], sweep=sweep)
    run_dir, cfg.ckpt_path = Path(plain["run_dir"]), plain["ckpt_path"]
    checkpoint = run_folder.checkpoint_for(plain["ckpt_path"], run_dir, sweep=sweep)
    ended = checkpoint is not None and resume.check(checkpoint, plain)
    again = sweep or plain["ckpt_path"] is None  # one of several runs of this command, and not asked for by name
    figures = run_folder.finished(run_dir) if ended and again else None
    if figures is None:
        with run_folder.claimed(cfg, run_dir):
            figures = run(plain, checkpoint)
    if plain["returns"] is None or not slurm.is_main_process():
        return None
    if plain["returns"] not in figures:
        raise UserError(
            f"returns={plain['returns']}: metrics.json has no such figure; {nearest(plain['returns'], figures)}"
        )
    return figures[plain["returns"]]


def run(plain: dict[str, Any], checkpoint: Path | None) -> dict[str, float]:
    """Build what the configuration names, and train it; returns the figures of the training."""
    import lightning.pytorch as pl

    from smsff.training.opening import opening

    trainer = build_trainer(plain)  # first: what it refuses should not wait for weights
    pl.seed_everything(plain["seed"], verbose=False)
    module, data = build_task(plain)
    launch.limit_waiting(trainer, seconds=plain["process_timeout"])
    if slurm.is_main_process():
        if log.isEnabledFor(logging.INFO):  # the forecast of its memory takes seconds
            log.info("the run\n%s", opening(plain, trainer, module, data))
        if slurm.in_job() and shutil.which("scontrol") is None:
            log.warning("there is no scontrol here: this job cannot requeue itself; see docs/guide/cluster.md")
    launch.use_child_command(SCRIPT, replace={"ckpt_path": str(checkpoint)} if checkpoint else None)
    return fit(trainer, module, data, checkpoint)


def build_trainer(plain: dict[str, Any]) -> pl.Trainer:
    """Trainer, callbacks and loggers."""
    from smsff.training.callbacks.loggers import tolerant

    writer = "smsff.training.callbacks.checkpoint_io.SafeCheckpointIO"
    trainer: pl.Trainer = build(
        {
            **plain["trainer"],
            "callbacks": [c for c in plain["callbacks"].values() if c],
            "logger": plain["logger"] or False,
            "plugins": [{"_target_": writer, "keep": plain["checkpoint_keep"]}],
        }
    )
    for logger in trainer.loggers:
        tolerant(logger)
    return trainer


def quiet() -> None:
    """Leave out what Lightning says of every run: hardware, advertisements, and that a frozen teacher is frozen."""
    for name in ("utilities.rank_zero", "trainer.connectors.signal_connector"):
        logging.getLogger(f"lightning.pytorch.{name}").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric.utilities.distributed").setLevel(logging.WARNING)
    expected = [
        "all_gather is deprecated",
        "in eval mode",
        "does not have many workers",
        "LeafSpec",
        "have overridden `transfer_batch_to_device`",
    ]
    if "SLURM_JOB_ID" not in os.environ:
        expected.append("The `srun` command is available")
    for words in expected:
        warnings.filterwarnings("ignore", message=f".*{words}")


def fit(
    trainer: pl.Trainer, module: pl.LightningModule, data: pl.LightningDataModule, checkpoint: Path | None
) -> dict[str, float]:
    """Train, look at the result, write the summary, and return its figures.

    Raises:
        SystemExit: 128 and the number of the signal that ended the run.
    """
    from smsff.training.callbacks.image_grid import ImageGrid
    from smsff.training.callbacks.last_checkpoint import LastCheckpoint
    from smsff.training.callbacks.summary import RunSummary

    try:
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:  # Lightning's answer to a second Ctrl-C, and to SIGTERM before the first step
        raise SystemExit(143 if trainer.received_sigterm else 130) from None
    callbacks: list[Any] = trainer.callbacks
    for last in (one for one in callbacks if isinstance(one, LastCheckpoint) and one.received is not None):
        raise SystemExit(128 + last.received)
    if any(isinstance(one, ImageGrid) and one.last_step != trainer.global_step for one in callbacks):
        trainer.validate(module, data, verbose=False, weights_only=True)
    for summary in (one for one in callbacks if isinstance(one, RunSummary)):
        summary.write(trainer, "finished")
        return summary.figures
    return {}


def end(error: Exception, *, status: int) -> None:
    """End a job that has failed. A sweep goes on, and at its end raises its first error, whatever process it was in."""
    if not in_sweep():
        sys.exit(status)
    raise error


def refuse(error: UserError) -> None:
    """Print an error, once in each process: the processes of a launcher may write to a file."""
    if getattr(error, "printed_by", None) == os.getpid():
        return
    error.printed_by = os.getpid()  # type: ignore[attr-defined]
    if slurm.is_main_process():
        print(f"error: {error}", file=sys.stderr)


def end_by_fault(error: Exception, cfg: DictConfig) -> RunError:
    """Say in one sentence which fault ended the job; what is no known fault goes on as it is."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    fault = faults.explain(error, plain, lost=processes.lost())  # type: ignore[arg-type]
    if fault is None:
        raise error
    main_process = slurm.is_main_process()
    if main_process or fault.status == RunError.PROCESS:
        print(f"error: {fault}", file=sys.stderr, flush=True)
    if fault.status == RunError.PROCESS:
        processes.end_workers()
    if fault.status == RunError.PROCESS and not main_process:
        processes.end_main()
    return fault


def command_line() -> None:
    """Run, and turn what the user can mend and known faults into one message and an exit status."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here instead of being printed by Hydra
    smsff.pipes.tolerate_closed()
    try:
        sys.argv[1:] = overrides.prepared(sys.argv[1:])
        main()
    except HydraException as error:
        conf = SCRIPT.parent / "conf"
        refuse(UserError(launch.explain(error, config_dir=conf, config_name="train", words=sys.argv[1:])))
    except UserError as error:  # of the words, of what Hydra composed from them, or of a job of a sweep
        refuse(error)
    except RunError as error:
        sys.exit(error.status)
    except RuntimeError as error:  # perhaps submitit's: there is no Slurm, it refuses the jobs, or one of them died
        if not type(error).__module__.startswith("submitit.") and '"srun"' not in str(error):
            raise
        refuse(UserError(f"hydra/launcher: {error}"))
        if type(error).__name__ == "UncompletedJobError":
            sys.exit(RunError.PROCESS)
    except OSError as error:  # Hydra could not make the folder of the run
        refuse(run_folder.cannot_write(error, None))
    except KeyboardInterrupt:
        sys.exit(130)
    else:
        return
    sys.exit(2)


if __name__ == "__main__":
    command_line()
