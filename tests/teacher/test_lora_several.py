"""Several files together, their text parts, what is reported, and the adapters beside the fake score's."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lora_files import (
    LAYERS,
    TEXT_LAYERS,
    file_tensors,
    kohya,
    load_style_lora,
    merge,
    merged_weights,
    reference_delta,
    run_text,
    run_unet,
    sd_models,
    xl_models,
)
from safetensors.torch import save_file
from tiny_pipelines import build_family
from torch import nn

from smsff.errors import UserError
from smsff.teacher.base.pipeline_config import Family
from smsff.teacher.fake_score import LoraFakeScore
from smsff.teacher.lora.apply import add_adapter, side_by_side
from smsff.teacher.lora.load import LoraFile, load_style_loras
from smsff.teacher.lora.switch import AdapterSwitch
from smsff.teacher.lora.weights import LowRank
from smsff.teacher.stable_diffusion import load_stable_diffusion

MIX = (("lora", 0.7), ("loha", 0.4), ("dora", -0.3), ("tucker", 0.5))


def write(path: Path, algorithm: str, model: nn.Module, text: nn.Module | None = None, *, seed: int = 3) -> Path:
    tensors = kohya(file_tensors(model, algorithm, seed=seed))
    if text is not None:
        tensors |= kohya(file_tensors(text, algorithm, TEXT_LAYERS, seed=seed), "lora_te_text_model_")
    save_file(tensors, path)
    return path


def test_mix_is_the_sum(tmp_path: Path) -> None:
    """Each file's change refers to the base's weights, so the order does not matter."""
    unet, text = sd_models()
    files = [
        LoraFile(write(tmp_path / f"{algorithm}.safetensors", algorithm, unet, text, seed=i), strength)
        for i, (algorithm, strength) in enumerate(MIX)
    ]
    reports = load_style_loras(unet, (text,), files)
    assert [report.path for report in reports] == [file.path for file in files]
    assert [report.strength for report in reports] == [strength for _, strength in MIX]
    assert all(report.matched == report.total and report.adapts_text for report in reports)
    (original, original_text), (merged, merged_text) = sd_models(), sd_models()
    for i, (algorithm, strength) in enumerate(MIX):
        merge(merged, file_tensors(original, algorithm, seed=i), strength, original)
        merge(merged_text, file_tensors(original_text, algorithm, TEXT_LAYERS, seed=i), strength, original_text)
    for name, weight in merged_weights(unet).items():
        torch.testing.assert_close(weight, merged.get_submodule(name).weight.double(), atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(run_unet(unet), run_unet(merged), atol=2e-5, rtol=0)
    torch.testing.assert_close(run_text(text), run_text(merged_text), atol=2e-5, rtol=0)
    backwards, _ = sd_models()
    load_style_loras(backwards, (), files[::-1])
    torch.testing.assert_close(run_unet(backwards), run_unet(unet), atol=2e-5, rtol=0)


def test_side_by_side_keeps_the_sum_whatever_the_scales() -> None:
    generator = torch.Generator().manual_seed(0)
    for scales in ((2.0, 0.5), (0.1, -3.0), (0.0, 1.0), (0.0, 0.0)):
        terms = [
            LowRank(torch.randn(r, 5, generator=generator), torch.randn(6, r, generator=generator), scale)
            for r, scale in zip((2, 3), scales, strict=True)
        ]
        one = side_by_side(terms)
        wanted = sum(term.scale * (term.up.double() @ term.down.double()) for term in terms)
        torch.testing.assert_close(one.scale * (one.up.double() @ one.down.double()), wanted, atol=1e-6, rtol=0)
        assert len(one.down) == 5


def test_text_part_can_be_left_out(tmp_path: Path) -> None:
    unet, text = sd_models()
    path = write(tmp_path / "l.safetensors", "loha", unet, text)
    before = run_text(text)
    (report,) = load_style_loras(unet, (text,), [LoraFile(path)], use_text=False)
    assert not report.adapts_text
    assert report.ignored == report.total - report.matched == 4 * len(file_tensors(text, "loha", TEXT_LAYERS))
    assert report.unmatched == ()
    assert torch.equal(run_text(text), before)


def test_foreign_keys_are_listed_and_the_rest_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """30 % of the tensors belong to no layer of the model, or are no part of a LoRA."""
    unet, _ = sd_models()
    layers = file_tensors(unet, "loha")
    tensors = kohya(layers)
    count = round(len(tensors) * 3 / 7)
    keys = [f"lora_unet_of_another_{i}.hada_w1_{'ab'[i % 2]}" for i in range(count - 2)]
    keys += ["bundle_emb.ink.string_to_param.*", "lora_unet_mid_block_attentions_0_norm.w_norm"]
    tensors |= {key: torch.zeros(2, 2) for key in keys}
    save_file(tensors, tmp_path / "l.safetensors")
    with caplog.at_level(logging.INFO):
        report = load_style_lora(unet, None, tmp_path / "l.safetensors")
    assert report.total - report.matched == count
    warning = next(record.message for record in caplog.records if record.levelno == logging.WARNING)
    for name in ("of_another_0", "of_another_1", *keys[-2:]):
        assert name in report.unmatched
        assert name in warning
    (line,) = [record.message for record in caplog.records if record.levelno == logging.INFO]
    assert f"{report.matched} of {report.total} tensors loaded, without the text encoder" in line
    assert "l.safetensors (kohya LoHa for an unnamed base model; rank 3, alpha 2) at strength 1" in line
    merged = sd_models()[0]
    merge(merged, layers, 1.0)
    torch.testing.assert_close(run_unet(unet), run_unet(merged), atol=1e-5, rtol=0)


def test_nothing_is_touched_when_one_file_is_refused(tmp_path: Path) -> None:
    unet, text = sd_models()
    good = write(tmp_path / "good.safetensors", "lora", unet, text)
    xl = write(tmp_path / "xl.safetensors", "lora", xl_models()[0])
    before = list(unet.named_modules())
    with pytest.raises(UserError, match=r"xl\.safetensors: this is a LoRA for SDXL|another architecture"):
        load_style_loras(unet, (text,), (LoraFile(good), LoraFile(xl)))
    assert [id(module) for _, module in before] == [id(module) for _, module in unet.named_modules()]


def test_another_family_is_refused_before_the_weights_are_read(
    tiny_pipeline: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> None:
        raise AssertionError("weights are read")

    monkeypatch.setattr("smsff.teacher.stable_diffusion.load_unet", read)
    monkeypatch.setattr("smsff.teacher.stable_diffusion.load_text", read)
    path = tmp_path / "l.safetensors"
    save_file(kohya(file_tensors(xl_models()[2], "lora", TEXT_LAYERS), "lora_te2_"), path)
    with pytest.raises(UserError, match=r"l\.safetensors: this is a LoRA for SDXL, but teacher\.base is another kind"):
        load_stable_diffusion(base=str(tiny_pipeline()), lora=str(path))


@pytest.mark.parametrize(("algorithm", "end"), [("loha", "hada_w1_a"), ("lokr", "lokr_w2_a"), ("dora", "dora_scale")])
def test_sizes_that_do_not_fit_are_refused(tmp_path: Path, algorithm: str, end: str) -> None:
    unet, _ = sd_models()
    tensors = kohya(file_tensors(unet, algorithm))
    key = next(key for key in tensors if key.endswith(end))
    tensors[key] = torch.cat([tensors[key]] * 3)
    save_file(tensors, tmp_path / "l.safetensors")
    with pytest.raises(
        UserError, match=r"l\.safetensors: made for another architecture: of .* does not fit the weight"
    ):
        load_style_lora(unet, None, tmp_path / "l.safetensors")


def test_one_name_once() -> None:
    unet, _ = sd_models()
    change = LowRank(torch.ones(1, 32), torch.ones(32, 1), 1.0)
    for adapter, value in (("low", change), ("full", torch.ones(32, 32))):
        add_adapter(unet, [("mid_block.attentions.0.transformer_blocks.0.attn1.to_q", value)], adapter)
        with pytest.raises(ValueError, match=f"has an adapter '{adapter}' already"):
            add_adapter(unet, [], adapter)


def test_half_precision_keeps_the_change_apart(tmp_path: Path) -> None:
    """A change of a thousandth of the weights would be rounded away in them."""
    unet, _ = sd_models()
    layers = file_tensors(unet, "loha")
    save_file(kohya(layers), tmp_path / "l.safetensors")
    unet.bfloat16()
    load_style_lora(unet, None, tmp_path / "l.safetensors", strength=1e-3)
    for name, layer in unet.named_modules():
        if hasattr(layer, "get_delta_weight"):
            wanted = reference_delta(layers[name], layer.get_base_layer().weight, 1e-3)
            delta = layer.get_delta_weight("style")
            assert delta.dtype == torch.bfloat16
            torch.testing.assert_close(delta.double(), wanted, atol=1e-8, rtol=2**-8)


def test_switching_restores_the_base_exactly(tmp_path: Path) -> None:
    unet, text = sd_models()
    base = run_unet(unet)
    files = [LoraFile(write(tmp_path / f"{a}.safetensors", a, unet, text)) for a in ("lora", "lokr")]
    load_style_loras(unet, (), files)
    styled = run_unet(unet)
    assert not any(parameter.requires_grad for name, parameter in unet.named_parameters() if "style" in name)
    assert not any("delta" in name for name in unet.state_dict())
    switch = AdapterSwitch(unet)
    assert torch.equal(run_unet(unet), base)
    with switch.using("style"):
        torch.testing.assert_close(run_unet(unet), styled, rtol=0, atol=1e-5)
    with switch.using("another"):
        assert torch.equal(run_unet(unet), base)
    assert (styled - base).abs().max() > 1e-2


@pytest.mark.parametrize("algorithm", ["lora", "loha", "dora"])
def test_one_unet_for_base_style_and_fake(tiny_pipeline: Callable[..., Path], tmp_path: Path, algorithm: str) -> None:
    """The fake score's LoRA goes around layers that the style changes; training it leaves base and style alone."""
    folder = tiny_pipeline(seed=4)
    plain = load_stable_diffusion(base=str(folder))
    path = write(tmp_path / "l.safetensors", algorithm, plain.unet)
    teacher = load_stable_diffusion(base=str(folder), lora=str(path))
    z, t = torch.randn(2, 8, 8, 8), torch.tensor([30, 700])
    cond, added = plain.encode_prompts(["a", "b"]), {"style": True}
    base, style = plain.base(z, t, cond), teacher.style(z, t, teacher.encode_prompts(["a", "b"], **added))
    fake = LoraFakeScore(teacher, rank=2, target_modules=("to_q", "conv1", "proj_in"))
    assert torch.equal(fake(z, t, cond), base)
    optimizer = torch.optim.SGD([parameter for _, parameter in fake.trainable_parameters()], lr=1.0)
    for _ in range(3):
        fake.loss(z, torch.randn_like(z), t, cond).mean().backward()
        optimizer.step()
    assert not torch.equal(fake(z, t, cond), base)
    assert torch.equal(teacher.base(z, t, cond), base)
    assert torch.equal(teacher.style(z, t, cond), style)
    assert (style - base).abs().max() > 1e-2
    assert len(list(fake.trainable_parameters())) == 2 * sum(
        name.endswith(("to_q", "conv1", "proj_in")) for name, _ in plain.unet.named_modules()
    )
    assert set(LAYERS) & {"conv1", "proj_in"}


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_every_family_through_the_loader(tmp_path: Path, family: Family) -> None:
    """A LoRA and a LoKr together on U-Net and text encoders: the style score is the base's with changed weights."""
    folder = build_family(tmp_path / "base", family)
    merged = load_stable_diffusion(base=str(folder))
    models: dict[str, nn.Module] = {"lora_unet_": merged.unet}
    for i, encoder in enumerate(merged.prompts.encoders):
        models["lora_te_" if family != "sdxl" else f"lora_te{i + 1}_"] = encoder
    z, t = torch.randn(2, 4, 8, 8), torch.tensor([30, 700])
    entries = []
    for algorithm, strength in (("lora", 0.8), ("lokr", 0.2)):
        tensors = {}
        for prefix, model in models.items():
            targets = ("to_q", "to_out.0", "proj_in", "ff.net.2") if prefix == "lora_unet_" else TEXT_LAYERS
            layers = file_tensors(model, algorithm, targets)
            tensors |= kohya(layers, prefix)
            entries.append((model, layers, strength))
        save_file(tensors, tmp_path / f"{algorithm}.safetensors")
    files = [{"path": str(tmp_path / "lora.safetensors"), "strength": 1.6}]
    files += [{"path": str(tmp_path / "lokr.safetensors"), "strength": 0.4}]
    teacher = load_stable_diffusion(base=str(folder), lora=files, lora_strength=0.5)
    assert all(report.matched == report.total and report.adapts_text for report in teacher.lora_reports)
    for model, layers, strength in entries:
        merge(model, layers, strength)
    wanted = merged.base(z, t, merged.encode_prompts(["ink", ""]))
    style = teacher.style(z, t, teacher.encode_prompts(["ink", ""], style=True))
    torch.testing.assert_close(style, wanted, atol=2e-5, rtol=0)
    assert (style - teacher.base(z, t, teacher.encode_prompts(["ink", ""]))).abs().max() > 1e-2
