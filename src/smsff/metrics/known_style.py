"""Distances to a stylization whose true result is known, for RGB of shape (B, 3, H, W) in [0, 1].

Every figure is one number per picture, shape (B,). The known styles are local filters, so near the border a result
depends on how a network or a filter pads; `crop_border` removes that margin and `measure` applies it to every picture.

A style that changes tone rewards a mere change of tone in every one of these distances. Hence two controls:
`tone_free` fits a x + b to the truth for each channel of a result before it is measured, and `fit_tone_curve` gives the
best curve of colour alone, fitted on other photos.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from smsff.method.spectrum import dct_2d

BORDER = 8
PATCH, STRIDE, LEVELS, PROJECTIONS, SEED = 7, 2, 3, 128, 0
LOW_BAND = 0.05


def crop_border(x: Tensor, border: int = BORDER) -> Tensor:
    """x (B, C, H, W) without `border` pixels on each side."""
    return x[..., border : x.shape[-2] - border, border : x.shape[-1] - border]


def tone_free(y: Tensor, truth: Tensor) -> Tensor:
    """a y + b with a and b fitted to `truth` by least squares for each picture and channel; may leave [0, 1].

    A channel of y that is constant becomes the mean of the truth.
    """
    y64, truth64 = y.double(), truth.double()
    y_mean, truth_mean = y64.mean((-2, -1), keepdim=True), truth64.mean((-2, -1), keepdim=True)
    centred = y64 - y_mean
    covariance = (centred * (truth64 - truth_mean)).mean((-2, -1), keepdim=True)
    variance = centred.square().mean((-2, -1), keepdim=True)
    slope = torch.where(variance > 1e-12, covariance / variance.clamp(min=1e-12), 0)
    return (slope * centred + truth_mean).to(y.dtype)


def psnr(y: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB for a peak of 1, at most 100 (equal pictures)."""
    mse = (y.double() - truth.double()).square().mean((1, 2, 3))
    return -10 * mse.clamp(min=1e-10).log10()


def ssim(y: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004): Gaussian window of 11 pixels, sigma 1.5, range 1."""
    value = structural_similarity_index_measure(y, truth, data_range=1.0, reduction="none")
    assert isinstance(value, Tensor)
    return value.reshape(-1)


def _projections(channels: int) -> Tensor:
    """PROJECTIONS fixed random unit vectors in the space of patches, shape (P, channels, PATCH, PATCH)."""
    generator = torch.Generator().manual_seed(SEED)
    directions = torch.randn(PROJECTIONS, channels, PATCH, PATCH, generator=generator)
    return directions / directions.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def style_distance(y: Tensor, truth: Tensor) -> Tensor:
    """Sliced Wasserstein-1 distance between the patches of two pictures of one size, in grey levels (0 to 255).

    Patches of 7 x 7 x 3 at every second pixel, means kept, of three scales (each the 2 x 2 mean of the one before);
    128 fixed unit directions: mean over directions and scales of |sorted projection of y - that of the truth|.
    """
    if y.shape != truth.shape:
        raise ValueError(f"pictures of one shape are needed, not {tuple(y.shape)} and {tuple(truth.shape)}")
    if min(y.shape[-2:]) < PATCH * 2 ** (LEVELS - 1):
        raise ValueError(f"style distance needs at least {PATCH * 2 ** (LEVELS - 1)} pixels a side")
    directions = _projections(y.shape[1]).to(y)
    total = y.new_zeros(y.shape[0])
    for level in range(LEVELS):
        if level:
            y, truth = F.avg_pool2d(y, 2), F.avg_pool2d(truth, 2)
        ours, theirs = (F.conv2d(p, directions, stride=STRIDE).flatten(2).sort(dim=2).values for p in (y, truth))
        total = total + (ours - theirs).abs().mean((1, 2))
    return 255 * total / LEVELS


def content_distance(y: Tensor, source: Tensor) -> Tensor:
    """Root mean square difference in grey levels of the low frequencies u/(H-1) + v/(W-1) <= 2 LOW_BAND of the DCT."""
    h, w = y.shape[-2:]
    u = torch.arange(h, device=y.device).view(-1, 1) / max(h - 1, 1)
    v = torch.arange(w, device=y.device).view(1, -1) / max(w - 1, 1)
    low = (u + v <= 2 * LOW_BAND).to(y.dtype)
    return 255 * (dct_2d(y - source) * low).square().mean((1, 2, 3)).sqrt()


def fit_tone_curve(pairs: Iterable[tuple[Tensor, Tensor]], knots: int = 17, smoothness: float = 1e-6) -> Tensor:
    """The piecewise linear curve of each channel, shape (3, knots), that best turns photos into their stylization.

    Least squares over all pixels of all pairs (x, truth), each (B, 3, H, W) in [0, 1]; a penalty on the second
    difference, `smoothness` times the number of pixels, carries the curve through tones that no photo has.
    """
    gram = torch.zeros(3, knots, knots, dtype=torch.float64)
    target = torch.zeros(3, knots, dtype=torch.float64)
    pixels = 0
    for x, truth in pairs:
        pixels += x.shape[0] * x.shape[-2] * x.shape[-1]
        for c in range(3):
            left, fraction = _segments(x[:, c].double().flatten(), knots)
            weights = ((left, 1 - fraction), (left + 1, fraction))
            for i, wi in weights:
                target[c] += torch.bincount(i, wi * truth[:, c].double().flatten(), knots)
                for j, wj in weights:
                    gram[c] += torch.bincount(i * knots + j, wi * wj, knots * knots).view(knots, knots)
    if not pixels:
        raise ValueError("a tone curve needs at least one pair of pictures")
    second = torch.eye(knots, dtype=torch.float64).diff(n=2, dim=0)
    return torch.linalg.solve(gram + smoothness * pixels * second.T @ second, target)


def _segments(x: Tensor, knots: int) -> tuple[Tensor, Tensor]:
    """For values in [0, 1]: the index of the knot on the left and the position between it and the next, in [0, 1]."""
    position = x.clamp(0, 1) * (knots - 1)
    left = position.floor().clamp(max=knots - 2)
    return left.long(), position - left


def apply_tone_curve(x: Tensor, curve: Tensor) -> Tensor:
    """Look every channel of x up in its curve (3, knots), clamped to [0, 1]."""
    channels = []
    for c in range(3):
        left, fraction = _segments(x[:, c], curve.shape[1])
        values = curve[c].to(x)
        channels.append(torch.lerp(values[left], values[left + 1], fraction))
    return torch.stack(channels, dim=1).clamp(0, 1)


def measure(y: Tensor, truth: Tensor, source: Tensor) -> dict[str, float]:
    """All figures of one picture (1, 3, H, W), border cropped: to the truth, raw and tone-free, and to the source.

    ``content`` is the low-frequency distance to the source, ``content_tone_free`` that to the truth.
    """
    y, truth, source = (crop_border(p) for p in (y, truth, source))
    figures = {"content": content_distance(y, source), "content_ssim": ssim(y, source)}
    for suffix, z in (("", y), ("_tone_free", tone_free(y, truth))):
        figures |= {"psnr" + suffix: psnr(z, truth), "ssim" + suffix: ssim(z, truth)}
        figures["style" + suffix] = style_distance(z, truth)
    figures["content_tone_free"] = content_distance(tone_free(y, truth), truth)
    return {name: value.item() for name, value in figures.items()}


def composite(figures: Mapping[str, float]) -> float:
    """(1 + content distance) (1 + style distance), both to the truth, tone-free, in grey levels; 1 is best.

    ArtFID takes the content distance to the photo. There the truth itself is far away, 12 grey levels for the
    watercolour of the cat, and nothing would beat doing nothing.
    """
    return (1 + figures["content_tone_free"]) * (1 + figures["style_tone_free"])


def mean_figures(figures: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each figure."""
    return {name: sum(f[name] for f in figures) / len(figures) for name in figures[0]}
