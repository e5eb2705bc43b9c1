"""The models under the prompts of one batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor, nn

from smsff.method.gradient import Predict, Scores
from smsff.method.prompts import Conditions
from smsff.teacher.condition import Condition
from smsff.teacher.score import Score, Teacher, guided, guided_with_graph


class FakeScore(Protocol):
    """A score that is trained online to follow the generator's output."""

    def __call__(self, z_t: Tensor, t: Tensor, cond: Condition) -> Tensor: ...

    def loss(self, z: Tensor, noise: Tensor, t: Tensor, cond: Condition) -> Tensor: ...

    def loss_of(self, eps: Tensor, noise: Tensor, t: Tensor) -> Tensor: ...

    def trainable_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...


def no_fake(z_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
    """The fake of an objective that said it needs none."""
    raise RuntimeError("the objective has needs_fake = False, so no fake score is trained")


def batch_scores(teacher: Teacher, fake: Score | None, cond: Conditions, *, share: bool = False) -> Scores:
    """The four scores with the prompts of a batch filled in.

    Args:
        teacher: The frozen base and style scores.
        fake: The score that is trained online, if the objective needs one.
        cond: Prompt embeddings of the batch.
        share: Leave the fake's prediction with its graph, and t, in ``shared``, for the fake's own loss.
    """
    seen: dict[str, Tensor] = {}
    shared: list[tuple[Tensor, Tensor]] = []

    def predict(name: str, score: Score, cond: Condition, uncond: Condition, *, share: bool = False) -> Predict:
        def prediction(z_t: Tensor, t: Tensor, *, scale: float) -> Tensor:
            if share:
                eps, with_graph = guided_with_graph(score, z_t, t, cond, uncond, scale)
                shared.append((with_graph, t))
            else:
                eps = guided(score, z_t, t, cond, uncond, scale)
            seen[f"{name}_score"] = eps
            return eps

        return prediction

    return Scores(
        style=predict("style", teacher.style, cond.style, cond.style_null),
        style_source=predict("style_source", teacher.style, cond.style_source, cond.style_null),
        base=predict("base", teacher.base, cond.source, cond.null),
        fake=predict("fake", fake or no_fake, cond.source, cond.null, share=share),
        seen=seen,
        shared=shared,
    )
