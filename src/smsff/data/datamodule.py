"""The photos of a run: which image comes when, and with which crop, is a function of (seed, iteration, position).

``iteration`` counts micro-batches from the start of the training, ``position`` counts samples within the global batch
(all processes together). So workers, processes and resuming change nothing; see ``smsff.randomness``.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from smsff.data.captions import warn_each
from smsff.data.crops import random_window, shrink_to, to_signed
from smsff.data.fingerprint import DataState, compare, fingerprint
from smsff.data.folder import BUNDLED, ImageFolder, split_by_name
from smsff.data.images import MAX_PIXELS, describe_others, printable
from smsff.errors import UserError
from smsff.randomness import keyed_generator

log = logging.getLogger(__name__)

Draw = tuple[int, int]
"""One sample of the training: (iteration, position in the global batch)"""


@lru_cache(maxsize=4)
def epoch_order(seed: int, count: int, epoch: int) -> Tensor:
    """A permutation of ``count`` images for one pass through the data, (count,) long."""
    return torch.randperm(count, generator=keyed_generator(seed, "order", epoch, 0))


def image_index(draw: Draw, *, seed: int, count: int, global_batch: int) -> int:
    """The image of one draw: every image comes once in each pass of ``count`` draws, in an order of that pass."""
    epoch, place = divmod(draw[0] * global_batch + draw[1], count)
    return int(epoch_order(seed, count, epoch)[place])


class BatchDraws(Sampler[list[Draw]]):
    """The draws of one process, a batch at a time: rank r of N has positions r * b .. (r + 1) * b - 1 of N * b."""

    def __init__(self, *, batch_size: int, batches: int, rank: int, start: Callable[[], int] = lambda: 0) -> None:
        """
        Args:
            batches: Length of one pass of the training loop, which is what ``len`` says also after resuming.
            start: Gives the first iteration; called when the loop begins, for a loader is built before Lightning has
                restored its counters.
        """
        self.batch_size, self.batches, self.rank, self.start = batch_size, batches, rank, start

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[Draw]]:
        first = self.start()
        positions = range(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        for iteration in range(first, (first // self.batches + 1) * self.batches):
            yield [(iteration, position) for position in positions]


class TrainingCrops(Dataset[dict[str, Any]]):
    """Samples by draw; `window` are the options of `random_window`."""

    def __init__(self, folder: ImageFolder, window: dict[str, Any], *, seed: int, global_batch: int) -> None:
        self.folder, self.window, self.seed, self.global_batch = folder, window, seed, global_batch

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        wanted = image_index(draw, seed=self.seed, count=len(self.folder), global_batch=self.global_batch)
        image, index, unreadable = self.folder.load_or_next(wanted)
        window = random_window(image, **self.window, generator=keyed_generator(self.seed, "crop", *draw))
        return {
            "image": window.cut(image, self.window["size"]),
            "caption": self.folder.captions[index],
            "index": index,
            "draw": draw,
            "unreadable": unreadable,
        }


class WholeImages(Dataset[dict[str, Any]]):
    """Whole images for validation and test, scaled down if they are larger than ``max_side``."""

    def __init__(self, folder: ImageFolder, *, max_side: int) -> None:
        self.folder, self.max_side = folder, max_side

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, wanted: int) -> dict[str, Any]:
        image, index, unreadable = self.folder.load_or_next(wanted)
        return {
            "image": to_signed(shrink_to(image, self.max_side))[None],
            "caption": [self.folder.captions[index]],
            "name": [self.folder.name(index)],
            "unreadable": unreadable,
        }


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Training samples to one batch, as described in ``ImageDataModule``."""
    unreadable: dict[str, str] = {}
    for sample in samples:
        unreadable.update(sample["unreadable"])
    return {
        "image": torch.stack([sample["image"] for sample in samples]),
        "caption": [sample["caption"] for sample in samples],
        "index": torch.tensor([sample["index"] for sample in samples]),
        "position": torch.tensor([sample["draw"][1] for sample in samples]),
        "iteration": torch.tensor([sample["draw"][0] for sample in samples]),
        "unreadable": unreadable,
    }


def end_with(parent: int, worker: int) -> None:
    """In a loader process at its start: end if the training is gone already. torch looks after that from then on.

    Slurm sends SIGTERM to every process of a job; the loader's have to serve the training until it has saved.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.getppid() != parent:
        os._exit(1)


def batches_done(trainer: Trainer | None) -> int:
    """Micro-batches the training has behind it, over all epochs: restored from a checkpoint by Lightning.

    ``processed``, because ``completed`` is one short in a checkpoint saved at the end of a batch.
    """
    if trainer is None:
        return 0
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress
    return int(progress.total.processed)


class ResumableLoader(DataLoader[dict[str, Any]]):
    """Tells Lightning that it can resume. There is nothing to save: the draws follow from the loop's own counter."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class ImageDataModule(LightningDataModule):
    """Photos of a folder (or the bundled ones): random crops to train on, whole images to look at.

    Training batches: ``image`` (B, 3, S, S) float32 in [-1, 1]; ``caption`` B strings; ``index`` (B,) long, index of
    the image in ``train``; ``position`` (B,) long, position in the global batch; ``iteration`` (B,) long, the
    micro-batch counted from the start of the training.
    Validation and test batches hold one whole image: ``image`` (1, 3, H, W), ``caption`` [string], ``name`` [string].

    The trainer must have ``use_distributed_sampler=False``; every process validates on all images.

    Attributes:
        train, val, test: The three ``ImageFolder``s; ``val`` and ``test`` may be empty. ``test`` is ``val`` for a
            folder of one's own; the bundled photos have test photos apart.
        unreadable: Reason by name of every image that could not be read so far.
        bad_captions: The same of captions and of other files that are not read, by file and line.
        found: Images that there are, those that cannot be read included.
    """

    def __init__(
        self,
        *,
        root: str | None = None,
        crop_size: int,
        batch_size: int,
        steps: int,
        num_workers: int = 0,
        val_fraction: float = 0.05,
        default_caption: str = "",
        flip: bool = True,
        scale: Sequence[float] = (0.5, 1.0),
        enlarge: float = 1.0,
        seed: int = 0,
        cache_mb: float = 512,
        val_max_side: int = 1024,
        max_pixels: int = MAX_PIXELS,
        max_unreadable_share: float = 0.1,
        worker_timeout: float = 600,
    ) -> None:
        """Scan the folder; the arguments are the keys of ``data`` (docs/reference/keys.md).

        The loader is one long epoch of ``steps`` batches, times the trainer's ``accumulate_grad_batches``.

        Raises:
            UserError: For a folder without images, or with too many that cannot be read; names the key.
        """
        super().__init__()
        self.crop_size, self.batch_size, self.steps, self.num_workers = crop_size, batch_size, steps, num_workers
        self.flip, self.scale, self.enlarge, self.seed = flip, (float(scale[0]), float(scale[1])), enlarge, seed
        self.cache_mb, self.val_max_side = cache_mb, val_max_side
        self.max_unreadable_share, self.worker_timeout = max_unreadable_share, worker_timeout
        self.root, self.default_caption, self.found = root, default_caption, 0
        self.bad_captions: dict[str, str] = {}
        self.unreadable: dict[str, str] = {}
        self._state: DataState | None = None
        if root is None:
            parts = [ImageFolder(BUNDLED / part, default_caption=default_caption) for part in ("train", "val", "test")]
            self.train, self.val, self.test = parts
            self.found = sum(map(len, parts))
        else:
            folder = ImageFolder(root, default_caption=default_caption, max_pixels=max_pixels)
            names = [folder.name(i) for i in range(len(folder))]
            train, val = split_by_name(names, val_fraction)
            self.train, self.val = folder.subset(train), folder.subset(val)
            self.test = self.val
            self._note_folder(folder)
            small = sum(min(size) < crop_size for size in folder.sizes)
            if small and getattr(rank_zero_only, "rank", 0) == 0:
                log.warning("data.crop_size=%d: %d images are smaller and are enlarged", crop_size, small)

    def setup(self, stage: str) -> None:
        """Decode a small folder into memory, once, before the workers start."""
        if stage == "fit":
            self._note(self.train.cache(self.cache_mb), same_everywhere=True)

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        trainer = self.trainer
        rank, processes = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        batches = self.steps * (trainer.accumulate_grad_batches if trainer else 1)
        window = {"size": self.crop_size, "scale": self.scale, "enlarge": self.enlarge, "flip": self.flip}
        crops = TrainingCrops(self.train, window, seed=self.seed, global_batch=processes * self.batch_size)
        start = partial(batches_done, trainer)
        draws = BatchDraws(batch_size=self.batch_size, batches=batches, rank=rank, start=start)
        return ResumableLoader(crops, batch_sampler=draws, **self._loader_options(), collate_fn=collate)

    def val_dataloader(self) -> DataLoader[dict[str, Any]] | list[Any]:
        return self._whole(self.val)

    def test_dataloader(self) -> DataLoader[dict[str, Any]] | list[Any]:
        return self._whole(self.test)

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Take the report of images that became unreadable out of the batch: the workers cannot keep count."""
        self._note(batch.pop("unreadable", {}), same_everywhere=False)
        return batch

    def captions(self) -> list[str]:
        """The distinct captions of all three parts, sorted: what the text encoder has to encode."""
        return sorted({caption for part in (self.train, self.val, self.test) for caption in part.captions})

    def state(self) -> DataState:
        """What identifies the data, for a run that goes on."""
        folder, trainer = self.train, self.trainer
        samples = ((folder.name(i), *folder.sizes[i], folder.captions[i]) for i in range(len(folder)))
        return DataState(
            fingerprint=fingerprint(samples),
            images=len(folder),
            global_batch=self.batch_size * (trainer.world_size if trainer else 1),
            micro_batches=trainer.accumulate_grad_batches if trainer else 1,
        )

    def state_dict(self) -> dict[str, Any]:
        self._state = self._state or self.state()
        return asdict(self._state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Warn if the data or the size of the global batch are not those of the checkpoint."""
        if self.trainer is None or self.trainer.is_global_zero:
            processes = self.trainer.world_size if self.trainer else 1
            for sentence in compare(state_dict, self.state(), processes=processes):
                log.warning("ckpt_path: %s", sentence)

    def overview(self) -> str:
        """The images, their captions and what is left out, on one line."""
        folder = "the bundled photos" if self.root is None else printable(self.root)
        captioned = [*self.train.captioned, *self.val.captioned]
        default = f", the others {self.default_caption!r}" if not all(captioned) else ""
        images, others = len(self.unreadable), len(self.bad_captions)
        left_out = f"; left out (see the log): {images} images, {others} captions or kinds of files"
        return (
            f"{folder}: {len(self.train)} images for training, {len(self.val)} for validation; {sum(captioned)} of "
            f"{len(captioned)} have captions of their own{default}"
            f"{left_out if images or others else ''}"
        )

    def summary(self) -> dict[str, int]:
        """Counts for the summary of a run."""
        return {
            "train_images": len(self.train),
            "val_images": len(self.val),
            "test_images": len(self.test),
            "captions": len(self.captions()),
            "unreadable_images": len(self.unreadable),
            "other_pictures": len(self.train.others),
            "bad_captions": len(self.bad_captions),
        }

    def _whole(self, folder: ImageFolder) -> DataLoader[dict[str, Any]] | list[Any]:
        if len(folder) == 0:
            return []
        images = WholeImages(folder, max_side=self.val_max_side)
        return DataLoader(images, batch_size=None, shuffle=False, **self._loader_options())

    def _loader_options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"num_workers": self.num_workers, "pin_memory": torch.cuda.is_available()}
        if self.num_workers:  # a loader without them takes none of these
            options |= {"timeout": self.worker_timeout, "worker_init_fn": partial(end_with, os.getpid())}
        return options

    def _note(self, unreadable: dict[str, str], *, same_everywhere: bool) -> None:
        """Count unreadable images, and name each once (of very many, the first ones)."""
        new = {name: reason for name, reason in unreadable.items() if name not in self.unreadable}
        self.unreadable.update(new)
        if same_everywhere and getattr(rank_zero_only, "rank", 0) != 0:  # what every process finds is reported by one
            return
        warn_each("left out", new)
        self._stop_if_too_many(self.unreadable, "images cannot be read")

    def _note_folder(self, folder: ImageFolder) -> None:
        """Count and name what of a folder is not used; only what cannot be read is a reason to stop."""
        self.found += len(folder) + len(folder.unreadable)
        self._note(folder.unreadable, same_everywhere=True)
        self.bad_captions |= folder.problems.wrong | folder.problems.absent
        if getattr(rank_zero_only, "rank", 0) == 0:
            if folder.others:
                log.warning("left out: %s", describe_others(folder.others))
            folder.problems.warn()
        self._stop_if_too_many(folder.problems.wrong, "captions cannot be read")

    def _stop_if_too_many(self, bad: dict[str, str], what: str) -> None:
        if len(bad) > self.max_unreadable_share * self.found or len(bad) >= self.found:
            raise UserError(
                f"data.max_unreadable_share={self.max_unreadable_share}: {len(bad)} of {self.found} {what}; the first: "
                f"{next(iter(bad.values()))}. Mend or remove them, or raise the share"
            )
