"""A flow's transformer with the names of its original code, written independently of diffusers' conversion."""

from __future__ import annotations

import re

import torch
from diffusers import ModelMixin
from torch import Tensor

from smsff.teacher.lora.names import weighted_layers
from smsff.teacher.lora.originals import halves_swapped, original_layers

_BLOCK = r"^transformer_blocks\.(\d+)\."
_FLUX = [
    (_BLOCK + r"attn\.norm_(q|k)\S+", r"double_blocks.\1.img_attn.norm.\2.scale"),
    (_BLOCK + r"attn\.norm_added_(q|k)\S+", r"double_blocks.\1.txt_attn.norm.\2.scale"),
    (r"^single_transformer_blocks\.(\d+)\.attn\.norm_(q|k)\S+", r"single_blocks.\1.norm.\2.scale"),
    (r"norm\.q\.scale", "norm.query_norm.scale"),
    (r"norm\.k\.scale", "norm.key_norm.scale"),
]
# Names of what is no linear layer of `original_layers`.
_OTHERS = {
    "sd35": [
        (_BLOCK + r"(attn2?)\.norm_(q|k)\.", r"joint_blocks.\1.x_block.\2.ln_\3."),
        (_BLOCK + r"attn\.norm_added_(q|k)\.", r"joint_blocks.\1.context_block.attn.ln_\2."),
        (r"^pos_embed\.pos_embed$", "pos_embed"),
    ],
    "flux1": _FLUX,
    "klein": _FLUX,
    "zimage": [(r"attention\.norm_(q|k)\.", r"attention.\1_norm.")],
    "qwen": [],
}


def original_names(net: ModelMixin, family: str) -> dict[str, Tensor]:
    """The state dict of `net` as the original code of the family names and joins its tensors."""
    left, tensors = dict(net.state_dict()), {}
    for name, parts in original_layers(type(net).__name__, weighted_layers(net)):
        for kind in ("weight", "bias"):
            if f"{parts[0]}.{kind}" in left:
                value = torch.cat([left.pop(f"{part}.{kind}") for part in parts])
                inputs = net.get_submodule(parts[0]).weight[0].numel()
                swap = halves_swapped(parts[0], len(value), inputs)
                tensors[f"{name}.{kind}"] = torch.cat(value.chunk(2)[::-1]) if swap else value
    for name, value in left.items():
        for pattern, new in _OTHERS[family]:
            name = re.sub(pattern, new, name)
        tensors[name] = value
    return {name: value.contiguous() for name, value in tensors.items()}
