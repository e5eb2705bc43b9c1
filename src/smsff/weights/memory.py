"""How much memory a training needs, told from configurations alone.

No formula: the real step is run once on tensors without memory (torch's meta device), with the real teacher, adapters
and generator, while the bytes alive at each moment are counted. That covers kept activations, checkpointed blocks and
what recomputing them takes, gradients and temporaries. To this come the frozen weights, the trained weights, AdamW's
two moments of them and the average of the generator.

Attention counts as on a GPU: the fused kernels keep queries, keys, values, the result and one number a row, never the
matrix. Not counted are the CUDA context (0.3 to 0.6 GB), workspaces of cuDNN and the gaps of the allocator.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from smsff.teacher.base.components import build_schedule
from smsff.teacher.base.pipeline_config import PipelineConfig
from smsff.teacher.base.skeleton import Network, networks, skeleton_unet, skeleton_vae
from smsff.teacher.condition import Condition
from smsff.teacher.fake_score import LoraFakeScore
from smsff.teacher.flow.families import FlowConfig
from smsff.teacher.flow.load import flow_schedule
from smsff.teacher.flow.quantise import BITS, Quantise, quantised_layers
from smsff.teacher.latent import AutoencoderLatent
from smsff.teacher.prompts import PromptEncoder
from smsff.teacher.stable_diffusion import StableDiffusionTeacher


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """The LoRA that is trained on the U-Net: that of the fake score, or a style LoRA.

    Attributes:
        rank, target_modules, gradient_checkpointing: as in `LoraFakeScore`.
        draws: samples of its loss for each picture of the batch.
    """

    rank: int
    target_modules: Sequence[str]
    gradient_checkpointing: bool
    draws: int = 1


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on each device during training.

    Attributes:
        networks: the frozen networks that are loaded, one by one.
        frozen: all of them but the text encoders.
        trained: trained weights, the two moments of AdamW, and the average of the generator's weights.
        trained_gradients: their gradients (within `step`; twice with several processes, which exchange them).
        kept: what the forward passes of a step leave for the backward pass.
        step: the most that is alive at once beyond `frozen` and `trained`: `kept`, gradients and temporaries.
        loading: the text encoders, in main memory before the training starts, which are freed afterwards.
    """

    networks: tuple[Network, ...]
    frozen: int
    trained: int
    trained_gradients: int
    kept: int
    step: int
    loading: int

    @property
    def total(self) -> int:
        return self.frozen + self.trained + self.step


def predict(
    base: PipelineConfig | FlowConfig,
    *,
    batch: int,
    size: tuple[int, int],
    dtype: Literal["float32", "bfloat16", "float16"],
    adapter: Adapter | None,
    generator: Callable[[], nn.Module] | None = None,
    style_base: PipelineConfig | None = None,
    style_lora: int = 0,
    gradient_checkpointing: bool = True,
    mixed: bool = False,
    doubled: bool = False,
    through_decoder: bool = False,
    share_draw: bool = False,
    decoder: bool = True,
    encoder: bool = True,
    processes: int = 1,
    quantise: Quantise | None = None,
) -> MemoryEstimate:
    """Memory of a training, from configurations; nothing is loaded and no tensor allocated.

    Args:
        base, style_base: the models; `style_base` only where the style has another one.
        batch, size: pictures on each device, and their (height, width) in pixels.
        adapter: the trained LoRA; None if the objective trains none.
        generator: builds the network that is trained through the encoder; None for a style LoRA.
        style_lora: parameters of the frozen style LoRA.
        mixed: the trainer's precision is bf16-mixed.
        doubled: guidance or relevance map: the U-Net computes two samples a picture without gradient.
        through_decoder: ``pullback=decoder``: the encoder has no backward pass, and two pictures are decoded.
        share_draw: ``speed.share_draw``: the fake score's activations exist before pictures are decoded.
        decoder, encoder: the auto-encoder keeps them; an encoder that is not kept is there at the start alone.
        processes: with several, the gradients exist once more for the exchange.
    """
    loaded = networks(base, dtype=dtype, quantise=quantise)
    if style_base is not None:
        loaded += networks(style_base, dtype=dtype, prefix="style's ", vae=False)
    texts = sum(n.bytes for n in loaded if "text encoder" in n.name)
    frozen = sum(n.bytes for n in loaded) - texts + style_lora * getattr(torch, dtype).itemsize
    without = 0 if encoder else _part_bytes(base, "encoder", "quant_conv")
    frozen -= without + (0 if decoder else _part_bytes(base, "decoder", "post_quant_conv"))

    teacher = skeleton_teacher(base, dtype=getattr(torch, dtype), gradient_checkpointing=gradient_checkpointing)
    fake = None
    if adapter is not None:
        options = {key: getattr(adapter, key) for key in ("rank", "target_modules", "gradient_checkpointing")}
        fake = LoraFakeScore(teacher, **options)
    network = None
    if generator is not None:
        with torch.device("meta"):
            network = generator()
    trained = [p for p in (network.parameters() if network is not None else ()) if p.requires_grad]
    adapters = [] if fake is None else [p for _, p in fake.trainable_parameters()]
    state = 4 * _bytes(trained) + 3 * _bytes(adapters)  # weights, two moments; the generator's average beside

    live = Live([teacher, *([] if network is None else [network])])
    numerics: AbstractContextManager[Any] = Numerics(torch.bfloat16 if mixed else None)
    with numerics, live:
        kept = _step(
            teacher,
            fake,
            network,
            live,
            cond=skeleton_condition(base, batch),
            x=torch.empty(batch, 3, *size, device="meta"),
            draws=1 if adapter is None else adapter.draws,
            doubled=doubled,
            through_decoder=through_decoder,
            share_draw=share_draw and generator is not None,
        )
    gradients = _bytes([*trained, *adapters])
    step = live.peak + (gradients if processes > 1 else 0)
    if quantise is not None and isinstance(base, FlowConfig):
        step += whole_weights(base, quantise, dtype=dtype, adapter=adapter)
    step += without  # the encoder is there when the picture is encoded, which may be the peak
    return MemoryEstimate(tuple(loaded), frozen, state, gradients, kept, step, texts)


def whole_weights(base: FlowConfig, quantise: Quantise, *, dtype: str, adapter: Adapter | None) -> int:
    """Bytes of the weights in `dtype` that torchao makes of int8 and autograd keeps until the backward pass.

    Those of one block, or of all where the adapter is trained without checkpointing. bitsandbytes keeps none.
    """
    if quantise != "int8" or adapter is None:
        return 0
    blocks: Counter[str] = Counter()
    for name, layer in quantised_layers(skeleton_unet(base)).items():
        blocks[".".join(name.split(".")[:2])] += layer.weight.numel() * getattr(torch, dtype).itemsize
    return max(blocks.values()) if adapter.gradient_checkpointing else blocks.total()


def quantised_totals(
    base: FlowConfig, estimate: MemoryEstimate, quantise: Quantise | None, *, dtype: str, adapter: Adapter | None
) -> dict[str, int]:
    """The total of an estimate that was made with this ``teacher.quantise``, for each value of that key."""
    kinds: tuple[Quantise | None, ...] = (None, *BITS)
    sizes = {kind: networks(base, dtype=dtype, quantise=kind, vae=False)[0].bytes for kind in kinds}
    for kind in BITS:
        sizes[kind] += whole_weights(base, kind, dtype=dtype, adapter=adapter)
    return {kind or "null": estimate.total + size - sizes[quantise] for kind, size in sizes.items()}


def _part_bytes(config: PipelineConfig | FlowConfig, *names: str) -> int:
    """Of parts of the auto-encoder that it has."""
    parts = [getattr(skeleton_vae(config), name, None) for name in names]
    return sum(_bytes(part.parameters()) for part in parts if part is not None)


def skeleton_teacher(
    config: PipelineConfig | FlowConfig, *, dtype: torch.dtype, gradient_checkpointing: bool
) -> StableDiffusionTeacher:
    """A teacher whose calls compute nothing but shapes; without text encoders and style."""
    family = config.family if isinstance(config, FlowConfig) else None
    schedule = flow_schedule() if isinstance(config, FlowConfig) else build_schedule(config)
    return StableDiffusionTeacher(
        unet=skeleton_unet(config).to(dtype),
        schedule=schedule.to("meta"),
        latent=AutoencoderLatent(
            skeleton_vae(config), patch=family.patch if family else 1, gradient_checkpointing=gradient_checkpointing
        ),
        prompts=PromptEncoder([], []),
        call=partial(family.call, guidance=1.0) if family else None,
    )


def skeleton_condition(config: PipelineConfig | FlowConfig, rows: int) -> Condition:
    """Embeddings as the prompts of `rows` samples have them."""
    if isinstance(config, FlowConfig):
        settings, pooled = config.transformer, None
        width = int(settings.get("joint_attention_dim") or settings["cap_feat_dim"])
        if "pooled_projection_dim" in settings:
            pooled = torch.empty(rows, int(settings["pooled_projection_dim"]), device="meta")
        return Condition(torch.empty(rows, config.family.tokens, width, device="meta"), pooled)
    length = int(config.text_encoders[0]["max_position_embeddings"])
    tokens = torch.empty(rows, length, int(config.unet["cross_attention_dim"]), device="meta")
    if config.family != "sdxl":
        return Condition(tokens)
    return Condition(tokens, torch.empty(rows, int(config.text_encoders[1]["projection_dim"]), device="meta"))


def _step(
    teacher: StableDiffusionTeacher,
    fake: LoraFakeScore | None,
    generator: nn.Module | None,
    live: Live,
    *,
    cond: Condition,
    x: Tensor,
    draws: int,
    doubled: bool,
    through_decoder: bool,
    share_draw: bool,
) -> int:
    """One training step as `StyleMatching.training_step` has it, with respect to what is alive when.

    Returns:
        The bytes alive between the forward and the backward pass.
    """
    losses: list[Tensor] = []
    with torch.no_grad():
        z = teacher.latent.encode(x)
    t = torch.zeros(len(x), dtype=torch.long, device="meta")

    def train_fake() -> None:
        if fake is not None:
            rows = z.detach().repeat(draws, 1, 1, 1)
            losses.append(fake.loss(rows, torch.empty_like(rows), t.repeat(draws), cond.repeat(draws)).mean())

    if generator is not None:
        y = generator(x)
        with torch.no_grad() if through_decoder else nullcontext():
            z = teacher.latent.encode(y)
        if doubled or fake is None:  # otherwise the fake's own pass, which keeps more, has at least as many samples
            times = 2 if doubled else 1
            teacher.base(torch.cat([z.detach()] * times), t.repeat(times), cond.repeat(times))
        if share_draw:
            train_fake()
        if through_decoder:
            with torch.no_grad():
                before, after = teacher.latent.decode(torch.cat([z, z]), (x.shape[-2], x.shape[-1])).chunk(2)
                target = y - (before - after)
            del before, after
            losses.append((y - target).square().mean())
        else:
            losses.append(z.square().mean())
    if not share_draw:
        train_fake()
    kept = live.now
    _backward(losses)
    return kept


def _backward(losses: Sequence[Tensor]) -> None:
    """`torch.autograd.backward`, which itself would switch `Numerics` off for what is recomputed."""
    engine: Any = torch.autograd.Variable._execution_engine
    ones = tuple(torch.ones_like(loss) for loss in losses)
    engine.run_backward(tuple(losses), ones, False, False, (), allow_unreachable=True, accumulate_grad=True)


class Live(TorchDispatchMode):
    """Counts the bytes alive of tensors made while it is active.

    Attributes:
        now, peak: bytes at this moment, and the most so far.
    """

    def __init__(self, known: Iterable[nn.Module] = ()) -> None:
        """`known`: modules whose weights are there already and do not count."""
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}
        tensors = [t for module in known for t in (*module.parameters(), *module.buffers())]
        self._known = {t.untyped_storage()._cdata for t in tensors}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor):
                self._see(value.untyped_storage())
        return result

    def _see(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._sizes or key in self._known:
            return
        self._sizes[key] = storage.nbytes()
        self.now += self._sizes[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


class Numerics(TorchFunctionMode):
    """What a GPU does otherwise than the meta device: fused attention, and the casts of mixed precision.

    Args:
        lower: dtype of matrix products and convolutions under mixed precision (normalisations stay in float32, but for
            those of a U-Net in 16 bits, which runs outside of it); None leaves every dtype as it is.
    """

    _LOWERED = (F.linear, F.conv2d, F.conv_transpose2d, torch.matmul, torch.bmm, F.scaled_dot_product_attention)
    _RAISED = (F.group_norm, F.layer_norm, F.softmax, torch.softmax)

    def __init__(self, lower: torch.dtype | None = None) -> None:
        super().__init__()
        self._lower = lower

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        floats = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.is_floating_point()]
        known = self._lower is not None and func in (*self._LOWERED, *self._RAISED)
        if known and any(v.itemsize > 2 for v in floats):
            to = self._lower if func in self._LOWERED else torch.float32
            cast = {id(v): v.to(to) for v in floats}
            args = [cast.get(id(value), value) for value in args]
            kwargs = {name: cast.get(id(value), value) for name, value in kwargs.items()}
        if func is F.scaled_dot_product_attention:
            named = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
            attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
            return attention(named["query"], named["key"], named["value"])[0]
        return func(*args, **kwargs)


def _bytes(parameters: Iterable[Tensor]) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)
