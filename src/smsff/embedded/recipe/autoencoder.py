"""The auto-encoder of an embedded teacher."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from smsff.data.crops import to_signed
from smsff.embedded import teacher as embedded
from smsff.embedded.recipe.bank import Bank
from smsff.embedded.recipe.train import optimise
from smsff.embedded.style_bank import crops

CROP = 64
"""Pixels of a crop."""
KL_WEIGHT = 2e-4


def train_autoencoder(bank: Bank, *, steps: int, batch: int, seed: int, checkpoint: Path, device: str) -> AutoencoderKL:
    """Squared and absolute error and a Kullback-Leibler term, per element; latents of unit mean square.

    Half of the crops are photos, in the mean, and half styled pictures.
    """
    torch.manual_seed(seed)
    vae = embedded.build_autoencoder().to(device)

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([seed, step])
        loose = int(rng.binomial(batch, 0.5))
        counts = {"photo": batch - loose, "loose": loose}
        parts = [crops(bank[kind], rng.integers(len(bank[kind]), size=n), CROP, rng) for kind, n in counts.items() if n]
        x = to_signed(torch.cat(parts)).to(device)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        with torch.autocast(device, torch.bfloat16):
            mean, log_variance = vae.quant_conv(vae.encoder(x)).float().clamp(-20, 10).chunk(2, 1)
            noise = torch.randn(mean.shape, generator=generator).to(mean)
            error = vae.decoder(vae.post_quant_conv(mean + (0.5 * log_variance).exp() * noise)).float() - x
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return error.square().mean() + 0.1 * error.abs().mean() + KL_WEIGHT * divergence

    optimise({"vae": vae}, {"vae": 2e-3}, loss, steps=steps, checkpoint=checkpoint)
    vae = vae.cpu().eval()
    with torch.no_grad():
        some = torch.cat([bank[kind][:50] for kind in ("photo", "loose")])
        power = torch.stack([vae.encode(to_signed(x[None])).latent_dist.mean.square().mean() for x in some]).mean()
    vae.register_to_config(scaling_factor=1 / power.sqrt().item())
    return vae
