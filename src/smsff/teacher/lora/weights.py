"""What a LoRA file does to a weight W (out, in) or (out, in, kh, kw), in each of the algorithms.

With s the strength and a / r the scale alpha / rank:

    LoRA    W + s a/r up down                    Hu et al. 2021; for convolutions LoCon, Yeh et al. 2023 (LyCORIS)
    LoHa    W + s a/r (w1a w1b) ⊙ (w2a w2b)      Hyeon-Woo et al. 2021 (FedPara), in LyCORIS
    LoKr    W + s a/r w1 ⊗ w2                    Edalati et al. 2022 (KronA), in LyCORIS; w1, w2 may be products
    DoRA    W + s (m V / |V| - W)                Liu et al. 2024; V = W + a/r times the change of any of the above, and
                                                 |V| its norm over each output (or input) of the layer

A DoRA's strength interpolates between W and the trained weight, as ComfyUI does it: the norm is not linear in V, and
this way 0 is the base and 1 what was trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from peft.tuners.loha import layer as loha
from peft.tuners.lokr import layer as lokr
from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """scale * up @ down: down (r, in, ...) in the shape of the weight from its second dimension on, up (out, r)."""

    down: Tensor
    up: Tensor
    scale: float


def low_rank(tensors: Mapping[str, Tensor], weight: Tensor, scale: float) -> LowRank:
    """A plain LoRA's change of `weight`. Tucker's core ``mid`` (r, r, kh, kw) is multiplied into the down matrix.

    Raises:
        ValueError: if the tensors do not fit the weight; the message gives both shapes.
    """
    down, up = tensors["down"], tensors["up"]
    rank = down.shape[0]
    if "mid" in tensors:
        mid = tensors["mid"]
        if mid.ndim != 4 or mid.shape[:2] != (rank, rank) or up[0].numel() != rank:
            raise _misfit("lora_mid", mid, weight)
        down = torch.einsum("mnkl,nj->mjkl", mid.float(), down.flatten(1).float())
    if down[0].numel() != weight[0].numel():
        raise _misfit("lora_down", down, weight)
    if up.shape[0] != weight.shape[0] or up[0].numel() != rank:
        raise _misfit("lora_up", up, weight)
    return LowRank(down.reshape(rank, *weight.shape[1:]), up.reshape(len(up), rank), scale)


def dense(tensors: Mapping[str, Tensor], weight: Tensor, scale: float, strength: float) -> Tensor:
    """The change of `weight`, in float32, by a LoHa, a LoKr or anything with a DoRA's magnitudes.

    Raises:
        ValueError: if the tensors do not fit the weight; the message gives both shapes.
    """
    tensors = {role: tensor.float() for role, tensor in tensors.items()}
    if "up" in tensors:
        pair = low_rank(tensors, weight, scale)
        delta = (pair.up @ pair.down.flatten(1)) * scale
    else:
        name = "hada_w1_a" if "hada_w1_a" in tensors else "lokr_w1" if "lokr_w1" in tensors else "lokr_w1_b"
        try:
            delta = _hadamard(tensors, scale) if name == "hada_w1_a" else _kronecker(tensors, scale)
        except RuntimeError:  # torch says which two sizes cannot be multiplied; the user needs to know which layer
            raise _misfit(name, tensors[name], weight) from None
    if delta.numel() != weight.numel() or len(delta) != len(weight):
        raise _misfit("the change", delta, weight)
    delta = delta.reshape(weight.shape)
    for role in ("dora_scale", "magnitude"):
        if role in tensors:
            delta = _decomposed(weight.float(), delta, tensors[role], on_output=role == "magnitude")
    return delta * strength


def changes_nothing(change: LowRank | Tensor, weight: Tensor) -> bool:
    """Whether a change, in the dtype of `weight`, is 0 or below a millionth of the largest weight everywhere.

    The latter is what rounding leaves of a DoRA that was not trained.
    """
    if isinstance(change, LowRank):
        down, up = (value.to(weight.device, weight.dtype).float() for value in (change.down.flatten(1), change.up))
        change = (up @ down * change.scale).to(weight.dtype)
    return bool(change.abs().max() <= 1e-6 * weight.abs().max())


def _hadamard(tensors: Mapping[str, Tensor], scale: float) -> Tensor:
    factors = {name: tensors[f"hada_{name}"] for name in ("w1_a", "w1_b", "w2_a", "w2_b")}
    w1_a, w1_b, w2_a, w2_b = factors.values()
    if "hada_t1" in tensors:
        t1, t2 = tensors["hada_t1"], tensors["hada_t2"]
        return loha.make_weight_cp(t1, w1_a, w1_b, t2, w2_a, w2_b, torch.tensor(scale))
    return loha.make_weight(w1_a, w1_b, w2_a, w2_b, torch.tensor(scale))


def _kronecker(tensors: Mapping[str, Tensor], scale: float) -> Tensor:
    w1 = tensors.get("lokr_w1")
    if w1 is None:
        w1 = tensors["lokr_w1_a"] @ tensors["lokr_w1_b"]
    w2 = tensors.get("lokr_w2")
    if w2 is None and "lokr_t2" in tensors:
        w2 = lokr.make_weight_cp(tensors["lokr_t2"], tensors["lokr_w2_a"], tensors["lokr_w2_b"])
    elif w2 is None:
        w2 = tensors["lokr_w2_a"] @ tensors["lokr_w2_b"].flatten(1)
    return lokr.make_kron(w1, w2, scale)


def _decomposed(weight: Tensor, delta: Tensor, magnitude: Tensor, *, on_output: bool) -> Tensor:
    """m V / |V| - W. LyCORIS has magnitudes for outputs, (out, 1, ...), or for inputs, (1, in, ...)."""
    outputs, inputs = weight.shape[:2]
    on_output = on_output or (len(magnitude) == outputs and magnitude.numel() == outputs)
    if magnitude.numel() != (outputs if on_output else inputs):
        raise _misfit("the magnitude", magnitude, weight)
    axis = 0 if on_output else 1
    shape = [1] * weight.ndim
    shape[axis] = -1
    v = weight + delta
    norm = torch.linalg.vector_norm(v, dim=[d for d in range(v.ndim) if d != axis], keepdim=True)
    return v * (magnitude.reshape(shape) / norm.clamp_min(torch.finfo(norm.dtype).tiny)) - weight


def _misfit(what: str, tensor: Tensor, weight: Tensor) -> ValueError:
    return ValueError(f"{what} is {tuple(tensor.shape)}, which does not fit the weight {tuple(weight.shape)}")
