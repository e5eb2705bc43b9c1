"""Stateless random draws: each one is a pure function of (seed, stream, iteration, position).

Nothing depends on how many numbers were drawn before. Therefore a resumed run equals an uninterrupted one with nothing
but the iteration number, the number of loader workers does not matter, and N processes with batch b see what one
process with batch N * b sees, as long as ``position`` counts samples in the *global* batch.

Draws are made on the CPU, because the generators of different devices give different numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def keyed_seed(seed: int, stream: str, iteration: int, position: int) -> int:
    """Hash a key to 64 bits; neighbouring keys give unrelated values.

    Torch's CPU generator uses only the low 32 bits of its seed, so among a million draws about a hundred pairs share
    their numbers by chance. That does not matter for noise and crops; do not use the draws as identifiers.
    """
    key = repr((int(seed), str(stream), int(iteration), int(position))).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")


def keyed_generator(seed: int, stream: str, iteration: int, position: int) -> torch.Generator:
    """A fresh CPU generator for one key.

    Different names of `stream` ("crop", "noise", ...) give independent draws; `iteration` may be any counter.
    """
    return torch.Generator().manual_seed(keyed_seed(seed, stream, iteration, position))


def keyed_randn(seed: int, stream: str, iteration: int, positions: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Standard normal draws (len(positions), *shape), float32 on the CPU, one key for each position."""
    draws = [torch.randn(shape, generator=keyed_generator(seed, stream, iteration, p)) for p in positions]
    return torch.stack(draws) if draws else torch.empty((0, *shape))


def keyed_rand(seed: int, stream: str, iteration: int, positions: Sequence[int]) -> Tensor:
    """Uniform draws (len(positions),) in [0, 1), float32 on the CPU, one key for each position."""
    draws = [torch.rand((), generator=keyed_generator(seed, stream, iteration, p)) for p in positions]
    return torch.stack(draws) if draws else torch.empty(0)
