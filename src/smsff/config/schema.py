"""Every key of a configuration, once: its type, its range, what it says, and which settings exclude one another.

The nodes without a ``_target_`` are the dataclasses here. A node with one builds an object: the names and types of its
keys are those of the constructor (`smsff.config.check`), their ranges and texts stand in `ARGUMENTS`.
``python -m smsff.config.reference`` prints all of it; docs/reference/keys.md is what it prints.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from smsff.config.trust import matches
from smsff.errors import UserError, shown


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included unless ``open_low`` or ``open_high``."""

    low: float
    high: float
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        """Whether a number lies in the range; NaN does not."""
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        low = f"more than {self.low:,}" if self.open_low else f"at least {self.low:,}"
        high = f"less than {self.high:,}" if self.open_high else f"at most {self.high:,}"
        return f"{low} and {high}"

    @property
    def interval(self) -> str:
        """As in mathematics: ``[0, 1)``."""
        return f"{'(' if self.open_low else '['}{self.low:,}, {self.high:,}{')' if self.open_high else ']'}"


COUNT = Range(1, 1_000_000_000)
NATURAL = Range(0, 1_000_000_000)
PIXELS = Range(1, 65_536)
TIMESTEP = Range(0, 999)  # every base that can be loaded was trained with 1000 steps
SHARE = Range(0, 1)
DECAY = Range(0, 1, open_high=True)
WEIGHT = Range(0, 1_000_000_000)
GAMMA = Range(0, 1_000_000_000, open_low=True)
STRENGTH = Range(-100, 100)
RANK = Range(1, 4096)
ALPHA = Range(0, 1_000_000, open_low=True)
SECONDS = Range(1, 10_000_000)
SEED = Range(0, 2**32 - 1)
ANY = Range(-(10**15), 10**15)
"""For numbers without a range of their own, such as those of classes permitted with SMSFF_ALLOW: finite, at least."""


@dataclass(frozen=True)
class Key:
    """What a key says, and the range of its number (of each of its numbers, if it is a list)."""

    text: str
    range: Range | None = None


@dataclass(kw_only=True)
class Style:
    """One style: its LoRA, the base below it, and its words."""

    name: Annotated[str, Key("of the style, for people and file names")]
    words: Annotated[str, Key("what prompts call the style, with the trigger words of the LoRA")]
    edit: Annotated[str, Key("prompt that asks the base for the style; may have {words} and {caption}")]
    lora: Annotated[str, Key("the LoRA file")]
    strength: Annotated[float, Key("factor on the LoRA", STRENGTH)] = 1.0
    base: Annotated[str | None, Key("model the LoRA is applied to: folder or hub id; null: the teacher's base")] = None
    page: Annotated[str | None, Key("web page of the LoRA, for people")] = None


@dataclass(kw_only=True)
class Weight:
    """Where one file or model comes from: ``weights.KEY`` is about ``teacher.KEY`` or ``baseline.KEY``."""

    name: Annotated[str, Key("the file, folder or hub id meant; if teacher.KEY has another value, nothing is fetched")]
    source: Annotated[
        str | None,
        Key("URL of one file; hub: name is a hub id; package: comes with smsff; null: no source is known"),
    ]
    size: Annotated[int | None, Key("bytes, enforced; null: not known for certain", Range(0, 10**13))] = None
    sha256: Annotated[str | None, Key("of the file, enforced; null: not known for certain")] = None
    licence: Annotated[str | None, Key("name of the licence; null: not known, page has the terms")] = None
    page: Annotated[str | None, Key("web page of the weights, for people")] = None


@dataclass(kw_only=True)
class OptimizerGroups:
    generator: Annotated[dict, Key("AdamW of the generator")]
    fake: Annotated[dict, Key("AdamW of the fake score")]


@dataclass(kw_only=True)
class LoraOptimizerGroups:
    unet: Annotated[dict, Key("AdamW of the LoRA on the U-Net")]
    text: Annotated[dict, Key("AdamW of the LoRA on the text encoders, with lora.text_rank above 0")]


@dataclass(kw_only=True)
class AnyTraining:
    """What every training has at its top level."""

    weights: Annotated[dict[str, Weight], Key("where the files of teacher come from (smsff fetch, smsff doctor)")]
    teacher: Annotated[dict, Key("the frozen diffusion model")]
    prompts: Annotated[dict, Key("templates of the prompts; may have {caption}, that of the image")]
    timesteps: Annotated[dict, Key("how t is drawn")]
    data: Annotated[dict, Key("the training images")]
    trainer: Annotated[dict, Key("devices, precision and duration (lightning.pytorch.Trainer)")]
    logger: Annotated[dict | None, Key("where the logged figures go, beside metrics.json")]
    callbacks: Annotated[dict, Key("what happens beside the training, by name; callbacks.NAME=null switches one off")]
    seed: Annotated[int, Key("of the weights at the start, the order and crops of the images, t and noise", SEED)]
    steps: Annotated[int, Key("optimizer steps, warm-up included", COUNT)]
    log_every: Annotated[int, Key("steps between two logged rows", COUNT)]
    sample_every: Annotated[int, Key("steps between two validations: pictures, losses", COUNT)]
    checkpoint_every: Annotated[int, Key("steps between two checkpoints", COUNT)]
    checkpoint_keep: Annotated[
        int, Key("former checkpoints kept beside last.ckpt, as step_XXXXXX.ckpt", Range(0, 1_000_000))
    ]
    max_bad_steps: Annotated[
        int, Key("steps in a row with NaN or Inf, each of them skipped, after which the run stops", COUNT)
    ]
    process_timeout: Annotated[float, Key("seconds that a process waits for another, before all stop", SECONDS)]
    run_dir: Annotated[str, Key("folder of everything the run writes")]
    ckpt_path: Annotated[
        str | None,
        Key("go on from a checkpoint: a file, or last (of run_dir, else of the newest run beside it)"),
    ]
    returns: Annotated[str | None, Key("figure of metrics.json that a study optimizes (hydra/sweeper=optuna)")]


@dataclass(kw_only=True)
class TrainConfig(AnyTraining):
    """The top level with ``task: style_matching``."""

    task: Annotated[Literal["style_matching"], Key("what is trained; chosen by task=style_matching, task=style_lora")]
    style: Annotated[Style, Key("the style that is distilled")]
    resolution: Annotated[int, Key("side in pixels of a training crop", PIXELS)]
    generator: Annotated[dict, Key("the trained network, or the picture itself")]
    objective: Annotated[dict, Key("the gradient of style matching")]
    regularizer: Annotated[dict, Key("the spectrum term, which keeps low frequencies of the source")]
    relevance: Annotated[dict, Key("where in the picture the style matters")]
    fake_timesteps: Annotated[dict, Key("how t of the fake score's own loss is drawn")]
    fake_score: Annotated[dict, Key("LoRA on the base, trained on the generator's output")]
    warmup: Annotated[dict, Key("reconstruction of the input before style matching begins")]
    optimizer: Annotated[OptimizerGroups, Key("AdamW, one group for each trained part")]
    fake_draws: Annotated[
        int, Key("draws of (t, noise) of the fake score's loss, averaged in the one update of a step", Range(1, 1024))
    ]
    ema_decay: Annotated[
        float, Key("average of the generator's weights, for samples and export; reached gradually, 0: none", DECAY)
    ]
    grid_jitter: Annotated[
        int,
        Key(
            "pictures are encoded at a random offset below this in pixels, or strides print a pattern; 1: none",
            Range(1, 256),
        ),
    ]
    pullback: Annotated[
        Literal["encoder", "decoder"], Key("by whose gradient a step in latent space reaches the picture")
    ]
    speed: Annotated[dict, Key("shared draws, memory layout, compilation")]


@dataclass(kw_only=True)
class StyleLoraConfig(AnyTraining):
    """The top level with ``task: style_lora``."""

    task: Annotated[Literal["style_lora"], Key("what is trained; chosen by task=style_matching, task=style_lora")]
    name: Annotated[str, Key("of the files in RUN/lora, and in the trigger words")]
    lora: Annotated[dict, Key("size and layers of the LoRA")]
    loss: Annotated[dict, Key("weights of the loss")]
    held_out: Annotated[dict, Key("loss on the held-out pictures, with the LoRA and without it")]
    samples: Annotated[dict, Key("img2img of photos with the LoRA")]
    optimizer: Annotated[LoraOptimizerGroups, Key("AdamW, one group for each trained part")]


@dataclass(kw_only=True)
class BaselineConfig:
    """The top level of ``smsff baseline``."""

    task: Annotated[Literal["baseline"], Key("what is done")]
    baseline: Annotated[dict, Key("the method, by smsff baseline NAME")]
    teacher: Annotated[dict | None, Key("the diffusion model, for methods that have one")]
    weights: Annotated[dict[str, Weight], Key("where the files of teacher and baseline come from")]
    seed: Annotated[int, Key("of the noise; with the name of a picture it gives that of this picture", SEED)]
    device: Annotated[Literal["auto", "cpu", "cuda"], Key("where to compute; auto: on a GPU if there is one")]
    style: Annotated[Style | None, Key("the style, for methods with a LoRA")] = None


TASKS: dict[str, type] = {
    "style_matching": TrainConfig,
    "style_lora": StyleLoraConfig,
    "baseline": BaselineConfig,
}

_OPTIMIZER = {
    "lr": Key("learning rate", Range(0, 100)),
    "betas": Key("decay of the mean and of the squared mean of the gradient", DECAY),
    "eps": Key("added to the root of the squared mean; far below a gradient's size, or little of it arrives", SHARE),
    "weight_decay": Key("of AdamW", Range(0, 100)),
    "clip_norm": Key("largest norm of the gradient; null: no clipping", WEIGHT),
    "schedule": Key("of the learning rate"),
    "horizon": Key("where the cosine reaches 0, in units of the run", Range(1, 1000)),
    "warmup_steps": Key("linear rise of the learning rate from 0, in steps", NATURAL),
}

ARGUMENTS: dict[str, Key] = {
    "weights.*": Key("one file or model"),
    "teacher.base": Key("un-adapted model: base and fake score, encoder; folder, hub id or single file"),
    "teacher.style_base": Key("model below the style LoRA; null: the base itself, so one U-Net serves all scores"),
    "teacher.lora": Key("LoRA of the style: a file, or a list of {path: FILE, strength: NUMBER}"),
    "teacher.lora_strength": Key("factor on the LoRA", STRENGTH),
    "teacher.lora_text": Key("false: leave out what the LoRA does to the text encoders"),
    "teacher.config": Key(
        "folder or hub id: settings and tokenizer of a single file (null: the published ones); of a flow's all but the "
        "transformer"
    ),
    "teacher.vae": Key("another auto-encoder than the base's: folder, hub id or single file; null: its own"),
    "teacher.prediction_type": Key("what the base predicts; null: as the checkpoint says"),
    "teacher.shift": Key("of a flow: noise over signal at each t, times that of Stable Diffusion's grid", GAMMA),
    "teacher.guidance": Key("of a flow: the guidance input of a guidance-distilled transformer (FLUX.1 dev)", WEIGHT),
    "teacher.quantise": Key(
        "of a flow: frozen weights in int8 (torchao) or nf4 (bitsandbytes); null: in teacher.dtype"
    ),
    "teacher.dtype": Key("of the frozen weights"),
    "teacher.gradient_checkpointing": Key("less memory, more time: activations are computed again for gradients"),
    "teacher.variant": Key("weight variant of a hub id, such as fp16"),
    "teacher.revision": Key("revision of a hub id"),
    "teacher.local_files_only": Key("never ask the hub"),
    "generator.widths": Key("channels of the levels, finest first", RANK),
    "generator.encoder_blocks": Key("residual blocks of each level on the way down", Range(0, 64)),
    "generator.decoder_blocks": Key("residual blocks of each level on the way up", Range(0, 64)),
    "generator.head_width": Key("channels at full resolution; three of them are the input", Range(4, 4096)),
    "generator.width": Key("channels at full resolution", RANK),
    "generator.blocks": Key("residual blocks", Range(0, 64)),
    "generator.antialias": Key("change size as CUT and Scenimefy do, by blur and interpolation, not by strides"),
    "objective.weight": Key("w(t), factor on the difference of scores"),
    "objective.style_guidance": Key("classifier-free guidance of the style score; 1: conditional only", WEIGHT),
    "objective.fake_guidance": Key("classifier-free guidance of the fake score; 1: conditional only", WEIGHT),
    "objective.source_guidance": Key("classifier-free guidance of the reference on the source", WEIGHT),
    "objective.normalize": Key("divide each sample's gradient by DMD's normaliser"),
    "objective.reference": Key("score of the source: base, or style (the style model under the source prompt)"),
    "objective.stride": Key("between the two timesteps; with 1 nothing holds on to the source", COUNT),
    "regularizer.lambda_freq": Key("lambda, weight of the spectrum term", WEIGHT),
    "regularizer.norm": Key("l1: absolute difference (the authors' code), l2: squared difference (the paper)"),
    "regularizer.t_scale": Key("t from which on all frequencies are kept", Range(1, 1_000_000)),
    "regularizer.cutoff": Key("exact, or last_axis (the authors' code, right on squares alone)"),
    "relevance.reduce": Key("over the channels: abs_mean (the authors' code; they can cancel), mean_abs (the paper)"),
    "relevance.normalize": Key("minmax, or minmax_mean (then divided by its mean)"),
    "*timesteps.t_min": Key("smallest t", TIMESTEP),
    "*timesteps.t_max": Key("largest t (where it narrows, at the start)", TIMESTEP),
    "*timesteps.per": Key("batch: one t for the whole batch; sample: one for each picture"),
    "*timesteps.grid": Key("all: every t; odd: only odd ones, as a grid of every second step"),
    "timesteps.t_max_late": Key("largest t from drop_at on, if t_max is not less", TIMESTEP),
    "timesteps.drop_at": Key("share of the run after which t_max_late holds", SHARE),
    "timesteps.power": Key("1: uniform; above 1 more of the small t", Range(1, 100)),
    "fake_score.rank": Key("of the LoRA", RANK),
    "fake_score.alpha": Key("of the LoRA, whose factor is alpha / rank", ALPHA),
    "fake_score.target_modules": Key("names of layers of the U-Net"),
    "fake_score.loss_weight": Key("factor on its loss by t"),
    "fake_score.gradient_checkpointing": Key("of the U-Net in this loss"),
    "speed.share_draw": Key("the fake learns from the very prediction that the style gradient is made of"),
    "speed.channels_last": Key("memory layout of the networks; null: where the teacher computes in 16 bits"),
    "speed.compile": Key("parts that torch.compile compiles"),
    "speed.tf32": Key("on GPUs that have it"),
    "warmup.steps": Key("at most so many", NATURAL),
    "warmup.loss": Key("l1: absolute, l2: squared difference"),
    "warmup.until": Key("end it as soon as the loss is below this; null: never", Range(0, 2, open_low=True)),
    "prompts.words": Key("the value of {words} in the other templates"),
    "prompts.style": Key("condition of the style score"),
    "prompts.source": Key("condition of the fake score, and of the source"),
    "prompts.edit": Key("against the empty prompt: where the style matters"),
    "prompts.trigger": Key("words by which the LoRA is called"),
    "prompts.template": Key("prompt of a sample; may have {trigger} and {caption}"),
    "prompts.caption_dropout": Key("share of the samples with the trigger alone", SHARE),
    "prompts.prompt_dropout": Key("share of the samples with the empty prompt", SHARE),
    "data.root": Key("folder of images, nested or not, or of shards, with or without captions; null: the bundled ones"),
    "data.path": Key("the picture; null: a bundled photo"),
    "data.crop_size": Key("side in pixels of a crop", PIXELS),
    "data.batch_size": Key("images in a step, of each process", PIXELS),
    "data.num_workers": Key(
        "loader processes; 0: the training process loads; in the presets by the cores, at most 4", Range(0, 1024)
    ),
    "data.val_fraction": Key("share of the images held out, by hash of the name", DECAY),
    "data.default_caption": Key("for images without a caption"),
    "data.caption": Key("of the picture"),
    "data.flip": Key("mirror half of the images"),
    "data.scale": Key(
        "side of the window, as a fraction of the largest that fits: from, to; [0.01, 0.01] keeps own pixels",
        Range(0, 1, open_low=True),
    ),
    "data.enlarge": Key("how many times larger than in the image a pixel of a crop may at most be", Range(1, 100)),
    "data.cache_mb": Key("keep decoded images in memory if they need no more than this", WEIGHT),
    "data.val_max_side": Key("validation images are shrunk to this, in pixels", PIXELS),
    "data.short_side": Key("the picture is resized to this, in pixels", PIXELS),
    "data.multiple": Key("both sides of the picture are rounded to multiples of this", Range(1, 1024)),
    "data.max_pixels": Key("larger images are left out, by their header, and named", Range(1, 10**10)),
    "data.max_unreadable_share": Key("share of images that cannot be read, above which the run stops", SHARE),
    "data.worker_timeout": Key("seconds to wait for a batch of a loader process", SECONDS),
    "data.resolution": Key("batches have about resolution^2 pixels a picture", PIXELS),
    "data.stride": Key("sides are multiples of this", Range(1, 1024)),
    "data.margin": Key("pixels around a window that are encoded and dropped", Range(0, 1024)),
    "data.max_aspect": Key("of the longest bucket; pictures beyond are cut", Range(1, 100)),
    "data.photos": Key("folder of photos for the sample grids; null: the bundled one"),
    "data.max_photos": Key("photos in a sample grid", Range(1, 1000)),
    "data.max_held_out": Key("held-out pictures that are measured", COUNT),
    "data.degraded": Key("inputs made to look like photos, to be denoised to the style all the same"),
    "data.degraded.share": Key("of the samples", SHARE),
    "data.degraded.tones": Key("how far brightness and contrast are changed; 0 for a style that leaves them", SHARE),
    "data.degraded.texture_root": Key("photos whose texture is put on; null: the bundled textures"),
    "data.prior": Key("prior preservation"),
    "data.prior.root": Key(
        "folder of pictures of the same things without the style, best made by the base; null: none"
    ),
    "data.prior.caption": Key("of those without a caption"),
    "lora.rank": Key("of the LoRA on the U-Net", RANK),
    "lora.alpha": Key("of the LoRA, whose factor is alpha / rank", ALPHA),
    "lora.target_modules": Key("names of layers of the U-Net"),
    "lora.merged": Key("train through merged weights: faster for small networks in float32"),
    "lora.text_rank": Key("of a LoRA on the text encoders; 0: none", Range(0, 4096)),
    "lora.text_alpha": Key("of the LoRA on the text encoders", ALPHA),
    "lora.text_modules": Key("names of layers of the text encoders"),
    "lora.gradient_checkpointing": Key("of the U-Net"),
    "loss.min_snr_gamma": Key("gamma of the min-SNR weight; null: all t alike", GAMMA),
    "loss.degraded_gamma": Key("the same for degraded samples", GAMMA),
    "loss.prior_weight": Key("of the pictures of data.prior", WEIGHT),
    "held_out.bands": Key("edges of the bands of t, ascending", Range(0, 1000)),
    "held_out.draws": Key("timesteps in each band", Range(1, 10_000)),
    "held_out.batch": Key("samples in one call", Range(1, 10_000)),
    "samples.caption": Key("of the photos"),
    "samples.t0": Key("t at which img2img begins", TIMESTEP),
    "samples.steps": Key("of the sampler", Range(1, 1000)),
    **{f"optimizer.*.{name}": key for name, key in _OPTIMIZER.items()},
    "*.seed": Key("as the key seed, for this part", SEED),
    "data.steps": Key("length of the run", COUNT),
    "baseline.resolution": Key(
        "pictures are worked on at about resolution^2 pixels, in their own shape; null: at their own size", PIXELS
    ),
    "baseline.steps": Key("of DDIM", Range(1, 1000)),
    "baseline.guidance": Key("classifier-free guidance; 1: conditional only", WEIGHT),
    "baseline.prompt": Key("of the wanted picture; may have {words} and {caption}, that of the photo"),
    "baseline.words": Key("the value of {words}"),
    "baseline.negative": Key("the other prompt of the guidance"),
    "baseline.strength": Key("of img2img, the share of the steps: 0 is the photo, 1 begins with noise alone", SHARE),
    "baseline.controlnet": Key("folder or hub id of a tile ControlNet, which sees the photo"),
    "baseline.scale": Key("factor on the ControlNet", WEIGHT),
    "baseline.control_scale": Key("factor on the ControlNet", WEIGHT),
    "baseline.content_scale": Key("factor on the IP-Adapter that sees the photo", WEIGHT),
    "baseline.style_scale": Key("factor on the IP-Adapter that sees the style, in the layer of style", WEIGHT),
    "baseline.ip_adapter": Key("file of the IP-Adapter"),
    "baseline.image_encoder": Key("folder or hub id of the IP-Adapter's image encoder"),
    "baseline.gamma": Key("share of the photo's query; less is more of the style (authors: 0.75, 0.3)", SHARE),
    "baseline.temperature": Key("factor on the logits of the attention", WEIGHT),
    "baseline.layers": Key("of the decoder, counted from 0 at its coarsest", Range(0, 64)),
    "baseline.b": Key("raise of the widest features; 1: none (authors: 2.5, Ghibli 2.8, oil 1.8)", WEIGHT),
    "baseline.s": Key("factor on the low frequencies of the skips to the widest layers", WEIGHT),
    "baseline.n": Key("channels of the widest layers that are raised", RANK),
    "baseline.b_fine": Key("as b, at layers of half the width, for half of their channels", WEIGHT),
    "baseline.s_fine": Key("as s, at layers of half the width", WEIGHT),
    "baseline.enhance": Key("enhance the edges of the photo first"),
    "baseline.network": Key("file of a released generator: .pth of Scenimefy, CUT or CycleGAN"),
    "trainer.accelerator": Key("auto, cpu, gpu"),
    "trainer.devices": Key("how many, -1 for all; or a list of their numbers", Range(-1, 4096)),
    "trainer.devices.*": Key("number of one device", Range(0, 4096)),
    "trainer.num_nodes": Key("machines", Range(1, 10_000)),
    "trainer.strategy": Key("auto, ddp or a variant of ddp"),
    "trainer.precision": Key("of the trained parts: 32-true, 64-true, bf16-mixed"),
    "trainer.max_steps": Key("is steps", COUNT),
    "trainer.max_epochs": Key("is -1", Range(-1, 1_000_000_000)),
    "trainer.max_time": Key("stop after DD:HH:MM:SS"),
    "trainer.accumulate_grad_batches": Key("batches in one optimizer step", Range(1, 1_000_000)),
    "trainer.log_every_n_steps": Key("is log_every", COUNT),
    "trainer.val_check_interval": Key("is sample_every", COUNT),
    "trainer.check_val_every_n_epoch": Key("is null", COUNT),
    "trainer.num_sanity_val_steps": Key("validation batches before the training; -1: all", Range(-1, 1_000_000)),
    "trainer.limit_*_batches": Key("largest number of batches, of validation the pictures of a grid", NATURAL),
    "trainer.deterministic": Key("only algorithms whose results are the same each time"),
    "trainer.benchmark": Key("let cuDNN choose the fastest algorithms for the sizes seen"),
    "trainer.*": Key("an argument of lightning.pytorch.Trainer"),
    "logger.save_dir": Key("folder, in run_dir"),
    "logger.*": Key("an argument of the logger"),
    "callbacks.*.every": Key("steps between two lines, where no terminal can show a bar", COUNT),
    "callbacks.*.window": Key("steps to average over", Range(1, 1_000_000)),
    "callbacks.*.max_images": Key("pictures in a grid", Range(1, 1000)),
    "callbacks.*.limit": Key("is max_bad_steps", COUNT),
    "callbacks.*.every_n_train_steps": Key("steps between two checkpoints", COUNT),
    "callbacks.*.save_top_k": Key("checkpoints kept: the best by monitor; -1: all", Range(-1, 1000)),
    "callbacks.*.dtype": Key("of the tensors in a LoRA file"),
    "callbacks.*.history": Key("also keep the LoRA of every checkpoint"),
    "callbacks.*.*": Key("an argument of the callback"),
    "callbacks.*": Key("one callback"),
}
"""By dotted key, in which ``*`` is one part or some letters of one; the first that fits counts."""


def fields(kind: Any, prefix: str = "") -> dict[str, tuple[Any, Key]]:
    """Type and entry of each key of a dataclass, and of the dataclasses inside it, by dotted name."""
    found: dict[str, tuple[Any, Key]] = {}
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        value, key = typing.get_args(hint)
        found[prefix + name] = value, key
        if dataclasses.is_dataclass(value):
            found |= fields(value, f"{prefix}{name}.")
    return found


KEYS: dict[str, Key] = {
    name: key
    for node in (fields(TrainConfig), fields(StyleLoraConfig), fields(BaselineConfig), fields(Weight, "weights.*."))
    for name, (_, key) in node.items()
} | ARGUMENTS
"""All keys, in the order in which a key is looked up."""


def key_of(key: str) -> Key | None:
    """What the schema says of a dotted key; elements of a list share the entry of the list, unless they have one."""
    while True:
        found = next((entry for pattern, entry in KEYS.items() if matches(key, pattern)), None)
        key, dot, last = key.rpartition(".")
        if found is not None or not (dot and last.isdigit()):
            return found


def range_of(key: str) -> Range:
    """The range of the number at a dotted key."""
    found = key_of(key)
    return found.range if found is not None and found.range is not None else ANY


def check_ranges(node: Any, key: str = "") -> None:
    """Check every number in a tree of plain containers against its range.

    Raises:
        UserError: names the key, the value and the range.
    """
    if isinstance(node, Mapping):
        for name, value in node.items():
            check_ranges(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            check_ranges(value, f"{key}.{index}")
    elif isinstance(node, (int, float)) and not isinstance(node, bool) and not range_of(key).holds(node):
        raise UserError(f"{key}={shown(node)}: must be {range_of(key)}")


PER_IMAGE = ("ImageGenerator", "LatentGenerator")
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true")
FIXED = {
    "use_distributed_sampler": (False, "the data module divides the batches itself"),
    "gradient_clip_val": (None, "each group is clipped by optimizer.*.clip_norm"),
    "gradient_clip_algorithm": (None, "each group is clipped by optimizer.*.clip_norm"),
    "max_epochs": (-1, "the length of a run is steps"),
    "min_epochs": (None, "the length of a run is steps"),
    "min_steps": (None, "the length of a run is steps"),
    "callbacks": (None, "callbacks have a group of their own"),
    "logger": (None, "loggers have a group of their own"),
    "plugins": (None, "plug-ins cannot be given here"),
    "reload_dataloaders_every_n_epochs": (0, "the data of a run is one long epoch"),
    "barebones": (False, "samples, checkpoints and figures need the callbacks"),
}
"""Options of the trainer that have one value here, and why."""

Plain = Mapping[str, Any]


def _name(node: Any) -> str:
    """The class that a node builds, without its module."""
    return str(node.get("_target_", "")).rpartition(".")[2] if isinstance(node, Mapping) else ""


def _trainer(plain: Plain) -> None:
    trainer = plain["trainer"]
    for key, (value, reason) in FIXED.items():
        if key in trainer and trainer[key] != value:
            raise UserError(f"trainer.{key}={trainer[key]!r}: must be {str(value).lower()}: {reason}")
    if trainer.get("max_steps", plain["steps"]) != plain["steps"]:
        raise UserError(f"trainer.max_steps={trainer['max_steps']} is not steps={plain['steps']}; set steps alone")
    precision = str(trainer.get("precision", "32-true"))
    if "16-true" in precision or precision in ("16", "16-mixed"):
        raise UserError(
            f"trainer.precision={precision}: use 32-true, 64-true or bf16-mixed; teacher.dtype may be float16"
        )
    strategy = trainer.get("strategy", "auto")
    if isinstance(strategy, str) and strategy not in STRATEGIES:
        raise UserError(
            f"trainer.strategy={strategy}: must be one of {', '.join(STRATEGIES)}: generator and fake score are one "
            "optimizer whose parts must not be divided among processes"
        )
    if trainer.get("devices") == 0 or trainer.get("devices") == []:
        raise UserError(f"trainer.devices={trainer['devices']}: must be at least 1, or -1 for all")


def _one_picture(plain: Plain) -> None:
    generator, data, trainer = _name(plain.get("generator")), _name(plain["data"]), plain["trainer"]
    if generator in PER_IMAGE and data != "SingleImage":
        raise UserError(f"generator={generator} holds one picture, and data={data} has many: use data=single")
    several = trainer.get("num_nodes", 1) != 1 or trainer.get("devices", 1) not in (1, "1", "auto")
    if data == "SingleImage" and several:
        raise UserError(
            f"trainer.devices={trainer.get('devices')}, trainer.num_nodes={trainer.get('num_nodes', 1)}: one picture "
            "(data=single) cannot be divided among processes; use one"
        )


def _length(plain: Plain) -> None:
    steps, warmup = plain["steps"], (plain.get("warmup") or {}).get("steps", 0)
    if warmup >= steps:
        raise UserError(f"steps={steps} must be more than warmup.steps={warmup}: the warm-up would be the whole run")


def _timesteps(plain: Plain) -> None:
    for name in ("timesteps", "fake_timesteps"):
        node = plain.get(name) or {}
        low, high = node.get("t_min"), node.get("t_max")
        if low is not None and high is not None and low > high:
            raise UserError(f"{name}.t_min={low} is above {name}.t_max={high}")
        bounds = {key: node[key] for key in ("t_min", "t_max", "t_max_late") if key in node}
        if node.get("grid") == "odd" and not all(t % 2 for t in bounds.values()):
            raise UserError(f"{name}.grid=odd needs odd bounds, not {_keys(bounds)}")
    stride, low = plain.get("objective", {}).get("stride", 0), plain["timesteps"].get("t_min", 0)
    if stride > low:
        raise UserError(f"objective.stride={stride} is more than timesteps.t_min={low}: t - stride must not be below 0")


def _sizes(plain: Plain) -> None:
    generator, data = plain.get("generator") or {}, plain["data"]
    crop = data.get("crop_size")
    if _name(generator) == "UNetGenerator" and crop is not None:
        cell = 2 ** len(generator.get("widths", range(4)))
        if crop < cell:
            raise UserError(f"data.crop_size={crop} is less than {cell}, one cell of the generator's coarsest level")
    scale = data.get("scale")
    if scale is not None and (len(scale) != 2 or scale[0] > scale[1]):
        raise UserError(f"data.scale={list(scale)}: must be two numbers, the lower one first")
    side, multiple = data.get("short_side"), data.get("multiple", 1)
    if side is not None and side < multiple:
        raise UserError(f"data.short_side={side} must be at least data.multiple={multiple}")


def _shared_draw(plain: Plain) -> None:
    if (plain.get("speed") or {}).get("share_draw") and plain["fake_draws"] > 1:
        raise UserError(
            f"speed.share_draw=true and fake_draws={plain['fake_draws']}: a shared draw is one; use fake_draws=1"
        )


def _keys(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items())


def _optimizer(plain: Plain) -> None:
    for name, node in plain["optimizer"].items():
        if len(node.get("betas", (0, 0))) != 2:
            raise UserError(f"optimizer.{name}.betas={node['betas']}: must be two numbers")


def _lora(plain: Plain) -> None:
    if (lora := plain.get("lora") or {}).get("merged") and lora.get("gradient_checkpointing"):
        raise UserError(
            "lora.merged=true with lora.gradient_checkpointing=true: the weights are merged for the forward pass "
            "alone, and checkpointing needs them again; choose one"
        )


def _places(plain: Plain) -> None:
    """What a run writes lies in its folder."""
    run_dir = Path(plain["run_dir"]).absolute().resolve()
    nodes = {f"callbacks.{name}": node for name, node in (plain.get("callbacks") or {}).items()}
    nodes |= {"logger": plain.get("logger"), "trainer": plain["trainer"]}
    for place, node in nodes.items():
        for key in ("folder", "path", "dirpath", "save_dir", "log_dir", "default_root_dir"):
            value = node.get(key) if isinstance(node, Mapping) else None
            if isinstance(value, str) and run_dir not in (inside := Path(value).absolute().resolve(), *inside.parents):
                raise UserError(f"{place}.{key}={value}: must lie in the folder of the run, run_dir={plain['run_dir']}")
    for place, node in nodes.items():
        for key in ("name", "sub_dir", "filename", "version", "prefix"):
            value = node.get(key) if isinstance(node, Mapping) else None
            if isinstance(value, str) and (".." in Path(value).parts or Path(value).is_absolute()):
                raise UserError(f"{place}.{key}={value}: must not lead out of the folder of the run")


def _returns(plain: Plain) -> None:
    if plain["returns"] is not None and not (plain["callbacks"] or {}).get("summary"):
        raise UserError(f"returns={plain['returns']}: the figures are those of callbacks.summary, which is null")


def check_contradictions(plain: Plain) -> None:
    """Find settings that are each allowed but exclude one another; keys, types and ranges are already checked.

    Raises:
        UserError: names the keys, their values, and what would agree.
    """
    checks = (_trainer, _one_picture, _length, _timesteps, _sizes, _shared_draw, _optimizer, _lora, _places, _returns)
    for check in checks:
        check(plain)
