"""Loading style LoRAs: one file or several, of any format, as one adapter of a U-Net and its text encoders.

Other loaders read a LoRA that was made for another model with no more than a log line, and it then has no effect. Here
every tensor of the file is accounted for before the models are touched.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from smsff.errors import UserError
from smsff.teacher.lora.apply import add_adapter
from smsff.teacher.lora.formats import TEXT, UNET, LayerKeys, LoraHeader, read_header, read_tensors
from smsff.teacher.lora.inspect import LoraInfo, describe, rank_of, refuse_other_base, refuse_text_alone
from smsff.teacher.lora.names import Place, flat, layer_table, weight_of, weighted_layers
from smsff.teacher.lora.weights import LowRank, changes_nothing, dense, low_rank

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file and how much of it: 0 is the base model, 1 what was trained; other values extrapolate."""

    path: str | Path
    strength: float = 1.0


@dataclass(frozen=True)
class LoraReport:
    """What became of the tensors of a LoRA file (alphas are not counted).

    Attributes:
        total: number of tensors in it.
        matched: how many of them were loaded, into U-Net and text encoders together.
        unmatched: what the file has and the models lack: layers, and tensors that are no part of a LoRA.
        ignored: number of text-encoder tensors left out: the text part is off, or there is no such text encoder.
        ranks, alphas: of the loaded layers, ascending; an alpha equals the rank where the file has none.
        strength: factor on the LoRA's own scale alpha / rank.
        unchanged: parts (``unet``, ``text_encoder``, ``text_encoder_2``) whose layers change no weight, at a strength
            other than 0.
        info: format, algorithms and base model of the file.
    """

    path: Path
    total: int
    matched: int
    unmatched: tuple[str, ...]
    ignored: int
    ranks: tuple[int, ...]
    alphas: tuple[float, ...]
    strength: float
    adapts_text: bool
    unchanged: tuple[str, ...]
    info: LoraInfo

    def __str__(self) -> str:
        kind = f"{self.info.format} {', '.join(self.info.algorithms)} for {self.info.family or 'an unnamed base model'}"
        ranks, alphas = (", ".join(f"{v:g}" for v in values) or "none" for values in (self.ranks, self.alphas))
        text = "with" if self.adapts_text else "without"
        return (
            f"{self.path.name} ({kind}; rank {ranks}, alpha {alphas}) at strength {self.strength:g}: "
            f"{self.matched} of {self.total} tensors loaded, {text} the text encoder; "
            f"{self.ignored} left out, {len(self.unmatched)} unmatched"
            + "".join(f"; changes nothing in {part}" for part in self.unchanged)
        )


@dataclass(frozen=True)
class _Change:
    """What one file, at its strength, does to one layer."""

    part: str
    layer: str
    weight: Tensor
    change: LowRank | Tensor
    alpha: float | None
    rank: int | None
    tensors: int

    def is_finite(self) -> bool:
        """In the dtype of the weight."""
        one = self.change
        values = (one.down, one.up, torch.tensor(one.scale)) if isinstance(one, LowRank) else (one,)
        return all(bool(torch.isfinite(value.to(self.weight.dtype)).all()) for value in values)


@torch.no_grad()
def load_style_loras(
    unet: nn.Module,
    text_encoders: Sequence[nn.Module],
    loras: Sequence[LoraFile],
    *,
    adapter_name: str = "style",
    use_text: bool = True,
) -> tuple[LoraReport, ...]:
    """Load LoRA files together as one frozen adapter, in the models' dtype.

    The weight of a layer becomes W + sum over the files of strength * change(file, W), the change as in `weights`.
    The adapter is left active; wrap the models in an `AdapterSwitch` afterwards.

    Args:
        text_encoders: the first, and for SDXL the second; none to leave the text parts of the files out.
        use_text: load the text parts.

    Raises:
        UserError: if a file is missing, broken, no LoRA, not finite, for another kind of base model or for text
            encoders alone. One that fits in part, or changes nothing, is loaded with a warning.
    """
    models = {UNET: unet} | (dict(zip(TEXT, text_encoders, strict=False)) if use_text else {})
    changes: list[_Change] = []
    reports = []
    for lora in loras:
        header = read_header(lora.path)
        info = describe(header)
        refuse_other_base(info, {"_class_name": type(unet).__name__, **(getattr(unet, "config", None) or {})})
        refuse_text_alone(info)
        found, unmatched = _matching(header, models, lora.strength)
        reports.append(_report(header, info, found, unmatched, models, lora.strength))
        changes += found
    for part, model in models.items():
        add_adapter(model, [(c.layer, c.change) for c in changes if c.part == part], adapter_name)
    for report in reports:
        _warn(report)
        logger.info("style LoRA %s", report)
    return tuple(reports)


def _warn(report: LoraReport) -> None:
    """Say what of a file has no effect."""
    if report.unmatched:
        logger.warning(
            "teacher.lora=%s: %d of its layers or tensors are not applied, for the model has no such layer or they are "
            "not of a LoRA, LoHa or LoKr: %s",
            report.path,
            len(report.unmatched),
            ", ".join(report.unmatched),
        )
    if report.info.unusable:
        logger.warning(
            "teacher.lora=%s: its header or adapter_config.json has entries that cannot be applied: %s. The alpha of a "
            "layer is its rank where nothing else gives it",
            report.path,
            ", ".join(report.info.unusable),
        )
    for part in report.unchanged:
        logger.warning(
            "teacher.lora=%s: changes nothing in %s: every change is 0 (an alpha of 0, matrices of zeros, or values "
            "too small for the model's dtype), as in a LoRA that was not trained",
            report.path,
            part,
        )


def _matching(header: LoraHeader, models: dict[str, nn.Module], strength: float) -> tuple[list[_Change], list[str]]:
    """What the file does to each layer that the models have, and the names of the rest."""
    complete = [layer for layer in header.layers if layer.algorithm is not None]
    if not complete:
        layer = header.layers[0]
        have = ", ".join(layer.keys)
        raise UserError(
            f"teacher.lora={header.path}: not a LoRA format that can be read: of {layer.name} there is only {have}"
        )
    tensors = read_tensors(header)
    tables = {part: layer_table(model) for part, model in models.items()}
    weights = {part: weighted_layers(model) for part, model in models.items()}
    unmatched = [layer.name for layer in header.layers if layer.algorithm is None] + list(header.unknown)
    changes = []
    for layer in complete:
        if layer.part not in models:
            continue
        place = tables[layer.part].get(flat(layer.name))
        if place is None:
            unmatched.append(layer.name)
            continue
        mine = {role: tensors[key] for role, key in layer.keys.items()}
        bad = [layer.keys[role] for role, tensor in mine.items() if not torch.isfinite(tensor.float()).all()]
        if bad:
            raise UserError(f"teacher.lora={header.path}: {bad[0]} is not finite: it has NaN or infinite values")
        try:
            found = _changes(header, layer, place, mine, weights[layer.part], strength)
        except ValueError as error:
            raise UserError(
                f"teacher.lora={header.path}: made for another architecture: of {layer.name}, {error} of the base "
                "model; use a LoRA made for this base model"
            ) from None
        if not all(change.is_finite() for change in found):
            raise UserError(
                f"teacher.lora={header.path}: {layer.name} is not finite in {found[0].weight.dtype}: its values are "
                "too large for it"
            )
        changes += found
    return changes, unmatched


def _changes(
    header: LoraHeader,
    layer: LayerKeys,
    place: Place,
    tensors: dict[str, Tensor],
    layers: Mapping[str, nn.Module],
    strength: float,
) -> list[_Change]:
    """What a layer of the file does to each of the model's layers that it is made of."""
    rank = rank_of(layer, header.shapes)
    alpha = tensors.pop("alpha", None)
    if alpha is not None:  # LyCORIS scales a LoKr by alpha only if it is decomposed
        scale = 1.0 if rank is None else float(alpha) / rank
    else:
        config = header.config.get(layer.part)
        scale = 1.0 if config is None else config.scale((layer.name, *place.layers), rank)
    weights = [weight_of(layers[name]) for name in place.layers]
    rows = [len(weight) for weight in weights]
    whole = weights[0] if len(weights) == 1 else torch.cat(weights)

    def cut(x: Tensor) -> Sequence[Tensor]:
        return (torch.cat(x.chunk(2)[::-1]) if place.swapped else x).split(rows)

    changes: Sequence[LowRank | Tensor]
    if layer.algorithm in ("LoRA", "LoRA Tucker"):
        pair = low_rank(tensors, whole, scale * strength)
        changes = [LowRank(pair.down, up, pair.scale) for up in cut(pair.up)]
    else:
        on_device = {role: tensor.to(whole.device) for role, tensor in tensors.items()}
        whole = torch.cat(whole.chunk(2)[::-1]) if place.swapped else whole
        # In the weight's dtype at once: all of SDXL's layers together would take 10 GB in float32.
        changes = cut(dense(on_device, whole, scale, strength).to(whole.dtype))
    total = None if rank is None else scale * rank
    return [
        _Change(layer.part, name, weight, change, total, rank, 0 if i else len(tensors))
        for i, (name, weight, change) in enumerate(zip(place.layers, weights, changes, strict=True))
    ]


def _report(
    header: LoraHeader,
    info: LoraInfo,
    changes: list[_Change],
    unmatched: list[str],
    models: dict[str, nn.Module],
    strength: float,
) -> LoraReport:
    if not any(change.part == UNET for change in changes):
        raise UserError(
            f"teacher.lora={header.path}: none of its {info.tensors} tensors fits the network of the base model, so it "
            "was made for another architecture; use a LoRA made for this base model"
        )
    left_out = [layer.keys for layer in header.layers if layer.part not in models]
    return LoraReport(
        path=header.path,
        total=info.tensors,
        matched=sum(change.tensors for change in changes),
        unmatched=tuple(unmatched),
        ignored=sum(len(keys.keys() - {"alpha"}) for keys in left_out),
        ranks=tuple(sorted({change.rank for change in changes if change.rank is not None})),
        alphas=tuple(sorted({change.alpha for change in changes if change.alpha is not None})),
        strength=strength,
        adapts_text=any(change.part != UNET for change in changes),
        unchanged=() if strength == 0 else _unchanged(changes),
        info=info,
    )


def _unchanged(changes: list[_Change]) -> tuple[str, ...]:
    parts = dict.fromkeys(change.part for change in changes)
    return tuple(p for p in parts if all(changes_nothing(c.change, c.weight) for c in changes if c.part == p))
