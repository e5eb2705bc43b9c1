"""What a run prints before its first step: what is trained, with what, on what and for how long."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from smsff.weights.files import spell_size

if TYPE_CHECKING:
    import lightning.pytorch as pl


def opening(plain: Mapping[str, Any], trainer: pl.Trainer, module: pl.LightningModule, data: Any) -> str:
    """One line for each of: method, parts that are off, style, base, network, devices, data, length, memory."""
    lines = dict(_style_lora(plain) if plain["task"] == "style_lora" else _style_matching(plain))
    teacher = plain["teacher"]
    reports = list(map(str, getattr(module.teacher, "lora_reports", ())))
    lines["LoRA"] = "; ".join(reports) or "none"
    lines["base"] = f"{teacher['base']}, {teacher['dtype']}"
    if teacher.get("style_base"):
        lines["base"] += f"; the style's: {teacher['style_base']}"
    lines["devices"] = _devices(plain, trainer)
    lines["data"] = data.overview()
    lines["length"] = _length(plain, trainer)
    lines["memory"] = _memory(plain)
    lines["folder"] = plain["run_dir"]
    width = max(map(len, lines)) + 2
    return "\n".join(f"  {name:<{width}}{text}" for name, text in lines.items() if text)


def parts_off(plain: Mapping[str, Any]) -> list[str]:
    """The parts of the paper's method that a configuration of style matching leaves out."""
    off = []
    if not _name(plain["objective"]).startswith("StyleMatching"):
        off.append(f"style score less fake score (it is {_name(plain['objective'])})")
    if _name(plain["regularizer"]) == "NoRegularizer" or not plain["regularizer"]["lambda_freq"]:
        off.append("spectrum term")
    if _name(plain["relevance"]) == "UniformRelevance":
        off.append("relevance map")
    if _name(plain["timesteps"]) != "Narrowing":
        off.append(f"narrowing of t (it is {_name(plain['timesteps'])})")
    return off


def _name(node: Mapping[str, Any]) -> str:
    return str(node["_target_"]).rpartition(".")[2]


def _style_matching(plain: Mapping[str, Any]) -> dict[str, str]:
    objective, t, spectrum = plain["objective"], plain["timesteps"], plain["regularizer"]
    settings = [f"{key} {value}" for key, value in objective.items() if key != "_target_"]
    if _name(spectrum) != "NoRegularizer":
        settings.append(f"lambda {spectrum['lambda_freq']:g} ({spectrum['norm']}, t_scale {spectrum['t_scale']})")
    settings.append(f"t {t['t_min']} to {t['t_max']}, one a {t['per']}, {_name(t)}")
    style = plain["style"]
    return {
        "method": f"{_name(objective)}: {', '.join(settings)}",
        "off": ", ".join(parts_off(plain)) or "nothing of the paper's method",
        "style": f"{style['name']}, prompt {plain['prompts']['style'].format(words=style['words'], caption='...')!r}",
        "network": _name(plain["generator"]),
    }


def _style_lora(plain: Mapping[str, Any]) -> dict[str, str]:
    lora, prompts = plain["lora"], plain["prompts"]
    return {
        "method": f"style LoRA of rank {lora['rank']} by denoising pictures of the style",
        "style": f"{plain['name']}, trigger {prompts['trigger']!r}",
    }


def _devices(plain: Mapping[str, Any], trainer: pl.Trainer) -> str:
    kind, strategy = trainer.strategy.root_device.type, type(trainer.strategy).__name__.removesuffix("Strategy")
    return f"{trainer.world_size} {kind} ({strategy}), {plain['trainer']['precision']}"


def _length(plain: Mapping[str, Any], trainer: pl.Trainer) -> str:
    steps, batch = plain["steps"], plain["data"].get("batch_size", 1)
    whole = batch * trainer.world_size * trainer.accumulate_grad_batches
    warmup = plain.get("warmup")
    first = f", {'at most ' if warmup['until'] else ''}{warmup['steps']} of them warm-up" if warmup else ""
    return f"{steps} steps of {whole} pictures{first}; the time follows after some steps"


def _memory(plain: Mapping[str, Any]) -> str:
    from smsff.weights.forecast import forecast
    from smsff.weights.manifest import look, needs

    found = [look(need, None, verify=False) for need in needs(plain)]
    memory, unknown = forecast(plain, found, gpus=1, quantised=False)
    if memory is None:
        return f"not known: {unknown}"
    device, disk = spell_size(memory["total"]), spell_size(memory["run"])
    return f"about {device} on each device, {disk} on the disk for checkpoints"
