"""What every objective is: a gradient g in the space of latents, made of noise predictions, and never a loss.

    z_t = sqrt(ab_t) z + sqrt(1 - ab_t) noise,        g = g(predictions at z_t),        z moves along -g

An objective calls the `Scores` that it needs, and no others are computed; `latent_surrogate` carries g to the
generator.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol

from torch import Tensor

from smsff.method.schedule import NoiseSchedule

GradientWeight = Literal["uniform", "sigma2", "sqrt_alpha_bar_sigma2", "posterior_variance", "x0"]


class Predict(Protocol):
    """A noise prediction whose prompts are filled in; ``scale`` is that of classifier-free guidance, 1 is none."""

    def __call__(self, z_t: Tensor, t: Tensor, *, scale: float) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The models under the prompts of one batch.

    Attributes:
        style: The style model under the style prompt.
        style_source: The style model under the source prompt.
        base: The un-adapted model under the source prompt.
        fake: The online model under the source prompt; only there for an objective with ``needs_fake``.
        seen: The predictions that were made, by name of the score.
        shared: The fake's prediction with its graph, and t, where the fake's loss shares them (`Speed.share_draw`).
    """

    style: Predict
    style_source: Predict
    base: Predict
    fake: Predict
    seen: dict[str, Tensor] = field(default_factory=dict)
    shared: list[tuple[Tensor, Tensor]] = field(default_factory=list)


@dataclass(frozen=True)
class Noised:
    """Result and source at the same noise level under the same noise.

    Attributes:
        z, z_src: Clean latents of the result and of the source, (B, C, h, w).
        noise: (B, C, h, w).
        t: long (B,).
        schedule: The forward process.
    """

    z: Tensor
    z_src: Tensor
    noise: Tensor
    t: Tensor
    schedule: NoiseSchedule

    @cached_property
    def z_t(self) -> Tensor:
        return self.schedule.add_noise(self.z, self.noise, self.t)

    @cached_property
    def z_src_t(self) -> Tensor:
        return self.schedule.add_noise(self.z_src, self.noise, self.t)


class Objective(Protocol):
    """An objective as the training step sees it.

    Attributes:
        needs_fake: Whether a fake score has to be trained for it.
    """

    @property
    def needs_fake(self) -> bool: ...

    def gradient(self, scores: Scores, at: Noised) -> Tensor:
        """g, (B, C, h, w), without gradient; z moves along -g."""
        ...


def gradient_weight(kind: GradientWeight, schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """w(t), (B, 1, 1, 1), for t long (B,).

    - ``uniform``: 1 (DDS).
    - ``sigma2``: 1 - ab_t (SDS, VSD; the weight of DreamFusion).
    - ``sqrt_alpha_bar_sigma2``: sqrt(ab_t) (1 - ab_t) (Fantasia3D).
    - ``posterior_variance``: beta_t (1 - ab_{t-2}) / (1 - ab_t), the authors' code (showlab/SMS).
    - ``x0``: sqrt((1 - ab_t) / ab_t), which makes g the difference of two clean latents (DMD before its normaliser).
    """
    alpha_bar = schedule.alpha_bar(t)
    if kind == "sigma2":
        return 1 - alpha_bar
    if kind == "sqrt_alpha_bar_sigma2":
        return alpha_bar.sqrt() * (1 - alpha_bar)
    if kind == "posterior_variance":
        return schedule.posterior_variance(t, stride=2)
    if kind == "x0":
        return ((1 - alpha_bar) / alpha_bar).sqrt()
    return alpha_bar.new_ones(alpha_bar.shape)


def latent_surrogate(z: Tensor, g: Tensor) -> Tensor:
    """1/2 mean |z - sg(z - g)|^2 of each sample, (B,); its gradient with respect to z is g / N, N elements a sample."""
    # z - sg(z - g) is exactly g in value; written as (z - sg(z)) + g it is so in floating point too, where subtracting
    # a g of 1e-5 from a z of 1 and adding it again would lose most of its digits.
    return 0.5 * ((z - z.detach() + g.detach()) ** 2).flatten(1).mean(1)
