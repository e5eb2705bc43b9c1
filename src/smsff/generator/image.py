"""Per-image mode: no network; what is optimised is one picture, as pixels or as a latent.

Both stand where a network would stand: `forward(x)` takes the source and returns the current result. They belong to ONE
source, so a batch of another shape is refused instead of being answered with the wrong picture.

Source: latent optimisation as in score distillation, Poole et al. 2022 and Hertz et al. 2023 (DDS).
"""

from __future__ import annotations

from torch import Tensor, nn


class _Held(nn.Module):
    """A parameter that is returned for a source of the shape it was made for."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        if value.ndim != 4:
            raise ValueError(f"{type(self).__name__} needs a tensor (B, C, H, W), got shape {tuple(value.shape)}")
        self.value = nn.Parameter(value.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """The current value; `x` is the source in the same space and must have its shape."""
        if x.shape != self.value.shape:
            raise ValueError(
                f"{type(self).__name__} holds one picture of shape {tuple(self.value.shape)}; "
                f"it was called with shape {tuple(x.shape)}"
            )
        return self.value

    def config(self) -> dict[str, object]:
        """Constructor arguments, JSON-ready: the shape; the values are in the state dict."""
        return {"shape": list(self.value.shape)}


class ImageGenerator(_Held):
    """The parameter is RGB (B, 3, H, W) in [-1, 1], initialised with the source. The result is the parameter."""

    space = "image"

    def __init__(self, image: Tensor) -> None:
        super().__init__(image)


class LatentGenerator(_Held):
    """The parameter is a scaled latent (B, C, h, w), initialised with the source's. Decode it to see the result.

    forward() takes and returns latents: the training loop uses the output as z directly, without an encoder, so that no
    gradient has to pass through one.
    """

    space = "latent"

    def __init__(self, z: Tensor) -> None:
        super().__init__(z)
