"""The prompts of a batch, as templates and as embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from smsff.errors import UserError
from smsff.teacher.condition import Condition
from smsff.teacher.score import Teacher


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Prompt templates; ``{caption}`` is the image's caption, ``{words}`` the words of the style.

    Attributes:
        words: What the style is called, with the trigger words of its LoRA.
        style: Prompt of the style score.
        source: Prompt of the fake score and, in DDS and PDS, of the base score of the photo (their source prompt).
        edit: Prompt whose difference from the empty prompt gives the relevance map.

    Raises:
        UserError: a template with another field.
    """

    words: str
    style: str
    source: str
    edit: str

    def __post_init__(self) -> None:
        for name in ("style", "source", "edit"):
            template = getattr(self, name)
            try:
                self.fill(template, "")
            except (KeyError, IndexError, ValueError) as error:
                raise UserError(
                    f"prompts.{name}={template!r}: only {{caption}} and {{words}} can be filled in"
                ) from error

    def fill(self, template: str, caption: str) -> str:
        return template.format(caption=caption, words=self.words)

    def of(self, caption: str) -> tuple[str, str, str]:
        """Style, source and edit prompt for one caption."""
        return self.fill(self.style, caption), self.fill(self.source, caption), self.fill(self.edit, caption)


class Conditions(NamedTuple):
    """Prompt embeddings of a batch, each of B rows; the first three come from the style's own text encoder."""

    style: Condition
    style_null: Condition
    style_source: Condition
    source: Condition
    edit: Condition
    null: Condition


def encode_prompts(teacher: Teacher, prompts: Prompts, captions: Sequence[str], device: torch.device) -> Conditions:
    """Prompt embeddings for one caption a sample."""
    style, source, edit = zip(*map(prompts.of, captions), strict=True)
    empty = [""] * len(captions)
    for_style = teacher.encode_prompts([*style, *empty, *source], style=True).to(device)
    for_base = teacher.encode_prompts([*source, *edit, *empty]).to(device)
    return Conditions(*for_style.chunk(3), *for_base.chunk(3))
