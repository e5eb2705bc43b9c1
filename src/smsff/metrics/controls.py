"""What a run on a known style is compared with: img2img by the style LoRA, and a network trained on true pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smsff.metrics.known_style import crop_border, psnr, tone_free
from smsff.teacher import sampling
from smsff.teacher.score import Teacher


@torch.no_grad()
def img2img(teacher: Teacher, x: Tensor, *, prompt: str, t0: int, steps: int = 10, seed: int = 0) -> Tensor:
    """`smsff.teacher.sampling.img2img` of x (B, 3, H, W) in [-1, 1] with the style score under one prompt."""
    cond = teacher.encode_prompts([prompt] * len(x)).to(x.device)
    return sampling.img2img(teacher.style, teacher.schedule, teacher.latent, x, cond, t0=t0, steps=steps, seed=seed)


def choose_t0(
    teacher: Teacher, x: Tensor, truth: Tensor, *, prompt: str, candidates: Sequence[int], steps: int = 10
) -> tuple[int, dict[int, float]]:
    """The start of img2img with the best tone-free PSNR on a validation photo, and that PSNR for every candidate.

    Args:
        x, truth: photo and its true stylization, (1, 3, H, W) in [-1, 1].
    """
    scores = {}
    for t0 in candidates:
        y = img2img(teacher, x, prompt=prompt, t0=t0, steps=steps)
        pair = [crop_border((p + 1) / 2) for p in (y, truth)]
        scores[t0] = psnr(tone_free(*pair), pair[1]).item()
    return max(scores, key=scores.__getitem__), scores


def train_paired(
    generator: nn.Module,
    crops: Iterable[Tensor],
    operator: Callable[[Tensor], Tensor],
    *,
    steps: int,
    lr: float = 5e-4,
    clip_norm: float = 1.0,
    half: bool = False,
) -> float:
    """Train in place with L1 on (crop, operator(crop)): what the network can do when it is shown the answers.

    Args:
        crops: at least `steps` batches (B, 3, S, S) in [-1, 1]; the outermost pixels do not count.
        operator: the known style, RGB in [0, 1] to RGB in [0, 1].
        lr: rate of AdamW after a short linear rise; a cosine takes it to 0 at the end.
        half: run the network under autocast to bfloat16.

    Returns:
        The mean loss of the last tenth of the steps.
    """
    optimizer = torch.optim.AdamW(generator.parameters(), lr=lr, weight_decay=0.0)
    rise = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min((i + 1) / rise, 0.5 * (1 + math.cos(math.pi * i / steps)))
    )
    losses: list[float] = []
    generator.train()
    for x in crops:
        if len(losses) == steps:
            break
        with torch.no_grad():
            truth = 2 * operator((x + 1) / 2) - 1
        # a filter mirrors the border of a crop, where it would see the rest of a whole photo
        with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
            y = generator(x)
        loss = F.l1_loss(crop_border(y), crop_border(truth))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(generator.parameters(), clip_norm)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    if len(losses) < steps:
        raise ValueError(f"{steps} batches are needed, only {len(losses)} came")
    generator.eval()
    tail = losses[-max(1, steps // 10) :]
    return sum(tail) / len(tail)
