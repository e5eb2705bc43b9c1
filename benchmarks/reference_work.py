"""One iteration of the authors' code (showlab/SMS, commit 451f5b9), counted again: the same passes, the same detours.

Written from a description of what their code does, on our parts, so that both sides run on the same U-Net. Per
iteration, batch 1: the teacher, the fake and the base each on two samples without gradient, then the fake's step on two
samples with gradient, of which the unconditional one is thrown away after its backward pass: 8 sample-forwards and 2
sample-backwards. Everything in float32; the adapters are switched off and on by walking over all modules, four times;
relevance is stretched in numpy on the CPU; both latents are transformed and filtered; the optimizer of the fake is
given all tensors of the U-Net; the gradient is copied to the CPU and the loss read there.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from torch import Tensor, nn

from smsff.method.schedule import NoiseSchedule, cfg
from smsff.method.spectrum import dct_2d, low_pass_mask

GUIDANCE, LAMBDA = 4.5, 5e-4


class ReferenceStep:
    """Their iteration on one latent.

    Args:
        unet: The base; it gets the fake's LoRA.
        style: The U-Net with the style merged in.
        schedule: The forward process.
        z_src: Latent of the picture, (1, C, h, w).
        embeddings: (2, L, D): of the empty prompt and of a prompt.
    """

    def __init__(
        self, unet: UNet2DConditionModel, style: nn.Module, schedule: NoiseSchedule, z_src: Tensor, embeddings: Tensor
    ) -> None:
        self.third = copy.deepcopy(unet)  # theirs holds it for ever and never runs it
        unet.add_adapter(LoraConfig(r=8, lora_alpha=32, target_modules=["to_q", "to_v"]))
        self.unet, self.style, self.schedule, self.embeddings = unet, style, schedule, embeddings
        self.style.requires_grad_(False)
        self.z_src, self.z = z_src, nn.Parameter(z_src.clone())
        self.optimizer = torch.optim.AdamW([self.z], lr=0.1)
        self.fake_optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3)
        self.index = torch.arange(10, 250, device=z_src.device)

    def __call__(self) -> float:
        """One iteration; the loss."""
        t = 2 * self.index[torch.randint(len(self.index), (1,))] + 1
        self.optimizer.zero_grad()
        loss = self.matching(t)
        (1000 * loss).backward()
        assert self.z.grad is not None
        self.z.grad.cpu()
        self.optimizer.step()
        self.fake_optimizer.zero_grad()
        self.fake_loss(2 * self.index[torch.randint(len(self.index), (1,))] + 1).backward()
        self.fake_optimizer.step()
        return float(loss.item())

    def twice(self, net: nn.Module, z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Unconditional and conditional prediction, in one call."""
        eps = net(torch.cat([z_t, z_t]), torch.cat([t, t]), encoder_hidden_states=self.embeddings).sample
        uncond, cond = eps.chunk(2)
        return uncond, cond

    def matching(self, t: Tensor) -> Tensor:
        noise = torch.randn_like(self.z)
        with torch.no_grad():
            z_t = self.schedule.add_noise(self.z, noise, t)
            uncond, cond = self.twice(self.style, z_t, t)
            eps_style = cfg(cond, uncond, GUIDANCE)
            uncond, cond = self.twice(self.unet, z_t, t)
            eps_fake = cfg(cond, uncond, GUIDANCE)
            mask = self.relevance(self.schedule.add_noise(self.z_src, noise, t), t)
            g = self.schedule.posterior_variance(t) * (eps_style - eps_fake) * mask
            target = (self.z - g).detach()
        keep = low_pass_mask(t, *self.z.shape[-2:], t_scale=500, cutoff="last_axis")
        spectrum = (keep * dct_2d(self.z) - keep * dct_2d(self.z_src)).abs().mean()
        return 0.5 * (self.z - target).square().mean() + LAMBDA * spectrum

    def relevance(self, z_t: Tensor, t: Tensor) -> Tensor:
        self.unet.disable_adapters()
        uncond, cond = self.twice(self.unet, z_t, t)
        self.unet.enable_adapters()
        raw = (cond - uncond).mean(1, keepdim=True).abs().cpu().numpy()
        stretched = (raw - raw.min()) / max(np.ptp(raw), 1e-12)
        return torch.from_numpy(stretched).to(z_t)

    def fake_loss(self, t: Tensor) -> Tensor:
        self.unet.disable_adapters()
        self.unet.enable_adapters()
        noise = torch.randn_like(self.z)
        z_t = self.schedule.add_noise(self.z.detach(), noise, t)
        _, cond = self.twice(self.unet, z_t, t)
        weight = self.schedule.alpha_bar(t)
        return (weight * (cond - noise)).square().mean()
