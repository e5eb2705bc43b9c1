"""Semantic-aware gradient refinement: where in the image does the style instruction matter?

R = Norm | eps_base(z_src_t; edit prompt) - eps_base(z_src_t; empty prompt) |
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from smsff.method.draws import Draws
from smsff.method.gradient import Noised
from smsff.method.prompts import Conditions
from smsff.teacher.condition import Condition
from smsff.teacher.score import Score, Teacher

RelevanceReduce = Literal["mean_abs", "abs_mean"]
RelevanceNormalize = Literal["minmax", "minmax_mean"]


class Relevance(Protocol):
    """Two predictions (B, C, h, w) of the base to a map (B, 1, h, w); their values count only with ``needs_scores``."""

    @property
    def needs_scores(self) -> bool: ...

    def __call__(self, eps_edit: Tensor, eps_null: Tensor) -> Tensor: ...


def relevance_map(eps_edit: Tensor, eps_null: Tensor, reduce: RelevanceReduce = "mean_abs") -> Tensor:
    """Size of the difference of two predictions at each position: (B, C, h, w) twice -> (B, 1, h, w), >= 0.

    ``mean_abs`` averages the absolute differences of the channels, as the paper's formula reads. ``abs_mean`` is the
    authors' code (showlab/SMS): the absolute value of the averaged difference, in which channels can cancel.
    """
    difference = eps_edit - eps_null
    if reduce == "mean_abs":
        return difference.abs().mean(1, keepdim=True)
    return difference.mean(1, keepdim=True).abs()


def minmax(raw: Tensor) -> Tensor:
    """Each sample of (B, 1, h, w) stretched to [0, 1]; a flat one becomes 1 everywhere."""
    low, high = raw.amin((1, 2, 3), keepdim=True), raw.amax((1, 2, 3), keepdim=True)
    span = high - low
    flat = span == 0
    # The inner where keeps 0 / 0 out of the branch that is thrown away.
    return torch.where(flat, 1.0, (raw - low) / torch.where(flat, 1.0, span))


class SemanticRelevance:
    """The relevance map of each sample, without gradient.

    Args:
        reduce: see `relevance_map`.
        normalize: ``minmax`` maps onto [0, 1] (the paper). ``minmax_mean``, ours, then divides by the mean of the
            sample, so that the map moves the style gradient about without weakening it.
    """

    needs_scores = True

    def __init__(self, *, reduce: RelevanceReduce = "mean_abs", normalize: RelevanceNormalize = "minmax") -> None:
        self.reduce: RelevanceReduce = reduce
        self.normalize: RelevanceNormalize = normalize

    @torch.no_grad()
    def __call__(self, eps_edit: Tensor, eps_null: Tensor) -> Tensor:
        """(B, 1, h, w) from two predictions (B, C, h, w) of the base model at the same noised source."""
        return self.normalized(relevance_map(eps_edit, eps_null, self.reduce))

    def normalized(self, raw: Tensor) -> Tensor:
        """Maps (B, 1, h, w) as `relevance_map` makes them, stretched sample by sample."""
        weight = minmax(raw)
        if self.normalize == "minmax_mean":
            # Not zero: a stretched map holds a 1.
            weight = weight / weight.mean((1, 2, 3), keepdim=True)
        return weight


class UniformRelevance:
    """The ablation without refinement: 1 everywhere; the caller can skip the two predictions and pass z twice."""

    needs_scores = False

    def __call__(self, eps_edit: Tensor, eps_null: Tensor) -> Tensor:
        """Ones (B, 1, h, w)."""
        return torch.ones_like(eps_edit[:, :1])


def edit_predictions(base: Score, at: Noised, edit: Condition, null: Condition) -> tuple[Tensor, Tensor]:
    """The base on the noised source under edit and empty prompt, in one call; (B, C, h, w) each."""
    twice = torch.cat([at.z_src_t, at.z_src_t]), torch.cat([at.t, at.t])
    eps_edit, eps_null = base(*twice, Condition.cat([edit, null])).chunk(2)
    return eps_edit, eps_null


@torch.no_grad()
def relevance_at(relevance: Relevance, base: Score, at: Noised, cond: Conditions) -> Tensor:
    """The map (B, 1, h, w) of the noised source; the base is called only where the map needs it."""
    if not relevance.needs_scores:
        return relevance(at.z, at.z)
    return relevance(*edit_predictions(base, at, cond.edit, cond.null))


class RelevancePreview:
    """Relevance maps of whole pictures, to look at.

    Args:
        relevance: Of the training.
        teacher: Its base and its auto-encoder.
        seed: Of the noise.
    """

    SIZE = 512
    """Longest side, in pixels, at which a map is computed."""

    def __init__(self, relevance: Relevance, teacher: Teacher, *, seed: int) -> None:
        self.relevance, self.teacher, self.seed = relevance, teacher, seed
        self.held: Tensor | None = None

    def hold(self, picture: Tensor) -> None:
        """Encode the one picture (1, 3, H, W) of the run; the encoder is not needed afterwards."""
        self.held = self.latents(picture)

    @torch.no_grad()
    def latents(self, x: Tensor) -> Tensor:
        """Latents of pictures (B, 3, H, W) at `SIZE`, in sides that suit the U-Net."""
        size, multiple = x.shape[-2:], 8 * self.teacher.latent.downscale
        shrink = min(1.0, self.SIZE / max(size))
        small = [max(1, round(side * shrink / multiple)) * multiple for side in size]
        return self.teacher.latent.encode(F.interpolate(x, small, mode="bilinear", antialias=True))

    def __call__(self, x: Tensor, cond: Conditions) -> Tensor:
        """Map (B, 1, H, W) of pictures at a quarter of the noise levels, its largest value 1."""
        z = self.latents(x) if self.held is None else self.held.to(x.device)
        t = torch.full((len(x),), self.teacher.schedule.num_steps // 4, device=x.device)
        noise = Draws(self.seed, 0, range(len(x)), like=z).normal("preview", tuple(z.shape[1:]))
        m = relevance_at(self.relevance, self.teacher.base, Noised(z, z, noise, t, self.teacher.schedule), cond)
        return F.interpolate(m / m.amax((1, 2, 3), keepdim=True).clamp(min=1e-12), x.shape[-2:], mode="bilinear")
