"""From the resolved configuration to what is trained: module and data.

from smsff.build import build_task
module, data = build_task(plain)          # then: Trainer(...).fit(module, data)
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import hydra

from smsff.config.trust import asset
from smsff.data.own import OWN
from smsff.errors import UserError
from smsff.training.slurm import is_main_process

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from smsff.data.datamodule import ImageDataModule
    from smsff.data.single import SingleImage
    from smsff.method.module import StyleMatching
    from smsff.style_lora.module import StyleLora

log = logging.getLogger(__name__)

OPTIONS = ("steps", "seed", "fake_draws", "ema_decay", "grid_jitter", "pullback")
"""Keys of the configuration that the module takes as they are."""
CHEAP = {
    "style_matching": (
        "objective", "regularizer", "relevance", "timesteps", "fake_timesteps", "warmup", "prompts", "fake_score",
        "speed",
    ),
    "style_lora": ("lora", "prompts", "timesteps", "loss", "held_out", "samples"),
}  # fmt: skip
"""Groups of each task that cost nothing to build."""
MAX_PROMPTS = 1000
"""Most captions whose embeddings are computed before the training, so that the text encoder can go."""


def build(node: Any) -> Any:
    """Instantiate a node. A `UserError` from inside comes out as it is, and what else its arguments cause becomes one.

    Raises:
        UserError: the arguments do not do, or exclude one another.
    """
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    try:
        return hydra.utils.instantiate(node, _convert_="all")
    except hydra.errors.InstantiationException as error:
        causes: list[BaseException] = [error]
        while causes[-1].__cause__ is not None:
            causes.append(causes[-1].__cause__)
        for cause in causes:
            if isinstance(cause, UserError):
                raise cause from error
        by_arguments = (MisconfigurationException, TypeError, ValueError, KeyError, AttributeError, OverflowError)
        if isinstance(causes[-1], by_arguments) and not node["_target_"].startswith("smsff.teacher."):
            reason = (str(causes[-1]).strip().splitlines() or [type(causes[-1]).__name__])[0]
            raise UserError(f"{node['_target_']} cannot be built from this configuration: {reason}") from error
        raise


def build_task(plain: dict[str, Any]) -> tuple[pl.LightningModule, pl.LightningDataModule]:
    """What the configuration wants trained, and its data; `plain` as `smsff.config.check.resolve` returns it."""
    return build_style_lora(plain) if plain["task"] == "style_lora" else build_style_matching(plain)


def build_style_matching(plain: dict[str, Any]) -> tuple[StyleMatching, ImageDataModule | SingleImage]:
    """The training of a generator, and its data."""
    parts = build_parts(plain)
    data = parts.pop("data")  # an empty folder stops here, before the weights
    if is_main_process():
        warn_of_samples(plain, data)
    return build_module(plain, parts, data), data


def build_style_lora(plain: dict[str, Any]) -> tuple[StyleLora, pl.LightningDataModule]:
    """The training of a style LoRA, and its data."""
    from smsff.style_lora.module import StyleLora

    parts = build_parts(plain)
    data = parts.pop("data")
    teacher = build(plain["teacher"])
    module = StyleLora(teacher=teacher, **parts, steps=plain["steps"], seed=plain["seed"], record={"config": plain})
    module.prepare_prompts(data.captions(), data.prior_captions())
    return module, data


def build_parts(plain: dict[str, Any]) -> dict[str, Any]:
    """Everything that costs nothing, so that a number out of range is found at once; then the data."""
    parts = {name: build(plain[name]) for name in CHEAP[plain["task"]]}
    parts |= {f"{name}_options": build(options) for name, options in plain["optimizer"].items()}
    parts["data"] = build(plain["data"])
    return parts


def warn_of_samples(plain: dict[str, Any], data: ImageDataModule | SingleImage) -> None:
    """Say that the bundled photos are too few, if a network is trained on them with another base than the embedded."""
    base = plain["teacher"]["base"]
    if base != asset("teacher") and plain["data"].get("root", "") is None:
        log.warning(
            "data.root: %d PHOTOS MAKE NO STYLIZER with teacher.base=%s: these are the bundled ones, for the embedded "
            "teacher. Put your own into %s, or name their folder with data.root=FOLDER (data/README.md)",
            data.summary()["train_images"],
            base,
            OWN,
        )


def build_module(plain: dict[str, Any], parts: dict[str, Any], data: ImageDataModule | SingleImage) -> StyleMatching:
    """Teacher, generator and the training step around them."""
    from smsff.data.single import SingleImage
    from smsff.method.module import StyleMatching
    from smsff.method.space import LatentSpace

    teacher = build(plain["teacher"])
    generator = build(plain["generator"])
    picture = data.image[None] if isinstance(data, SingleImage) else None
    if isinstance(generator, partial):  # per-image: made from the picture
        made: Any = generator.func
        if picture is None:
            raise UserError(f"generator={made.__name__} holds one picture: use data=single")
        generator = generator(teacher.latent.encode(picture) if made.space == "latent" else picture)
    module = StyleMatching(
        generator=generator,
        teacher=teacher,
        **parts,
        **{name: plain[name] for name in OPTIONS},
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
    if isinstance(module.space, LatentSpace) and picture is not None:
        module.space.hold(picture)
        if module.preview is not None:
            module.preview.hold(picture)
    if not module.space.needs_encoder:
        teacher.latent.drop_encoder()
    if not module.space.needs_decoder:
        teacher.latent.drop_decoder()
    return module
