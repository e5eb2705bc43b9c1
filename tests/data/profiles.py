"""Small ICC profiles, so that no file of anybody else is needed."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Mapping, Sequence

D50 = (0.9642, 1.0, 0.8249)
P3 = ((0.5151, 0.2412, -0.0011), (0.2919, 0.6922, 0.0419), (0.1572, 0.0666, 0.7841))
"""XYZ of red, green and blue of Display P3, adapted to D50."""


def _fixed(values: Sequence[float]) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def _xyz(values: Sequence[float]) -> bytes:
    return b"XYZ \0\0\0\0" + _fixed(values)


def _gamma(value: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256))


def _profile(kind: bytes, space: bytes, connection: bytes, tags: Mapping[bytes, bytes]) -> bytes:
    text = b"made for a test"
    description = b"desc\0\0\0\0" + struct.pack(">I", len(text) + 1) + text + b"\0" * 79
    everything = {b"desc": description, b"cprt": b"text\0\0\0\0none\0", b"wtpt": _xyz(D50), **tags}
    table, data, start = b"", b"", 132 + 12 * len(everything)
    for name, value in everything.items():
        table += name + struct.pack(">II", start + len(data), len(value))
        data += value + b"\0" * (-len(value) % 4)
    body = struct.pack(">I", len(everything)) + table + data
    head = struct.pack(">I4sI", 128 + len(body), b"none", 0x02400000) + kind + space + connection
    return head + b"\0" * 12 + b"acsp" + b"\0" * 28 + _fixed(D50) + b"\0" * 48 + body


def rgb_profile(primaries: Sequence[Sequence[float]] = P3, gamma: float = 2.2) -> bytes:
    """RGB with these primaries."""
    xyz = {name: _xyz(value) for name, value in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)}
    curves = {name: _gamma(gamma) for name in (b"rTRC", b"gTRC", b"bTRC")}
    return _profile(b"mntr", b"RGB ", b"XYZ ", {**xyz, **curves})


def grey_profile(gamma: float = 1.0) -> bytes:
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": _gamma(gamma)})


def press_profile(black: float = 20.0) -> bytes:
    """CMYK whose black ink alone has this lightness, and whose other inks take a quarter of it each."""
    linear = bytes(range(256))
    lights = (100 * (1 - (c + m + y) / 4) * (1 - k) + black * k for c, m, y, k in itertools.product((0, 1), repeat=4))
    grid = b"".join(bytes((round(light * 2.55), 128, 128)) for light in lights)  # Lab in 8 bits
    identity = _fixed((1, 0, 0, 0, 1, 0, 0, 0, 1))
    lut = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + identity + linear * 4 + grid + linear * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": lut})
