"""Settings that are each allowed but exclude one another, found before any weight is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from smsff.errors import UserError

PER_IMAGE = ("ImageGenerator", "LatentGenerator")
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true")
OURS = {
    "use_distributed_sampler": (False, "the data module divides the batches itself"),
    "gradient_clip_val": (None, "each group is clipped by optimizer.*.clip_norm"),
    "gradient_clip_algorithm": (None, "each group is clipped by optimizer.*.clip_norm"),
    "max_epochs": (-1, "the length of a run is steps"),
    "min_epochs": (None, "the length of a run is steps"),
    "min_steps": (None, "the length of a run is steps"),
    "callbacks": (None, "callbacks have a group of their own"),
    "logger": (None, "loggers have a group of their own"),
    "plugins": (None, "plug-ins cannot be given here"),
    "reload_dataloaders_every_n_epochs": (0, "the data of a run is one long epoch"),
    "barebones": (False, "samples, checkpoints and figures need the callbacks"),
}
"""Options of the trainer that have one value here, and why."""

Plain = Mapping[str, Any]


def check_contradictions(plain: Plain) -> None:
    """Raise for the first contradiction of a configuration whose keys, types and ranges are right.

    Raises:
        UserError: names the keys, their values, and what would agree.
    """
    for check in CHECKS:
        check(plain)


def _name(node: Any) -> str:
    """The class that a node builds, without its module."""
    return str(node.get("_target_", "")).rpartition(".")[2] if isinstance(node, Mapping) else ""


def _trainer(plain: Plain) -> None:
    trainer = plain["trainer"]
    for key, (value, reason) in OURS.items():
        if key in trainer and trainer[key] != value:
            raise UserError(f"trainer.{key}={trainer[key]!r}: must be {str(value).lower()}: {reason}")
    if trainer.get("max_steps", plain["steps"]) != plain["steps"]:
        raise UserError(f"trainer.max_steps={trainer['max_steps']} is not steps={plain['steps']}; set steps alone")
    precision = str(trainer.get("precision", "32-true"))
    if "16-true" in precision or precision in ("16", "16-mixed"):
        raise UserError(
            f"trainer.precision={precision}: use 32-true, 64-true or bf16-mixed; teacher.dtype may be float16"
        )
    strategy = trainer.get("strategy", "auto")
    if isinstance(strategy, str) and strategy not in STRATEGIES:
        raise UserError(
            f"trainer.strategy={strategy}: must be one of {', '.join(STRATEGIES)}: generator and fake score are one "
            "optimizer whose parts must not be divided among processes"
        )
    if trainer.get("devices") == 0 or trainer.get("devices") == []:
        raise UserError(f"trainer.devices={trainer['devices']}: must be at least 1, or -1 for all")


def _one_picture(plain: Plain) -> None:
    generator, data, trainer = _name(plain.get("generator")), _name(plain["data"]), plain["trainer"]
    if generator in PER_IMAGE and data != "SingleImage":
        raise UserError(f"generator={generator} holds one picture, and data={data} has many: use data=single")
    several = trainer.get("num_nodes", 1) != 1 or trainer.get("devices", 1) not in (1, "1", "auto")
    if data == "SingleImage" and several:
        raise UserError(
            f"trainer.devices={trainer.get('devices')}, trainer.num_nodes={trainer.get('num_nodes', 1)}: one picture "
            "(data=single) cannot be divided among processes; use one"
        )


def _length(plain: Plain) -> None:
    steps, warmup = plain["steps"], (plain.get("warmup") or {}).get("steps", 0)
    if warmup >= steps:
        raise UserError(f"steps={steps} must be more than warmup.steps={warmup}: the warm-up would be the whole run")


def _timesteps(plain: Plain) -> None:
    for name in ("timesteps", "fake_timesteps"):
        node = plain.get(name) or {}
        low, high = node.get("t_min"), node.get("t_max")
        if low is not None and high is not None and low > high:
            raise UserError(f"{name}.t_min={low} is above {name}.t_max={high}")
    stride, low = plain.get("objective", {}).get("stride", 0), plain["timesteps"].get("t_min", 0)
    if stride > low:
        raise UserError(f"objective.stride={stride} is more than timesteps.t_min={low}: t - stride must not be below 0")


def _sizes(plain: Plain) -> None:
    generator, data = plain.get("generator") or {}, plain["data"]
    crop = data.get("crop_size")
    if _name(generator) == "UNetGenerator" and crop is not None:
        cell = 2 ** len(generator.get("widths", range(4)))
        if crop < cell:
            raise UserError(f"data.crop_size={crop} is less than {cell}, one cell of the generator's coarsest level")
    scale = data.get("scale")
    if scale is not None and (len(scale) != 2 or scale[0] > scale[1]):
        raise UserError(f"data.scale={list(scale)}: must be two numbers, the lower one first")
    side, multiple = data.get("short_side"), data.get("multiple", 1)
    if side is not None and side < multiple:
        raise UserError(f"data.short_side={side} must be at least data.multiple={multiple}")


def _shared_draw(plain: Plain) -> None:
    if (plain.get("speed") or {}).get("share_draw") and plain["fake_draws"] > 1:
        raise UserError(
            f"speed.share_draw=true and fake_draws={plain['fake_draws']}: a shared draw is one; use fake_draws=1"
        )


def _places(plain: Plain) -> None:
    """What a run writes lies in its folder."""
    run_dir = Path(plain["run_dir"]).absolute().resolve()
    nodes = {f"callbacks.{name}": node for name, node in (plain.get("callbacks") or {}).items()}
    nodes |= {"logger": plain.get("logger"), "trainer": plain["trainer"]}
    for place, node in nodes.items():
        for key in ("folder", "path", "dirpath", "save_dir", "log_dir", "default_root_dir"):
            value = node.get(key) if isinstance(node, Mapping) else None
            if isinstance(value, str) and run_dir not in (inside := Path(value).absolute().resolve(), *inside.parents):
                raise UserError(f"{place}.{key}={value}: must lie in the folder of the run, run_dir={plain['run_dir']}")
    for place, node in nodes.items():
        for key in ("name", "sub_dir", "filename", "version", "prefix"):
            value = node.get(key) if isinstance(node, Mapping) else None
            if isinstance(value, str) and (".." in Path(value).parts or Path(value).is_absolute()):
                raise UserError(f"{place}.{key}={value}: must not lead out of the folder of the run")


CHECKS: tuple[Callable[[Plain], None], ...] = (
    _trainer,
    _one_picture,
    _length,
    _timesteps,
    _sizes,
    _shared_draw,
    _places,
)
