"""Writes GGUF files whose header is whole and whose weights are a hole in the file: 70 GB in a few blocks of disk.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Written with ``struct``, so that the ``gguf``
package, which reads these files in the tests, is an independent witness.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path

Dims = tuple[int, ...]
Value = bool | int | float | str | list[bool] | list[int] | list[float] | list[str]

_ALIGNMENT_BYTES = 32
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
# name of a tensor's type → its number, elements of a block, bytes of a block (ggml.h, ggml-common.h)
TYPES = {
    "F32": (0, 1, 4),
    "F16": (1, 1, 2),
    "Q4_0": (2, 32, 18),
    "Q4_1": (3, 32, 20),
    "Q5_0": (6, 32, 22),
    "Q5_1": (7, 32, 24),
    "Q8_0": (8, 32, 34),
    "Q2_K": (10, 256, 84),
    "Q3_K": (11, 256, 110),
    "Q4_K": (12, 256, 144),
    "Q5_K": (13, 256, 176),
    "Q6_K": (14, 256, 210),
    "BF16": (30, 1, 2),
    "MXFP4": (39, 32, 17),
}


def tensor_bytes(dims: Dims, kind: str) -> int:
    """Size of a tensor without padding.

    Args:
        dims: as GGUF has them: the length of a row first.

    Raises:
        ValueError: rows are no whole number of the type's blocks.
    """
    _, block, block_bytes = TYPES[kind]
    if dims[0] % block:
        raise ValueError(f"a row of {dims[0]} elements can not be {kind}, whose blocks have {block}")
    return prod(dims) // block * block_bytes


def write_gguf(path: Path, metadata: Mapping[str, Value], tensors: Iterable[tuple[str, Dims, str]]) -> Path:
    """Write a header, and a hole as large as the weights.

    Args:
        tensors: name, dimensions and name of the type of each.
    """
    entries, offset, count = bytearray(), 0, 0
    for name, dims, kind in tensors:
        entries += _text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, TYPES[kind][0], offset)
        offset += _aligned(tensor_bytes(dims, kind))
        count += 1
    header = b"GGUF" + struct.pack("<IQQ", 3, count, len(metadata))
    header += b"".join(_text(key) + _value(value) for key, value in metadata.items()) + entries
    with path.open("wb") as file:
        file.write(header)
        file.truncate(_aligned(len(header)) + offset)
    return path


def vocabulary(kind: str, tokens: int, merges: int) -> dict[str, Value]:
    """Made-up vocabulary that llama.cpp loads, of about a real one's size in bytes.

    Args:
        kind: ``gpt2`` (byte pairs, with merges), ``llama`` (scores and kinds) or ``none``.
        tokens: number of tokens.
        merges: number of pairs; only ``gpt2`` has any.
    """
    if kind == "none":
        return {"tokenizer.ggml.model": "none"}
    if kind == "gpt2":
        return {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": [f"Ġ{number:06x}" for number in range(tokens)],
            "tokenizer.ggml.token_type": [1] * tokens,
            "tokenizer.ggml.merges": [f"Ġ{number >> 12:03x} {number & 4095:03x}" for number in range(merges)],
            "tokenizer.ggml.bos_token_id": 0,
            "tokenizer.ggml.eos_token_id": 1,
        }
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [*special, *(f"▁{number:05x}" for number in range(tokens - len(special)))],
        "tokenizer.ggml.scores": [-float(number) for number in range(tokens)],
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * (tokens - len(special))],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _kind(value: Value) -> tuple[int, str]:
    """Number and struct format of a value's type; GGUF's texts have no format."""
    if isinstance(value, bool):
        return _BOOL, "?"
    if isinstance(value, int):
        return (_UINT32, "I") if value >= 0 else (_INT32, "i")
    return (_FLOAT32, "f") if isinstance(value, float) else (_STRING, "")


def _value(value: Value) -> bytes:
    if isinstance(value, list):
        kind, form = (_INT32, "i") if type(value[0]) is int else _kind(value[0])
        head = struct.pack("<IIQ", _ARRAY, kind, len(value))
        return head + (struct.pack(f"<{len(value)}{form}", *value) if form else b"".join(map(_text, map(str, value))))
    kind, form = _kind(value)
    return struct.pack("<I", kind) + (struct.pack(f"<{form}", value) if form else _text(str(value)))
