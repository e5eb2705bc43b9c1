"""What a score is conditioned on: embedded prompts, one row for each sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Condition:
    """Embeddings of B prompts. Every operation here acts on the rows of all tensors alike.

    Attributes:
        tokens: (B, L, D), what the U-Net's cross-attention reads.
        pooled: (B, P), one vector for the whole prompt, in models that take one (SDXL).
        mask: (B, L), True at the tokens of the prompt, which come first; None where all are.
    """

    tokens: Tensor
    pooled: Tensor | None = None
    mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice | Tensor) -> Condition:
        return self.map(lambda x: x[rows])

    def map(self, change: Callable[[Tensor], Tensor]) -> Condition:
        """`change` applied to each tensor; the mask stays one."""
        mask = None if self.mask is None else change(self.mask).bool()
        return Condition(change(self.tokens), None if self.pooled is None else change(self.pooled), mask)

    @property
    def masks(self) -> Sequence[Tensor | None]:
        """The mask of each row, (L,)."""
        return [None] * len(self) if self.mask is None else list(self.mask)

    def to(self, target: torch.device | torch.dtype | str) -> Condition:
        return self.map(lambda x: x.to(target))

    def detach(self) -> Condition:
        return self.map(Tensor.detach)

    def repeat(self, times: int) -> Condition:
        """The whole batch `times` times, one after the other."""
        return self.map(lambda x: torch.cat([x] * times))

    def expand(self, rows: int) -> Condition:
        """One row for `rows` samples; a condition that has them already stays as it is."""
        return self.map(lambda x: x.expand(rows, *x.shape[1:]))

    def chunk(self, parts: int) -> tuple[Condition, ...]:
        """Equal parts, in order."""
        size = len(self) // parts
        return tuple(self[i * size : (i + 1) * size] for i in range(parts))

    @staticmethod
    def cat(conditions: Sequence[Condition]) -> Condition:
        """The rows of all, in order; either all have a pooled vector or none has. Shorter ones get zeros and a mask."""
        pooled = [c.pooled for c in conditions if c.pooled is not None]
        longest = max(c.tokens.shape[1] for c in conditions)

        def filled(x: Tensor) -> Tensor:
            short = longest - x.shape[1]
            return F.pad(x, (0, 0) * (x.ndim - 2) + (0, short)) if short else x

        mask = None
        if any(c.mask is not None or c.tokens.shape[1] < longest for c in conditions):
            masks = [c.tokens.new_ones(c.tokens.shape[:2]) if c.mask is None else c.mask for c in conditions]
            mask = torch.cat([filled(m.bool()) for m in masks])
        tokens = torch.cat([filled(c.tokens) for c in conditions])
        return Condition(tokens, torch.cat(pooled) if pooled else None, mask)
