"""The methods that the paper compares with, on stock diffusers; one file each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class Baseline(Protocol):
    """A method that stylizes pictures without being trained by smsff.

    Attributes:
        needs_style: Whether it takes a style picture; the others take words, a LoRA or a network of their own.
    """

    needs_style: bool

    def __call__(
        self, content: Tensor, captions: Sequence[str], *, style: Tensor | None = None, seeds: Sequence[int]
    ) -> Tensor:
        """Stylize a batch.

        Args:
            content: (B, 3, H, W) RGB in [0, 1], any H and W.
            captions: What is on each picture; may be empty.
            style: (B, 3, h, w) RGB in [0, 1], a style picture for each, where `needs_style`.
            seeds: Of the noise, one for each picture: the result of a picture does not depend on its batch.

        Returns:
            (B, 3, H, W) in [0, 1].
        """
