"""What a picture is called while a style LoRA is trained."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from smsff.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TriggerPrompts:
    """Prompts with a trigger word, and how often parts of them are left out.

    The trigger is best made of words that mean nothing to the base. Captions are left out so that the style does not
    depend on them, whole prompts because guidance needs the empty one.
    """

    trigger: str
    template: str = "{trigger}, {caption}"
    caption_dropout: float = 0.1
    prompt_dropout: float = 0.1

    def __post_init__(self) -> None:
        try:
            self.fill("")
        except (KeyError, IndexError, ValueError) as error:
            raise UserError(
                f"prompts.template={self.template!r}: only {{caption}} and {{trigger}} can be filled in"
            ) from error

    def fill(self, caption: str) -> str:
        """The prompt of a picture; without a caption the trigger alone."""
        return self.template.format(trigger=self.trigger, caption=caption).strip(" ,")

    def draw(self, caption: str, u: float) -> str:
        """The prompt of one sample, for u uniform in [0, 1)."""
        if u < self.prompt_dropout:
            return ""
        return self.fill("" if u < self.prompt_dropout + (1 - self.prompt_dropout) * self.caption_dropout else caption)

    def possible(self, captions: Iterable[str]) -> list[str]:
        """Every prompt that can come up for these captions."""
        return ["", self.fill(""), *(self.fill(caption) for caption in captions)]
