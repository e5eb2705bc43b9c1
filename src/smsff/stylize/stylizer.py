"""Load an exported model and stylize pictures with it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from smsff.data.images import Picture, printable, read_picture
from smsff.errors import UserError
from smsff.generator import UNetGenerator
from smsff.generator.released import ENDING, load_released
from smsff.stylize import MAX_STRENGTH
from smsff.stylize.heap import kept
from smsff.stylize.model_files import CONFIG, WEIGHTS, Network, load_network
from smsff.stylize.onnx_network import ONNX, OnnxNetwork, load_onnx
from smsff.stylize.stages import in_stages
from smsff.stylize.tiles import in_tiles

TILE = 1024
"""Side of a tile in pixels for a network that is computed as one."""
STAGED_TILE = 4096
"""The same for the U-Net, which takes large pieces in stages: 1.6 GB, and 0.7 GB that stay between tiles."""
WHOLE = 512
"""Longest side in pixels of a piece that the U-Net takes in one go."""


class Stylizer:
    """A trained network as a function from picture to picture.

    Takes a file, a PIL image or a `Picture`, read by `read_picture`: the result is a PIL image (RGB or RGBA) or a
    `Picture` with the transparency and the metadata of the source. Or takes a tensor (B, 3, H, W), uint8 in [0, 255] or
    floating point RGB in [0, 1], and returns one of the same kind, shape and range. Pictures larger than a tile are
    computed in overlapping tiles, which gives the same result as computing them whole.

    Args:
        generator: UNetGenerator, ResNetGenerator, or either of them as an ONNX file.
        device: Where to compute; results come back to where the picture was.
        tile: Size of a tile in pixels, 0 for never. None: 4096 for the U-Net, 1024 for others that allow tiles.
        config: What config.json says about the model.

    Raises:
        UserError: For tiles with a network whose every pixel depends on the whole picture.
    """

    def __init__(
        self,
        generator: Network | OnnxNetwork,
        *,
        device: str | torch.device = "cpu",
        tile: int | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        self.device = torch.device(device)
        if isinstance(generator, OnnxNetwork) and self.device.type != "cpu":
            raise UserError(f"device={device}: ONNX models are computed on the CPU; take safetensors")
        self.generator: Network | OnnxNetwork = generator.to(device).eval()
        self.config = dict(config or {})
        radius = generator.receptive_radius
        if tile is not None and tile < 0:
            raise UserError(f"tile={tile} must be at least 0")
        if tile and radius is None:
            raise UserError(
                f"{type(generator).__name__} cannot work in tiles: a pixel depends on the whole picture, or the file "
                "does not say on how much of it"
            )
        if tile is None:
            tile = STAGED_TILE if isinstance(generator, UNetGenerator) else TILE if radius is not None else 0
        self.tile: int = tile
        self.halo: int = radius or 0
        self.multiple: int = generator.multiple

    def __call__(self, picture: Tensor | Picture | Image.Image | str | Path, *, strength: float = 1.0) -> Any:
        """Stylize one picture or a batch of tensors: x + strength * (G(x) - x), clamped.

        Raises:
            UserError: If the strength is not between 0 and 1.5, or the picture cannot be read.
        """
        if not 0 <= strength <= MAX_STRENGTH:
            raise UserError(f"strength={strength} must lie between 0 and {MAX_STRENGTH}")
        if isinstance(picture, (str, Path, Image.Image)):
            return self(read_picture(picture), strength=strength).to_pil()
        if isinstance(picture, Picture):
            return replace(picture, pixels=self(picture.pixels[None], strength=strength)[0])
        if picture.ndim != 4 or picture.shape[1] != 3 or 0 in picture.shape:
            raise ValueError(f"a picture must have shape (B, 3, H, W), got {tuple(picture.shape)}")
        if not (picture.dtype == torch.uint8 or picture.is_floating_point()):
            raise ValueError(f"a picture must be uint8 or floating point, got {picture.dtype}")
        run = partial(self._run, strength=strength)
        if self.tile == 0:
            return run(picture)
        size = (picture.shape[-2], picture.shape[-1])
        return in_tiles(run, [picture], size, tile=self.tile, halo=self.halo, multiple=self.multiple)

    @torch.inference_mode()
    def _run(self, picture: Tensor, *, strength: float) -> Tensor:
        as_bytes = picture.dtype == torch.uint8
        x = picture.to(self.device, torch.float32)
        x = x / 255 if as_bytes else x
        if isinstance(self.generator, UNetGenerator) and max(x.shape[-2:]) > WHOLE:
            with kept() if x.device.type == "cpu" else nullcontext():
                rgb = to_unit_range(partial(in_stages, self.generator), x)
        else:
            rgb = to_unit_range(self.generator, x)
        if strength != 1:
            rgb = torch.lerp(x, rgb, strength).clamp_(0, 1)
        return (rgb.mul_(255).round_() if as_bytes else rgb).to(picture.device, picture.dtype)


def to_unit_range(generator: Callable[[Tensor], Tensor], rgb: Tensor) -> Tensor:
    """The generator, whose range is [-1, 1], on RGB in [0, 1]; the result is clamped to [0, 1]."""
    if isinstance(generator, OnnxNetwork):  # its range is [0, 1]
        return generator(rgb).clamp(0, 1)
    out: Tensor = (generator(rgb * 2 - 1) * 0.5 + 0.5).clamp(0, 1)
    return out


def load_stylizer(folder: str | Path, *, device: str | torch.device = "cpu", tile: int | None = None) -> Stylizer:
    """Load what `export.py` wrote, safetensors or ONNX, or a released generator (.pth of CycleGAN, CUT or Scenimefy).

    Everything is checked before it is built, and nothing in it is run, so a model of a stranger is safe to load.
    UserError if a file is missing, unreadable or does not describe a network of smsff. `device`, `tile`: see
    `Stylizer`.
    """
    folder = Path(folder)
    where = printable(folder)
    if folder.is_file() and folder.suffix.lower() == ENDING:
        return Stylizer(load_released(folder, key="model"), device=device, tile=tile)
    if folder.is_file() and folder.suffix.lower() != ".onnx":
        raise UserError(
            f"{where}: only folders written by export.py and .onnx files are read as models; a checkpoint becomes one "
            f"with python export.py ckpt={where}"
        )
    onnx_file = folder if folder.is_file() else folder / ONNX
    if onnx_file.is_file() and not (folder / WEIGHTS).is_file():
        network = load_onnx(onnx_file)
        return Stylizer(network, device=device, tile=tile, config=network.description)
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).is_file():
            raise UserError(f"{where} is not an exported model: it has no {name}")
    generator, config = load_network(folder)
    return Stylizer(generator, device=device, tile=tile, config=config)
