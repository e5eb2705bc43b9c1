"""LPIPS (Zhang et al. 2018), version 0.1 on AlexNet, by the authors' package."""

from __future__ import annotations

import warnings
from pathlib import Path

from torch import Tensor, nn

from smsff.errors import UserError
from smsff.metrics.inception import load_weights

MIN_SIDE = 32
SLICES = {0: "slice1", 3: "slice2", 6: "slice3", 8: "slice4", 10: "slice5"}
"""Convolution of torchvision's AlexNet -> part of the package's network."""


class Perceptual(nn.Module):
    """Distance between two pictures (B, 3, H, W) in [0, 1] of one size, shape (B,); 0 for equal ones.

    The pictures are mapped to [-1, 1] and not resized. The package brings the weights of its linear layers; those of
    AlexNet come from `path`, because the package would download them.

    Raises:
        UserError: the package lpips is not installed, or the file holds no AlexNet.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            import lpips
        except ModuleNotFoundError as error:
            raise UserError("lpips and artfid need the package lpips: pip install 'smsff[metrics]'") from error
        state = load_weights(path)
        with warnings.catch_warnings():  # the package builds its AlexNet by arguments that torchvision has given up
            warnings.simplefilter("ignore")
            self.network = lpips.LPIPS(net="alex", version="0.1", pnet_rand=True, verbose=False)
        trunk = {}
        for layer, part in SLICES.items():
            for name in ("weight", "bias"):
                if f"features.{layer}.{name}" not in state:
                    raise UserError(f"{path}: is no AlexNet of torchvision, it lacks features.{layer}.{name}")
                trunk[f"{part}.{layer}.{name}"] = state[f"features.{layer}.{name}"]
        try:
            self.network.net.load_state_dict(trunk)
        except RuntimeError as error:
            raise UserError(f"{path}: is no AlexNet of torchvision: {str(error).splitlines()[-1].strip()}") from error
        self.eval().requires_grad_(False)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        distance: Tensor = self.network(2 * y - 1, 2 * x - 1)
        return distance.flatten()
