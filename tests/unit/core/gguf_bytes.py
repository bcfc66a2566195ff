"""GGUF files byte by byte, also such as no program would write."""

from __future__ import annotations

import struct
from collections.abc import Sequence

UINT32, FLOAT32, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9
F32, Q4_K = 0, 12


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def number(key: str, value: int) -> bytes:
    return entry(key, UINT32, struct.pack("<I", value))


def strings(key: str, values: Sequence[str | bytes]) -> bytes:
    return entry(key, ARRAY, struct.pack("<IQ", STRING, len(values)) + b"".join(map(text, values)))


def numbers(key: str, form: str, values: Sequence[float]) -> bytes:
    kind = {"I": UINT32, "f": FLOAT32, "?": BOOL}[form]
    return entry(key, ARRAY, struct.pack(f"<IQ{len(values)}{form}", kind, len(values), *values))


def tensor(name: str | bytes, dimensions: Sequence[int], kind: int = F32, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, kind, offset)


def header(*entries: bytes, version: int = 3, tensors: int = 0, keys: int | None = None) -> bytes:
    """``tensors`` and ``keys`` are what it claims to have."""
    count = len(entries) if keys is None else keys
    return b"GGUF" + struct.pack("<IQQ", version, tensors, count) + b"".join(entries)


def gguf_file(entries: Sequence[bytes] = (), tensors: Sequence[bytes] = (), data_bytes: int = 0) -> bytes:
    """A header padded to 32 bytes, and zeros as its tensors' data."""
    head = header(*entries, *tensors, tensors=len(tensors), keys=len(entries))
    return head + bytes(-len(head) % 32) + bytes(data_bytes)


USUAL = (
    entry("general.architecture", STRING, text("llama")),
    number("llama.block_count", 30),
    number("llama.context_length", 8192),
    strings("tokenizer.ggml.tokens", ["a", "", "ccc"]),
    entry("tokenizer.ggml.scores", ARRAY, struct.pack("<IQ", 6, 2) + bytes(8)),
    number("general.file_type", 15),
)
TENSORS = (tensor("token_embd.weight", (256, 3), Q4_K), tensor("output_norm.weight", (256,), F32, 448))
DATA_BYTES = 448 + 1024
