"""What a configuration may name: the classes it may build, by place, and the functions it may call in ``${...}``.

A configuration can come from a stranger: a file given with ``--config-dir``, the ``config.yaml`` of another run, an
experiment that somebody sent. It must not be able to run code by itself, so a ``_target_`` is compared with an exact
list, and references that read the environment do not exist. The person at the keyboard can permit more, by name, in
the environment variable ``SMSFF_ALLOW``: ``SMSFF_ALLOW=mypackage.networks,oc.env`` permits every target in
``mypackage.networks`` and the reference ``${oc.env:...}``.
"""

from __future__ import annotations

import difflib
import os
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.basecontainer import BaseContainer

from smsff.errors import UserError, shown

ASSETS = Path(__file__).parents[1] / "assets"
PERMISSION = "SMSFF_ALLOW"

TARGETS: dict[str, tuple[str, ...]] = {
    "teacher": ("smsff.teacher.stable_diffusion.load_stable_diffusion", "smsff.teacher.flow.load.load_flow"),
    "generator": (
        "smsff.generator.unet.UNetGenerator",
        "smsff.generator.resnet.ResNetGenerator",
        "smsff.generator.image.ImageGenerator",
        "smsff.generator.image.LatentGenerator",
    ),
    "objective": (
        "smsff.method.sms.StyleMatchingObjective",
        "smsff.method.sds.ScoreDistillation",
        "smsff.method.dds.DeltaDenoising",
        "smsff.method.pds.PosteriorDistillation",
    ),
    "regularizer": ("smsff.method.spectrum.SpectrumRegularizer", "smsff.method.spectrum.NoRegularizer"),
    "relevance": (
        "smsff.method.relevance.SemanticRelevance",
        "smsff.method.relevance.UniformRelevance",
    ),
    "timesteps": (
        "smsff.method.timesteps.Narrowing",
        "smsff.method.timesteps.Uniform",
        "smsff.method.timesteps.Dropping",
        "smsff.method.timesteps.Annealing",
        "smsff.style_lora.objective.PowerTimesteps",
    ),
    "fake_timesteps": ("smsff.method.timesteps.Uniform", "smsff.method.timesteps.Narrowing"),
    "fake_score": ("smsff.teacher.fake_score.LoraFakeScore",),
    "speed": ("smsff.training.speed.Speed",),
    "warmup": ("smsff.method.warmup.ReconstructionWarmup",),
    "prompts": ("smsff.method.prompts.Prompts", "smsff.style_lora.prompts.TriggerPrompts"),
    "lora": ("smsff.style_lora.adapter.LoraOptions",),
    "loss": ("smsff.style_lora.objective.StyleLoss",),
    "held_out": ("smsff.style_lora.module.HeldOutLoss",),
    "samples": ("smsff.style_lora.module.Samples",),
    "optimizer.unet": ("smsff.training.optimizer.GroupOptions",),
    "optimizer.text": ("smsff.training.optimizer.GroupOptions",),
    "optimizer.generator": ("smsff.training.optimizer.GroupOptions",),
    "optimizer.fake": ("smsff.training.optimizer.GroupOptions",),
    "data": (
        "smsff.data.datamodule.ImageDataModule",
        "smsff.data.single.SingleImage",
        "smsff.style_lora.data.StylePictures",
    ),
    "data.degraded": ("smsff.style_lora.data.Degraded",),
    "data.prior": ("smsff.style_lora.data.Prior",),
    "baseline": (
        "smsff.baselines.styleid.StyleID",
        "smsff.baselines.freestyle.FreeStyle",
        "smsff.baselines.instantstyle_plus.load_instantstyle_plus",
        "smsff.baselines.lora_img2img.LoraImg2Img",
        "smsff.baselines.lora_controlnet.load_lora_controlnet",
        "smsff.baselines.scenimefy.load_scenimefy",
    ),
    "trainer": ("lightning.pytorch.Trainer",),
    "logger": (
        "lightning.pytorch.loggers.CSVLogger",
        "smsff.training.callbacks.table_log.TableLogger",
        "lightning.pytorch.loggers.TensorBoardLogger",
        "smsff.training.callbacks.loggers.wandb_logger",
    ),
    "callbacks.*": (
        "smsff.training.callbacks.progress.progress_bar",
        "smsff.training.callbacks.throughput.Throughput",
        "smsff.training.callbacks.image_grid.ImageGrid",
        "smsff.training.callbacks.summary.RunSummary",
        "smsff.training.callbacks.last_checkpoint.LastCheckpoint",
        "smsff.training.callbacks.bad_steps.BadSteps",
        "smsff.style_lora.saving.SaveLora",
        "lightning.pytorch.callbacks.ModelCheckpoint",
        "lightning.pytorch.callbacks.DeviceStatsMonitor",
        "lightning.pytorch.callbacks.EarlyStopping",
        "lightning.pytorch.callbacks.ModelSummary",
    ),
}
"""The targets of each place of a configuration. Nowhere else may a node have one."""

PARTIAL = frozenset(
    {
        "smsff.teacher.fake_score.LoraFakeScore",
        "smsff.generator.image.ImageGenerator",
        "smsff.generator.image.LatentGenerator",
        "smsff.baselines.styleid.StyleID",
        "smsff.baselines.freestyle.FreeStyle",
        "smsff.baselines.instantstyle_plus.load_instantstyle_plus",
        "smsff.baselines.lora_img2img.LoraImg2Img",
        "smsff.baselines.lora_controlnet.load_lora_controlnet",
    }
)
"""Targets that are completed during the run: their nodes have ``_partial_: true``, and no others have."""

RESOLVERS = frozenset({"asset", "now", "hydra", "run_name", "own_photos", "on_bfloat16", "warmup_steps", "workers"})
"""Functions that ``${name:...}`` may call: files of the package, time and job, Hydra's job number, whether the user has
photos, what the device can do, a share of the steps, the number of cores."""


def permitted(name: str) -> bool:
    """Whether ``SMSFF_ALLOW`` has this dotted name or a package it lies in."""
    allowed = [one.strip() for one in os.environ.get(PERMISSION, "").split(",") if one.strip()]
    return any(name == one or name.startswith(f"{one}.") for one in allowed)


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence naming the closest of the known names, or all of them if none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name[:200], names, n=1, cutoff=0.5)
    return f"nearest: {close[0]}" if close else f"known: {', '.join(names)}"


def targets_of(place: str) -> tuple[str, ...]:
    """The targets that the node at a dotted key may have."""
    return next((names for pattern, names in TARGETS.items() if matches(place, pattern)), ())


def matches(key: str, pattern: str) -> bool:
    """Whether a dotted key fits a pattern in which ``*`` is one part."""
    keys, patterns = key.split("."), pattern.split(".")
    return len(keys) == len(patterns) and all(map(fnmatchcase, keys, patterns))


def find_target(node: Mapping[str, Any], place: str) -> Callable[..., Any]:
    """What the ``_target_`` of a node names.

    Args:
        node: Plain containers.
        place: Dotted key of the node.

    Raises:
        UserError: it is not a target of this place, cannot be imported, or is completed at the wrong moment.
    """
    name, key = node["_target_"], f"{place}._target_"
    if not isinstance(name, str):
        raise UserError(f"{key}={shown(name)}: must be the dotted name of a class")
    known = targets_of(place)
    if name not in known and not permitted(name):
        choice = nearest(name, known) if known else "nothing is built here"
        raise UserError(
            f"{key}={name}: not a target of this place; {choice}. A configuration could run any code this way: if you "
            f"trust this one, set {PERMISSION}={name} in the environment"
        )
    try:
        target = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{key}={name}: cannot be imported ({error})") from error
    if not callable(target):
        raise UserError(f"{key}={name}: is no class or function")
    partial = node.get("_partial_", False)
    if name in known and partial is not (name in PARTIAL):
        raise UserError(f"{place}._partial_={shown(partial)}: must be {str(name in PARTIAL).lower()} for {name}")
    return target


def limit_resolvers() -> None:
    """Let ``${name:...}`` call nothing but `RESOLVERS` and what ``SMSFF_ALLOW`` names, in this process from now on.

    By removal instead of by searching the text, because a name can be put together: ``${oc.${x}:HOME}``.
    """
    for name in list(BaseContainer._resolvers):  # there is no public list; has_resolver asks for one name
        if name not in RESOLVERS and not permitted(name):
            OmegaConf.clear_resolver(name)


def asset(name: str) -> str:
    """Path of a file that comes with the package; UserError if the name leads out of the package."""
    path = (ASSETS / name).resolve()
    if ASSETS.resolve() not in (path, *path.parents):
        raise UserError(f"${{asset:{name}}}: lies outside the package")
    return str(ASSETS / name)
