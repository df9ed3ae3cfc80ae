"""Test vectors of kvsum64: pieces of chunks, and the part of the checksum that each adds.

A plain loop over Python's integers made the results, word by word as `kernels/checksum.py` defines the sum.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Vector:
    """A piece of a chunk, which begins at `offset_bytes`, and its part of the checksum."""

    contents: str
    offset_bytes: int
    size_bytes: int
    checksum: int

    def data(self) -> NDArray[np.uint8]:
        """Return the bytes of the piece. They are the same on each machine and with each NumPy."""
        noise = hashlib.shake_128(b"kvsum64").digest(self.size_bytes)
        if self.contents == "random":
            return np.frombuffer(noise, np.uint8).copy()
        if self.contents == "bf16":  # magnitudes from 2**-7 to 2
            halves = np.frombuffer(noise + b"\0", np.uint8)[: self.size_bytes + self.size_bytes % 2].view("<u2")
            return ((halves & 0x83FF) | 0x3C00).view(np.uint8)[: self.size_bytes].copy()
        return np.full(self.size_bytes, {"zeros": 0, "ones": 255}[self.contents], np.uint8)


VECTORS = (
    Vector("random", 0, 0, 0x0000000000000000),
    Vector("random", 0, 1, 0x00000000000000EA),
    Vector("random", 0, 7, 0x004F5847F9423A0C),
    Vector("random", 0, 8, 0x5323D0B9A5423A0C),
    Vector("random", 0, 9, 0xA1CF5EDFF6EDE793),
    Vector("random", 0, 15, 0xC5D5E4EB893801FD),
    Vector("random", 0, 16, 0x674D211D7D3801FD),
    Vector("random", 0, 17, 0xA36661979E3F6751),
    Vector("random", 0, 31, 0x509A8383937AC840),
    Vector("random", 0, 32, 0xFC86079F037AC840),
    Vector("random", 0, 33, 0x740D222143C99020),
    Vector("random", 0, 63, 0xA9031DB68F13C731),
    Vector("random", 0, 64, 0x02BAF077E913C731),
    Vector("random", 0, 65, 0xEF1B8BF834B69695),
    Vector("random", 0, 127, 0xAF6CC694FC0E8123),
    Vector("random", 0, 128, 0x16AEAD2DC40E8123),
    Vector("random", 0, 255, 0x29CDCF1DFC104288),
    Vector("random", 0, 256, 0x815B04C5C7104288),
    Vector("random", 0, 257, 0x36A88766D2760198),
    Vector("random", 0, 320, 0x1105C6AE603891A6),
    Vector("random", 0, 511, 0xD694FDFD19E9109F),
    Vector("random", 0, 512, 0x3853C20A88E9109F),
    Vector("random", 0, 1_000, 0xC777182D9B7A67A4),
    Vector("random", 0, 4_095, 0xDC9B8589906FDEFD),
    Vector("random", 0, 4_096, 0x111CAB56B86FDEFD),
    Vector("random", 0, 4_097, 0x51ACF8231D6C505B),
    Vector("random", 0, 16_384, 0xF5F0455838D22206),
    Vector("random", 8, 264, 0x1B80E64C215F5C3A),
    Vector("random", 16, 264, 0x498D875C728F37CB),
    Vector("random", 56, 264, 0x2CCCC42842DB5936),
    Vector("random", 64, 264, 0xA32C6EA844831E62),
    Vector("random", 72, 264, 0xD4D9E9FE8BCE8002),
    Vector("random", 4_096, 264, 0x714B8633030DFA0A),
    Vector("random", 12_344, 264, 0xE559871121FFCD0E),
    Vector("random", 4_294_967_288, 264, 0x4B1DB1876966FF04),
    Vector("random", 34_359_738_304, 264, 0x32E9D9BD47522A79),
    Vector("random", 1_099_511_627_784, 264, 0x0A6F34E6FC7983BA),
    Vector("random", 0, 70_000, 0x513CDA7F7394357F),
    Vector("random", 0, 262_144, 0x195157E2E043A4B8),
    Vector("random", 0, 262_157, 0x2CB2C1FC1B2DEC39),
    Vector("random", 1_048_576, 20_003, 0x231A3A93A86AEE71),
    Vector("zeros", 0, 8, 0x0000000000000000),
    Vector("zeros", 0, 1_001, 0xCBD4595B11E332D6),
    Vector("zeros", 24, 4_096, 0x4717015A43B76449),
    Vector("zeros", 2_097_152, 65_536, 0x71C185639C9A78B9),
    Vector("ones", 0, 8, 0xFFFFFFFE00000000),
    Vector("ones", 0, 1_001, 0xCBD459149AE4EE28),
    Vector("ones", 24, 4_096, 0x4716FF54CE4D5E3D),
    Vector("ones", 2_097_152, 65_536, 0x71C1655BDF539DB2),
    Vector("bf16", 0, 8, 0x4A3933E81DC1FA0C),
    Vector("bf16", 0, 1_001, 0xCEF5CB829BC557DF),
    Vector("bf16", 24, 4_096, 0x4996D8A211C2B4D8),
    Vector("bf16", 2_097_152, 65_536, 0x6D10826C782EF185),
)
