"""The pictures of a style as training batches: buckets, degraded inputs, class pictures, and what is held out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from smsff.data.datamodule import (
    BatchDraws,
    Draw,
    ImageDataModule,
    ResumableLoader,
    WholeImages,
    batches_done,
    collate,
    image_index,
)
from smsff.data.folder import BUNDLED, ImageFolder
from smsff.data.images import printable
from smsff.randomness import keyed_generator, keyed_rand, keyed_seed
from smsff.style_lora.buckets import Buckets, bucket_shapes, other_picture, window
from smsff.style_lora.degrade import degrade

log = logging.getLogger(__name__)

OWN_PIXELS = (0.01, 0.01)
"""`window`'s scale for foreign texture: as fine as the photo has it."""


@dataclass(frozen=True, kw_only=True)
class Degraded:
    """The share of the samples whose input is made to look like a photo.

    A LoRA that has only seen its style has nothing to say about photos: there img2img and distillation begin. A large
    base that has learnt what photos and styles have in common needs none of this, a small one does.
    """

    share: float = 0.0
    texture_root: str | None = None
    tones: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Prior:
    """Prior preservation (Ruiz et al. 2023): pictures of the same class without the style, to be denoised as before."""

    root: str | None = None
    caption: str = "a photo"


class StyleCrops(Dataset[dict[str, Any]]):
    """Training samples by draw: everything about one is a pure function of (seed, iteration, position)."""

    def __init__(
        self,
        folder: ImageFolder,
        buckets: Buckets,
        *,
        scale: tuple[float, float],
        flip: bool,
        seed: int,
        global_batch: int,
        degraded: Degraded = Degraded(),
        textures: ImageFolder | None = None,
        prior: ImageFolder | None = None,
        margin: int = 0,
    ) -> None:
        """
        Args:
            folder: The styled pictures, in the order of the buckets' sizes.
            scale, flip: As in `window`.
            textures: Photos of other scenes; needed if any sample is degraded.
        """
        self.folder, self.buckets, self.scale, self.flip = folder, buckets, scale, flip
        self.seed, self.global_batch = seed, global_batch
        self.degraded, self.textures = degraded, textures
        self.prior, self.margin = prior, margin

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        wanted, (height, width) = self.buckets.draw(*draw, self.global_batch)
        shape = (height + 2 * self.margin, width + 2 * self.margin)
        picture, index, unreadable = self.folder.load_or_next(wanted)
        image = window(
            picture, shape, scale=self.scale, flip=self.flip, generator=keyed_generator(self.seed, "crop", *draw)
        )
        degraded = float(keyed_rand(self.seed, "degraded", draw[0], [draw[1]])) < self.degraded.share
        sample = {
            "image": image,
            "input": self._degrade(image, draw) if degraded else image,
            "degraded": degraded,
            "margin": self.margin,
            "caption": self.folder.captions[index],
            "index": index,
            "draw": draw,
            "unreadable": unreadable,
        }
        return sample if self.prior is None else {**sample, **self._class_picture(self.prior, draw, shape)}

    def _degrade(self, image: Tensor, draw: Draw) -> Tensor:
        """The picture (3, H, W) in [-1, 1] made to look like a photo."""
        assert self.textures is not None
        other = other_picture(self.seed, "texture", *draw, len(self.textures))
        photo, _, _ = self.textures.load_or_next(other)
        generator = keyed_generator(self.seed, "texture crop", *draw)
        height, width = image.shape[1:]
        texture = window(photo, (height, width), scale=OWN_PIXELS, flip=True, generator=generator)
        rng = np.random.default_rng(keyed_seed(self.seed, "degrade", *draw))
        return 2 * degrade((image[None] + 1) / 2, (texture[None] + 1) / 2, rng, tones=self.degraded.tones)[0] - 1

    def _class_picture(self, prior: ImageFolder, draw: Draw, shape: tuple[int, int]) -> dict[str, Any]:
        wanted = image_index(draw, seed=self.seed + 1, count=len(prior), global_batch=self.global_batch)
        picture, index, _ = prior.load_or_next(wanted)
        generator = keyed_generator(self.seed, "prior crop", *draw)
        image = window(picture, shape, scale=self.scale, flip=self.flip, generator=generator)
        return {"prior_image": image, "prior_caption": prior.captions[index]}


class HeldOut(Dataset[dict[str, Any]]):
    """The middle of each held-out picture in the shape of its bucket, one at a time."""

    def __init__(
        self, folder: ImageFolder, buckets: Buckets, *, scale: tuple[float, float], count: int, margin: int = 0
    ) -> None:
        self.folder, self.buckets, self.scale, self.margin = folder, buckets, scale, margin
        self.count = min(count, len(folder))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, wanted: int) -> dict[str, Any]:
        picture, index, unreadable = self.folder.load_or_next(wanted)
        height, width = self.buckets.shape(wanted)
        shape = (height + 2 * self.margin, width + 2 * self.margin)
        return {
            "image": window(picture, shape, scale=self.scale, flip=False, generator=None)[None],
            "caption": [self.folder.captions[index]],
            "name": [self.folder.name(index)],
            "held_out": wanted,
            "margin": self.margin,
            "unreadable": unreadable,
        }


def collate_style(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Training samples to one batch, as described in `StylePictures`."""
    batch = collate(samples)
    batch["input"] = torch.stack([sample["input"] for sample in samples])
    batch["degraded"] = torch.tensor([sample["degraded"] for sample in samples])
    batch["margin"] = samples[0]["margin"]
    if "prior_image" in samples[0]:
        batch["prior_image"] = torch.stack([sample["prior_image"] for sample in samples])
        batch["prior_caption"] = [sample["prior_caption"] for sample in samples]
    return batch


class StylePictures(ImageDataModule):
    """A folder of pictures in one style, in batches of one shape.

    Training batches are those of `ImageDataModule`, of (B, 3, H, W) with the H and W of the iteration's bucket, and
    also hold ``input`` (B, 3, H, W), the picture the noise is added to; ``degraded`` (B,) bool, where it differs from
    ``image``; ``margin``, by which all pictures are larger on each side; and with class pictures ``prior_image``
    (B, 3, H, W) and ``prior_caption``. Validation has two loaders: held-out pictures of the style (a batch also holds
    ``held_out``, its number, and ``margin``), and photos to stylize; each batch is one picture.
    """

    def __init__(
        self,
        *,
        root: str,
        resolution: int,
        stride: int,
        max_aspect: float = 2.0,
        margin: int = 0,
        batch_size: int,
        steps: int,
        num_workers: int = 0,
        val_fraction: float = 0.1,
        default_caption: str = "",
        flip: bool = True,
        scale: Sequence[float] = (1.0, 1.0),
        degraded: Degraded = Degraded(),
        prior: Prior = Prior(),
        photos: str | None = None,
        max_photos: int = 4,
        max_held_out: int = 32,
        seed: int = 0,
        cache_mb: float = 512,
        val_max_side: int = 512,
    ) -> None:
        """Scan the folders; the arguments are the keys of ``data`` with ``task=style_lora`` (docs/reference/keys.md).

        ``margin`` is for small windows: the encoder fills the border of a picture with zeros, and much of what is
        trained on would be border. A multiple of the encoder's stride.

        Raises:
            UserError: For a resolution that is no multiple of the stride, or a folder without images; names the key.
        """
        shapes = bucket_shapes(resolution=resolution, stride=stride, max_aspect=max_aspect)
        super().__init__(
            root=root,
            crop_size=1,  # `window` cuts; small pictures are counted below
            batch_size=batch_size,
            steps=steps,
            num_workers=num_workers,
            val_fraction=val_fraction,
            default_caption=default_caption,
            flip=flip,
            scale=scale,
            seed=seed,
            cache_mb=cache_mb,
            val_max_side=val_max_side,
        )
        self.margin, sizes = margin, self.train.sizes
        self.buckets = Buckets(sizes, shapes, seed=seed)
        self._warn_of_small(sizes, resolution)
        self.degraded, self.textures = degraded, None
        if degraded.share:
            folder = degraded.texture_root or BUNDLED / "textures"
            self.textures = ImageFolder(folder, default_caption="", key="data.degraded.texture_root")
        self.prior = None
        if prior.root is not None:
            self.prior = ImageFolder(prior.root, default_caption=prior.caption, key="data.prior.root")
            self._note_folder(self.prior)
        folder = photos or BUNDLED / "val"
        self.photos = ImageFolder(folder, default_caption=default_caption, key="data.photos")
        self.photos = self.photos.subset(range(min(max_photos, len(self.photos))))
        self.held_out = None
        if len(self.val):
            buckets = Buckets(self.val.sizes, shapes, seed=seed)
            self.held_out = HeldOut(self.val, buckets, scale=self.scale, count=max_held_out, margin=margin)

    @rank_zero_only
    def _warn_of_small(self, sizes: Sequence[tuple[int, int]], resolution: int) -> None:
        shapes = map(self.buckets.shape, range(len(sizes)))
        small = sum(w < shape[1] and h < shape[0] for (w, h), shape in zip(sizes, shapes, strict=True))
        if small:
            log.warning("data.resolution=%d: %d pictures have fewer pixels and are enlarged", resolution, small)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            for folder in (self.textures, self.prior):
                if folder is not None:
                    self._note(folder.cache(self.cache_mb), same_everywhere=True)

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        trainer = self.trainer
        rank, processes = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        batches = self.steps * (trainer.accumulate_grad_batches if trainer else 1)
        crops = StyleCrops(
            self.train,
            self.buckets,
            scale=self.scale,
            flip=self.flip,
            seed=self.seed,
            global_batch=processes * self.batch_size,
            degraded=self.degraded,
            textures=self.textures,
            prior=self.prior,
            margin=self.margin,
        )
        draws = BatchDraws(
            batch_size=self.batch_size, batches=batches, rank=rank, start=partial(batches_done, self.trainer)
        )
        return ResumableLoader(crops, batch_sampler=draws, **self._loader_options(), collate_fn=collate_style)

    def val_dataloader(self) -> list[DataLoader[dict[str, Any]]]:
        photos = WholeImages(self.photos, max_side=self.val_max_side)
        pictures = [] if self.held_out is None else [self.held_out]
        return [DataLoader(d, batch_size=None, **self._loader_options()) for d in (*pictures, photos)]

    def captions(self) -> list[str]:
        """The distinct captions of the style's pictures, sorted."""
        return sorted({*self.train.captions, *self.val.captions})

    def prior_captions(self) -> list[str]:
        """The distinct captions of the class pictures, sorted."""
        return sorted(set(self.prior.captions)) if self.prior is not None else []

    def overview(self) -> str:
        if self.prior is None:
            return super().overview()
        count = len(self.prior)
        own = f"{sum(self.prior.captioned)} with captions of their own"
        return f"{super().overview()}; {printable(self.prior.root)}: {count} class pictures, {own}"

    def summary(self) -> dict[str, int]:
        """Counts for the summary of a run."""
        own = {"buckets": len(self.buckets.shapes), "prior_images": 0 if self.prior is None else len(self.prior)}
        return {**super().summary(), **own}
