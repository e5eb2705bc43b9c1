import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from smsff.metrics import known_style as ks


def pictures(b: int = 2, h: int = 48, w: int = 56, seed: int = 0) -> Tensor:
    """Smooth random pictures with some grain, (b, 3, h, w) in [0, 1], float64."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(b, 3, 6, 7, generator=generator, dtype=torch.float64)
    smooth = torch.nn.functional.interpolate(coarse, (h, w), mode="bicubic").clamp(0, 1)
    return (0.8 * smooth + 0.2 * torch.rand(b, 3, h, w, generator=generator, dtype=torch.float64)).clamp(0, 1)


def test_tone_free_undoes_an_affine_change_of_each_channel():
    truth = pictures()
    gain = torch.tensor([0.5, -0.8, 1.7], dtype=torch.float64).view(1, 3, 1, 1)
    y = gain * truth + torch.tensor([0.1, 0.9, -0.3], dtype=torch.float64).view(1, 3, 1, 1)
    fitted = ks.tone_free(y, truth)
    torch.testing.assert_close(fitted, truth, rtol=0, atol=1e-12)
    assert (ks.psnr(fitted, truth) == 100).all()
    assert (ks.psnr(y, truth) < 20).all()


def test_tone_free_is_a_projection_for_each_picture_alone():
    y, truth = pictures(seed=1), pictures(seed=2)
    fitted = ks.tone_free(y, truth)
    torch.testing.assert_close(ks.tone_free(torch.full_like(y, 0.3), truth)[..., 0, 0], truth.mean((2, 3)))
    torch.testing.assert_close(ks.tone_free(fitted, truth), fitted)
    torch.testing.assert_close(ks.tone_free(y[1:], truth[1:]), fitted[1:])
    assert (ks.psnr(fitted, truth) >= ks.psnr(y, truth)).all()


def test_psnr_of_a_constant_shift():
    truth = pictures().clamp(max=0.8)
    torch.testing.assert_close(ks.psnr(truth + 0.1, truth), torch.full((2,), 20.0, dtype=torch.float64))


def test_ssim():
    truth = pictures()
    torch.testing.assert_close(ks.ssim(truth, truth), torch.ones(2, dtype=torch.float64))
    # two constants: only the luminance term is left
    a, b, c1 = 0.2, 0.6, 0.01**2
    value = ks.ssim(*(torch.full((1, 3, 20, 24), v, dtype=torch.float64) for v in (a, b)))
    assert value.item() == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1), rel=1e-5)


def test_style_distance_is_zero_on_itself_symmetric_and_for_each_picture_alone():
    a, b = pictures(seed=1), pictures(seed=2)
    assert (ks.style_distance(a, a) == 0).all()
    distance = ks.style_distance(a, b)
    torch.testing.assert_close(distance, ks.style_distance(b, a))
    torch.testing.assert_close(distance[1:], ks.style_distance(a[1:], b[1:]))
    assert (distance > 0).all()


def test_style_distance_does_not_depend_on_where_things_are():
    a = torch.zeros(1, 3, 120, 120, dtype=torch.float64)
    b = a.clone()
    a[..., 40:48, 40:48] = 1
    b[..., 64:72, 64:72] = 1
    torch.testing.assert_close(ks.style_distance(a, b), torch.zeros(1, dtype=torch.float64))
    assert ks.psnr(a, b) < 25


def test_style_distance_of_constants():
    """A shift by d moves every projection by d times the sum of its direction."""
    grey = torch.full((1, 3, 40, 44), 0.25, dtype=torch.float64)
    expected = 255 * 0.5 * ks._projections(3).double().sum((1, 2, 3)).abs().mean()
    torch.testing.assert_close(ks.style_distance(grey, grey + 0.5), expected.reshape(1), rtol=1e-6, atol=0)
    assert expected.item() == pytest.approx(255 * 0.5 * math.sqrt(2 / math.pi), rel=0.25)


def test_style_distance_falls_when_blended_towards_the_truth():
    y, truth = pictures(seed=1), pictures(seed=2)
    blends = [ks.style_distance(torch.lerp(y, truth, s), truth) for s in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert all((later < earlier).all() for earlier, later in pairwise(blends))


def test_pictures_that_cannot_be_measured_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        ks.style_distance(pictures(h=40), pictures(h=44))
    with pytest.raises(ValueError, match="28 pixels"):
        ks.style_distance(pictures(h=27), pictures(h=27))
    with pytest.raises(ValueError, match="at least one pair"):
        ks.fit_tone_curve([])


def test_content_distance_sees_low_frequencies_only():
    x = pictures(h=48, w=64)
    shift = ks.content_distance(x + 10 / 255, x)
    torch.testing.assert_close(shift, torch.full((2,), 10.0, dtype=torch.float64))
    board = (torch.arange(48).view(-1, 1) + torch.arange(64)).remainder(2).double() - 0.5  # +-, mean 0
    assert (ks.content_distance(x + 0.2 * board, x) < 0.5).all()


def test_tone_curve_recovers_a_curve_on_other_photos():
    curve = torch.stack([torch.linspace(0, 1, 17).double() ** p for p in (0.5, 1.0, 2.0)])
    x, other = pictures(h=96, w=96, seed=3), pictures(seed=4)
    fitted = ks.fit_tone_curve([(p[None], ks.apply_tone_curve(p[None], curve)) for p in x], smoothness=1e-9)
    torch.testing.assert_close(ks.apply_tone_curve(other, fitted), ks.apply_tone_curve(other, curve), atol=2e-3, rtol=0)


def test_tone_curve_crosses_tones_that_no_photo_has():
    x = torch.cat([torch.linspace(0, 0.2, 500), torch.linspace(0.8, 1, 500)]).double().view(1, 1, 20, 50)
    x = x.expand(1, 3, 20, 50)
    curve = ks.fit_tone_curve([(x, 0.6 * x + 0.2)])
    torch.testing.assert_close(curve, (0.6 * torch.linspace(0, 1, 17).double() + 0.2).expand(3, 17), atol=1e-4, rtol=0)


def test_measure_of_the_truth_and_of_a_toned_truth():
    source, truth = pictures(1, 64, 72, seed=5), 0.2 + 0.6 * pictures(1, 64, 72, seed=6)
    best = ks.measure(truth, truth, source)
    assert best["psnr"] == best["psnr_tone_free"] == 100
    assert best["style"] == 0
    assert best["content"] > 0
    toned = ks.measure(0.7 * truth + 0.1, truth, source)
    assert toned["psnr"] < 30
    assert toned["psnr_tone_free"] == 100
    assert toned["style"] > 1 > toned["style_tone_free"]


def test_measure_ignores_the_border():
    source, truth = pictures(1, 64, 72, seed=5), pictures(1, 64, 72, seed=6)
    spoiled = torch.zeros_like(truth)
    spoiled[..., 8:-8, 8:-8] = ks.crop_border(truth)
    assert ks.measure(spoiled, truth, source) == ks.measure(truth, truth, source)
