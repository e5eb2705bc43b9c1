"""The loop that trains the parts of the base: AdamW, a moving average of the weights, and going on after a kill."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from smsff.atomic import write_aside

log = logging.getLogger(__name__)

AVERAGE = 0.999
"""Decay of the moving average."""
WARMUP = 100
"""Steps in which the rate rises."""
FALL = 0.2
"""Share of the steps, at the end, in which it falls to 2 %."""


def rate_factor(step: int, steps: int) -> float:
    """What the learning rate is multiplied by in one step: it rises, stays, and falls linearly at the end."""
    return min(1, (step + 1) / WARMUP) * max(min(1, (steps - step) / (FALL * steps)), 0.02)


def optimise(
    modules: Mapping[str, nn.Module],
    rates: Mapping[str, float],
    loss: Callable[[int], Tensor],
    *,
    steps: int,
    checkpoint: Path,
    seconds: float = 60,
) -> None:
    """Train the modules together until `steps` are done; they hold the average of their weights afterwards.

    Args:
        modules: Trained in place, by name.
        rates: Peak learning rate of each.
        loss: Of one step, a function of its number alone, so that a run that goes on sees what it would have seen.
        steps: Of the whole training.
        checkpoint: File with weights, averages, optimizer and step; where it lies already, the training goes on.
        seconds: Time between two checkpoints.
    """
    optimizer = torch.optim.AdamW(
        [{"params": list(module.parameters()), "lr": rates[name]} for name, module in modules.items()],
        betas=(0.9, 0.99),
        weight_decay=0,
        fused=True,
    )
    weights = {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    averages, first = {key: value.clone() for key, value in weights.items()}, 0
    if checkpoint.exists():
        stored = torch.load(checkpoint, weights_only=True)
        first = stored["step"]
        optimizer.load_state_dict(stored["optimizer"])
        for key, value in weights.items():
            value.copy_(stored["weights"][key])
            averages[key].copy_(stored["averages"][key])
    peaks = list(rates.values())
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def save(step: int) -> None:
        state = {"step": step, "weights": weights, "averages": averages, "optimizer": optimizer.state_dict()}
        write_aside(checkpoint, lambda path: torch.save(state, path))

    started = saved = time.monotonic()
    recent: list[float] = []
    for step in range(first, steps):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * rate_factor(step, steps)
        optimizer.zero_grad(set_to_none=True)
        value = loss(step)
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        decay = min(AVERAGE, (step + 1) / (step + 20))
        with torch.no_grad():
            torch._foreach_lerp_(list(averages.values()), list(weights.values()), 1 - decay)
        recent.append(value.item())
        if (step + 1) % 100 == 0:
            speed, mean = (step + 1 - first) / (time.monotonic() - started), sum(recent) / len(recent)
            log.info("step %d of %d, loss %.5f, %.2f steps/s", step + 1, steps, mean, speed)
            recent.clear()
        if time.monotonic() - saved > seconds or step + 1 == steps:
            save(step + 1)
            saved = time.monotonic()
    for key, value in weights.items():
        value.copy_(averages[key])
