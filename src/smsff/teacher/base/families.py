"""The published shapes of Stable Diffusion 1.5, 2.1 and SDXL, and CLIP's tokenizer.

A checkpoint in one file has weights only; these are the configurations that belong to them. They also tell what a model
needs before any file of it is there.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer

from smsff.teacher.base.pipeline_config import Config, Family, PipelineConfig, complete_unet, complete_vae

_MERGES = Path(__file__).parents[2] / "assets" / "clip" / "merges.txt.gz"

_SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
}
_UNET = {
    "_class_name": "UNet2DConditionModel",
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "block_out_channels": [320, 640, 1280, 1280],
}
_VAE = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}


def family_config(family: Family) -> PipelineConfig:
    """Stable Diffusion 1.5, 2.1 (768, v prediction) or SDXL 1.0 as published."""
    return {"sd1": _sd1, "sd2": _sd2, "sdxl": _sdxl}[family]()


def clip_tokenizer(family: Family, encoder: int = 0) -> CLIPTokenizer:
    """CLIP's tokenizer with the padding token that text encoder number `encoder` of the family was trained with."""
    pad = "!" if family == "sd2" or encoder == 1 else "<|endoftext|>"
    lines = gzip.decompress(_MERGES.read_bytes()).decode("utf-8").splitlines()[1:]
    merges = [(first, second) for first, second in (line.split() for line in lines)]
    letters = list(_byte_letters())
    pieces = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77, pad_token=pad)


def _byte_letters() -> str:
    """The 256 printable characters that stand for bytes in byte-level tokenizers, in the order of CLIP's vocabulary:
    bytes that are printable themselves come first, the others follow as characters from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return "".join(map(chr, printable)) + "".join(chr(256 + i) for i in range(256 - len(printable)))


def _text(**settings: Any) -> Config:
    common = {"vocab_size": 49408, "max_position_embeddings": 77, "bos_token_id": 0, "pad_token_id": 1}
    # The published files all say 2 for the end token; CLIP then takes the largest id as the end of the prompt.
    return {"model_type": "clip_text_model", "eos_token_id": 2, **common, **settings}


def _clip_l() -> Config:
    return _text(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        hidden_act="quick_gelu",
        projection_dim=768,
    )


def _sd1() -> PipelineConfig:
    return PipelineConfig(
        unet=complete_unet({**_UNET, "sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}),
        vae=complete_vae({**_VAE, "sample_size": 512}),
        scheduler={**_SCHEDULER, "prediction_type": "epsilon"},
        text_encoders=(_clip_l(),),
    )


def _sd2() -> PipelineConfig:
    unet = {"sample_size": 96, "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20]}
    text = _text(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=23,  # one less than OpenCLIP's: the U-Net reads the last but one, normalised
        num_attention_heads=16,
        hidden_act="gelu",
        projection_dim=512,
    )
    return PipelineConfig(
        unet=complete_unet({**_UNET, **unet, "use_linear_projection": True, "upcast_attention": True}),
        vae=complete_vae({**_VAE, "sample_size": 768}),
        scheduler={**_SCHEDULER, "prediction_type": "v_prediction"},
        text_encoders=(text,),
    )


def _sdxl() -> PipelineConfig:
    unet = {
        "sample_size": 128,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [320, 640, 1280],
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }
    big = _text(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=20,
        hidden_act="gelu",
        projection_dim=1280,
    )
    return PipelineConfig(
        unet=complete_unet({**_UNET, **unet}),
        vae=complete_vae({**_VAE, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True}),
        scheduler={**_SCHEDULER, "prediction_type": "epsilon"},
        text_encoders=(_clip_l(), big),
        empty_is_zero=True,
    )
