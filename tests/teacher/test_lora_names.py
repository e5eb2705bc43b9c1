from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from lora_files import sd_models, xl_models
from peft import LoraConfig, get_peft_model
from torch import nn

from smsff.teacher.base.families import family_config
from smsff.teacher.base.pipeline_config import Family
from smsff.teacher.lora.names import layer_table, sgm_name, weight_of, weighted_layers


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_original_names_of_the_published_models(family: Family) -> None:
    """Every layer of the full-size U-Nets has one, and the stock converter of checkpoints leads back from it."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(family_config(family).unet))
    names = list(weighted_layers(unet))
    assert len(names) == (794 if family == "sdxl" else 282)
    checkpoint = {}
    for name in names:
        original = sgm_name(name, names)
        assert original is not None
        checkpoint |= {f"model.diffusion_model.{original}.{kind}": (name, kind) for kind in ("weight", "bias")}
    assert len(checkpoint) == 2 * len(names)
    for key, (name, kind) in convert_ldm_unet_checkpoint(checkpoint, unet.config).items():
        assert key == f"{name}.{kind}"


def test_table_finds_layers_under_every_name() -> None:
    unet, first, second = xl_models()
    table = {name: place.layers[0] for name, place in layer_table(unet).items()}
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0"
    assert table["down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0"] == name
    assert table["input_blocks_4_1_transformer_blocks_0_attn1_to_out_0"] == name
    assert set(table.values()) == set(weighted_layers(unet))
    # Transformers has one of the two text encoders with the level text_model and one without; the files always have it.
    assert layer_table(first)["encoder_layers_0_mlp_fc1"].layers == ("encoder.layers.0.mlp.fc1",)
    assert layer_table(second)["encoder_layers_0_mlp_fc1"].layers == ("text_model.encoder.layers.0.mlp.fc1",)


def test_adapters_do_not_change_the_names() -> None:
    unet, _ = sd_models()
    plain = weighted_layers(unet)
    weights = {name: weight_of(layer) for name, layer in plain.items()}
    model = get_peft_model(unet, LoraConfig(r=2, target_modules=["to_q", "conv1"]))
    adapted = weighted_layers(model)
    assert list(adapted) == list(plain)
    for name, layer in adapted.items():
        assert weight_of(layer) is weights[name]
        assert isinstance(layer, nn.Linear | nn.Conv2d) == (not name.endswith(("to_q", "conv1")))
