from __future__ import annotations

from functools import partial

import torch
from closed_forms import draw, gaussian
from tiny import given_scores
from torch import Tensor

from smsff.method.gradient import Noised
from smsff.method.schedule import NoiseSchedule, cfg
from smsff.method.sms import StyleMatchingObjective, dmd_normalizer

DistributionMatching = partial(StyleMatchingObjective, weight="x0", normalize=True, style_guidance=1.75)
"""As conf/objective/dmd.yaml sets it."""
T = torch.tensor([21, 400, 900])


def test_g_in_closed_form(schedule: NoiseSchedule) -> None:
    """For N(m, 1), x0 = (1 - ab) m + sqrt(ab) z_t; style m = 2, exact fake m = 0.5."""
    z, noise = draw(0), draw(1)
    scores = given_scores(style=gaussian(schedule, 2.0, 1.0), fake=gaussian(schedule, 0.5, 1.0))
    g = DistributionMatching().gradient(scores, Noised(z, draw(2), noise, T, schedule))
    for i, t in enumerate(T):
        ab = schedule.alphas_cumprod[t]
        z_t = ab.sqrt() * z[i] + (1 - ab).sqrt() * noise[i]
        wanted = (z[i] - ((1 - ab) * 2.0 + ab.sqrt() * z_t)).abs().mean()
        torch.testing.assert_close(g[i], ((1 - ab) * (0.5 - 2.0) / wanted).expand_as(g[i]))
    assert not g.requires_grad


def test_every_t_weighs_alike(schedule: NoiseSchedule) -> None:
    """A fake that sees nothing but the output, x0 = z: the size of g is 1 whatever t and the style say."""
    z = draw(0)
    at = Noised(z, draw(1), draw(2), T, schedule)
    scores = given_scores(style=gaussian(schedule, 2.0, 0.6), fake=draw(2))
    g = DistributionMatching().gradient(scores, at)
    torch.testing.assert_close(g.abs().mean((1, 2, 3)), torch.ones(3, dtype=torch.float64))


def test_guidance_is_in_the_style_score_and_in_the_normaliser_and_not_in_the_fake(schedule: NoiseSchedule) -> None:
    cond, uncond, fake, fake_null = (draw(seed) for seed in range(4))
    scores = given_scores(
        style=lambda z_t, t, *, scale: cfg(cond, uncond, scale),
        fake=lambda z_t, t, *, scale: cfg(fake, fake_null, scale),
    )
    at = Noised(draw(4), draw(5), draw(6), T, schedule)
    g = DistributionMatching(style_guidance=8.0).gradient(scores, at)
    x0_style = schedule.x0_from_eps(at.z_t, uncond + 8.0 * (cond - uncond), T)
    x0_fake = schedule.x0_from_eps(at.z_t, fake, T)
    torch.testing.assert_close(g, (x0_fake - x0_style) / (at.z - x0_style).abs().mean((1, 2, 3), keepdim=True))


def test_normaliser_survives_a_perfect_prediction() -> None:
    torch.testing.assert_close(dmd_normalizer(draw(0), draw(0)).flatten(), torch.full((3,), 1e-6).double())


def test_a_sample_does_not_depend_on_its_neighbours(schedule: NoiseSchedule) -> None:
    objective = DistributionMatching()
    tensors = [draw(seed) for seed in range(5)]

    def gradient(rows: slice) -> Tensor:
        style, fake, z, z_src, noise = (x[rows] for x in tensors)
        return objective.gradient(given_scores(style=style, fake=fake), Noised(z, z_src, noise, T[rows], schedule))

    torch.testing.assert_close(gradient(slice(1, 2)), gradient(slice(None))[1:2])
