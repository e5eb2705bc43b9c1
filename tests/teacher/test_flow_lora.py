"""Style LoRAs of flow transformers: every format of every family, each tensor matched or named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    ZImageTransformer2DModel,
)
from diffusers.loaders import single_file_utils
from safetensors.torch import save_file
from tiny_flow import FAMILIES, build_flow
from torch import Tensor, nn

from smsff.errors import UserError
from smsff.teacher.lora.load import LoraFile, load_style_loras
from smsff.teacher.lora.names import weight_of, weighted_layers
from smsff.teacher.lora.originals import halves_swapped, original_layers
from smsff.teacher.lora.switch import AdapterSwitch

RANK, ALPHA = 4, 2.0
Tensors = dict[str, Tensor]

# Layers of each transformer that the files are for, of two blocks; outside of the blocks too.
LAYERS = {
    "sd35": ["transformer_blocks.{}.attn.to_q", "transformer_blocks.{}.attn.to_k", "transformer_blocks.{}.attn.to_v",
             "transformer_blocks.{}.attn.to_out.0", "transformer_blocks.{}.ff.net.0.proj", "norm_out.linear"],
    "flux1": ["transformer_blocks.{}.attn.to_q", "transformer_blocks.{}.attn.to_k", "transformer_blocks.{}.attn.to_v",
              "single_transformer_blocks.{}.attn.to_q", "single_transformer_blocks.{}.attn.to_k",
              "single_transformer_blocks.{}.attn.to_v", "single_transformer_blocks.{}.proj_mlp",
              "single_transformer_blocks.{}.proj_out", "norm_out.linear", "x_embedder"],
    "klein": ["transformer_blocks.{}.attn.to_q", "transformer_blocks.{}.attn.to_k", "transformer_blocks.{}.attn.to_v",
              "transformer_blocks.{}.ff.linear_in", "single_transformer_blocks.{}.attn.to_qkv_mlp_proj",
              "single_transformer_blocks.{}.attn.to_out", "norm_out.linear"],
    "zimage": ["layers.{}.attention.to_q", "layers.{}.attention.to_k", "layers.{}.attention.to_v",
               "layers.{}.attention.to_out.0", "layers.{}.feed_forward.w1"],
    "qwen": ["transformer_blocks.{}.attn.to_q", "transformer_blocks.{}.attn.to_k", "transformer_blocks.{}.attn.to_v",
             "transformer_blocks.{}.attn.to_out.0", "transformer_blocks.{}.img_mlp.net.2"],
}  # fmt: skip


class Files:
    """LoRAs for some layers of one transformer, and the change of each weight that they stand for."""

    def __init__(self, net: nn.Module, family: str) -> None:
        torch.manual_seed(0)
        names = dict.fromkeys(name.format(i) for name in LAYERS[family] for i in range(2))
        layers = weighted_layers(net)
        self.weights = {name: weight_of(layers[name]) for name in names}
        self.pairs = {
            name: (torch.randn(RANK, w.shape[1]), 0.1 * torch.randn(len(w), RANK)) for name, w in self.weights.items()
        }
        self.changes = {name: ALPHA / RANK * up @ down for name, (down, up) in self.pairs.items()}
        self.fused: dict[str, tuple[Tensor, Tensor]] = {}
        self.parts: dict[str, tuple[tuple[str, ...], bool]] = {}
        for original, parts in original_layers(type(net).__name__, layers):
            if parts[0] in self.pairs:
                down, up = self.pairs[parts[0]][0], torch.cat([self.pairs[part][1] for part in parts])
                swap = halves_swapped(parts[0], len(self.weights[parts[0]]), down.shape[1])
                self.fused[original] = down, torch.cat(up.chunk(2)[::-1]) if swap else up
                self.parts[original] = parts, swap
        self.fused_changes = {
            part: ALPHA / RANK * self.pairs[part][1] @ self.pairs[parts[0]][0]
            for parts, _ in self.parts.values()
            for part in parts
        }

    def peft(self, prefix: str, pairs: dict[str, tuple[Tensor, Tensor]], factor: float = ALPHA / RANK) -> Tensors:
        """Without alphas: the scale is in the up matrix."""
        named = {f"{prefix}{n}.lora_{k}.weight": v for n, p in pairs.items() for k, v in zip("AB", p, strict=True)}
        return {name: value * factor if ".lora_B." in name else value for name, value in named.items()}

    def fused_dora(self) -> Tensors:
        """In the original names, with 1.3 times the norm of each row of W + change."""
        tensors = self.peft("diffusion_model.", self.fused)
        for original, (parts, swap) in self.parts.items():
            norms = torch.cat([(self.weights[part] + self.fused_changes[part]).norm(dim=1) for part in parts])
            norms = torch.cat(norms.chunk(2)[::-1]) if swap else norms
            tensors[f"diffusion_model.{original}.dora_scale"] = 1.3 * norms[:, None]
        return tensors

    def kohya(self, prefix: str, pairs: dict[str, tuple[Tensor, Tensor]]) -> Tensors:
        tensors = {}
        for name, (down, up) in pairs.items():
            key = prefix + name.replace(".", "_")
            tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
            tensors[f"{key}.alpha"] = torch.tensor(ALPHA)
        return tensors

    def all(self) -> Iterator[tuple[str, Tensors, Tensors]]:
        """Format, tensors, change of each weight."""
        alphas = {f"transformer.{name}.alpha": torch.tensor(ALPHA) for name in self.pairs}
        yield "transformer.", self.peft("transformer.", self.pairs), self.changes
        yield "transformer., alpha", self.peft("transformer.", self.pairs, 1.0) | alphas, self.changes
        for prefix in ("base_model.model.", "", "diffusion_model."):
            yield prefix or "bare", self.peft(prefix, self.pairs), self.changes
        for prefix in ("lora_unet_", "lora_transformer_"):
            yield prefix, self.kohya(prefix, self.pairs), self.changes
        if self.fused:
            yield (
                "original, DoRA",
                self.fused_dora(),
                {
                    name: 1.3 * (self.weights[name] + change) - self.weights[name]
                    for name, change in self.fused_changes.items()
                },
            )
            yield "original, diffusion_model.", self.peft("diffusion_model.", self.fused), self.fused_changes
            yield "original, lora_unet_", self.kohya("lora_unet_", self.fused), self.fused_changes
        magnitudes = {name: 1.3 * (w + self.changes[name]).norm(dim=1) for name, w in self.weights.items()}
        dora = {name: 1.3 * (w + self.changes[name]) - w for name, w in self.weights.items()}
        peft = {f"transformer.{name}.lora_magnitude_vector": m for name, m in magnitudes.items()}
        kohya = {f"lora_unet_{name.replace('.', '_')}.dora_scale": m[:, None] for name, m in magnitudes.items()}
        yield "DoRA, transformer.", self.peft("transformer.", self.pairs) | peft, dora
        yield "DoRA, lora_unet_", self.kohya("lora_unet_", self.pairs) | kohya, dora
        factors = {
            name: (torch.randn(2 - len(w) % 2, 2), 0.1 * torch.randn(len(w) // (2 - len(w) % 2), w.shape[1] // 2))
            for name, w in self.weights.items()
        }
        for prefix in ("lycoris_", "diffusion_model."):
            flat = {name: name.replace(".", "_") if prefix == "lycoris_" else name for name in factors}
            named = {f"{prefix}{flat[n]}.lokr_w{i + 1}": v for n, p in factors.items() for i, v in enumerate(p)}
            yield f"LoKr, {prefix}", named, {name: torch.kron(*pair) for name, pair in factors.items()}
        hada = {
            name: [torch.randn(size) for size in ((len(w), 2), (2, w.shape[1])) * 2] for name, w in self.weights.items()
        }
        roles = ("w1_a", "w1_b", "w2_a", "w2_b")
        named = {
            f"lora_unet_{n.replace('.', '_')}.hada_{role}": value
            for n, values in hada.items()
            for role, value in zip(roles, values, strict=True)
        }
        yield "LoHa, lora_unet_", named, {name: (a @ b) * (c @ d) for name, (a, b, c, d) in hada.items()}


@torch.no_grad()
def adapted(net: nn.Module, names: Any) -> Tensors:
    """What the adapter adds to each weight, read off the layer's outputs."""
    layers = weighted_layers(net)
    found = {}
    for name in names:
        eye = torch.eye(layers[name].get_base_layer().in_features)
        found[name] = (layers[name](eye) - layers[name].get_base_layer()(eye)).T
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_of_every_format_lands_in_its_layer(family: str, tmp_path: Path) -> None:
    pristine = build_flow(family).transformer
    files = Files(pristine, family)
    seen = 0
    for title, tensors, changes in files.all():
        net = build_flow(family).transformer
        save_file({name: value.contiguous() for name, value in tensors.items()}, tmp_path / "style.safetensors")
        (report,) = load_style_loras(net, (), [LoraFile(tmp_path / "style.safetensors")], adapter_name="style")
        assert (report.unmatched, report.ignored) == ((), 0), title
        assert report.matched == report.total == sum(not name.endswith(".alpha") for name in tensors), title
        with AdapterSwitch(net).using("style"):
            found = adapted(net, changes)
        for name, change in changes.items():
            torch.testing.assert_close(found[name], change, atol=1e-6 * max(1, float(change.abs().max())), rtol=1e-5)
        seen += 1
    assert seen == (12 if family == "qwen" else 15)


def test_what_fits_nothing_is_named_and_a_lora_of_a_u_net_is_refused(tmp_path: Path) -> None:
    net = build_flow("sd35").transformer
    files, path = Files(net, "sd35"), tmp_path / "style.safetensors"
    other = {"transformer.transformer_blocks.9.attn.to_q": (torch.randn(4, 32), torch.randn(32, 4))}
    save_file(files.peft("transformer.", files.pairs) | files.peft("", other), path)
    (report,) = load_style_loras(net, (), [LoraFile(path)], adapter_name="style")
    assert report.unmatched == ("transformer_blocks.9.attn.to_q",)
    assert report.matched == report.total - 2
    block = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    save_file({f"{block}.lora_down.weight": torch.randn(4, 768), f"{block}.lora_up.weight": torch.randn(320, 4)}, path)
    with pytest.raises(UserError, match=r"a LoRA for Stable Diffusion 1\.x, but teacher\.base is Stable Diffusion 3"):
        load_style_loras(build_flow("sd35").transformer, (), [LoraFile(path)], adapter_name="style")


class Original(dict[str, Tensor]):
    """A checkpoint of the original code with one column for each weight; what it lacks (norms) is zeros."""

    def pop(self, key: str, *default: Any) -> Tensor:  # type: ignore[override]
        if key.endswith(".bias") and key not in self:
            return self[key.replace(".bias", ".weight")][:, 0]
        absent = key.endswith((".scale", "ln_q.weight", "ln_k.weight", "pos_embed"))
        return super().pop(key, torch.zeros(3)) if absent else self[key]


@pytest.mark.parametrize(
    ("make", "convert"),
    [
        (lambda: SD3Transformer2DModel(num_layers=2, num_attention_heads=24, caption_projection_dim=1536,
                                       joint_attention_dim=4096, pooled_projection_dim=2048,
                                       dual_attention_layers=(0,)), "sd3"),
        (lambda: FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True), "flux"),
        (lambda: Flux2Transformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=False), "flux2"),
        (lambda: ZImageTransformer2DModel(n_layers=1, n_refiner_layers=1), "z_image"),
    ],
)  # fmt: skip
def test_names_of_the_original_code_are_those_that_diffusers_converts(make: Callable[[], Any], convert: str) -> None:
    """A checkpoint in the original names of our table comes out of diffusers' converter with each row in its layer."""
    with torch.device("meta"):
        net = make()
    layers = weighted_layers(net)
    torch.manual_seed(0)
    rows = {name: torch.randn(len(weight_of(layer)), 1) for name, layer in layers.items()}
    checkpoint, covered = Original(), set()
    for original, parts in original_layers(type(net).__name__, layers):
        value, shape = torch.cat([rows[part] for part in parts]), weight_of(layers[parts[0]]).shape
        swap = halves_swapped(parts[0], shape[0], shape[1])
        checkpoint[f"{original}.weight"] = torch.cat(value.chunk(2)[::-1]) if swap else value
        covered |= set(parts)
    same = layers.keys() - covered  # named alike in both
    checkpoint |= {f"{name}.weight": rows[name] for name in same}
    converted = getattr(single_file_utils, f"convert_{convert}_transformer_checkpoint_to_diffusers")(checkpoint)
    for name, value in rows.items():
        assert torch.equal(converted[f"{name}.weight"], value), name
    assert {name.split(".")[0] for name in same} <= {
        *("context_embedder", "layers", "noise_refiner", "context_refiner", "t_embedder", "cap_embedder")
    }
