"""The parts of the teacher that ships with the package: a Stable-Diffusion-format pipeline small enough for a laptop.

Every part is a stock class in the stock layout, so the folder `ASSETS` loads through the same code as SD 1.5. What
differs is size: an f = 2 auto-encoder with 8 latent channels, 3.7 M parameters of U-Net with attention at the lowest
level only, a text encoder of two layers and a tokenizer made for the words of `WORDS` (it spells all others).
The weights are made by `smsff.embedded.recipe`.
"""

from __future__ import annotations

import string
from pathlib import Path

from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

ASSETS = Path(__file__).parent.parent / "assets" / "teacher"
"""Folder of the bundled pipeline; the style LoRAs lie in ``loras/<style>.safetensors`` below it."""

LATENT_CHANNELS = 8
CONTEXT_LENGTH = 16
WORDS = [
    "a",
    "an",
    "the",
    "of",
    "in",
    "it",
    "into",
    "turn",
    "photo",
    "picture",
    "image",
    "drawing",
    "painting",
    "cel",
    "sketch",
    "pencil",
    "oil",
    "watercolour",
    "watercolor",
    "style",
    "toon",
    "ink",
    "colour",
    "photograph",
    "comic",
    "charcoal",
    "pastel",
]

PROMPTS: dict[str, tuple[str, ...]] = {
    "photo": ("a photo", "a photograph", "a picture"),
    "cel": ("a cel drawing", "turn it into a cel drawing"),
    "sketch": ("a pencil sketch", "turn it into a pencil sketch"),
    "oil": ("an oil painting", "turn it into an oil painting"),
    "watercolour": ("a watercolour painting", "turn it into a watercolour painting"),
    "ink": ("an ink drawing", "turn it into an ink drawing"),
    "comic": ("a comic drawing", "turn it into a comic drawing"),
    "charcoal": ("a charcoal drawing", "turn it into a charcoal drawing"),
    "pastel": ("a pastel painting", "turn it into a pastel painting"),
    "": ("",),
}
"""The prompts of a picture of each kind; "" is the empty prompt of guidance."""

LORA_TARGETS = [
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "conv1",
    "conv2",
    "conv_shortcut",
    "conv_in",
    "conv_out",
    "conv",
    "proj_in",
    "proj_out",
    "ff.net.0.proj",
    "ff.net.2",
    "time_emb_proj",
]
"""All linear and convolutional layers: a local style lives in the convolutions more than in the attention."""


def build_tokenizer() -> CLIPTokenizer:
    """A byte-pair tokenizer with the merges of `WORDS`: most of them are one token, any other word is a few."""
    letters = string.ascii_lowercase + string.digits + "-,.!'"
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        symbols = [*word[:-1], word[-1] + "</w>"]
        while len(symbols) > 1:
            pair = (symbols[0], symbols[1])
            if pair not in merges:
                merges.append(pair)
            symbols = ["".join(pair), *symbols[2:]]
            if symbols[0] not in tokens:
                tokens.append(symbols[0])
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CONTEXT_LENGTH, pad_token="<|endoftext|>")


def build_text_encoder(vocab_size: int) -> CLIPTextModel:
    """Two CLIP layers of width 64; the last two tokens of the vocabulary begin and end a prompt."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocab_size,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=CONTEXT_LENGTH,
            projection_dim=64,
            bos_token_id=vocab_size - 2,
            eos_token_id=vocab_size - 1,
            pad_token_id=vocab_size - 1,
        )
    )


def build_autoencoder() -> AutoencoderKL:
    """f = 2, 8 latent channels, no attention: RGB (B, 3, H, W) to latents (B, 8, H/2, W/2)."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=64,
    )


def build_unet() -> UNet2DConditionModel:
    """Three levels, cross-attention to the prompt on the lowest one."""
    return UNet2DConditionModel(
        sample_size=32,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        block_out_channels=(56, 80, 112),
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def build_scheduler() -> DDPMScheduler:
    """The noise schedule of SD 1.5."""
    return DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
