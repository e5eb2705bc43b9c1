"""What is predicted from configurations against what a real step keeps, on small pipelines."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_flow import FAMILIES, build_flow
from torch import Tensor, nn

from smsff.generator.unet import UNetGenerator
from smsff.teacher.base.components import find_config
from smsff.teacher.base.families import family_config
from smsff.teacher.base.skeleton import networks
from smsff.teacher.base.source import Source
from smsff.teacher.condition import Condition
from smsff.teacher.fake_score import LoraFakeScore
from smsff.teacher.flow.calls import klein
from smsff.teacher.flow.families import FAMILIES as FAMILIES_BY_CLASS
from smsff.teacher.flow.families import FlowConfig, read_flow_config
from smsff.teacher.flow.load import load_flow
from smsff.teacher.flow.published import PUBLISHED_FLOWS
from smsff.teacher.flow.quantise import quantise_transformer
from smsff.teacher.stable_diffusion import load_stable_diffusion
from smsff.weights.memory import Adapter, Live, MemoryEstimate, Numerics, predict, whole_weights

Families = Callable[..., Path]
SIZE, BATCH = (64, 96), 2
TARGETS = ("to_q", "to_v", "conv1")


def small_generator() -> nn.Module:
    return UNetGenerator(widths=(8, 8), encoder_blocks=(1, 1), decoder_blocks=(1,))


def estimate(folder: Path, *, checkpointing: bool, **options: Any) -> MemoryEstimate:
    arguments: dict[str, Any] = {
        "batch": BATCH,
        "size": SIZE,
        "dtype": "float32",
        "adapter": Adapter(rank=4, target_modules=TARGETS, gradient_checkpointing=checkpointing),
        "generator": small_generator,
        "gradient_checkpointing": checkpointing,
        **options,
    }
    return predict(find_config(Source(str(folder), "teacher.base")), **arguments)


@functools.cache
def usual(folder: Path, checkpointing: bool) -> MemoryEstimate:
    return estimate(folder, checkpointing=checkpointing)


class RealStep:
    """The same step on real tensors."""

    def __init__(self, folder: Path, *, checkpointing: bool) -> None:
        self.teacher = load_stable_diffusion(base=str(folder), lora=None, gradient_checkpointing=checkpointing)
        self.fake = LoraFakeScore(self.teacher, rank=4, target_modules=TARGETS, gradient_checkpointing=checkpointing)
        self.generator = small_generator()
        self.cond = self.teacher.encode_prompts(["a"] * BATCH)
        self.x = torch.rand(BATCH, 3, *SIZE)

    def forward(self) -> Tensor:
        z = self.teacher.latent.encode(self.generator(self.x))
        rows = z.detach()
        t = torch.tensor([10, 700])
        return z.square().mean() + self.fake.loss(rows, torch.randn_like(rows), t, self.cond).mean()

    @property
    def modules(self) -> list[nn.Module]:
        return [self.teacher, self.generator]


@pytest.mark.parametrize("family", ["sd1", pytest.param("sd2", marks=pytest.mark.slow), "sdxl"])
def test_what_the_backward_pass_needs_is_predicted(family: str, family_pipeline: Families) -> None:
    folder = family_pipeline(family)
    step = RealStep(folder, checkpointing=False)
    weights = {t.untyped_storage().data_ptr() for m in step.modules for t in (*m.parameters(), *m.buffers())}
    saved: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage  # kept, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step.forward()
    counted = sum(storage.nbytes() for storage in saved.values())
    assert usual(folder, False).kept == pytest.approx(counted, rel=0.15)


@pytest.mark.parametrize(
    ("family", "checkpointing"),
    [
        ("sd1", True),
        pytest.param("sd1", False, marks=pytest.mark.slow),
        pytest.param("sdxl", True, marks=pytest.mark.slow),
        pytest.param("sdxl", False, marks=pytest.mark.slow),
    ],
)
def test_the_most_that_is_alive_at_once_is_predicted(
    family: str, checkpointing: bool, family_pipeline: Families
) -> None:
    folder = family_pipeline(family)
    step = RealStep(folder, checkpointing=checkpointing)
    with Live(step.modules) as live:
        step.forward().backward()
    assert usual(folder, checkpointing).step == pytest.approx(live.peak, rel=0.15)


KINDS = [(family, "bfloat16", kind) for kind in (None, "int8") for family in FAMILIES]


@pytest.mark.parametrize(
    ("family", "dtype", "quantise"),
    [("sd35", "float32", None), *(pytest.param(*kind, marks=pytest.mark.slow) for kind in KINDS)],
)
def test_a_flows_step_is_predicted(family: str, dtype: Any, quantise: Any, flow_pipeline: Families) -> None:
    if quantise is not None:
        pytest.importorskip("torchao")
    folder, targets = flow_pipeline(family), ("to_q", "to_v")
    adapter = Adapter(rank=4, target_modules=targets, gradient_checkpointing=True)
    options: dict[str, Any] = {"batch": BATCH, "size": SIZE, "dtype": dtype, "generator": small_generator}
    config = read_flow_config(Source(str(folder), "teacher.base"))
    found = predict(config, adapter=adapter, quantise=quantise, **options)
    teacher = load_flow(base=str(folder), dtype=dtype, quantise=quantise)
    fake = LoraFakeScore(teacher, rank=4, target_modules=targets, gradient_checkpointing=True)
    generator, cond = small_generator(), teacher.encode_prompts(["a"] * BATCH)
    with Live([teacher, generator]) as live:
        z = teacher.latent.encode(generator(torch.rand(BATCH, 3, *SIZE)))
        rows = z.detach()
        loss = fake.loss(rows, torch.randn_like(rows), torch.tensor([10, 700]), cond).mean()
        (z.square().mean() + loss).backward()
    assert found.step == pytest.approx(live.peak, rel=0.15)
    weights = [*teacher.unet.parameters(), *teacher.latent.parameters()]
    trained = sum(p.numel() * 4 for _, p in fake.trainable_parameters())
    counted = sum(map(held, weights)) - trained
    assert found.frozen == (counted if quantise is None else pytest.approx(counted, rel=0.05))


def held(weight: Any) -> int:
    """Bytes of a weight, of torchao's with its scales."""
    if type(weight).__name__ != "Int8Tensor":
        return weight.numel() * weight.element_size()
    return sum(part.numel() * part.element_size() for part in (weight.qdata, weight.scale))


@pytest.mark.slow
def test_whole_weights_of_int8_that_autograd_keeps_are_predicted() -> None:
    pytest.importorskip("torchao")
    net = build_flow("klein").transformer.bfloat16()
    config = FlowConfig(FAMILIES_BY_CLASS["Flux2KleinPipeline"], dict(net.config), {}, ())
    z, cond = torch.randn(1, 32, 8, 12), Condition(torch.randn(1, 8, 48).bfloat16())
    kept = []
    for kind in (None, "int8"):
        if kind is not None:
            quantise_transformer(net, kind)
        known = {p.untyped_storage().data_ptr() for p in net.parameters() if type(p) is nn.Parameter}
        saved: dict[int, Any] = {}

        def pack(tensor: Tensor, known: set[int] = known, saved: dict[int, Any] = saved) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                saved[storage.data_ptr()] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            klein(net, z.bfloat16().requires_grad_(), torch.tensor([0.5]), cond, 1.0)
        kept.append(sum(storage.nbytes() for storage in saved.values()))
    adapter = Adapter(rank=4, target_modules=("to_q",), gradient_checkpointing=False)
    assert whole_weights(config, "int8", dtype="bfloat16", adapter=adapter) == pytest.approx(kept[1] - kept[0], rel=0.1)


def test_a_quantised_transformer_takes_fewer_bytes() -> None:
    shape = PUBLISHED_FLOWS["stabilityai/stable-diffusion-3.5-medium"]
    sizes = {kind: networks(shape, dtype="bfloat16", quantise=kind)[0].bytes for kind in (None, "int8", "nf4")}
    parameters = networks(shape, dtype="bfloat16")[0].parameters
    assert sizes[None] == 2 * parameters
    assert 1.0 * parameters < sizes["int8"] < 1.1 * parameters
    assert 0.5625 * parameters < sizes["nf4"] < 0.7 * parameters


def test_weights_by_network_and_dtype() -> None:
    """Of the published models: sizes that everybody can look up."""
    options: dict[str, Any] = {"batch": 1, "size": (64, 64), "adapter": None}
    xl = predict(family_config("sdxl"), dtype="bfloat16", **options)
    sizes = {n.name: (n.parameters, n.dtype, n.bytes) for n in xl.networks}
    assert sizes["U-Net"] == (2_567_463_684, "bfloat16", 2 * 2_567_463_684)
    assert sizes["auto-encoder"] == (83_653_863, "float32", 4 * 83_653_863)
    assert sizes["text encoder 1"][0] == 123_060_480
    assert sizes["text encoder 2"][0] == 694_659_840
    assert xl.frozen == 2 * 2_567_463_684 + 4 * 83_653_863
    assert xl.loading == 4 * (123_060_480 + 694_659_840)
    assert xl.trained == 0
    two = predict(family_config("sd1"), dtype="float32", style_base=family_config("sd1"), **options)
    assert two.frozen == 4 * (2 * 859_520_964 + 83_653_863)
    assert two.loading == 4 * 2 * 123_060_480
    assert [n.name for n in two.networks][3:] == ["style's U-Net", "style's text encoder"]
    without = predict(family_config("sd1"), dtype="float32", decoder=False, **options)
    assert without.frozen == 4 * (859_520_964 + 34_163_664)
    other = predict(family_config("sd1"), dtype="float32", encoder=False, **options)
    assert other.frozen == 4 * (859_520_964 + 83_653_863 - 34_163_664)
    assert other.total == predict(family_config("sd1"), dtype="float32", **options).total  # it is there at the start


@pytest.mark.slow
def test_more_of_everything_needs_more(family_pipeline: Families) -> None:
    folder = family_pipeline("sd1")
    plain = usual(folder, True)
    assert plain.step < usual(folder, False).step
    assert plain.total == plain.frozen + plain.trained + plain.step
    larger = estimate(folder, checkpointing=True, batch=2 * BATCH, size=(128, 96), processes=2)
    assert larger.step - plain.trained_gradients == pytest.approx(4 * plain.step, rel=0.15)
    half = estimate(folder, checkpointing=True, dtype="bfloat16", mixed=True, through_decoder=True)
    shared = estimate(folder, checkpointing=False, through_decoder=True, share_draw=True)
    assert shared.step >= estimate(folder, checkpointing=False, through_decoder=True).step
    assert half.step < 0.9 * plain.step
    assert half.frozen < plain.frozen
    big = Adapter(rank=8, target_modules=TARGETS, gradient_checkpointing=True, draws=4)
    more = estimate(folder, checkpointing=True, adapter=big, style_lora=1000, doubled=True)
    assert more.trained > plain.trained
    assert more.frozen == plain.frozen + 4000
    assert more.kept > plain.kept


def test_adamw_holds_two_moments_of_every_trained_weight(family_pipeline: Families) -> None:
    folder = family_pipeline("sd1")
    step = RealStep(folder, checkpointing=False)
    adapters = [p for _, p in step.fake.trainable_parameters()]
    generator = list(step.generator.parameters())
    optimizer = torch.optim.AdamW([*adapters, *generator])
    step.forward().backward()
    optimizer.step()
    moments = sum(v.nbytes for s in optimizer.state.values() for v in s.values() if v.ndim)
    weights = sum(p.nbytes for p in [*adapters, *generator])
    average = sum(p.nbytes for p in generator)
    assert usual(folder, False).trained == weights + moments + average


def test_mixed_precision_casts_as_autocast_does() -> None:
    """Dtypes of the results of each kind of layer, against torch's own autocast on the CPU where both cast."""
    layers = {"linear": nn.Linear(8, 8), "convolution": nn.Conv2d(8, 8, 3, padding=1)}
    inputs = {"linear": torch.randn(2, 8), "convolution": torch.randn(2, 8, 4, 4)}
    for name, layer in layers.items():
        with torch.autocast("cpu", torch.bfloat16):
            wanted = layer(inputs[name]).dtype
        with Numerics(torch.bfloat16):
            assert layer(inputs[name]).dtype == wanted == torch.bfloat16
    with Numerics(torch.bfloat16):
        x = torch.randn(2, 8, 4, 4).bfloat16()
        assert nn.GroupNorm(2, 8)(x).dtype == torch.float32
        assert nn.GroupNorm(2, 8).bfloat16()(x).dtype == torch.bfloat16  # of a U-Net outside of autocast
    with Numerics():
        assert layers["linear"](inputs["linear"]).dtype == torch.float32
