"""Measure results against content, style set and truth: one pass over the pairs, one over the style set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from smsff.data.images import ImageError, load_image, printable
from smsff.errors import UserError
from smsff.metrics import inception, known_style, perceptual
from smsff.metrics.clip import Clip, preference
from smsff.metrics.figures import KINDS, Figure, mean_figure
from smsff.metrics.frechet import FeatureSet, frechet_distance, kernel_distance
from smsff.metrics.pairs import Pair

BATCH, BATCH_PIXELS = 8, 2**22
"""Most pairs that are measured at once, and most pixels of all their results."""
MIN_SIDES = {"ssim": 11, "lpips": perceptual.MIN_SIDE, "artfid": inception.MIN_SIDE, "truth": 44}
"""Smallest side of a picture that a group can measure."""


@dataclass(kw_only=True)
class Networks:
    """The pretrained networks; without one, the figures that need it are left out.

    `lpips` turns (y, x) in [0, 1] into distances (B,); `art` (for ArtFID) and `reference` (for FID and KID) turn
    pictures in [0, 1] into features.
    """

    lpips: nn.Module | None = None
    art: nn.Module | None = None
    reference: nn.Module | None = None
    clip: Clip | None = None
    pickscore: Clip | None = None

    def to(self, device: torch.device) -> None:
        for network in vars(self).values():
            if network is not None:
                network.to(device)


@dataclass(kw_only=True)
class Evaluation:
    """Figures, and each pair's own numbers.

    Attributes:
        figures: By name, in the order of `KINDS`.
        columns: Numbers of each pair by figure, in the order of `names`; nan where a pair has none.
        left_out: Reason by file, of pairs and style pictures that could not be measured.
    """

    figures: dict[str, Figure] = field(default_factory=dict)
    columns: dict[str, list[float]] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Loaded:
    """A pair's pictures, (3, H, W) uint8 and of one size; the rivals' may have their own."""

    pair: Pair
    result: Tensor
    content: Tensor
    truth: Tensor | None
    rivals: tuple[Tensor, ...]


class Evaluator:
    """Measures pairs and style pictures as they come; `finish` gives the figures.

    Args:
        groups: Which figures; a group whose networks are missing must not be among them.
        networks: On `device`, in evaluation mode.
        prompt: For PickScore and CLIP to the prompt; ``{caption}`` stands for the content picture's caption.
    """

    def __init__(
        self,
        groups: Sequence[str],
        networks: Networks,
        *,
        prompt: str | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.groups, self.networks, self.prompt, self.device = frozenset(groups), networks, prompt, torch.device(device)
        self.min_side = max([MIN_SIDES.get(group, 1) for group in groups], default=1)
        self.result = Evaluation()
        self.sets: dict[str, FeatureSet] = {}
        self.sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def measure_pairs(self, pairs: Iterable[Pair]) -> None:
        """Measure the pairs; one that cannot be read or does not fit is named in ``left_out``."""
        for batch in self._batches(pairs):
            self._measure(batch)

    def _batches(self, pairs: Iterable[Pair]) -> Iterator[list[_Loaded]]:
        """Neighbours of one size, together."""
        batch: list[_Loaded] = []
        for pair in pairs:
            try:
                loaded = self._load(pair)
            except UserError as error:
                self.result.left_out[pair.name] = str(error)
                continue
            shape = loaded.result.shape
            full = len(batch) == BATCH or (len(batch) + 1) * shape[1] * shape[2] > BATCH_PIXELS
            if batch and (full or shape != batch[0].result.shape):
                yield batch
                batch = []
            batch.append(loaded)
        if batch:
            yield batch

    def _load(self, pair: Pair) -> _Loaded:
        result, content = load_image(pair.result), load_image(pair.content)
        truth = load_image(pair.truth) if pair.truth else None
        for what, other in (("content", content), ("truth", truth)):
            if other is not None and other.shape != result.shape:
                sizes = [f"{x.shape[2]} x {x.shape[1]}" for x in (result, other)]
                raise ImageError(f"{printable(pair.name)}: the result has {sizes[0]} pixels, its {what} {sizes[1]}")
        self._check_side(result, pair.name)
        complete = "pickscore" in self.groups and all(pair.rivals)
        return _Loaded(pair, result, content, truth, tuple(load_image(p) for p in pair.rivals if p and complete))

    def _check_side(self, picture: Tensor, name: str) -> None:
        if min(picture.shape[1:]) < self.min_side:
            needing = [group for group in sorted(self.groups) if MIN_SIDES.get(group) == self.min_side]
            raise ImageError(
                f"{name}: {picture.shape[2]} x {picture.shape[1]} pixels are too few for {', '.join(needing)}, which "
                f"needs {self.min_side} a side"
            )

    def _measure(self, batch: Sequence[_Loaded]) -> None:
        y, x = (self._stack([getattr(item, side) for item in batch]) for side in ("result", "content"))
        columns: dict[str, Tensor] = {}
        if "ssim" in self.groups:
            columns["ssim"] = known_style.ssim(y, x)
        if self.networks.lpips is not None and self.groups & {"lpips", "artfid"}:
            columns["lpips"] = self.networks.lpips(y, x)
        if "truth" in self.groups:
            columns |= self._truth(y, x, batch)
        if "clip" in self.groups:
            columns |= self._clip(y, x, batch)
        if "pickscore" in self.groups:
            columns |= self._pickscore(y, x, batch)
        self._add_features("results", y)
        self.result.names += [item.pair.name for item in batch]
        for name, values in columns.items():
            self.result.columns.setdefault(name, []).extend(values.double().cpu().tolist())

    def _stack(self, pictures: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(pictures)).to(self.device).float() / 255

    def _truth(self, y: Tensor, x: Tensor, batch: Sequence[_Loaded]) -> dict[str, Tensor]:
        truth = self._stack([item.truth for item in batch if item.truth is not None])
        rows = [known_style.measure(*(p[i : i + 1] for p in (y, truth, x))) for i in range(len(batch))]
        columns = {("ssim_truth" if key == "ssim" else key): [row[key] for row in rows] for key in rows[0]}
        return {name: torch.tensor(values) for name, values in columns.items() if name in KINDS}

    def _clip(self, y: Tensor, x: Tensor, batch: Sequence[_Loaded]) -> dict[str, Tensor]:
        clip = self.networks.clip
        assert clip is not None
        ours = clip.embed_images(y)
        columns = {"clip_content": (ours * clip.embed_images(x)).sum(-1)}
        self._add_sum("results", ours)
        if self.prompt is not None:
            columns["clip_text"] = (ours * clip.embed_texts(self._prompts(batch))).sum(-1)
        return columns

    def _pickscore(self, y: Tensor, x: Tensor, batch: Sequence[_Loaded]) -> dict[str, Tensor]:
        """Against the content picture and the rivals; nan for the comparison where a rival has no picture."""
        model, prompts = self.networks.pickscore, self._prompts(batch)
        assert model is not None
        raw = model.scores(y, prompts)
        columns = {"pickscore": raw}
        rates = torch.full((2, len(batch)), torch.nan, dtype=torch.float64)
        unstylized = model.scores(x, prompts)
        for i, (item, prompt) in enumerate(zip(batch, prompts, strict=True)):
            if len(item.rivals) < len(item.pair.rivals):
                continue
            rivals = [model.scores(self._stack([rival]), [prompt])[0] for rival in item.rivals]
            wins, share = preference(torch.stack([raw[i], unstylized[i], *rivals])[None])
            rates[0, i], rates[1, i] = wins[0], share[0]
        return columns | {"pickscore_win_rate": rates[0], "pickscore_share": rates[1]}

    def _prompts(self, batch: Sequence[_Loaded]) -> list[str]:
        assert self.prompt is not None
        # replaced, not formatted: a caption with braces is a caption
        return [self.prompt.replace("{caption}", item.pair.caption).strip(" ,") for item in batch]

    @torch.no_grad()
    def measure_style(self, paths: Iterable[Path]) -> int:
        """Take in the style set, one picture at a time since they have all sizes; how many could be used."""
        count = 0
        for path in paths:
            try:
                picture = load_image(path)
                self._check_side(picture, printable(path))
            except UserError as error:
                self.result.left_out[f"{printable(path)} (style)"] = str(error)
                continue
            count += 1
            y = self._stack([picture])
            self._add_features("style", y)
            if "clip" in self.groups and self.networks.clip is not None:
                self._add_sum("style", self.networks.clip.embed_images(y))
        return count

    def _add_features(self, side: str, y: Tensor) -> None:
        wanted = {"art": (self.networks.art, {"artfid"}), "reference": (self.networks.reference, {"fid", "kid"})}
        for name, (network, groups) in wanted.items():
            if network is not None and groups & self.groups:
                features = network(y)
                if (key := f"{name} {side}") not in self.sets:
                    self.sets[key] = FeatureSet(width=features.shape[1], name=side)
                self.sets[key].update(features)

    def _add_sum(self, side: str, embeddings: Tensor) -> None:
        self.sums[side] = self.sums.get(side, torch.zeros(1)) + embeddings.double().sum(0).cpu()

    def finish(self, style_count: int) -> Evaluation:
        """The figures of everything that was measured; UserError if nothing could be measured."""
        result = self.result
        if not result.names:
            name, reason = next(iter(result.left_out.items()))
            raise UserError(f"none of the {len(result.left_out)} pairs could be measured; the first, {name}: {reason}")
        known = {name: [value for value in values if value == value] for name, values in result.columns.items()}
        found = {name: mean_figure(values) for name, values in known.items() if values}
        n = len(result.names)
        if "art results" in self.sets and "lpips" in found:
            ours, style = self._sides("art")
            art_fid = frechet_distance(ours, style)
            found["art_fid"] = Figure(value=art_fid, count=n, references=style.count)
            composite = (1 + found["lpips"].value) * (1 + art_fid)
            found["artfid"] = Figure(value=composite, count=n, references=style.count)
        if "content_tone_free" in found:
            value = known_style.composite({key: figure.value for key, figure in found.items()})
            found["composite"] = Figure(value=value, count=n)
        if "reference results" in self.sets:
            ours, style = self._sides("reference")
            if "fid" in self.groups:
                found["fid"] = Figure(value=frechet_distance(ours, style), count=n, references=style.count)
            if "kid" in self.groups:
                value, error = kernel_distance(ours, style)
                found["kid"] = Figure(value=value, count=n, references=style.count, error=error)
        if "results" in self.sums and "style" in self.sums:
            # the mean cosine over all pairs of a result and a style picture
            cosine = self.sums["results"] @ self.sums["style"] / (n * style_count)
            found["clip_style"] = Figure(value=cosine.item(), count=n, references=style_count)
        for name, kind in KINDS.items():  # LPIPS is shown with ArtFID, of which it is a part
            if name in found and (kind.group in self.groups or (name == "lpips" and "artfid" in self.groups)):
                result.figures[name] = found[name]
        return result

    def _sides(self, network: str) -> tuple[FeatureSet, FeatureSet]:
        if f"{network} style" not in self.sets:
            raise UserError("--style: none of its pictures could be used")
        return self.sets[f"{network} results"], self.sets[f"{network} style"]


def per_image(evaluation: Evaluation) -> Mapping[str, dict[str, float | None]]:
    """Each pair's numbers by its name; None for nan."""
    rows: dict[str, dict[str, float | None]] = {name: {} for name in evaluation.names}
    for figure, values in evaluation.columns.items():
        for name, value in zip(evaluation.names, values, strict=True):
            rows[name][figure] = value if value == value else None
    return rows
