"""Published image filters used as styles whose true result is known for every photo.

Each operator maps RGB of shape (B, 3, H, W) in [0, 1] to the same shape and range. All are deterministic, local and
equivariant to translation (away from the reflected border), so a convolutional network can represent them. Parameters
are in pixels of the input; the defaults were chosen by eye for photos of 300 to 600 pixels.

Sources: extended difference of Gaussians and soft luminance quantisation: Winnemoeller et al. 2006 and 2012;
Kuwahara filter: Kuwahara et al. 1976; bilateral filter: Tomasi and Manduchi 1998; edge darkening: Bousseau et al. 2006.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from smsff.data.filters import blur, luma
from smsff.errors import UserError


def lines(x: Tensor, sigma: float, gain: float, threshold: float = 0.005) -> Tensor:
    """Dark lines on the dark side of edges: 1 on paper, 0 on a line, shape (B, 1, H, W)."""
    y = luma(x)
    return (1 - gain * (blur(y, 1.6 * sigma) - blur(y, sigma) - threshold).clamp(min=0)).clamp(0, 1)


def slope(x: Tensor, sigma: float) -> Tensor:
    """Gradient magnitude of the luma blurred by `sigma`, per pixel, shape (B, 1, H, W)."""
    gy, gx = torch.gradient(blur(luma(x), sigma), dim=(2, 3))
    return torch.hypot(gx, gy)


def bilateral(x: Tensor, radius: int, sigma_space: float, sigma_range: float) -> Tensor:
    """Edge-preserving mean over a window of (2 radius + 1)^2, weighted by distance and RGB difference."""
    _, _, h, w = x.shape
    padded = F.pad(x, (radius,) * 4, mode="reflect")
    total, weight = torch.zeros_like(x), torch.zeros_like(x[:, :1])
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            shifted = padded[:, :, radius + dy : radius + dy + h, radius + dx : radius + dx + w]
            distance = (shifted - x).square().sum(1, keepdim=True)
            k = torch.exp(-(dy * dy + dx * dx) / (2 * sigma_space**2) - distance / (2 * sigma_range**2))
            total, weight = total + k * shifted, weight + k
    return total / weight


def kuwahara(x: Tensor, radius: int) -> Tensor:
    """Mean of the least varying of the four (radius + 1)^2 squares that touch each pixel."""
    _, _, h, w = x.shape
    k = radius + 1
    padded = F.pad(x, (radius,) * 4, mode="reflect")
    mean = F.avg_pool2d(padded, k, stride=1)
    variance = (F.avg_pool2d(padded.square(), k, stride=1) - mean.square()).sum(1, keepdim=True)
    corners = [(dy, dx) for dy in (0, radius) for dx in (0, radius)]
    means = torch.stack([mean[:, :, dy : dy + h, dx : dx + w] for dy, dx in corners])
    best = torch.stack([variance[:, :, dy : dy + h, dx : dx + w] for dy, dx in corners]).argmin(0, keepdim=True)
    return means.gather(0, best.expand(-1, -1, 3, -1, -1)).squeeze(0)


def cel(x: Tensor, levels: float = 4, gain: float = 36, saturation: float = 1.3, passes: int = 3) -> Tensor:
    """Cel shading: flat regions in few soft luminance steps, saturated colour, dark contour lines."""
    flat = x
    for _ in range(passes):
        flat = bilateral(flat, 4, 3.0, 0.14)
    y = luma(flat)
    step = y * levels
    stepped = (step.floor() + 0.5 + 0.5 * torch.tanh(6 * (step - step.floor() - 0.5))) / levels
    flat = (stepped + saturation * (flat - y)).clamp(0, 1)
    e = lines(x, 1.5, gain)
    ink = x.new_tensor([0.10, 0.06, 0.12]).view(1, 3, 1, 1)
    return flat * e + ink * (1 - e)


def sketch(x: Tensor, sigma: float = 3.0, gain: float = 3.0, colour: float = 0.4) -> Tensor:
    """Pencil sketch by colour dodge: cream paper, dark strokes along edges, thin colour."""
    y = luma(x)
    stroke = (y / (blur(y, sigma) + 0.02)).clamp(0, 1) ** gain
    shade = 0.72 + 0.28 * blur(y, 1.5)
    paper = x.new_tensor([1.0, 0.98, 0.92]).view(1, 3, 1, 1)
    tint = 1 - colour + colour * kuwahara(x, 3)
    return (stroke * shade * paper * tint).clamp(0, 1)


def oil(x: Tensor, radius: int = 4, sharpen: float = 0.5, saturation: float = 1.2) -> Tensor:
    """Oil painting: Kuwahara dabs, sharpened, saturated."""
    y = kuwahara(kuwahara(x, radius), radius - 1)
    y = y + sharpen * (y - blur(y, 3.0))
    g = luma(y)
    return (g + saturation * (y - g)).clamp(0, 1)


def watercolour(x: Tensor, edge: float = 1.6, wash: float = 0.7, radius: int = 3) -> Tensor:
    """Watercolour: flat pale washes whose borders are darker than their inside."""
    flat = bilateral(kuwahara(x, radius), 4, 3.0, 0.12)
    density = wash + edge * (6 * slope(flat, 0.8)).clamp(0, 0.9)
    return (1 - (1 - flat) * density).clamp(0, 1)


def ink(x: Tensor, sigma: float = 1.5, gain: float = 58, bias: float = 0.5, wash: float = 0.8) -> Tensor:
    """Pen and wash: black pen lines and dots on the dark side of edges, over pale flat colour."""
    y = luma(x)
    pen = (1 + bias + gain * (blur(y, sigma) - blur(y, 1.6 * sigma))).clamp(0, 1)
    return ((1 - wash * (1 - kuwahara(x, 3))) * pen).clamp(0, 1)


def comic(x: Tensor, radius: int = 4, sigma: float = 1.2, gain: float = 30, saturation: float = 1.5) -> Tensor:
    """Comic: flat saturated colour, bold black outlines."""
    flat = kuwahara(kuwahara(x, radius), max(radius - 1, 1))
    outline = (gain * (slope(kuwahara(x, 2), sigma) - 0.03)).clamp(0, 1)
    y = luma(flat)
    return (y + saturation * (flat - y)).clamp(0, 1) * (1 - outline)


def charcoal(x: Tensor, sigma: float = 5.0, gain: float = 2.5, soft: float = 1.2) -> Tensor:
    """Charcoal: smudged grey, every tone measured against its surroundings."""
    y = luma(x)
    smudge = (blur(y, soft) / (blur(y, sigma) + 0.02)).clamp(0, 1.2) ** gain
    paper = x.new_tensor([1.0, 0.98, 0.95]).view(1, 3, 1, 1)
    return (smudge * (0.25 + 0.75 * blur(y, 2.0)) * paper).clamp(0, 1)


def pastel(x: Tensor, gain: float = 12, wash: float = 0.75, radius: int = 3) -> Tensor:
    """Pastel: pale flat colour, chalk-white lines along edges."""
    flat = kuwahara(bilateral(x, 4, 3.0, 0.14), radius)
    chalk = 0.8 * (gain * (slope(flat, 1.2) - 0.01)).clamp(0, 1)
    return 1 - (1 - chalk) * wash * (1 - flat)


STYLES: dict[str, Callable[..., Tensor]] = {
    "cel": cel,
    "sketch": sketch,
    "oil": oil,
    "watercolour": watercolour,
    "ink": ink,
    "comic": comic,
    "charcoal": charcoal,
    "pastel": pastel,
}


def operator_of(style: str) -> Callable[..., Tensor]:
    """The operator of a style of the configuration: that of ``demo_ink`` is `ink`.

    Raises:
        UserError: it has none.
    """
    name = style.removeprefix("demo_")
    if name not in STYLES:
        raise UserError(f"the truth of style {name} is not known, only of {', '.join(sorted(STYLES))}")
    return STYLES[name]
