"""Semantic-aware gradient refinement: where in the image does the style instruction matter?

R = Norm | eps_base(z_src_t; edit prompt) - eps_base(z_src_t; empty prompt) |
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from smsff.errors import UserError

RelevanceReduce = Literal["mean_abs", "abs_mean"]
RelevanceNormalize = Literal["minmax", "minmax_mean"]


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

    Raises:
        UserError: unknown option.
    """

    needs_scores = True

    def __init__(self, *, reduce: RelevanceReduce = "mean_abs", normalize: RelevanceNormalize = "minmax") -> None:
        if reduce not in get_args(RelevanceReduce):
            raise UserError(f"relevance.reduce={reduce!r} is not one of {', '.join(get_args(RelevanceReduce))}")
        if normalize not in get_args(RelevanceNormalize):
            choices = ", ".join(get_args(RelevanceNormalize))
            raise UserError(f"relevance.normalize={normalize!r} is not one of {choices}")
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
