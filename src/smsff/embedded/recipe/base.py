"""The base of an embedded teacher: photos, styles, and the way from the one to the other.

A large base has seen the same things photographed, drawn and painted, so that its prompts mean something and its scores
point from a photo to a style. A small one learns that from *loose pairs*: the input is a photo or a mixture of the
photo and a loose version of a style, the target the loose version, the prompt that of the style's kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from smsff.embedded import teacher as embedded
from smsff.embedded.recipe.bank import KINDS, Bank
from smsff.embedded.recipe.train import optimise
from smsff.embedded.style_bank import crops
from smsff.embedded.way import way_inputs
from smsff.method.schedule import NoiseSchedule, scaled_linear_betas
from smsff.style_lora.objective import denoising_target, min_snr_weight, weighted_error

CROP = 48
"""Latents of a crop."""
MARGIN = 4
"""Latents that are left out on each side of a picture, where the encoder saw its border."""
RATE, TEXT_RATE = 1e-3, 1.25e-4
"""At its full rate the text encoder forgets."""
GAMMA = 3.0
"""The error of the clean latent counts, at most this many times that of the noise."""
SAMPLES = {"photo": 0.22, "loose": 0.18, "way": 0.38, "mixed": 0.10, "empty": 0.12}
"""Shares of the samples.

photo, loose: what they are, under their prompts. way: from a photo or a mixture to the loose version, under the prompt
of its kind. mixed, empty: mixtures as they are, under a photo's prompt and the empty one: a fake score starts there.
"""


@dataclass(frozen=True)
class Base:
    """The parts of a Stable-Diffusion-format pipeline."""

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    text: CLIPTextModel
    tokenizer: CLIPTokenizer

    def save(self, folder: Path) -> None:
        """The pipeline folder in half precision; the parts stay as they are."""
        state = {name: getattr(self, name).state_dict() for name in ("vae", "unet", "text")}
        pipeline = StableDiffusionPipeline(
            vae=self.vae.half(),
            unet=self.unet.half(),
            text_encoder=self.text.half(),
            tokenizer=self.tokenizer,
            scheduler=embedded.build_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        for part in (self.vae, self.unet):
            part.register_to_config(_name_or_path="")  # else the path of the folder that it came from
        pipeline.save_pretrained(folder)
        for name, weights in state.items():
            getattr(self, name).float().load_state_dict(weights)


def new_base(vae: AutoencoderKL) -> Base:
    """Untrained networks around an auto-encoder."""
    tokenizer = embedded.build_tokenizer()
    return Base(vae, embedded.build_unet(), embedded.build_text_encoder(len(tokenizer)), tokenizer)


def continued_base(folder: Path, vae: AutoencoderKL) -> Base:
    """The networks of a finished teacher, to be trained on; words that it did not know are new to it."""
    tokenizer = embedded.build_tokenizer()
    text = embedded.build_text_encoder(len(tokenizer))
    old, words = CLIPTextModel.from_pretrained(folder / "text_encoder").float(), _words(folder)
    embedding, known = text.get_input_embeddings().weight.data.clone(), old.get_input_embeddings().weight.data
    for token, row in tokenizer.get_vocab().items():
        if token in words:
            embedding[row] = known[words[token]]
    old.get_input_embeddings().weight.data = embedding
    text.load_state_dict(old.state_dict())
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
    return Base(vae, unet, text, tokenizer)


def _words(folder: Path) -> dict[str, int]:
    words: dict[str, int] = CLIPTokenizer.from_pretrained(folder / "tokenizer").get_vocab()
    return words


def tokenize(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> Tensor:
    """Token ids (N, L), padded to the context length."""
    ids: Tensor = tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt").input_ids
    return ids


@dataclass(frozen=True)
class WaySamples:
    """Training samples from the bank's latents; each batch is a function of the seed and its number.

    Attributes:
        latents: (N, C, h, w) of ``photo`` and ``loose``, and ``kind`` (N,).
        batch: Samples in a batch.
        seed: Of all draws.
    """

    latents: Bank
    batch: int
    seed: int

    def __call__(self, number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Input and target (B, C, CROP, CROP), and the prompt's number and t (B,), both long."""
        rng, size = np.random.default_rng([self.seed, number]), self.batch
        index = rng.integers(len(self.latents["kind"]), size=size)
        both = torch.cat([self.latents["photo"][index], self.latents["loose"][index]], 1)
        both = both[..., MARGIN : both.shape[-2] - MARGIN, MARGIN : both.shape[-1] - MARGIN]
        both = crops(both, np.arange(size), CROP, rng).float()
        both = torch.where(torch.from_numpy(rng.random((size, 1, 1, 1)) < 0.5), both.flip(3), both)
        photo, loose = both.chunk(2, 1)
        mixed = way_inputs(photo, loose, rng)
        part = rng.choice(list(SAMPLES), size=size, p=list(SAMPLES.values()))

        def chosen(**pictures: Tensor) -> Tensor:
            return torch.stack([pictures.get(name, mixed)[i] for i, name in enumerate(part)])

        kind = self.latents["kind"][index].numpy()
        prompt = np.select([np.isin(part, ["loose", "way"]), part == "empty"], [1 + kind, 1 + len(KINDS)], 0)
        u = rng.random(size)
        t = np.where(rng.random(size) < 0.85, 5 + 495 * u**1.5, 1 + 998 * u).astype(np.int64)
        prompt_of = self.prompts(prompt, rng.random(size))
        return (
            chosen(photo=photo, loose=loose),
            chosen(photo=photo, loose=loose, way=loose),
            prompt_of,
            torch.from_numpy(t),
        )

    @staticmethod
    def prompts(group: np.ndarray, u: np.ndarray) -> Tensor:
        """Numbers of prompts in `all_prompts`, one of each group."""
        counts = np.array([len(prompts) for prompts in embedded.PROMPTS.values()])
        first = np.cumsum([0, *counts])
        return torch.from_numpy(first[group] + (u * counts[group]).astype(np.int64))


def all_prompts() -> list[str]:
    """The prompts of photos, of every kind, and the empty one."""
    assert tuple(embedded.PROMPTS) == ("photo", *KINDS, "")
    return [prompt for group in embedded.PROMPTS.values() for prompt in group]


def way_loss(
    unet: UNet2DConditionModel,
    schedule: NoiseSchedule,
    z: Tensor,
    target: Tensor,
    t: Tensor,
    cond: Tensor,
    noise: Tensor,
) -> Tensor:
    """Weighted error of the network's answer at `z` with noise, where `target` is the clean latent; (B,)."""
    z_t = schedule.add_noise(z, noise, t)
    with torch.autocast(z.device.type, torch.bfloat16):
        eps = unet(z_t.contiguous(memory_format=torch.channels_last), t, encoder_hidden_states=cond).sample
    weight = min_snr_weight(schedule.alpha_bar(t), "epsilon", GAMMA)
    return weighted_error(eps.float(), denoising_target(schedule, target, z_t, t), weight)


def train_base(base: Base, latents: Bank, *, steps: int, batch: int, seed: int, checkpoint: Path) -> None:
    """U-Net and text encoder together, in place."""
    device = latents["photo"].device
    schedule, samples = NoiseSchedule(scaled_linear_betas()).to(device), WaySamples(latents, batch, seed)
    unet = base.unet.to(device, memory_format=torch.channels_last).train()
    unet.set_attn_processor(AttnProcessor())  # on so few tokens the fused kernel is slower on a CPU
    text, ids = base.text.to(device), tokenize(base.tokenizer, all_prompts()).to(device)

    def loss(step: int) -> Tensor:
        z, target, prompt, t = samples(step)
        with torch.autocast(device.type, torch.bfloat16):
            cond = text(ids)[0][prompt]
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        noise = torch.randn(z.shape, generator=generator).to(device)
        return way_loss(unet, schedule, z.to(device), target.to(device), t.to(device), cond, noise).mean()

    optimise(
        {"unet": unet, "text": text},
        {"unet": RATE, "text": TEXT_RATE},
        loss,
        steps=steps,
        checkpoint=checkpoint,
    )
    unet.eval(), text.eval()
