"""Weights of the baselines at a twentieth of their width, with random values, in the published formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from smsff.teacher.stable_diffusion import StableDiffusionTeacher, load_stable_diffusion

AS_PUBLISHED = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "leading"}
"""What the schedulers of Stable Diffusion and SDXL say of their timesteps."""
Teacher = Callable[..., StableDiffusionTeacher]
IMAGE_EMBEDDING = 20


def randomise(network: nn.Module) -> None:
    """Noise on all weights, so that nothing that begins as zero stays without effect."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)


@pytest.fixture(scope="session")
def teacher(family_pipeline: Callable[..., Path]) -> Teacher:
    """``teacher("sd1" | "sdxl", **arguments of the loader)``; without arguments the same one for all tests."""
    loaded: dict[str, StableDiffusionTeacher] = {}

    def load(family: str, **arguments: Any) -> StableDiffusionTeacher:
        if arguments or family not in loaded:
            made = load_stable_diffusion(base=str(family_pipeline(family)), **arguments)
            return made if arguments else loaded.setdefault(family, made)
        return loaded[family]

    return load


@pytest.fixture(scope="session")
def controlnet(family_pipeline: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``controlnet("sd1" | "sdxl")``: the folder of a ControlNet of this family."""

    def folder(family: str) -> Path:
        unet = UNet2DConditionModel.from_pretrained(family_pipeline(family), subfolder="unet")
        with torch.random.fork_rng():
            torch.manual_seed(1)
            network = ControlNetModel.from_unet(unet)
            randomise(network)
        path = tmp_path_factory.mktemp("controlnet")
        network.save_pretrained(path)
        return path

    return folder


@pytest.fixture(scope="session")
def image_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the encoder lies as in the repository of the IP-Adapters."""
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        projection_dim=IMAGE_EMBEDDING,
    )
    path = tmp_path_factory.mktemp("ip")
    CLIPVisionModelWithProjection(config).save_pretrained(path / "models" / "image_encoder")
    return path


@pytest.fixture(scope="session")
def ip_adapter(family_pipeline: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of an IP-Adapter for the tiny SDXL."""
    unet = UNet2DConditionModel.from_pretrained(family_pipeline("sdxl"), subfolder="unet")
    width = unet.config.cross_attention_dim
    generator = torch.Generator().manual_seed(2)

    def normal(*shape: int) -> Tensor:
        return 0.3 * torch.randn(shape, generator=generator)

    tensors = {
        "image_proj.proj.weight": normal(4 * width, IMAGE_EMBEDDING),
        "image_proj.proj.bias": normal(4 * width),
        "image_proj.norm.weight": 1 + normal(width),
        "image_proj.norm.bias": normal(width),
    }
    crossed = [name for name in unet.attn_processors if ".attn2." in name]
    for index, name in enumerate(crossed):
        inner = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        for part in ("to_k_ip", "to_v_ip"):
            tensors[f"ip_adapter.{2 * index + 1}.{part}.weight"] = normal(inner, width)
    path = tmp_path_factory.mktemp("adapter") / "ip-adapter.safetensors"
    save_file(tensors, path)
    return path


def photos(batch: int, height: int, width: int, *, seed: int = 0) -> Tensor:
    """Smooth pictures (B, 3, H, W) in [0, 1]."""
    small = torch.rand(batch, 3, 5, 7, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(small, (height, width), mode="bicubic").clamp(0, 1)
