from __future__ import annotations

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


def test_half_precision_file_and_model(tmp_path: Path) -> None:
    unet, _ = unet_and_text()
    tensors = {key: value.half() for key, value in kohya_tensors(unet, TARGETS).items()}
    save_file(tensors, tmp_path / "l.safetensors")
    loaded, merged = unet_and_text()[0], unet_and_text()[0]
    load_style_lora(loaded, None, tmp_path / "l.safetensors", strength=0.7)
    merge_kohya(merged, {key: value.float() for key, value in tensors.items()}, strength=0.7)
    torch.testing.assert_close(run(loaded), run(merged), atol=3e-5, rtol=0)
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
