"""How LoRA files name the layers of a model: looked up from the model's own names, so that nothing has to be guessed.

Kohya's tools join a layer's path with underscores, which cannot be undone (``to_out_0``); but the other direction can,
so a table of the flat names of all layers of the model at hand finds the layer. For SDXL they use the names of the
original code ("sgm": ``input_blocks.4.1``) instead of those of diffusers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import cast

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from smsff.teacher.lora.originals import halves_swapped, original_layers

# Layers of a residual block and outside the blocks, diffusers to sgm.
_SGM_RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_SGM_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def flat(name: str) -> str:
    """The name with underscores for dots, as kohya's tools write it, without the ``text_model`` that Transformers 5
    dropped from CLIP's names and that the files still have."""
    return name.replace(".", "_").removeprefix("text_model_")


def plain_name(name: str) -> str:
    """The layer's name in the model without adapters: of peft's wrappers around it nothing is left."""
    return name.removeprefix("base_model.model.").replace(".base_layer", "")


def weighted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The linear layers and convolutions of `model` by their plain names, as they stand: with adapters around them."""
    layers: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d | BaseTunerLayer) and ".lora_" not in name:
            layers.setdefault(plain_name(name), module)  # the outermost wrapper comes first
    return layers


def weight_of(layer: nn.Module) -> Tensor:
    """The weight of one of the `weighted_layers`, without its adapters."""
    base = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
    return cast(Tensor, base.weight)


@dataclass(frozen=True)
class Place:
    """Where a layer of a file belongs.

    Attributes:
        layers: of the model: one, or several whose rows follow one another in the file's (a fused qkv).
        swapped: whether the halves of the file's rows change places.
    """

    layers: tuple[str, ...]
    swapped: bool = False


def layer_table(model: nn.Module) -> dict[str, Place]:
    """{flat name in any of the styles: place in `model`}, for a U-Net, a transformer or a text encoder."""
    layers = weighted_layers(model)
    names = list(layers)
    table = {flat(name): Place((name,)) for name in names}
    for name in names:
        if name.endswith(".to_out"):  # which the reader of files takes for the attention of U-Nets
            table.setdefault(flat(f"{name}.0"), Place((name,)))
        original = sgm_name(name, names)
        if original is not None:
            table.setdefault(flat(original), Place((name,)))
    for original, parts in original_layers(type(model).__name__, layers):
        shape = weight_of(layers[parts[0]]).shape
        table.setdefault(flat(original), Place(parts, halves_swapped(parts[0], shape[0], shape[1])))
    return table


def sgm_name(name: str, names: list[str]) -> str | None:
    """The name in the original Stable Diffusion code of the U-Net layer `name`; None where there is none.

    Args:
        names: all layers of that U-Net, to count the residual blocks of each level (2 in Stable Diffusion).
    """
    if name in _SGM_OUTSIDE:
        return _SGM_OUTSIDE[name]
    found = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+?)\.(\d+)\.(.+)", name)
    if found is not None:
        way, level, kind, index, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        per_level = 1 + max(int(n.split(".")[3]) for n in names if n.startswith("down_blocks.0.resnets."))
        block = level * (per_level + 1)
        if way == "down":
            place = {"resnets": f"{block + 1 + index}.0", "attentions": f"{block + 1 + index}.1"}
            place["downsamplers"] = f"{block + 1 + per_level}.0"
        else:
            place = {"resnets": f"{block + index}.0", "attentions": f"{block + index}.1"}
            attends = any(n.startswith(f"up_blocks.{level}.attentions.") for n in names)
            place["upsamplers"] = f"{block + per_level}.{2 if attends else 1}"
        rest = "op" if kind == "downsamplers" else rest
        side = "input_blocks" if way == "down" else "output_blocks"
        return f"{side}.{place[kind]}.{_inner(kind, rest)}" if kind in place else None
    found = re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", name)
    if found is not None:
        kind, index, rest = found[1], int(found[2]), found[3]
        return f"middle_block.{2 * index if kind == 'resnets' else 2 * index + 1}.{_inner(kind, rest)}"
    return None


def _inner(kind: str, rest: str) -> str:
    return _SGM_RESNET.get(rest, rest) if kind == "resnets" else rest
