"""Edits of bytes and of nested containers: what a damaged or a malicious file differs in from a good one."""

from __future__ import annotations

import copy
import json
import struct
import zlib
from typing import Any

from hypothesis import strategies as st

EXTREMES = (0, 1, 2, 127, 128, 255, 2**15 - 1, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1)
WIDE = (0, 1, -1, 2**31, 2**32, 2**53, 2**63 - 1, 10**9, 10**18)

# Near the beginning, where the headers are, as often as anywhere.
positions = st.one_of(st.integers(0, 120), st.integers(0, 2**20))
byte_edits = st.one_of(
    st.tuples(st.just("flip"), positions, st.integers(1, 255)),
    st.tuples(st.just("number"), positions, st.sampled_from(EXTREMES), st.sampled_from(("<I", ">I", "<H", ">H", "B"))),
    st.tuples(st.just("cut"), positions),
    st.tuples(st.just("drop"), positions, st.integers(1, 64)),
    st.tuples(st.just("repeat"), positions, st.integers(1, 64), st.integers(2, 50)),
    st.tuples(st.just("insert"), positions, st.binary(min_size=1, max_size=64)),
    st.tuples(st.just("append"), st.binary(min_size=1, max_size=200)),
)


some_byte_edits = st.one_of(st.lists(byte_edits, min_size=1, max_size=2), st.lists(byte_edits, min_size=1, max_size=8))


def edit_bytes(data: bytes, edits: list[Any]) -> bytes:
    for kind, *rest in edits:
        if kind == "append":
            data += rest[0]
            continue
        at = rest[0] % (len(data) + 1)
        if kind == "cut":
            data = data[:at]
        elif kind == "drop":
            data = data[:at] + data[at + rest[1] :]
        elif kind == "insert":
            data = data[:at] + rest[1] + data[at:]
        elif kind == "repeat":
            data = data[:at] + data[at : at + rest[1]] * rest[2] + data[at + rest[1] :]
        elif kind == "flip" and at < len(data):
            data = data[:at] + bytes([data[at] ^ rest[1]]) + data[at + 1 :]
        elif kind == "number":
            size = struct.calcsize(rest[2])
            data = data[:at] + struct.pack(rest[2], rest[1] % 256**size) + data[at + size :]
    return data


def mend_png(data: bytes) -> bytes:
    """Right checksums, so that the edits reach the decoder."""
    out, at = data[:8], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        body = data[at + 4 : at + 8 + length]
        if at + 12 + length > len(data):
            break
        out += data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return out + data[at:]


STRANGE = (
    "", "null", "nan", "../../../etc/passwd", "/etc/passwd", "~", "~/x", "\0", "\ud800", "a" * 5000, "\u202e", "%s%n",
    "${x}", "${oc.env:HOME}", "${oc.env:PATH,x}", "\\${oc.env:HOME}", "${asset:../..}", "${asset:${seed}}", "${seed}",
    "${seed}", "${.}", "${", "???", "${now:%Y}", "{words.__class__}", "{0}", "{", "-1", "1e999", "1,2", "[]", "{}",
    "<script>", "os.system", "builtins.eval", "torch.load", "subprocess.run", "smsff.training.launch.end_of_job",
    "lightning.pytorch.Trainer", "smsff.generator.unet.UNetGenerator", "smsff.training.optimizer.GroupOptions",
    "gpu", "tpu", "ddp", "fsdp", "16-mixed", "64-true", "bf16", "auto", "last", "advanced", "uniform", "l1", "cosine",
)  # fmt: skip
NUMBERS = (*WIDE, float("nan"), float("inf"), -float("inf"), 10**400, -0.0, 1e-300, 0.5)
texts = st.one_of(st.sampled_from(STRANGE), st.text(max_size=20))
numbers = st.one_of(st.sampled_from(NUMBERS), st.integers(-3, 3), st.floats())
payloads = st.sampled_from(
    (
        {"_target_": "os.system", "command": "touch payload"},
        {"_target_": "os.system", "_args_": ["touch payload"]},
        {"_target_": "builtins.open", "file": "payload", "mode": "w"},
        {"_target_": "pathlib.Path.touch", "_args_": ["payload"]},
        {"_target_": "pathlib.Path", "_args_": ["payload"]},
        {"_target_": "subprocess.Popen", "args": ["touch", "payload"]},
        {"_target_": "torch.hub.load", "repo_or_dir": "x/y", "model": "z"},
        {"_target_": "smsff.training.optimizer.GroupOptions", "lr": 1.0},
        {"_target_": "smsff.method.timesteps.Uniform", "_partial_": True},
        {"_target_": "hydra.utils.call", "config": {"_target_": "os.system", "command": "touch payload"}},
        {"_target_": ["os.system"]},
        {"_partial_": True},
        {"_recursive_": False, "_convert_": "object"},
    )
)
leaves = st.one_of(st.none(), st.booleans(), numbers, texts, payloads)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(texts, st.sampled_from(("_target_", "_args_"))), inner, max_size=3),
    ),
    max_leaves=6,
)
tree_edits = st.one_of(
    st.tuples(st.just("set"), st.integers(0, 2**16), values),
    st.tuples(st.just("drop"), st.integers(0, 2**16)),
    st.tuples(st.just("add"), st.integers(0, 2**16), st.one_of(texts, st.integers(-1, 3), st.booleans()), values),
    st.tuples(st.just("rename"), st.integers(0, 2**16), texts),
    st.tuples(st.just("move"), st.integers(0, 2**16), st.integers(0, 2**16)),
    st.tuples(st.just("nest"), st.integers(0, 2**16), st.integers(2, 400)),
)


def places(node: Any) -> list[tuple[Any, Any]]:
    """Container and key of everything in a tree."""
    found = []
    for key in list(node) if isinstance(node, dict) else range(len(node)):
        found.append((node, key))
        if isinstance(node[key], (dict, list)):
            found += places(node[key])
    return found


def edit_tree(tree: Any, edits: list[Any]) -> Any:
    tree = copy.deepcopy(tree)
    for kind, at, *rest in edits:
        known = places(tree)
        if not known:
            return tree
        node, key = known[at % len(known)]
        if kind == "set":
            node[key] = copy.deepcopy(rest[0])
        elif kind == "drop":
            del node[key]
        elif kind == "add" and isinstance(node[key], dict):
            node[key][rest[0]] = copy.deepcopy(rest[1])
        elif kind == "rename" and isinstance(node, dict):
            node[rest[0]] = node.pop(key)
        elif kind == "move":
            other, name = known[rest[0] % len(known)]
            node[key] = copy.deepcopy(other[name])
        elif kind == "nest":
            deep = node[key]
            for _ in range(rest[0]):
                deep = [deep]
            node[key] = deep
    return tree


def edit_safetensors(data: bytes, edits: list[Any], *, honest: bool) -> bytes:
    """A safetensors file with an edited header; `honest` keeps the length of the header right."""
    (length,) = struct.unpack("<Q", data[:8])
    header = edit_tree(json.loads(data[8 : 8 + length]), edits)
    try:
        text = json.dumps(header).encode("utf-8", "surrogatepass")
    except (TypeError, ValueError, RecursionError):  # a key that JSON cannot hold, or too deep
        text = b"{" * length
    return struct.pack("<Q", len(text) if honest else length) + text + data[8 + length :]
