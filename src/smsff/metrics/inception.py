"""The two Inception-v3 networks whose features FID, KID and ArtFID compare; both give (B, 2048) float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import inception_v3

from smsff.errors import UserError, first_line

WIDTH = 2048
MIN_SIDE = 75
"""The art network is not fed a resized picture, and its smallest input has this many pixels a side."""


def load_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from a .pth file, without running anything that is in it.

    Raises:
        UserError: the file is damaged, or holds something other than tensors.
    """
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of untrusted bytes anything comes out
        raise UserError(f"{path}: cannot be read as weights ({first_line(error, at_most=120)})") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: expected a state dict, names and tensors")
    return state


class ArtInception(nn.Module):
    """Inception-v3 trained on art (Wright & Ommer 2022), for ArtFID.

    The picture (B, 3, H, W) goes in as it is: [0, 1], no normalisation, no resize, at least `MIN_SIDE` pixels a side.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.trunk = inception_v3(weights=None, aux_logits=False, transform_input=False, init_weights=False)
        self.trunk.fc = nn.Identity()
        state, own = load_weights(path), self.trunk.state_dict()
        wanted = sorted(name for name in own if not name.endswith("num_batches_tracked"))
        if wrong := [name for name in wanted if name not in state or state[name].shape != own[name].shape]:
            raise UserError(f"{path}: is no Inception-v3: {wrong[0]} is missing or has another shape")
        # beside the trunk the file holds two auxiliary branches, which no feature goes through
        self.trunk.load_state_dict({name: state.get(name, own[name]) for name in own})
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.trunk(x)
        return features


class ReferenceInception(nn.Module):
    """The network of the original FID (2015-12-05), as in torch-fidelity.

    The picture (B, 3, H, W) in [0, 1] is rounded to 8 bits and resized to 299 x 299, bilinear without antialiasing as
    in TensorFlow 1 (the aspect ratio is not kept), then mapped to [-1, 1).
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ModuleNotFoundError as error:
            raise UserError("fid and kid need the package torch-fidelity: pip install 'smsff[metrics]'") from error
        load_weights(path)  # torch-fidelity reads the file without protection
        try:
            self.network = FeatureExtractorInceptionV3("fid", ["2048"], feature_extractor_weights_path=str(path))
        except RuntimeError as error:
            raise UserError(
                f"{path}: is not the Inception-v3 of FID ({str(error).splitlines()[-1].strip()})"
            ) from error

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.network((x.clamp(0, 1) * 255).round().byte())[0]
        return features
