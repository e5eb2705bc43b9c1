"""The figures of a training step, as they are of the whole batch, however many processes share it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

COMBINED: dict[str, Callable[[Tensor], Tensor]] = {
    "t_min": lambda each: each.min(),
    "t_max": lambda each: each.max(),
    "gradient": lambda each: each.square().mean().sqrt(),  # a root mean square
}
"""How the figures of the processes, (N,), become one; the others are means over equal shares of the batch."""


def of_whole_batch(figures: Mapping[str, Tensor], gather: Callable[..., Any]) -> dict[str, Tensor]:
    """Combine scalars over all processes, in one exchange.

    `gather`: (F,) of this process to (N, F) of all of them.
    """
    each = gather(torch.stack([value.detach().double() for value in figures.values()]))
    each = each.view(-1, len(figures)).float()
    return {name: COMBINED.get(name, torch.mean)(column) for name, column in zip(figures, each.unbind(1), strict=True)}


def matching_figures(m: Tensor, g: Tensor, t: Tensor) -> dict[str, Tensor]:
    """What is logged of the relevance map, the gradient and the timesteps of a batch."""
    return {
        "relevance": m.mean(),
        "gradient": g.square().mean().sqrt(),
        "t_min": t.min(),
        "t_mean": t.float().mean(),
        "t_max": t.max(),
    }


def in_several_processes() -> bool:
    """Whether this process trains together with others."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()
