"""Damaged GGUF headers: each is a header or refused as one, soon, and at the cost of little memory."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmbench.core.gguf import FILE_TYPES, TENSOR_TYPES, GgufHeader, dump_header, load_header, parse_header
from pytest_llmbench.errors import ModelError
from tests.unit.core.gguf_bytes import (
    DATA_BYTES,
    F32,
    STRING,
    TENSORS,
    USUAL,
    entry,
    gguf_file,
    header,
    number,
    numbers,
    strings,
    tensor,
    text,
)

HUGE_BYTES = 70_000_000_000
EDGES = [0, 1, 2, 255, 256, 4096, 4097, 2**16, 2**20, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1]

HYBRID = (
    entry("general.architecture", STRING, text("jamba")),
    number("general.alignment", 64),
    number("jamba.block_count", 4),
    numbers("jamba.attention.head_count_kv", "I", [0, 0, 8, 0]),
    numbers("jamba.pattern", "?", [True, False, True, True]),
    entry("jamba.rope.freq_base", 6, struct.pack("<f", 10_000.0)),
    entry("jamba.big", 11, struct.pack("<q", -5)),
    strings("tokenizer.ggml.tokens", ["t" * (n % 9) for n in range(40)]),
    strings("tokenizer.ggml.merges", ["t t"] * 20),
)
SHAPES = (
    gguf_file(USUAL, TENSORS, DATA_BYTES),
    gguf_file(HYBRID, [tensor(f"blk.{n}.ffn_up.weight", (64, 2), F32, 512 * n) for n in range(5)], 5 * 512 + 32),
    gguf_file([number("split.no", 1), number("split.count", 2), number("split.tensors.count", 3)], TENSORS, DATA_BYTES),
    header(*USUAL),
)


def flip(dice: random.Random, data: bytearray) -> None:
    data[dice.randrange(len(data))] = dice.randrange(256)


def cut(dice: random.Random, data: bytearray) -> None:
    del data[dice.randrange(1, len(data)) :]


def insert(dice: random.Random, data: bytearray) -> None:
    at = dice.randrange(len(data))
    data[at:at] = dice.randbytes(dice.choice([1, 4, 8, 100]))


def remove(dice: random.Random, data: bytearray) -> None:
    at = dice.randrange(len(data))
    del data[at : at + dice.choice([1, 4, 8, 100])]


def count(dice: random.Random, data: bytearray) -> None:
    """Where eight bytes look like a length, another one."""
    likely = [at for at in range(len(data) - 8) if data[at + 2 : at + 8] == bytes(6)]
    if likely:
        struct.pack_into("<Q", data, dice.choice(likely), dice.choice(EDGES))


def retype(dice: random.Random, data: bytearray) -> None:
    """Where four bytes look like a type, another one."""
    likely = [at for at in range(len(data) - 4) if data[at] < 42 and data[at + 1 : at + 4] == bytes(3)]
    if likely:
        struct.pack_into("<I", data, dice.choice(likely), dice.randrange(45))


MUTATIONS: tuple[Callable[[random.Random, bytearray], None], ...] = (flip, cut, insert, remove, count, retype)


def damaged(seed: int) -> tuple[bytes, int]:
    """A header with one to four mutations, and the size its file claims to have."""
    dice = random.Random(seed)
    data = bytearray(dice.choice(SHAPES))
    for _ in range(dice.randint(1, 4)):
        if len(data) > 8:
            dice.choice(MUTATIONS)(dice, data)
    return bytes(data), dice.choice([len(data), len(data), len(data), HUGE_BYTES])


def outcome(data: bytes, size_bytes: int) -> str:
    """``header`` or the kind of refusal; behind ``data``, the file is zeros."""

    def read(offset: int, count: int) -> bytes:
        held = data[offset : offset + count]
        return held + bytes(min(count, size_bytes - offset) - len(held))

    try:
        found = parse_header(read, size_bytes, "m.gguf", allow_missing_data=size_bytes % 2 == 0)
    except ModelError as exc:
        refusal = exc
    else:
        assert_sane(found)
        return "header"
    assert refusal.code == "bad_model_file"
    assert len(refusal.message) < 1500
    return refusal.message.split("; ")[-1]


def assert_sane(found: GgufHeader) -> None:
    names = {kind.name for kind in TENSOR_TYPES.values()}
    assert all(tensor.type in names and 0 <= tensor.size_bytes < 2**63 for tensor in found.tensors)
    assert found.file_type is None or found.file_type in FILE_TYPES.values()
    assert found.block_count is None or found.block_count > 0
    assert found.split_count > 0
    for key in found.metadata:
        name = key.partition(".")[2]
        found.number(name), found.numbers(name, 4)
    assert found.vocabulary_size is None or found.vocabulary_size >= 0
    assert repr(load_header(dump_header(found))) == repr(found)


@pytest.mark.parametrize("cases", [range(1500), pytest.param(range(1500, 10_000), marks=pytest.mark.slow)])
def test_damaged_headers(cases: range) -> None:
    outcomes: Counter[str] = Counter()
    slowest_seconds = 0.0
    for seed in cases:
        data, size_bytes = damaged(seed)
        began = time.process_time()
        try:
            outcomes[outcome(data, size_bytes)] += 1
        except Exception as exc:
            raise AssertionError(f"case {seed}") from exc
        slowest_seconds = max(slowest_seconds, time.process_time() - began)
    assert slowest_seconds < 5.0
    assert len(outcomes) == 3  # headers, refused ones, and such as may be too new
    assert min(outcomes.values()) > len(cases) / 500


def test_damaged_headers_take_little_memory() -> None:
    cases = [damaged(seed) for seed in range(300)]
    tracemalloc.start()
    try:
        for data, size_bytes in cases:
            outcome(data, size_bytes)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4 * 1024 * 1024


@given(st.binary(max_size=300), st.sampled_from([b"", b"GGUF\3\0\0\0", header(*USUAL, keys=len(USUAL) + 2)]))
def test_any_bytes_are_a_header_or_refused(data: bytes, begin: bytes) -> None:
    outcome(begin + data, len(begin + data))


@given(
    st.sampled_from(SHAPES),
    st.lists(st.tuples(st.integers(0, 10_000), st.binary(min_size=1, max_size=8)), max_size=4),
    st.integers(0, 10_000),
)
def test_a_damaged_header_is_a_header_or_refused(whole: bytes, changes: list[tuple[int, bytes]], length: int) -> None:
    data = bytearray(whole)
    for position, value in changes:
        at = position % len(data)
        data[at : at + len(value)] = value
    outcome(bytes(data), len(data))
    outcome(bytes(data[:length]), len(data[:length]))
