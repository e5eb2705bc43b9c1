"""What a run on a known style is compared with: the teacher itself, and a network trained on true pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smsff.metrics.known_style import crop_border, psnr, tone_free
from smsff.randomness import keyed_randn
from smsff.teacher import sampling
from smsff.teacher.score import Teacher


@torch.no_grad()
def img2img(teacher: Teacher, x: Tensor, *, prompt: str, t0: int, steps: int = 10, seed: int = 0) -> Tensor:
    """`smsff.teacher.sampling.img2img` of x (B, 3, H, W) in [-1, 1] with the style score under one prompt."""
    cond = teacher.encode_prompts([prompt] * len(x), style=True).to(x.device)
    return sampling.img2img(teacher.style, teacher.schedule, teacher.latent, x, cond, t0=t0, steps=steps, seed=seed)


@torch.no_grad()
def one_step(teacher: Teacher, x: Tensor, *, prompt: str, source: str, t: int, draws: int = 4, seed: int = 0) -> Tensor:
    """One step of the teacher at t: D(z + x0_style(z_t) - x0_base(z_t)), z = E(x), averaged over draws of noise.

    Args:
        x: (B, 3, H, W) in [-1, 1].
        prompt, source: Prompts of the style score and of the base.
    """
    latent, schedule = teacher.latent, teacher.schedule
    z = latent.encode(sampling.pad_to_multiple(x, sampling.LATENT_MULTIPLE * latent.downscale))
    times = torch.full((len(z),), t, device=z.device)
    style = teacher.encode_prompts([prompt] * len(z), style=True).to(z.device)
    base = teacher.encode_prompts([source] * len(z)).to(z.device)
    step = torch.zeros_like(z)
    for draw in range(draws):
        noise = keyed_randn(seed, "one_step", draw, range(len(z)), tuple(z.shape[1:])).to(z)
        z_t = schedule.add_noise(z, noise, times)
        eps_style, eps_base = teacher.style(z_t, times, style), teacher.base(z_t, times, base)
        step += schedule.x0_from_eps(z_t, eps_style, times) - schedule.x0_from_eps(z_t, eps_base, times)
    return latent.decode(z + step / draws)[..., : x.shape[-2], : x.shape[-1]].clamp(-1, 1)


def choose_t(make: Callable[[int], Tensor], truth: Tensor, candidates: Sequence[int]) -> tuple[int, dict[int, float]]:
    """The t with the best tone-free PSNR on a validation photo, and that PSNR for every candidate.

    Args:
        make: The result for a t, (1, 3, H, W) in [-1, 1].
        truth: The photo's true stylization, the same.
    """
    scores = {}
    for t in candidates:
        pair = [crop_border((p + 1) / 2) for p in (make(t), truth)]
        scores[t] = psnr(tone_free(*pair), pair[1]).item()
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
