"""Scenimefy (Jiang et al. 2023): a network that was trained on photos and anime scenes; one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from smsff.generator.released import load_released


class Scenimefy:
    """A `Baseline` of one style: a network from RGB in [-1, 1] to RGB in [-1, 1].

    Args:
        network: The generator.
    """

    needs_style = False

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    @torch.no_grad()
    def __call__(
        self, content: Tensor, captions: Sequence[str], *, style: Tensor | None = None, seeds: Sequence[int]
    ) -> Tensor:
        """See `Baseline`."""
        out: Tensor = (self.network.to(content.device)(2 * content - 1) / 2 + 0.5).clamp(0, 1)
        return out


def load_scenimefy(*, network: str) -> Scenimefy:
    """The network of a file that the authors released, of theirs or of CUT's."""
    return Scenimefy(load_released(network, key="baseline.network"))
