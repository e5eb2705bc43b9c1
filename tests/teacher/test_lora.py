from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from lora_files import load_style_lora
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from tiny_pipelines import (
    TinySpec,
    build_text_encoder,
    build_tokenizer,
    build_unet,
    kohya_tensors,
    lora_delta,
    merge_kohya,
    write_kohya_lora,
)
from torch import Tensor, nn

from smsff.errors import UserError
from smsff.teacher.lora.switch import AdapterSwitch

SPEC = TinySpec()
TARGETS = ("to_q", "to_v", "to_out.0", "conv1", "proj_in", "conv_shortcut", "time_emb_proj", "ff.net.0.proj")


def unet_and_text(spec: TinySpec = SPEC, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(seed)
    return build_unet(spec), build_text_encoder(spec, len(build_tokenizer(spec.tokens)))


def run(unet: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    z, cond = torch.randn(2, 8, 6, 10, generator=generator), torch.randn(2, 16, 16, generator=generator)
    with torch.no_grad():
        return unet(z, torch.tensor([3, 800]), encoder_hidden_states=cond).sample


def expected(tensors: dict[str, Tensor], strength: float) -> Tensor:
    unet, _ = unet_and_text()
    merge_kohya(unet, tensors, strength=strength)
    return run(unet)


def assert_loads(path: Path, tensors: dict[str, Tensor], matched: int) -> None:
    unet, _ = unet_and_text()
    base = run(unet)
    report = load_style_lora(unet, None, path, strength=0.7)
    torch.testing.assert_close(run(unet), expected(tensors, 0.7), atol=3e-5, rtol=0)
    assert (run(unet) - base).abs().max() > 1e-2
    assert report.matched == report.total == matched


def test_half_precision_file_and_model(tmp_path: Path) -> None:
    unet, _ = unet_and_text()
    tensors = {key: value.half() for key, value in kohya_tensors(unet, TARGETS).items()}
    save_file(tensors, tmp_path / "l.safetensors")
    assert_loads(
        tmp_path / "l.safetensors", {key: value.float() for key, value in tensors.items()}, len(tensors) * 2 // 3
    )
    load_style_lora(unet.bfloat16(), None, tmp_path / "l.safetensors")
    assert {p.dtype for p in unet.parameters()} == {torch.bfloat16}


def test_saved_by_diffusers_and_by_peft_keep_their_alpha(tmp_path: Path) -> None:
    config = LoraConfig(r=4, lora_alpha=10, target_modules=["to_q", "conv2"], init_lora_weights=False)
    unet, _ = unet_and_text()
    unet.add_adapter(config, "made")
    wanted = run(unet)
    unet.save_lora_adapter(tmp_path / "diffusers", adapter_name="made")
    other, _ = unet_and_text()
    load_style_lora(other, None, tmp_path / "diffusers")
    torch.testing.assert_close(run(other), wanted, atol=1e-6, rtol=0)

    model = get_peft_model(unet_and_text()[0], config)
    wanted = run(model)
    model.save_pretrained(tmp_path / "peft")
    other, _ = unet_and_text()
    load_style_lora(other, None, tmp_path / "peft" / "adapter_model.safetensors")
    torch.testing.assert_close(run(other), wanted, atol=1e-6, rtol=0)


def test_everything_is_frozen_after_loading(tmp_path: Path) -> None:
    unet, text = unet_and_text()
    unet.requires_grad_(False)
    text.requires_grad_(False)
    write_kohya_lora(tmp_path / "l.safetensors", unet, text)
    load_style_lora(unet, text, tmp_path / "l.safetensors")
    assert not any(p.requires_grad for model in (unet, text) for p in model.parameters())


def test_lora_for_another_architecture_is_refused(tmp_path: Path) -> None:
    wide, _ = unet_and_text(TinySpec(width=32))
    write_kohya_lora(tmp_path / "wide.safetensors", wide)
    with pytest.raises(UserError, match=r"teacher\.lora=.*wide\.safetensors.*another architecture.*32, 3, 3"):
        load_style_lora(unet_and_text()[0], None, tmp_path / "wide.safetensors")
    other = {key.replace("_attentions_", "_others_"): v for key, v in kohya_tensors(wide, ("to_q",)).items()}
    save_file(other, tmp_path / "other.safetensors")
    unet, _ = unet_and_text()
    with pytest.raises(UserError, match="none of its"):
        load_style_lora(unet, None, tmp_path / "other.safetensors")
    assert not hasattr(unet, "peft_config")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("lora_unet_mid_block_attentions_0_proj_in.hada_w1_a", "not a LoRA format.*there is only hada_w1_a"),
        ("lora_unet_mid_block_attentions_0_proj_in.lokr_w1", "not a LoRA format.*there is only lokr_w1"),
        ("lora_unet_mid_block_attentions_0_proj_in.dora_scale", "not a LoRA format.*there is only dora_scale"),
        ("lora_unet_mid_block_resnets_0_conv1.lora_mid.weight", "not a LoRA format.*there is only mid"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight", "SDXL"),
        ("transformer.single_blocks.0.lora_A.weight", "transformer"),
        ("model.diffusion_model.input_blocks.0.0.weight", "not a LoRA file"),
        ("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight", "not a LoRA format"),
    ],
)
def test_other_formats_are_refused_by_name(tmp_path: Path, key: str, message: str) -> None:
    save_file({key: torch.zeros(2, 2)}, tmp_path / "l.safetensors")
    with pytest.raises(UserError, match=f"teacher.lora=.*{message}"):
        load_style_lora(unet_and_text()[0], None, tmp_path / "l.safetensors")


def test_missing_and_broken_files(tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"<html>not found</html>")
    (tmp_path / "old.pt").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    for path, message in (
        ("nowhere.safetensors", "no such file. Download"),
        ("broken.safetensors", "cannot be read"),
        ("old.pt", r"only \.safetensors"),
        ("empty", "found none"),
    ):
        with pytest.raises(UserError, match=f"teacher.lora=.*{path}: .*{message}") as caught:
            load_style_lora(unet_and_text()[0], None, tmp_path / path)
        assert caught.value.__cause__ is None


def test_switch_restores_nests_and_leaves_requires_grad(tmp_path: Path) -> None:
    unet, _ = unet_and_text()
    base = run(unet)
    write_kohya_lora(tmp_path / "l.safetensors", unet)
    load_style_lora(unet, None, tmp_path / "l.safetensors")
    styled = run(unet)
    switch = AdapterSwitch(unet)
    grads = [p.requires_grad for p in unet.parameters()]
    assert torch.equal(run(unet), base)
    with switch.using("style"):
        torch.testing.assert_close(run(unet), styled, rtol=0, atol=1e-5)  # peft's layers add in another order
        styled = run(unet)
        with switch.using(None):
            assert torch.equal(run(unet), base)
        assert torch.equal(run(unet), styled)
    with pytest.raises(RuntimeError, match="inside"), switch.using("style"):
        raise RuntimeError("inside")
    assert switch.active is None
    assert torch.equal(run(unet), base)
    assert grads == [p.requires_grad for p in unet.parameters()]


def test_not_finite_is_refused(tmp_path: Path) -> None:
    tensors = write_kohya_lora(tmp_path / "l.safetensors", unet_and_text()[0])
    next(value for key, value in tensors.items() if "lora_up" in key)[0] = float("nan")
    save_file(tensors, tmp_path / "l.safetensors")
    with pytest.raises(UserError, match="not finite"):
        load_style_lora(unet_and_text()[0], None, tmp_path / "l.safetensors")


def test_partial_match_is_loaded_and_the_rest_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = kohya_tensors(unet_and_text()[0], ("to_q", "conv1"))
    strange = {key.replace("mid_block", "mid_block_9"): v.clone() for key, v in tensors.items() if "mid_block" in key}
    save_file(tensors | strange, tmp_path / "l.safetensors")
    unet, _ = unet_and_text()
    with caplog.at_level(logging.WARNING):
        report = load_style_lora(unet, None, tmp_path / "l.safetensors")
    assert report.total - report.matched == 2 * len(report.unmatched) == len(strange) * 2 // 3
    assert report.unmatched[0] in caplog.text
    torch.testing.assert_close(run(unet), expected(tensors, 1.0), atol=3e-5, rtol=0)


def by_layer(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """{layer of the U-Net: {lora_down.weight, lora_up.weight, alpha}}."""
    unet, _ = unet_and_text()
    flat = {name.replace(".", "_"): name for name, _ in unet.named_modules()}
    layers: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, what = key.removeprefix("lora_unet_").partition(".")
        layers.setdefault(flat[name], {})[what] = value
    return layers


def test_diffusers_and_peft_names(tmp_path: Path) -> None:
    """The same LoRA under the other names that are in use; without alphas its scale is 1."""
    tensors = kohya_tensors(unet_and_text()[0], TARGETS)
    layers = by_layer(tensors)
    n = 2 * len(layers)
    for key in tensors:
        if key.endswith(".alpha"):
            tensors[key] = torch.tensor(len(tensors[key.replace("alpha", "lora_down.weight")]))
    for prefix in ("unet.", ""):
        peft = {f"{prefix}{k}.lora_A.weight": v["lora_down.weight"] for k, v in layers.items()}
        peft |= {f"{prefix}{k}.lora_B.weight": v["lora_up.weight"] for k, v in layers.items()}
        save_file(peft, tmp_path / "peft.safetensors")
        assert_loads(tmp_path / "peft.safetensors", tensors, n)
        old = {key.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): v for key, v in peft.items()}
        save_file(old, tmp_path / "old.safetensors")
        assert_loads(tmp_path / "old.safetensors", tensors, n)


@pytest.mark.parametrize("strength", [1.0, 0.7, 0.0, -0.5])
def test_kohya_file_with_convolutions_is_applied_at_its_strength(tmp_path: Path, strength: float) -> None:
    unet, _ = unet_and_text()
    tensors = write_kohya_lora(tmp_path / "l.safetensors", unet, targets=TARGETS)
    original = {name: parameter.clone() for name, parameter in unet.named_parameters()}
    report = load_style_lora(unet, None, tmp_path / "l.safetensors", strength=strength)
    torch.testing.assert_close(run(unet), expected(tensors, strength), atol=3e-5, rtol=0)
    assert report.matched == report.total == len(tensors) * 2 // 3
    assert report.ranks == (4, 6)
    assert report.unmatched == ()
    adapted = {name: layer for name, layer in unet.named_modules() if hasattr(layer, "get_delta_weight")}
    assert len(adapted) == len(tensors) // 3
    for name, layer in adapted.items():  # W + strength * alpha / rank * up @ down, layer by layer
        weight = layer.get_base_layer().weight
        assert torch.equal(weight, original[f"{name}.weight"])
        torch.testing.assert_close(
            layer.get_delta_weight("style").double(), strength * lora_delta(tensors, name), atol=1e-5, rtol=1e-5
        )


def test_text_encoder_part(tmp_path: Path) -> None:
    unet, text = unet_and_text()
    tensors = write_kohya_lora(tmp_path / "l.safetensors", unet, text)
    ids = torch.arange(32).view(2, 16)
    merged = unet_and_text()[1]
    merge_kohya(merged, tensors, strength=0.7, prefix="lora_te_text_model_")
    report = load_style_lora(unet, text, tmp_path / "l.safetensors", strength=0.7)
    torch.testing.assert_close(text(ids).last_hidden_state, merged(ids).last_hidden_state, atol=1e-5, rtol=0)
    assert report.adapts_text
    assert report.matched == report.total
    without = load_style_lora(unet_and_text()[0], None, tmp_path / "l.safetensors")
    assert not without.adapts_text
    assert without.ignored == report.total - without.matched > 0
