"""One AdamW with two parameter groups, generator and fake score, each with its own rate, schedule and clipping.

The two losses reach disjoint parameters, so one optimizer over their sum equals two optimizers, while step counting,
accumulation and plain data parallelism stay those of an ordinary training.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from smsff.training.nonfinite import StepGuard

LrSchedule = Literal["constant", "cosine"]


@dataclass(frozen=True, kw_only=True)
class GroupOptions:
    """Settings of one parameter group, the keys of ``optimizer.*``.

    The style gradient is a mean over all latent elements, so single gradients can be as small as 1e-9: ``eps`` must
    stay far below them, or Adam turns into plain gradient descent with a vanishing rate.
    """

    lr: float
    betas: Sequence[float] = (0.9, 0.999)
    eps: float = 1e-15
    weight_decay: float = 0.0
    clip_norm: float | None = None
    schedule: LrSchedule = "constant"
    horizon: float = 1.0
    warmup_steps: int = 0

    def lr_factor(self, step: int, total: int) -> float:
        """Rate at ``step`` (0, 1, ...) of a run of ``total`` steps, as a fraction of the peak."""
        if step < self.warmup_steps:
            return step / self.warmup_steps
        if self.schedule == "constant":
            return 1.0
        end = max(self.horizon * total - self.warmup_steps, 1)
        return 0.5 * (1 + math.cos(math.pi * min((step - self.warmup_steps) / end, 1)))


def build_optimizer(groups: Mapping[str, tuple[Iterable[nn.Parameter], GroupOptions]]) -> AdamW:
    """AdamW over named groups; each group carries its ``name`` and ``clip_norm`` for `clip_groups`.

    Fused, because the fused one skips a step on the device where ``found_inf`` says so (`smsff.training.nonfinite`).
    """
    return AdamW(
        [
            {
                "name": name,
                "params": list(parameters),
                "lr": options.lr,
                "betas": tuple(options.betas),
                "eps": options.eps,
                "weight_decay": options.weight_decay,
                "clip_norm": options.clip_norm,
            }
            for name, (parameters, options) in groups.items()
        ],
        fused=True,
    )


def build_schedule(optimizer: Optimizer, options: Sequence[GroupOptions], total: int) -> LambdaLR:
    """The learning rate of every group as a pure function of the step."""
    return LambdaLR(optimizer, [partial(one.lr_factor, total=total) for one in options])


def clip_groups(optimizer: Optimizer) -> dict[str, Tensor]:
    """Clip the gradient of each group to its ``clip_norm``.

    Returns:
        The norms before clipping, by group name, of the groups that have a gradient.
    """
    norms = {}
    for group in optimizer.param_groups:
        if all(parameter.grad is None for parameter in group["params"]):
            continue
        limit = math.inf if group["clip_norm"] is None else group["clip_norm"]
        norms[group["name"]] = torch.nn.utils.clip_grad_norm_(group["params"], limit)
    return norms


@torch.no_grad()
def update_average(average: AveragedModel, model: nn.Module, *, decay: float, skip: Tensor | None = None) -> None:
    """Move an average towards the weights and buffers of a model, without waiting for the device.

    The decay is min(decay, (1 + n) / (10 + n)) after n updates, so that short runs are averaged too; the first update
    is a copy. Where `skip` is 1 nothing changes.
    """
    count = average.n_averaged
    weight = torch.where(count == 0, 1.0, 1 - ((1 + count) / (10 + count)).clamp(max=decay))
    if skip is not None:
        weight = weight * (1 - skip)
        count += (1 - skip).to(count)
    else:
        count += 1
    means, values = (chain(one.parameters(), one.buffers()) for one in (average.module, model))
    for mean, value in zip(means, values, strict=True):
        mean.lerp_(value, weight.to(mean))


def optimizer_and_schedule(
    groups: Mapping[str, tuple[Iterable[nn.Parameter], GroupOptions]], steps: int
) -> OptimizerLRScheduler:
    """What Lightning's ``configure_optimizers`` returns: `build_optimizer` with a schedule over `steps` steps."""
    optimizer = build_optimizer(groups)
    schedule = build_schedule(optimizer, [options for _, options in groups.values()], steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def clip_and_guard(module: pl.LightningModule, guard: StepGuard, optimizer: Optimizer) -> None:
    """Clip each group by its own norm, skip the step if a gradient is not finite, log norms and learning rates."""
    norms = clip_groups(optimizer)
    guard.decide(optimizer, norms, step=module.global_step)
    module.log_dict({f"train/grad_norm_{name}": norm for name, norm in norms.items()})
    # as tensors of the main memory: a number would be sent to the device, which waits
    module.log_dict({f"train/lr_{group['name']}": torch.tensor(group["lr"]) for group in optimizer.param_groups})
