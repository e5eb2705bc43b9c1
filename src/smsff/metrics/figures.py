"""The figures of an evaluation: what each of them is, how many pictures it needs, and how it is written down."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Kind:
    """What a figure is.

    Attributes:
        group: What ``--figures`` calls it, together with its relatives.
        reliable: Number of pictures (of the smaller side) from which on it is worth stating.
        why: What is wrong with it below that number.
    """

    title: str
    group: str
    better: Better
    reliable: int
    why: str
    decimals: int


_FEW = "the mean of few pictures hangs on which pictures they are"
_NOISE = f"{_FEW}; see its standard error"
_FID = (
    "with n images FID is too high by an amount that depends on n and on the network; compare it only with values of "
    "the same n on both sides"
)
_KID = "its standard error is large"
_WIN = "a rate from fewer than 100 pictures is off by 5 % and more by chance"

KINDS: dict[str, Kind] = {
    "lpips": Kind("LPIPS to the content", "lpips", "lower", 30, _NOISE, 4),
    "ssim": Kind("SSIM to the content", "ssim", "higher", 30, _NOISE, 3),
    "artfid": Kind("ArtFID", "artfid", "lower", 10_000, _FID, 2),
    "art_fid": Kind("FID on art features", "artfid", "lower", 10_000, _FID, 2),
    "fid": Kind("FID", "fid", "lower", 10_000, _FID, 2),
    "kid": Kind("KID", "kid", "lower", 1_000, _KID, 5),
    "pickscore": Kind("PickScore", "pickscore", "higher", 100, _NOISE, 2),
    "pickscore_win_rate": Kind("PickScore win rate", "pickscore", "higher", 100, _WIN, 3),
    "pickscore_share": Kind("PickScore softmax share", "pickscore", "higher", 100, _NOISE, 3),
    "clip_content": Kind("CLIP to the content", "clip", "higher", 30, _NOISE, 3),
    "clip_style": Kind("CLIP to the style set", "clip", "higher", 30, _FEW, 3),
    "clip_text": Kind("CLIP to the prompt", "clip", "higher", 30, _NOISE, 3),
    "psnr": Kind("PSNR to the truth", "truth", "higher", 30, _NOISE, 2),
    "ssim_truth": Kind("SSIM to the truth", "truth", "higher", 30, _NOISE, 3),
    "style": Kind("Style distance", "truth", "lower", 30, _NOISE, 2),
    "psnr_tone_free": Kind("PSNR, tone-free", "truth", "higher", 30, _NOISE, 2),
    "ssim_tone_free": Kind("SSIM, tone-free", "truth", "higher", 30, _NOISE, 3),
    "style_tone_free": Kind("Style distance, tone-free", "truth", "lower", 30, _NOISE, 2),
    "content": Kind("Content distance", "truth", "lower", 30, _NOISE, 2),
    "content_tone_free": Kind("Content distance to the truth, tone-free", "truth", "lower", 30, _NOISE, 2),
    "composite": Kind("Composite", "truth", "lower", 30, _NOISE, 2),
}
GROUPS = tuple(dict.fromkeys(kind.group for kind in KINDS.values()))
NETWORKS = {
    "ssim": (),
    "lpips": ("alexnet",),
    "artfid": ("alexnet", "art_inception"),
    "fid": ("inception",),
    "kid": ("inception",),
    "pickscore": ("pickscore",),
    "clip": ("clip",),
    "truth": (),
}
"""Keys of `smsff.metrics.networks.PUBLISHED` that each group needs."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number with what it rests on.

    Attributes:
        count: Pictures on the side of the results.
        references: Pictures on the other side where that is a set (FID, KID, CLIP to the style set).
        error: Standard error, where there is a way to tell it.
    """

    value: float
    count: int
    references: int | None = None
    error: float | None = None


def mean_figure(values: Sequence[float]) -> Figure:
    """Mean and standard error of one number a picture."""
    n = len(values)
    mean = math.fsum(values) / n
    error = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n) if n > 1 else None
    return Figure(value=mean, count=n, error=error)


def counts(count: int, references: int | None) -> str:
    """``40``, or ``40 against 100`` where the other side is a set."""
    return f"{count:,}" + ("" if references is None else f" against {references:,}")


def warning(name: str, figure: Figure) -> str | None:
    """What makes a figure of so few pictures unreliable, if anything does."""
    kind = KINDS[name]
    if not math.isfinite(figure.value):
        return "not a finite number: the features overflow or a picture is degenerate"
    if min(figure.count, figure.references or figure.count) >= kind.reliable:
        return None
    return f"n = {counts(figure.count, figure.references)}, at least {kind.reliable:,} are needed: {kind.why}"


def as_json(figures: Mapping[str, Figure]) -> dict[str, dict[str, Any]]:
    """For evaluation.json."""
    return {
        name: {
            "title": KINDS[name].title,
            "value": figure.value if math.isfinite(figure.value) else None,
            "standard_error": figure.error,
            "count": figure.count,
            "references": figure.references,
            "better": KINDS[name].better,
            "warning": warning(name, figure),
        }
        for name, figure in figures.items()
    }


def spell(name: str, value: float | None, error: float | None = None) -> str:
    """The number with its decimals, and its standard error."""
    if value is None:
        return "not finite"
    decimals = KINDS[name].decimals
    return f"{value:.{decimals}f}" + ("" if error is None else f" ± {error:.{decimals}f}")
