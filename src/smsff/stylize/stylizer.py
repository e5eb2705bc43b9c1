"""Load an exported model and stylize pictures with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeAlias

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from smsff.errors import UserError
from smsff.generator import ResNetGenerator, UNetGenerator
from smsff.stylize.tiles import in_tiles

WEIGHTS, CONFIG = "model.safetensors", "config.json"
TILE = 1024
Network: TypeAlias = UNetGenerator | ResNetGenerator
NETWORKS: dict[str, type[Network]] = {network.__name__: network for network in (UNetGenerator, ResNetGenerator)}


class Stylizer:
    """A trained network as a function from picture to picture.

    Takes a PIL image and returns one, or a tensor (B, 3, H, W): uint8 in [0, 255], or floating point RGB in [0, 1]; the
    result has the same kind, shape and range. Pictures larger than a tile are computed in overlapping tiles, which
    gives the same result as computing them whole.

    Args:
        generator: UNetGenerator or ResNetGenerator.
        device: Where to compute; results come back to where the picture was.
        tile: Size of a tile in pixels, 0 for never. None: 1024 if the network allows tiles.
        config: What config.json says about the model.

    Raises:
        UserError: For tiles with a network whose every pixel depends on the whole picture.
    """

    def __init__(
        self,
        generator: Network,
        *,
        device: str | torch.device = "cpu",
        tile: int | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        self.generator: Network = generator.to(device).eval()
        self.device = torch.device(device)
        self.config = dict(config or {})
        radius = generator.receptive_radius
        if tile is not None and tile < 0:
            raise UserError(f"tile={tile} must be at least 0")
        if tile and radius is None:
            raise UserError(
                f"{type(generator).__name__} cannot work in tiles: its instance norm depends on the whole picture"
            )
        self.tile = (TILE if radius is not None else 0) if tile is None else tile
        self.halo: int = radius or 0
        self.multiple: int = generator.multiple

    def __call__(self, picture: Tensor | Image.Image) -> Any:
        """Stylize one PIL image or a batch of tensors; returns the same kind."""
        if isinstance(picture, Image.Image):
            pixels = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
            stylized = self(pixels.view(1, picture.height, picture.width, 3).permute(0, 3, 1, 2))
            return Image.fromarray(stylized[0].permute(1, 2, 0).contiguous().numpy())
        if picture.ndim != 4 or picture.shape[1] != 3 or 0 in picture.shape:
            raise ValueError(f"a picture must have shape (B, 3, H, W), got {tuple(picture.shape)}")
        if not (picture.dtype == torch.uint8 or picture.is_floating_point()):
            raise ValueError(f"a picture must be uint8 or floating point, got {picture.dtype}")
        if self.tile == 0:
            return self._run(picture)
        return in_tiles(self._run, picture, tile=self.tile, halo=self.halo, multiple=self.multiple)

    @torch.inference_mode()
    def _run(self, picture: Tensor) -> Tensor:
        as_bytes = picture.dtype == torch.uint8
        x = picture.to(self.device, torch.float32)
        rgb = to_unit_range(self.generator, x / 255 if as_bytes else x)
        return (rgb.mul_(255).round_() if as_bytes else rgb).to(picture.device, picture.dtype)


def to_unit_range(generator: nn.Module, rgb: Tensor) -> Tensor:
    """The generator, which lives in [-1, 1], on RGB in [0, 1]; the result is clamped to [0, 1]."""
    out: Tensor = (generator(rgb * 2 - 1) * 0.5 + 0.5).clamp(0, 1)
    return out


def build_generator(name: str, config: dict[str, Any], *, source: str) -> Network:
    """The network `name` with constructor arguments `config`, as stored in a file named `source`.

    Raises:
        UserError: If there is no such network or it does not take these arguments.
    """
    if name not in NETWORKS:
        raise UserError(f"{source}: {name!r} is not one of the networks {', '.join(NETWORKS)}")
    try:
        network: Network = NETWORKS[name](**config)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{source}: {name} cannot be built from {config}: {error}") from error
    return network


def load_weights(generator: Network, state: dict[str, Tensor], *, source: str) -> Network:
    """Fill the network; in evaluation mode, float32.

    Raises:
        UserError: If names or shapes do not match.
    """
    try:
        generator.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()
        raise UserError(f"{source}: the weights do not fit the network: {' '.join(reason[1:2]).strip()}") from error
    return generator.float().eval()


def load_stylizer(folder: str | Path, *, device: str | torch.device = "cpu", tile: int | None = None) -> Stylizer:
    """Load a folder written by `export.py` (model.safetensors and config.json).

    Args:
        folder: The folder.
        device, tile: See `Stylizer`.

    Raises:
        UserError: If a file is missing, unreadable or does not describe a network.
    """
    folder = Path(folder)
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is not an exported model: it has no {name}")
    source = str(folder / CONFIG)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        network = config["generator"]
        name, arguments = network["name"], network["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{source}: not the description of an exported model ({error})") from error
    generator = build_generator(name, arguments, source=source)
    try:
        state = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder / WEIGHTS}: cannot be read: {error}") from error
    return Stylizer(
        load_weights(generator, state, source=str(folder / WEIGHTS)), device=device, tile=tile, config=config
    )
