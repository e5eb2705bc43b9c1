"""The files of the metrics' networks with random weights, and small folders of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import torch
from PIL import Image
from tiny_pipelines import build_tokenizer
from torch import Tensor, nn
from torchvision.models import alexnet, inception_v3
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel


def _lively(network: nn.Module) -> dict[str, Tensor]:
    """Random weights under which the last features still depend on the picture."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return network.state_dict()


def write_alexnet(path: Path) -> Path:
    """torchvision's names, without the layers that LPIPS has no use for."""
    with mock.patch("torch.nn.Linear", side_effect=lambda *_: nn.Identity()):
        state = _lively(alexnet(weights=None))
    torch.save({name: value for name, value in state.items() if name.startswith("features.")}, path)
    return path


def write_art_inception(path: Path) -> Path:
    """With one of the auxiliary tensors that the published file has too."""
    state = _lively(inception_v3(weights=None, aux_logits=False, init_weights=False))
    state = {name: value for name, value in state.items() if not name.startswith("fc.")}
    torch.save({**state, "AuxLogits1.conv0.conv.weight": torch.zeros(128, 768, 1, 1)}, path)
    return path


def write_reference_inception(path: Path) -> Path:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    with mock.patch.object(FeatureExtractorInceptionV3, "load_state_dict"), mock.patch("torch.load"):
        network = FeatureExtractorInceptionV3("random", ["2048"], feature_extractor_weights_path="none")
    torch.save(_lively(network), path)
    return path


def write_clip(folder: Path, *, seed: int = 0) -> Path:
    """A CLIP model of two small towers in transformers' layout, for pictures of 32 pixels."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(77)
    last = len(tokenizer) - 1
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": len(tokenizer), "bos_token_id": last - 1, "eos_token_id": last, "pad_token_id": last}
    config = CLIPConfig(
        text_config={**tower, **text, "max_position_embeddings": 77},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPImageProcessor(**sizes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def random_picture(key: int, *, height: int = 80, width: int = 88) -> Tensor:
    """Smooth random colours, (3, H, W) uint8."""
    generator = torch.Generator().manual_seed(key)
    coarse = torch.rand(1, 3, 6, 6, generator=generator)
    smooth = nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)[0]
    return (smooth * 255).byte()


def write_pictures(folder: Path, names: Sequence[str], *, first: int = 0, height: int = 80, width: int = 88) -> Path:
    """One random picture a name."""
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        array = random_picture(first + i, height=height, width=width).permute(1, 2, 0).contiguous().numpy()
        Image.fromarray(array).save(path)
    return folder
