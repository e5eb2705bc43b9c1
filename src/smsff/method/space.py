"""The space of the generator's input and output: pixels, which the encoder turns into latents, or latents themselves.

The gradient of the method is one of latents. In the paper it is back-propagated through the encoder. A weak encoder
ignores some patterns of pixels and exaggerates others, and a generator learns to draw these patterns. With ``pullback:
decoder`` (not in the paper, off with Stable Diffusion) the latents are decoded with and without the step, and the
difference is the gradient of the picture; the encoder then needs no backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from smsff.method.gradient import latent_surrogate
from smsff.teacher.latent import translate
from smsff.teacher.score import LatentCoder
from smsff.training.speed import without_autocast

Pullback = Literal["encoder", "decoder"]


class PixelSpace:
    """For generators that map pictures to pictures."""

    needs_encoder = True

    def __init__(self, latent: LatentCoder, *, pullback: Pullback = "encoder") -> None:
        self.latent, self.pullback = latent, pullback

    @property
    def needs_decoder(self) -> bool:
        return self.pullback == "decoder"

    def input(self, x: Tensor) -> Tensor:
        """What the generator is given for pictures x (B, 3, H, W)."""
        return x

    def encode(self, y: Tensor, offset: Tensor) -> Tensor:
        """Latents (B, C, h, w) of what the generator was given or returned, differentiable."""
        if self.pullback == "encoder" or not y.requires_grad:
            return self.latent.encode(translate(y, offset))
        with torch.no_grad():
            z = self.latent.encode(translate(y, offset))
        return z.requires_grad_()

    def output_loss(self, loss: Tensor, z: Tensor, y: Tensor, offset: Tensor) -> Tensor:
        """A scalar loss of z = encode(y, offset), in a form whose gradient reaches the generator's output y."""
        if self.pullback == "encoder":
            return loss
        (gradient,) = torch.autograd.grad(loss, z)
        step = gradient * z.numel()  # g: the loss is a mean over all elements
        size = (y.shape[-2], y.shape[-1])
        return latent_surrogate(translate(y, offset), decoded_step(self.latent.decode, z.detach(), step, size)).mean()

    def picture(self, network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """The network's result for x as a picture (B, 3, H, W) in [-1, 1]."""
        return network(x).clamp(-1, 1)


class LatentSpace:
    """For a generator of the latents of one picture, which is encoded once."""

    needs_encoder = False
    needs_decoder = True

    def __init__(self, latent: LatentCoder) -> None:
        self.latent = latent
        self.source: Tensor | None = None

    def hold(self, picture: Tensor) -> None:
        """Encode the one picture (1, 3, H, W); the encoder is not needed afterwards."""
        with torch.no_grad():
            self.source = self.latent.encode(picture)

    def input(self, x: Tensor) -> Tensor:
        if self.source is None:
            self.hold(x)
        assert self.source is not None
        self.source = self.source.to(x.device)
        return self.source

    def encode(self, y: Tensor, offset: Tensor) -> Tensor:
        return y

    def output_loss(self, loss: Tensor, z: Tensor, y: Tensor, offset: Tensor) -> Tensor:
        return loss

    def picture(self, network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return self.latent.decode(network(self.input(x)))[..., : x.shape[-2], : x.shape[-1]].clamp(-1, 1)


@torch.no_grad()
def decoded_step(decode: Callable[[Tensor], Tensor], z: Tensor, step: Tensor, size: tuple[int, int]) -> Tensor:
    """D(z) - D(z - step), to first order the decoder's Jacobian times `step`.

    Args:
        decode: Scaled latents to pictures in [-1, 1].
        z: Latents (B, C, h, w).
        step: What is to be subtracted from z, of the same shape.
        size: Height and width of the picture, which the encoder may have padded.

    Returns:
        (B, 3, *size), to be subtracted from the picture.
    """
    with without_autocast(z.device):  # in 16 bits the two would differ by their rounding more than by a small step
        before, after = decode(torch.cat([z, z - step])).chunk(2)
    return (before - after)[..., : size[0], : size[1]]
