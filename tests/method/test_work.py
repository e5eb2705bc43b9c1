"""What one training step costs: passes of the U-Net, counted; and that nothing in it waits for the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TinyGenerator, tiny_batch, tiny_module
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from smsff.errors import UserError
from smsff.method.module import StyleMatching
from smsff.method.relevance import SemanticRelevance, UniformRelevance
from smsff.method.sms import StyleMatchingObjective
from smsff.method.warmup import ReconstructionWarmup
from smsff.teacher.base.families import family_config
from smsff.teacher.fake_score import LoraFakeScore
from smsff.teacher.stable_diffusion import StableDiffusionTeacher, load_stable_diffusion
from smsff.training.nonfinite import StepGuard
from smsff.training.optimizer import GroupOptions, build_optimizer, clip_groups
from smsff.training.speed import Speed
from smsff.weights.memory import skeleton_condition, skeleton_teacher

BATCH = 2
STEP = {"warmup": ReconstructionWarmup(steps=0), "fake_score": LoraFakeScore}


class Work:
    """Samples that went through a U-Net."""

    def __init__(self) -> None:
        self.forward = self.with_graph = self.backward = self.calls = 0


@contextmanager
def counted(unet: nn.Module) -> Iterator[Work]:
    work = Work()

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        work.calls += 1
        work.forward += len(output[0])
        if output[0].requires_grad:
            work.with_graph += len(output[0])
            output[0].register_hook(went_back)

    def went_back(gradient: Tensor) -> None:
        work.backward += len(gradient)

    handle = unet.register_forward_hook(after)
    yield work
    handle.remove()


@pytest.fixture(scope="module")
def pipeline(tiny_base: Path, tiny_lora: Path) -> dict[str, str]:
    return {"base": str(tiny_base), "lora": str(tiny_lora)}


def quiet(module: StyleMatching) -> StyleMatching:
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    module.log_dict = lambda *_, **__: None  # type: ignore[method-assign]
    return module


def small(pipeline: dict[str, str], *, style: float = 1.0, fake: float = 1.0, **changes: Any) -> StyleMatching:
    objective = StyleMatchingObjective(style_guidance=style, fake_guidance=fake)
    return quiet(tiny_module(teacher=load_stable_diffusion(**pipeline), objective=objective, **{**STEP, **changes}))


@pytest.mark.parametrize(
    ("options", "forward"),
    [
        ({"style": 4.5, "fake": 4.5}, 7),  # the default; the authors' code does 8 and goes back through 2
        ({"style": 4.5, "fake": 4.5, "speed": Speed(share_draw=True)}, 6),
        ({"style": 4.5, "speed": Speed(share_draw=True)}, 5),
        ({"style": 4.5, "relevance": UniformRelevance(), "speed": Speed(share_draw=True)}, 3),
        ({"relevance": UniformRelevance()}, 3),
        ({"relevance": UniformRelevance(), "speed": Speed(share_draw=True)}, 2),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else str(value),
)
def test_passes_of_the_unet_for_each_sample(pipeline: dict[str, str], options: dict[str, Any], forward: int) -> None:
    module = small(pipeline, **options)
    with counted(module.teacher.unet) as work:
        module.training_step(tiny_batch(size=BATCH), 0).backward()
    assert (work.forward, work.with_graph, work.backward) == (forward * BATCH, BATCH, BATCH)
    # with and without the prompt, and the two prompts of relevance, go in one call
    assert work.calls <= 5


def test_a_shared_draw_leaves_the_style_gradient_as_it_was_and_trains_the_fake_where_it_was_asked(
    pipeline: dict[str, str],
) -> None:
    batch = tiny_batch(size=BATCH)
    figures, gradients = [], []
    for share in (False, True):
        torch.manual_seed(0)
        module = small(pipeline, fake=2.0, speed=Speed(share_draw=share))
        for name, parameter in module.fake.trainable_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
        taken: dict[str, Any] = {}
        module.log = lambda name, value, taken=taken, **_: taken.update({name: float(value)})
        module.training_step(batch, 0).backward()
        figures.append(taken)
        gradients.append({n: p.grad for n, p in module.generator.named_parameters()})
    for name in ("matching", "spectrum", "gradient", "t_mean"):
        assert figures[1][f"train/{name}"] == pytest.approx(figures[0][f"train/{name}"], rel=1e-5)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-9)

    # The shared loss is the usual one at the style gradient's t and noise.
    seen: dict[str, Tensor] = {}
    loss_of = module.fake.loss_of
    module.fake.loss_of = lambda eps, noise, t: (seen.update(noise=noise, t=t), loss_of(eps, noise, t))[1]
    kept: list[Tensor] = []
    encode = module.space.encode
    module.space.encode = lambda y, offset: kept.append(encode(y, offset)) or kept[-1]
    module.training_step(batch, 0)
    source = module.encode_prompts(batch["caption"]).source
    wanted = module.fake.loss(kept[0].detach(), seen["noise"], seen["t"], source).mean()
    assert taken["train/fake"] == pytest.approx(wanted.item(), rel=1e-5)


def test_in_the_warm_up_a_shared_draw_is_the_fakes_own(pipeline: dict[str, str]) -> None:
    module = small(pipeline, warmup=ReconstructionWarmup(steps=2), speed=Speed(share_draw=True))
    with counted(module.teacher.unet) as work:
        module.training_step(tiny_batch(size=BATCH), 0).backward()
    assert (work.forward, work.backward) == (BATCH, BATCH)


class Waits(TorchDispatchMode):
    """Names the operations that would make the host wait for a device, for which the meta device stands."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, tensors = str(func), [a for a in args if isinstance(a, Tensor)]
        if "_local_scalar_dense" in name and tensors[0].is_meta:
            self.found.append(name)
            return 1.0
        to = kwargs.get("device")
        if "_to_copy" in name and to is not None and not kwargs.get("non_blocking"):
            self.found += [f"{x.device} to {to}: {tuple(x.shape)}" for x in tensors if x.device != torch.device(to)]
        return func(*args, **kwargs)


def meta_module(**changes: Any) -> StyleMatching:
    """The real step on Stable Diffusion 1.5 without weights: what needs a number of the device cannot be computed."""
    config = family_config("sd1")
    teacher: StableDiffusionTeacher = skeleton_teacher(config, dtype=torch.float32, gradient_checkpointing=True)
    teacher.has_style = True
    teacher.style = teacher.base  # type: ignore[method-assign]
    teacher.encode_prompts = lambda prompts, style=False: skeleton_condition(config, len(prompts))  # type: ignore
    objective = StyleMatchingObjective(style_guidance=4.5, fake_guidance=4.5, normalize=True)
    with torch.device("meta"):
        generator = TinyGenerator()
    module = tiny_module(generator=generator, teacher=teacher, objective=objective, **{**STEP, **changes})
    return quiet(module.to("meta"))


def step_on(module: StyleMatching, optimizer: torch.optim.Optimizer, iteration: int) -> None:
    batch = module.transfer_batch_to_device(tiny_batch(iteration, size=1, height=64, width=64), torch.device("meta"), 0)
    assert batch["image"].is_meta
    module.training_step(batch, 0)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.empty_like(parameter)
    module.guard.decide(optimizer, clip_groups(optimizer), step=iteration)


@pytest.mark.parametrize("options", [{}, {"speed": Speed(share_draw=True)}, {"pullback": "decoder"}], ids=str)
def test_nothing_in_a_step_waits_for_the_device(options: dict[str, Any]) -> None:
    module = meta_module(relevance=SemanticRelevance(normalize="minmax_mean"), **options)
    optimizer = build_optimizer(
        {n: (p, GroupOptions(lr=1e-3, clip_norm=1.0)) for n, (p, _) in module.parameter_groups().items()}
    )
    step_on(module, optimizer, 0)  # tables are made and sent
    with Waits() as waits:
        step_on(module, optimizer, 1)
    assert not waits.found


def test_the_watch_for_waits_sees_them() -> None:
    x = torch.ones(3, device="meta")
    with Waits() as waits:
        float(x.sum())
        torch.ones(2).to(x.device)
        torch.ones(2).to(x.device, non_blocking=True)
    assert len(waits.found) == 2
    assert isinstance(tiny_module().guard, StepGuard)


def test_the_fake_follows_as_well_with_a_shared_draw() -> None:
    """On Gaussians, where the fixed point is known."""
    module = quiet(
        tiny_module(
            warmup=ReconstructionWarmup(steps=0),
            relevance=UniformRelevance(),
            objective=StyleMatchingObjective(),
            speed=Speed(share_draw=True),
            steps=250,
        )
    )
    optimizer = torch.optim.Adam([*module.generator.parameters(), *module.fake.parameters()], lr=2e-2)
    for iteration in range(250):
        optimizer.zero_grad()
        module.training_step(tiny_batch(iteration), 0).backward()
        optimizer.step()
    assert module.generator(tiny_batch()["image"]).mean().item() == pytest.approx(2.0, abs=0.5)
    assert module.fake.mean.item() == pytest.approx(2.0, abs=0.7)


@pytest.mark.parametrize(
    "parts", [["generator"], pytest.param(["generator", "scores"], marks=pytest.mark.slow)], ids=str
)
def test_layout_and_compilation_leave_numbers_and_names(
    pipeline: dict[str, str], parts: list[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr("smsff.training.speed.BACKEND", "eager")
    losses, names, built = [], [], []
    with torch._dynamo.config.patch(recompile_limit=torch._dynamo.config.recompile_limit):
        for speed in (Speed(), Speed(channels_last=True, compile=parts)):
            torch.manual_seed(0)
            module = small(pipeline, speed=speed)
            losses.append(module.training_step(tiny_batch(size=BATCH), 0).item())
            names.append(module.saved_keys())
            built.append(module)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert names[0] == names[1]
    fast = built[1]
    for network in (fast.generator, fast.teacher.unet, fast.teacher.latent, fast.ema):
        weights = [p for p in network.parameters() if p.ndim == 4]
        assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
    assert fast.generator._compiled_call_impl is not None
    assert (fast.teacher.unet._compiled_call_impl is not None) is ("scores" in parts)
    assert fast.ema.module._compiled_call_impl is None


@pytest.mark.slow
@pytest.mark.parametrize("share", [False, True])
def test_compiled_scores_recompute_what_checkpoints_left_out_with_the_adapter_of_their_forward(
    pipeline: dict[str, str], share: bool, monkeypatch: Any
) -> None:
    monkeypatch.setattr("smsff.training.speed.BACKEND", "aot_eager")
    torch._dynamo.reset()
    gradients = []
    with torch._dynamo.config.patch(recompile_limit=torch._dynamo.config.recompile_limit):
        for parts in ([], ["scores"]):
            torch.manual_seed(0)
            speed = Speed(share_draw=share, compile=parts)
            fake = partial(LoraFakeScore, gradient_checkpointing=True)
            module = small(pipeline, speed=speed, fake_score=fake)
            for iteration in range(2):
                module.training_step(tiny_batch(iteration, size=BATCH), 0).backward()
            gradients.append([p.grad for _, p in module.fake.trainable_parameters()])
    assert module.teacher.unet.is_gradient_checkpointing
    for ours, compiled in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled, ours, rtol=1e-3, atol=1e-7)


def test_a_machine_that_cannot_compile_is_found_out_before_the_run(monkeypatch: Any) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("No working C++ compiler found\nand much more")

    monkeypatch.setattr("smsff.training.speed.BACKEND", broken)
    torch._dynamo.reset()
    with pytest.raises(
        UserError, match=r"speed\.compile=\[generator\]: .*No working C\+\+ compiler found.*compile=\[\]"
    ):
        tiny_module(speed=Speed(compile=["generator"]))


def test_products_in_tf32_are_a_choice_where_there_is_a_gpu(monkeypatch: Any) -> None:
    before = torch.get_float32_matmul_precision()
    try:
        for tf32, precision in ((False, "highest"), (True, "high")):
            module = tiny_module(speed=Speed(tf32=tf32))
            assert torch.get_float32_matmul_precision() == before
            with monkeypatch.context() as patch:
                patch.setattr(torch.cuda, "is_available", lambda: True)
                Speed(tf32=tf32).prepare(module.generator, module.teacher)
            assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
