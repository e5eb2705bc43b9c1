"""Train a stylizer: ``python train.py [group=choice ...] [key=value ...]``, see ``--help`` and ``conf/``.

Exit status: 0 when the run is finished, 2 for a wrong command or missing files (with one message that names the key),
130 after Ctrl-C and 143 after SIGTERM (both leave a checkpoint), 1 for anything unforeseen.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

import smsff.config
import smsff.launch
from smsff.errors import UserError

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from smsff.module import StyleMatching

SCRIPT = Path(__file__).resolve()
MAX_PROMPTS = 1000
"""Most captions whose embeddings are computed before the training, so that the text encoder can go."""


refused: list[UserError] = []
"""What the jobs of this command could not do; a sweep goes on with its other jobs."""


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> None:
    cfg.run_dir = HydraConfig.get().runtime.output_dir  # in a sweep: the folder of this job
    try:
        train(cfg)
    except UserError as error:
        refuse(error)
    finally:
        smsff.launch.end_of_job()


def train(cfg: DictConfig) -> None:
    """Check everything that needs no weights, then the data, then load the teacher, then train."""
    import lightning.pytorch as pl

    quiet()
    plain = smsff.config.resolve(cfg)
    smsff.config.check_config(plain)
    smsff.config.check_style_files(plain["style"])
    run_dir = Path(plain["run_dir"])
    checkpoint = smsff.config.find_checkpoint(plain["ckpt_path"], run_dir)
    save_config(cfg, run_dir, checkpoint)
    pl.seed_everything(plain["seed"], verbose=False)
    parts = build_parts(plain)
    data = parts.pop("data")  # an empty folder stops here, before the weights
    module = build_module(plain, parts, data)
    trainer = build(
        {
            **plain["trainer"],
            "callbacks": [c for c in plain["callbacks"].values() if c],
            "logger": plain["logger"] or False,
        }
    )
    smsff.launch.use_child_command(SCRIPT, replace={"ckpt_path": str(checkpoint)} if checkpoint else None)
    fit(trainer, module, data, checkpoint)


def quiet() -> None:
    """Leave out what Lightning says of every run: hardware, advertisements, and that a frozen teacher is frozen."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=r".*module\(s\) in eval mode.*")
    warnings.filterwarnings("ignore", message=r".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=r".*LeafSpec.*")


def build(node: Any) -> Any:
    """Instantiate a node; a `UserError` from inside comes out as it is."""
    try:
        return hydra.utils.instantiate(node, _convert_="all")
    except hydra.errors.InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__
        if cause is not None:
            raise cause from error
        raise


def build_parts(plain: dict[str, Any]) -> dict[str, Any]:
    """Everything that costs nothing, so that a number out of range is found at once; then the data."""
    cheap = ("objective", "regularizer", "relevance", "timesteps", "fake_timesteps", "warmup", "prompts", "fake_score")
    parts = {name: build(plain[name]) for name in cheap}
    parts["generator_options"] = build(plain["optimizer"]["generator"])
    parts["fake_options"] = build(plain["optimizer"]["fake"])
    parts["data"] = build(plain["data"])
    return parts


def build_module(plain: dict[str, Any], parts: dict[str, Any], data: pl.LightningDataModule) -> StyleMatching:
    """Teacher, generator and the training step around them."""
    from functools import partial

    from smsff.module import StyleMatching

    teacher = build(plain["teacher"])
    generator = build(plain["generator"])
    if isinstance(generator, partial):  # per-image: made from the picture
        if not hasattr(data, "image"):
            raise UserError(f"generator={generator.func.__name__} holds one picture: use data=single")
        picture = data.image[None]
        generator = generator(teacher.latent.encode(picture) if generator.func.space == "latent" else picture)
    module = StyleMatching(
        generator=generator,
        teacher=teacher,
        **parts,
        **{name: plain[name] for name in ("steps", "seed", "fake_draws", "ema_decay", "grid_jitter")},
        record={
            "generator": {"name": plain["generator"]["_target_"], "config": generator.config()},
            "style": plain["style"],
            "config": plain,
        },
    )
    captions = data.captions()
    if len(captions) <= MAX_PROMPTS:
        module.encode_prompts(captions)
        teacher.drop_text_encoder()
    return module


def save_config(cfg: DictConfig, run_dir: Path, checkpoint: Path | None) -> None:
    """Write the resolved configuration; a folder that holds another run is left alone."""
    if not smsff.launch.is_main_process():
        return
    path = run_dir / "config.yaml"
    if path.exists():
        if checkpoint is None or not checkpoint.is_relative_to(run_dir):
            raise UserError(
                f"run_dir: {run_dir} already holds a run; take another folder, or go on with ckpt_path=last"
            )
        path = run_dir / f"config_resumed_{len(list(run_dir.glob('config*.yaml')))}.yaml"
    run_dir.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(cfg, path, resolve=True)


def fit(trainer: pl.Trainer, module: StyleMatching, data: pl.LightningDataModule, checkpoint: Path | None) -> None:
    """Train, look at the result, write the summary.

    Raises:
        SystemExit: 130 or 143 if a signal ended the run.
    """
    from smsff.callbacks.image_grid import ImageGrid
    from smsff.callbacks.last_checkpoint import LastCheckpoint
    from smsff.callbacks.summary import RunSummary

    try:
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:  # Lightning's answer to a second Ctrl-C
        raise SystemExit(130) from None
    for callback in trainer.callbacks:
        if isinstance(callback, LastCheckpoint) and callback.received is not None:
            raise SystemExit(128 + callback.received)
    if any(
        isinstance(callback, ImageGrid) and callback.last_step != trainer.global_step for callback in trainer.callbacks
    ):
        trainer.validate(module, data, verbose=False, weights_only=True)
    for callback in trainer.callbacks:
        if isinstance(callback, RunSummary):
            callback.write(trainer, "finished")


def refuse(error: UserError) -> None:
    refused.append(error)
    if smsff.launch.is_main_process():
        print(f"error: {error}", file=sys.stderr)


def command_line() -> None:
    """Run, and turn what the user can mend into one message and exit status 2."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here instead of being printed by Hydra
    try:
        main()
    except HydraException as error:
        refuse(UserError(smsff.launch.explain(error, config_dir=SCRIPT.parent / "conf", config_name="train")))
    except ValueError as error:
        if "Config group override" not in str(error):
            raise
        refuse(UserError("null is no choice of a group; leave it out, or take none where there is such a choice"))
    except KeyboardInterrupt:
        sys.exit(130)
    if refused:
        sys.exit(2)


if __name__ == "__main__":
    command_line()
