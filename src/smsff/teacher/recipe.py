"""How an embedded teacher is made: ``python -m smsff.teacher.recipe`` (``make teacher``).

The defaults are meant for a GPU. The teacher that ships was trained for fewer steps on a CPU, in rounds, of which its
README tells. Bank and base are read from the working folder if they lie there. Stages:

1. ``bank``         pictures: photo crops and dead leaves, each also in every known style, and in one loose version of a
                    style (random operator parameters), which is what the base model gets to see of styles.
2. ``autoencoder``  AutoencoderKL on all of them.
3. ``latents``      the bank encoded once.
4. ``base``         U-Net and text encoder on photos and loose styles, with prompts.
5. ``style``        one LoRA for each known style, by the module of ``train.py experiment=style_lora``, on pictures
                    made by the exact operator, and on photos beside a loosely styled form of themselves. The latter
                    stands for what a large base knows of photos and drawings of the same thing; no picture is ever
                    shown beside its exact stylization.

Afterwards the weights are stored in half precision. ``figures.json`` holds the held-out denoising losses by t.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from smsff.data.content import content
from smsff.data.crops import to_signed
from smsff.data.images import find_images, load_image, to_image
from smsff.data.known_styles import STYLES, cel, ink, oil, sketch, watercolour
from smsff.optimizer import GroupOptions
from smsff.style_lora.adapter import LoraOptions
from smsff.style_lora.bank import StyleBank, crops
from smsff.style_lora.fit import fit_style_lora
from smsff.style_lora.known import training_photos
from smsff.style_lora.module import HeldOutLoss, Samples, StyleLora
from smsff.style_lora.objective import PowerTimesteps, StyleLoss
from smsff.style_lora.prompts import TriggerPrompts
from smsff.teacher import embedded
from smsff.teacher.lora_write import save_style_lora
from smsff.teacher.schedule import NoiseSchedule, scaled_linear_betas
from smsff.teacher.stable_diffusion import STYLE, load_stable_diffusion

log = logging.getLogger(__name__)

SIZE, CROP, LATENT_CROP = 160, 64, 48
"""Pixels of a picture of the bank, of an auto-encoder crop, and latents of a U-Net crop."""
CHUNK = 50
"""Pictures that one worker makes from one seed."""
SHIPPED = ("ink", "cel", "watercolour")
PAIRED = 0.6
"""Share of a LoRA's samples that are photos beside a loosely styled form of themselves."""
PRECISION = "bf16-mixed"
"""Of the style LoRAs' training, as in the experiment."""

Bank = dict[str, Tensor]


def styles_of_base() -> list[str]:
    """The styles that the base sees loose versions of; ``kind`` in the bank counts them."""
    return [name for name in embedded.PROMPTS if name not in ("photo", "")]


def loose_style(x: Tensor, rng: np.random.Generator) -> tuple[str, Tensor]:
    """One of the styles with random parameters: what its name may mean."""
    draw = rng.uniform
    name = str(rng.choice(styles_of_base()))
    if name == "cel":
        y = cel(x, draw(3, 8), draw(8, 40), draw(0.9, 1.5), int(rng.integers(1, 4)))
    elif name == "sketch":
        y = sketch(x, draw(1.5, 5), draw(1.2, 4), draw(0, 0.8))
    elif name == "oil":
        y = oil(x, int(rng.integers(2, 5)), draw(0, 0.8), draw(0.9, 1.4))
    elif name == "watercolour":
        y = watercolour(x, draw(0.5, 2), draw(0.6, 1), int(rng.integers(1, 4)))
    else:
        y = ink(x, draw(8, 32), draw(0.005, 0.03), draw(1, 2), draw(2, 6))
    return name, y


def bank_chunk(chunk: int, *, count: int, seed: int, photos: Sequence[Image.Image]) -> Bank:
    """`count` pictures of the bank; a pure function of (seed, chunk, photos)."""
    torch.set_num_threads(1)
    rng = np.random.default_rng([seed, chunk])
    names = styles_of_base()
    pictures: dict[str, list[Tensor]] = {kind: [] for kind in ("photo", "loose", *SHIPPED)}
    kinds = []
    for _ in range(count):
        x = torch.from_numpy(np.ascontiguousarray(content(photos, SIZE, rng))).permute(2, 0, 1)[None]
        name, loose = loose_style(x, rng)
        kinds.append(names.index(name))
        for kind, y in {"photo": x, "loose": loose, **{s: STYLES[s](x) for s in SHIPPED}}.items():
            pictures[kind].append((y[0] * 255 + 0.5).to(torch.uint8))
    return {**{kind: torch.stack(y) for kind, y in pictures.items()}, "kind": torch.tensor(kinds)}


def make_bank(count: int, seed: int, photos: Sequence[Image.Image], *, workers: int) -> Bank:
    """uint8 pictures (count, 3, SIZE, SIZE) by kind, and the style index of each loose one (``kind``)."""
    counts = [min(CHUNK, count - first) for first in range(0, count, CHUNK)]
    jobs = [partial(bank_chunk, count=n, seed=seed, photos=photos) for n in counts]
    parts = []
    with ProcessPoolExecutor(workers, mp_context=torch.multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(job, chunk) for chunk, job in enumerate(jobs)]
        for i, future in enumerate(futures):
            parts.append({kind: y.numpy() for kind, y in future.result().items()})
            if (i + 1) % 20 == 0:
                log.info("bank: %d of %d pictures", min((i + 1) * CHUNK, count), count)
    return {kind: torch.from_numpy(np.concatenate([part[kind] for part in parts])) for kind in parts[0]}


def optimise(
    name: str,
    parameters: Sequence[torch.nn.Parameter],
    loss: Callable[[], Tensor],
    *,
    steps: int,
    learning_rate: float,
    warmup: int,
    hold: float,
) -> None:
    """AdamW with linear warm-up, a constant part up to the fraction `hold` of the steps, then a linear fall to 1 %."""
    optimizer = torch.optim.AdamW(parameters, learning_rate, betas=(0.9, 0.99), weight_decay=0, fused=True)
    started, total = time.monotonic(), torch.zeros((), device=parameters[0].device)
    for i in range(steps):
        fall = max(1 - max(i / steps - hold, 0) / (1 - hold), 0.01)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1, (i + 1) / warmup) * fall
        optimizer.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        total += value.detach()
        if (i + 1) % 100 == 0:
            mean = total.item() / 100
            speed = (i + 1) / (time.monotonic() - started)
            left = (steps - i - 1) / speed / 60
            log.info("%s: step %d of %d, loss %.4f, %.2f steps/s, %.1f min left", name, i + 1, steps, mean, speed, left)
            total.zero_()


def train_autoencoder(bank: Bank, *, steps: int, batch: int, seed: int, kl_weight: float = 2e-4) -> AutoencoderKL:
    """Squared and absolute error and a Kullback-Leibler term, per element; scaling_factor is set by `encode_bank`.

    Half of the crops are photos, in the mean, and half styled pictures.
    """
    torch.manual_seed(seed)
    device = bank["photo"].device
    rng, vae = np.random.default_rng(seed), embedded.build_autoencoder().to(device)
    kinds = ["photo", "loose", *SHIPPED]
    shares = [0.5, *[0.5 / (len(kinds) - 1)] * (len(kinds) - 1)]

    def loss() -> Tensor:
        counts = zip(kinds, rng.multinomial(batch, shares), strict=True)
        parts = [crops(bank[kind], rng.integers(len(bank[kind]), size=n), CROP, rng) for kind, n in counts if n]
        x = to_signed(torch.cat(parts))
        with torch.autocast(device.type, torch.bfloat16):
            mean, log_variance = vae.quant_conv(vae.encoder(x)).float().clamp(-20, 10).chunk(2, 1)
            z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
            error = vae.decoder(vae.post_quant_conv(z)).float() - x
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return error.square().mean() + 0.1 * error.abs().mean() + kl_weight * divergence

    optimise("autoencoder", list(vae.parameters()), loss, steps=steps, learning_rate=2e-3, warmup=100, hold=0)
    return vae.eval()


@torch.no_grad()
def encode_bank(vae: AutoencoderKL, bank: Bank) -> Bank:
    """Latents of photos and loose styles, of unit mean square; their factor goes into the configuration."""
    latents: Bank = {"kind": bank["kind"]}
    for kind in ("photo", "loose"):
        parts = [vae.encode(to_signed(x)).latent_dist.mean.half() for x in bank[kind].split(10)]
        latents[kind] = torch.cat(parts)
    scale = 1 / torch.stack([latents[kind].float().square().mean() for kind in ("photo", "loose")]).mean().sqrt().item()
    vae.register_to_config(scaling_factor=scale)
    return {kind: z if kind == "kind" else z * scale for kind, z in latents.items()}


def tokenize(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> Tensor:
    """Token ids (N, L), padded to the context length."""
    return tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt").input_ids


def denoising_loss(unet: UNet2DConditionModel, schedule: NoiseSchedule, z: Tensor, t: Tensor, cond: Tensor) -> Tensor:
    """Mean squared error of the predicted noise."""
    noise = torch.randn_like(z)
    z_t = schedule.add_noise(z, noise, t)
    with torch.autocast(z.device.type, torch.bfloat16):
        eps = unet(z_t, t, encoder_hidden_states=cond).sample
    return (eps.float() - noise).square().mean()


def train_base(
    latents: Bank, schedule: NoiseSchedule, *, steps: int, batch: int, seed: int
) -> tuple[UNet2DConditionModel, CLIPTextModel, CLIPTokenizer]:
    """U-Net and text encoder together; half photos, half loose styles, a tenth with the empty prompt."""
    torch.manual_seed(seed)
    device = latents["photo"].device
    rng, tokenizer = np.random.default_rng(seed), embedded.build_tokenizer()
    text, unet = embedded.build_text_encoder(len(tokenizer)).to(device), embedded.build_unet().to(device)
    unet = unet.to(memory_format=torch.channels_last)
    groups = list(embedded.PROMPTS.values())
    ids = tokenize(tokenizer, [prompt for group in groups for prompt in group]).to(device)
    first = np.cumsum([0, *map(len, groups)])
    timesteps = PowerTimesteps(t_max=999, power=1.8)  # denser at low noise, where a local style is decided
    kinds, count = latents["kind"].cpu().numpy(), len(latents["photo"])

    def loss() -> Tensor:
        index, loose = rng.integers(count, size=batch), rng.random(batch) < 0.5
        parts = [crops(latents[k], index[loose == (k == "loose")], LATENT_CROP, rng) for k in ("photo", "loose")]
        index = np.concatenate([index[~loose], index[loose]])
        group = np.where(np.sort(loose), kinds[index] + 1, 0)
        group = np.where(rng.random(batch) < 0.1, len(groups) - 1, group)
        prompt = torch.from_numpy(first[group] + (rng.random(batch) * (first[group + 1] - first[group])).astype(int))
        with torch.autocast(device.type, torch.bfloat16):
            cond = text(ids)[0]
        t = timesteps(torch.from_numpy(rng.random(batch))).to(device)
        return denoising_loss(unet, schedule, torch.cat(parts).float(), t, cond[prompt.to(device)])

    parameters = [*unet.parameters(), *text.parameters()]
    optimise("base", parameters, loss, steps=steps, learning_rate=1.2e-3, warmup=300, hold=0.5)
    return unet.eval(), text.eval(), tokenizer


def style_lora(base: Path, style: str, *, steps: int, rank: int, seed: int) -> StyleLora:
    """The training of one LoRA; the numbers are those of ``conf/tuned/style_lora/embedded.yaml``, but for a few.

    Its LoRAs are made to be distilled: loose pairs, a larger rate, larger crops, more steps, and less noise, which is
    where the distillation asks.
    """
    rate = GroupOptions(
        lr=2e-3, betas=(0.9, 0.99), eps=1e-8, clip_norm=1.0, schedule="cosine", horizon=1.05, warmup_steps=50
    )
    return StyleLora(
        teacher=load_stable_diffusion(base=str(base), gradient_checkpointing=False),
        lora=LoraOptions(rank=rank, alpha=rank, target_modules=embedded.LORA_TARGETS, merged=True, seed=seed),
        prompts=TriggerPrompts(trigger=f"{style} style", caption_dropout=0.2, prompt_dropout=0.1),
        timesteps=PowerTimesteps(t_min=5, t_max=399, power=1.7),
        loss=StyleLoss(min_snr_gamma=None, degraded_gamma=3.0),
        unet_options=rate,
        text_options=rate,
        steps=steps,
        seed=seed,
        held_out=HeldOutLoss(bands=(0, 50, 100, 200, 300, 400), draws=2, batch=16),
        samples=Samples(t0=300, steps=10),
    )


def train_style(args: argparse.Namespace, style: str, bank: Bank) -> dict[str, dict[str, float]]:
    """Train one LoRA and save it in half precision to ``loras/<style>.safetensors``.

    Returns:
        Held-out losses by band of t, of the base and of the style.
    """
    module = style_lora(args.out, style, steps=args.style_steps, rank=args.rank, seed=args.seed)
    alike = bank["kind"] == styles_of_base().index(style)
    data = StyleBank(
        bank[style],
        pairs=(bank["photo"][alike], bank["loose"][alike]),
        paired=PAIRED,
        resolution=2 * LATENT_CROP,
        margin=8,
        batch_size=args.style_batch,
        steps=args.style_steps,
        seed=args.seed,
    )
    fit_style_lora(module, data, precision=args.precision)
    save_style_lora(
        args.out / "loras" / f"{style}.safetensors",
        unet=module.teacher.unet,
        adapter_name=STYLE,
        format="diffusers",
        dtype=torch.float16,
        metadata={"modelspec.title": style, "modelspec.trigger_phrase": module.prompts.trigger},
    )
    bands = [f"{low}-{high}" for low, high in module.bands]
    ours, base = (dict(zip(bands, losses, strict=True)) for losses in module.held_out_losses())
    return {"base": base, "style": ours}


def save_base(
    out: Path, vae: AutoencoderKL, unet: UNet2DConditionModel, text: CLIPTextModel, tokenizer: CLIPTokenizer
) -> None:
    """The pipeline folder in half precision."""
    pipeline = StableDiffusionPipeline(
        vae=vae.cpu().half(),
        unet=unet.cpu().half(),
        text_encoder=text.cpu().half(),
        tokenizer=tokenizer,
        scheduler=embedded.build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(out)


def cached(path: Path, make: Callable[[], Bank]) -> Bank:
    """The tensors in `path`, made and stored first if the file is not there."""
    if not path.exists():
        partial = path.with_suffix(".part")
        torch.save(make(), partial)
        partial.replace(path)
    return torch.load(path, weights_only=True)


def styles_of(text: str) -> Iterator[str]:
    for style in text.split(","):
        if style not in SHIPPED:
            raise SystemExit(f"--styles: {style!r} is none of {', '.join(SHIPPED)}")
        yield style


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m smsff.teacher.recipe", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=embedded.ASSETS, help="folder of the finished teacher")
    parser.add_argument(
        "--work", type=Path, default=Path("outputs/teacher"), help="folder of bank, latents and figures"
    )
    parser.add_argument("--styles", default=",".join(SHIPPED), help="styles to train, separated by commas")
    parser.add_argument("--photos", type=Path, help="a folder of further photos, beside the bundled ones")
    parser.add_argument("--pictures", type=int, default=8000, help="pictures in the bank")
    parser.add_argument("--autoencoder-steps", type=int, default=3000)
    parser.add_argument("--autoencoder-batch", type=int, default=64)
    parser.add_argument("--base-steps", type=int, default=6000)
    parser.add_argument("--base-batch", type=int, default=96)
    parser.add_argument("--style-steps", type=int, default=1500)
    parser.add_argument("--style-batch", type=int, default=16)
    parser.add_argument("--rank", type=int, default=24, help="rank of the style LoRAs")
    parser.add_argument("--precision", default=PRECISION, choices=("32-true", "bf16-mixed"), help="of their training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU, and workers")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    make_teacher(args)


def make_base(args: argparse.Namespace, bank: Bank) -> None:
    """Auto-encoder, U-Net and text encoder, into the working folder."""
    vae = train_autoencoder(bank, steps=args.autoencoder_steps, batch=args.autoencoder_batch, seed=args.seed)
    latents = encode_bank(vae, bank)
    schedule = NoiseSchedule(scaled_linear_betas()).to(args.device)
    parts = train_base(latents, schedule, steps=args.base_steps, batch=args.base_batch, seed=args.seed)
    save_base(args.work / "base", vae, *parts)


def make_teacher(args: argparse.Namespace) -> None:
    """All stages in order; a stage whose output lies in the working folder is read from there."""
    wanted = list(styles_of(args.styles))
    photos = training_photos()
    if args.photos is not None:
        photos += [to_image(load_image(file)) for file in find_images(args.photos)]
    bank = cached(args.work / "bank.pt", lambda: make_bank(args.pictures, args.seed, photos, workers=args.threads))
    bank = {kind: y.to(args.device) for kind, y in bank.items()}
    if not (args.work / "base" / "unet").exists():
        make_base(args, bank)
    shutil.copytree(args.work / "base", args.out, dirs_exist_ok=True)
    figures = {}
    for style in wanted:
        figures[style] = train_style(args, style, bank)
        log.info("%s: held-out denoising loss by t: %s", style, figures[style])
        (args.work / "figures.json").write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
