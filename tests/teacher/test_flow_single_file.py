"""A flow's transformer in a single file, in the names of its original code and of diffusers."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from flow_files import original_names
from safetensors.torch import save_file
from tiny_flow import FAMILIES, build_flow
from torch import Tensor

from smsff.errors import UserError
from smsff.teacher.base.source import Source
from smsff.teacher.flow.load import load_flow
from smsff.teacher.flow.single_file import PREFIX, find_flow_config, load_transformer

Flows = Callable[..., Path]
Tensors = dict[str, Tensor]


def loaded(path: Path, folder: Path, tensors: Tensors, dtype: torch.dtype = torch.float32) -> Any:
    save_file(tensors, path)
    source, settings = (
        Source(str(p), f"teacher.{k}", None, None, True) for p, k in ((path, "base"), (folder, "config"))
    )
    return load_transformer(source, settings, find_flow_config(source, settings), dtype)


def check_same(net: Any, expected: Tensors) -> None:
    found = net.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_names_of_diffusers_of_the_original_code_and_of_complete_checkpoints(
    family: str, flow_pipeline: Flows, tmp_path: Path
) -> None:
    path, folder, net = tmp_path / "mine.safetensors", flow_pipeline(family), build_flow(family).transformer
    check_same(loaded(path, folder, net.state_dict()), net.state_dict())
    if family == "flux1":  # diffusers converts it at its full width alone: the next test
        return
    tensors = original_names(net, family) | ({"norm_final.weight": torch.ones(32)} if family == "zimage" else {})
    assert family == "qwen" or tensors.keys() != net.state_dict().keys()
    check_same(loaded(path, folder, tensors), net.state_dict())
    whole = {PREFIX + name: value for name, value in tensors.items()} | {"vae.decoder.x": torch.zeros(2)}
    check_same(loaded(path, folder, whole), net.state_dict())


@pytest.mark.slow
def test_the_original_names_of_flux1_at_full_width(flow_pipeline: Flows, tmp_path: Path) -> None:
    folder = tmp_path / "flux1"
    shutil.copytree(flow_pipeline("flux1"), folder)
    sizes = {"num_layers": 1, "num_single_layers": 1, "joint_attention_dim": 40, "pooled_projection_dim": 16}
    with torch.device("meta"):
        net = FluxTransformer2DModel(**sizes, guidance_embeds=True)
    net.save_config(folder / "transformer")
    net = net.bfloat16().to_empty(device="cpu")
    for value in net.state_dict().values():
        value.copy_(torch.randn(value.shape[0], *[1] * (value.ndim - 1)).expand(value.shape))
    check_same(
        loaded(tmp_path / "x.safetensors", folder, original_names(net, "flux1"), torch.bfloat16), net.state_dict()
    )


def test_a_teacher_of_a_single_file_is_that_of_the_folder(
    flow_pipeline: Flows, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, path, found = str(flow_pipeline("zimage")), str(tmp_path / "mine_turbo.safetensors"), []
    save_file(original_names(build_flow("zimage").transformer, "zimage"), path)
    with caplog.at_level(logging.WARNING):
        for options in ({"base": folder}, {"base": path, "config": folder}):
            teacher = load_flow(**options)
            torch.manual_seed(1)
            z_t, t = torch.randn(2, teacher.latent.channels, 8, 12), torch.tensor([80, 700])
            found.append(teacher.base(z_t, t, teacher.encode_prompts(["a cel drawing", "an oil painting of a dog"])))
    assert torch.equal(*found)
    (warning,) = [record.message for record in caplog.records if record.name.startswith("smsff.")]
    assert warning.startswith(f"teacher.base={path}: is distilled")


def test_what_does_not_fit_is_refused(flow_pipeline: Flows, tmp_path: Path) -> None:
    folder, other, path = flow_pipeline("klein"), flow_pipeline("zimage"), tmp_path / "x.safetensors"
    whole = original_names(build_flow("klein").transformer, "klein")
    one, less = "double_blocks.1.img_mlp.0.weight", dict(whole)
    renamed = {("other.weight" if name == one else name): value for name, value in whole.items()}
    del less[one]
    for tensors, config, message in (
        (whole, None, r"set teacher\.config to .* such as black-forest-labs/FLUX\.2-klein-base-4B"),
        (whole, other, r"the file is FLUX\.2 klein, and teacher\.config=.* is Z-Image"),
        (less, folder, r"its transformer has [\d,]+ weights, and that of teacher\.config=.* has"),
        (renamed, folder, r"its transformer is not that of teacher\.config"),
        (whole | {f"{one}_scale": torch.ones(1)}, folder, r"quantised.*fp8 with scales"),
        ({"double_blocks.0.img_attn.qkv.lora_A.weight": torch.ones(1)}, folder, r"no transformer of .* \(a LoRA\)"),
        ({"conv_in.weight": torch.ones(1)}, folder, r"no transformer of .* \(it has conv_in\.weight\)"),
    ):
        save_file(tensors, path)
        with pytest.raises(UserError, match=f"^teacher\\.base={path}: .*{message}"):
            load_flow(base=str(path), config=None if config is None else str(config))
    with pytest.raises(UserError, match=r"^teacher\.config=.*: is for a single file"):
        load_flow(base=str(folder), config=str(folder))
