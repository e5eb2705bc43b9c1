"""The figures of an evaluation: what each of them is, how many pictures it needs, and how it is written down."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Better = Literal["higher", "lower"]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a figure is.

    Attributes:
        title: Heading.
        group: What ``--figures`` calls it, together with its relatives.
        better: Direction.
        reliable: Number of pictures (of the smaller side) from which on it is worth stating.
        why: What is wrong with it below that number.
        decimals: In tables.
    """

    title: str
    group: str
    better: Better
    reliable: int
    why: str
    decimals: int = 3


_FEW = "the mean of few pictures hangs on which pictures they are"
_NOISE = f"{_FEW}; see its standard error"
_FID = (
    "with n images FID is too high by an amount that depends on n and on the network; compare it only with values of "
    "the same n on both sides"
)
_KID = "its standard error is large"
_WIN = "a rate from fewer than 100 pictures is off by 5 % and more by chance"

KINDS: dict[str, Kind] = {
    "lpips": Kind(title="LPIPS to the content", group="lpips", better="lower", reliable=30, why=_NOISE, decimals=4),
    "ssim": Kind(title="SSIM to the content", group="ssim", better="higher", reliable=30, why=_NOISE),
    "artfid": Kind(title="ArtFID", group="artfid", better="lower", reliable=10_000, why=_FID, decimals=2),
    "art_fid": Kind(title="FID on art features", group="artfid", better="lower", reliable=10_000, why=_FID, decimals=2),
    "fid": Kind(title="FID", group="fid", better="lower", reliable=10_000, why=_FID, decimals=2),
    "kid": Kind(title="KID", group="kid", better="lower", reliable=1_000, why=_KID, decimals=5),
    "pickscore": Kind(title="PickScore", group="pickscore", better="higher", reliable=100, why=_NOISE, decimals=2),
    "pickscore_win_rate": Kind(title="PickScore win rate", group="pickscore", better="higher", reliable=100, why=_WIN),
    "pickscore_share": Kind(
        title="PickScore softmax share", group="pickscore", better="higher", reliable=100, why=_NOISE
    ),
    "clip_content": Kind(title="CLIP to the content", group="clip", better="higher", reliable=30, why=_NOISE),
    "clip_style": Kind(title="CLIP to the style set", group="clip", better="higher", reliable=30, why=_FEW),
    "clip_text": Kind(title="CLIP to the prompt", group="clip", better="higher", reliable=30, why=_NOISE),
    "psnr": Kind(title="PSNR to the truth", group="truth", better="higher", reliable=30, why=_NOISE, decimals=2),
    "ssim_truth": Kind(title="SSIM to the truth", group="truth", better="higher", reliable=30, why=_NOISE),
    "style": Kind(title="Style distance", group="truth", better="lower", reliable=30, why=_NOISE, decimals=2),
    "psnr_tone_free": Kind(
        title="PSNR, tone-free", group="truth", better="higher", reliable=30, why=_NOISE, decimals=2
    ),
    "ssim_tone_free": Kind(title="SSIM, tone-free", group="truth", better="higher", reliable=30, why=_NOISE),
    "style_tone_free": Kind(
        title="Style distance, tone-free", group="truth", better="lower", reliable=30, why=_NOISE, decimals=2
    ),
    "content": Kind(title="Content distance", group="truth", better="lower", reliable=30, why=_NOISE, decimals=2),
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
        value: The number.
        count: Pictures on the side of the results.
        references: Pictures on the other side where that is a set (FID, KID, CLIP to the style set).
        error: Standard error, where there is a way to tell it.
    """

    value: float
    count: int
    references: int | None = None
    error: float | None = None

    @property
    def smaller(self) -> int:
        """Number of pictures on the smaller side."""
        return self.count if self.references is None else min(self.count, self.references)

    def counts(self) -> str:
        """``n = 40``, or ``n = 40 against 100``."""
        return f"n = {self.count:,}" + ("" if self.references is None else f" against {self.references:,}")


def mean_figure(values: Sequence[float]) -> Figure:
    """Mean and standard error of one number a picture."""
    n = len(values)
    mean = math.fsum(values) / n
    error = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n) if n > 1 else None
    return Figure(value=mean, count=n, error=error)


def warning(name: str, figure: Figure) -> str | None:
    """What makes a figure of so few pictures unreliable, if anything does."""
    kind = KINDS[name]
    if not math.isfinite(figure.value):
        return "not a finite number: the features overflow or a picture is degenerate"
    if figure.smaller >= kind.reliable:
        return None
    return f"{figure.counts()}, at least {kind.reliable:,} are needed: {kind.why}"


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
