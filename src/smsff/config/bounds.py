"""The range of every number that a configuration or a model file may give, by its key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from smsff.config.trust import matches
from smsff.errors import UserError, shown


@dataclass(frozen=True)
class Bound:
    """A range, both ends included unless ``open_low`` or ``open_high``."""

    low: float
    high: float
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        """Whether a number lies in the range; NaN does not."""
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        low = f"more than {self.low:,}" if self.open_low else f"at least {self.low:,}"
        high = f"less than {self.high:,}" if self.open_high else f"at most {self.high:,}"
        return f"{low} and {high}"


COUNT = Bound(1, 1_000_000_000)
NATURAL = Bound(0, 1_000_000_000)
PIXELS = Bound(1, 65_536)
TIMESTEP = Bound(0, 999)  # every base that can be loaded was trained with 1000 steps
SHARE = Bound(0, 1)
DECAY = Bound(0, 1, open_high=True)
SIZE = Bound(0, 1e9)
ANY = Bound(-1e15, 1e15)
"""For numbers without an entry below, such as those of classes permitted with SMSFF_ALLOW: finite, at least."""

BOUNDS: dict[str, Bound] = {
    "seed": Bound(0, 2**32 - 1),
    "*.seed": Bound(0, 2**32 - 1),
    "steps": COUNT,
    "warmup.steps": NATURAL,
    "warmup.until": Bound(0, 2, open_low=True),
    "*.steps": COUNT,
    "fake_draws": Bound(1, 1024),
    "ema_decay": DECAY,
    "grid_jitter": Bound(1, 256),
    "log_every": COUNT,
    "sample_every": COUNT,
    "checkpoint_every": COUNT,
    "checkpoint_keep": Bound(0, 1_000_000),
    "max_bad_steps": COUNT,
    "process_timeout": Bound(1, 1e7),
    "style.strength": Bound(-100, 100),
    "teacher.lora_strength": Bound(-100, 100),
    "resolution": PIXELS,
    "weights.*.size": Bound(0, 10**13),
    "data.enlarge": Bound(1, 100),
    "fake_score.rank": Bound(1, 4096),
    "fake_score.alpha": Bound(0, 1e6, open_low=True),
    "objective.*": SIZE,
    "regularizer.t_scale": Bound(1, 1_000_000),
    "timesteps.t_min": TIMESTEP,
    "timesteps.t_max": TIMESTEP,
    "timesteps.t_max_late": TIMESTEP,
    "timesteps.drop_at": SHARE,
    "fake_timesteps.t_min": TIMESTEP,
    "fake_timesteps.t_max": TIMESTEP,
    "optimizer.*.lr": Bound(0, 100),
    "optimizer.*.betas.*": DECAY,
    "optimizer.*.eps": Bound(0, 1),
    "optimizer.*.weight_decay": Bound(0, 100),
    "optimizer.*.clip_norm": SIZE,
    "optimizer.*.horizon": Bound(1, 1000),
    "optimizer.*.warmup_steps": NATURAL,
    "data.crop_size": PIXELS,
    "data.batch_size": PIXELS,
    "data.num_workers": Bound(0, 1024),
    "data.val_fraction": DECAY,
    "data.scale.*": Bound(0, 1, open_low=True),
    "data.cache_mb": SIZE,
    "data.val_max_side": PIXELS,
    "data.short_side": PIXELS,
    "data.multiple": Bound(1, 1024),
    "data.max_pixels": Bound(1, 10**10),
    "data.max_unreadable_share": SHARE,
    "data.worker_timeout": Bound(1, 1e7),
    "data.resolution": PIXELS,
    "data.stride": Bound(1, 1024),
    "data.margin": Bound(0, 1024),
    "data.max_aspect": Bound(1, 100),
    "data.max_photos": Bound(1, 1000),
    "data.max_held_out": COUNT,
    "data.degraded.share": SHARE,
    "data.degraded.tones": SHARE,
    "lora.rank": Bound(1, 4096),
    "lora.text_rank": Bound(0, 4096),
    "lora.*alpha": Bound(0, 1e6, open_low=True),
    "prompts.*_dropout": SHARE,
    "timesteps.power": Bound(1, 100),
    "loss.*": SIZE,
    "held_out.bands.*": Bound(0, 1000),
    "held_out.*": Bound(1, 10_000),
    "samples.t0": TIMESTEP,
    "samples.steps": Bound(1, 1000),
    "generator.widths.*": Bound(1, 4096),
    "generator.encoder_blocks.*": Bound(0, 64),
    "generator.decoder_blocks.*": Bound(0, 64),
    "generator.head_width": Bound(4, 4096),
    "generator.width": Bound(1, 4096),
    "generator.blocks": Bound(0, 64),
    "trainer.devices": Bound(-1, 4096),
    "trainer.devices.*": Bound(0, 4096),
    "trainer.num_nodes": Bound(1, 10_000),
    "trainer.max_epochs": Bound(-1, 1_000_000_000),
    "trainer.max_steps": COUNT,
    "trainer.accumulate_grad_batches": Bound(1, 1_000_000),
    "trainer.log_every_n_steps": COUNT,
    "trainer.val_check_interval": COUNT,
    "trainer.check_val_every_n_epoch": COUNT,
    "trainer.num_sanity_val_steps": Bound(-1, 1_000_000),
    "trainer.limit_*_batches": NATURAL,
    "callbacks.*.every": COUNT,
    "callbacks.bad_steps.limit": COUNT,
    "callbacks.*.window": Bound(1, 1_000_000),
    "callbacks.*.max_images": Bound(1, 1000),
    "callbacks.*.every_n_train_steps": COUNT,
    "callbacks.*.save_top_k": Bound(-1, 1000),
}
"""By dotted key, in which ``*`` is one part (or some letters of one); the first that fits counts."""


def bound_of(key: str) -> Bound:
    """The range of the number at a dotted key (elements of lists count as parts)."""
    return next((bound for pattern, bound in BOUNDS.items() if matches(key, pattern)), ANY)


def check_bounds(node: Any, key: str = "") -> None:
    """Hold every number in a tree of plain containers against its range.

    Raises:
        UserError: names the key, the value and the range.
    """
    if isinstance(node, Mapping):
        for name, value in node.items():
            check_bounds(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            check_bounds(value, f"{key}.{index}")
    elif isinstance(node, (int, float)) and not isinstance(node, bool):
        bound = bound_of(key)
        if not bound.holds(node):
            raise UserError(f"{key}={shown(node)}: must be {bound}")
