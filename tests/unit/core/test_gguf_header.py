"""What is asked of a header in memory, and its way through JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmbench.core.gguf import GgufArray, GgufHeader, Tensor, dump_header, load_header
from pytest_llmbench.core.gguf_header import Value


def header(*tensors: Tensor, **keys: Value) -> GgufHeader:
    """Keys of the architecture ``x``; their dots are written as two underscores."""
    metadata: dict[str, Value] = {"general.architecture": "x"}
    metadata |= {f"x.{key.replace('__', '.')}": value for key, value in keys.items()}
    return GgufHeader(3, metadata, tensors, 1000, 96)


@pytest.mark.parametrize(
    ("value", "number"),
    [(0, 0), (7, 7), (2**31 - 1, 2**31 - 1), (2**31, None), (-1, None), (True, None), (7.0, None), ("7", None)],
)
def test_a_number(value: Value, number: int | None) -> None:
    assert header(a__n=value).number("a.n") == number


def test_a_number_that_is_not_there() -> None:
    assert header().number("n") is None
    assert header(n=(1,)).number("n") is None
    assert GgufHeader(3, {"None.n": "a"}, (), 0, 0).number("n") is None


@pytest.mark.parametrize(
    ("value", "count", "numbers"),
    [
        (8, 3, (8, 8, 8)),
        (8, 0, ()),
        ((8, 0, 4), 3, (8, 0, 4)),
        ((8, 0, 4), 2, (8, 0)),
        ((8, 0, 4), 4, None),
        ((True, False), 2, (1, 0)),
        (True, 2, (1, 1)),
        ((8, -1), 2, None),
        ((8, 0.5), 2, None),
        (0.5, 2, None),
        (None, 2, None),
        (GgufArray("int32", 3), 3, None),
        (8, 4096, (8,) * 4096),
        (8, 2**31, None),
    ],
)
def test_a_number_per_layer(value: Value, count: int, numbers: tuple[int, ...] | None) -> None:
    assert header(n=value).numbers("n", count) == numbers


def test_how_large_the_vocabulary_is() -> None:
    embedding = Tensor("token_embd.weight", (64, 300), "F32", 76_800)
    told = header(embedding, vocab_size=200)
    assert header().vocabulary_size is None
    assert header(Tensor("token_embd.weight", (64,), "F32", 256)).vocabulary_size is None
    assert header(embedding).vocabulary_size == 300
    assert told.vocabulary_size == 200
    told.metadata["tokenizer.ggml.tokens"] = GgufArray("string", 100)
    assert told.vocabulary_size == 100


@pytest.mark.parametrize(("value", "count"), [(3, 3), (0, 1), (-1, 1), ("3", 1), (None, 1)])
def test_over_how_many_files_it_is_split(value: Value, count: int) -> None:
    assert GgufHeader(3, {"split.count": value}, (), 0, 0).split_count == count


def test_names() -> None:
    assert GgufHeader(3, {"general.name": "Tiny", "general.architecture": 5}, (), 0, 0).name == "Tiny"
    assert GgufHeader(3, {"general.name": 5, "general.architecture": 5}, (), 0, 0).architecture is None


# ---------------------------------------------------------------- JSON

VALUES: st.SearchStrategy[Value] = (
    st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.builds(GgufArray, st.sampled_from(["string", "float32"]), st.integers(0, 2**40))
    | st.lists(st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.booleans(), max_size=5).map(tuple)
)
TENSORS = st.lists(
    st.builds(
        lambda name, rows: Tensor(name, (256, *rows), "Q4_K", 144 * math.prod(rows)),
        st.text(min_size=1),
        st.lists(st.integers(0, 2**20), max_size=3),
    ),
    max_size=3,
)


@given(st.dictionaries(st.text(), VALUES, max_size=5), TENSORS)
def test_a_header_survives_json(metadata: dict[str, Value], tensors: list[Tensor]) -> None:
    original = GgufHeader(3, metadata, tuple(tensors), 12_345, 96)
    dumped = dump_header(original)
    for read in (json.loads(json.dumps(dumped, allow_nan=False)), orjson.loads(orjson.dumps(dumped))):
        found = load_header(read)
        assert found == original
        assert list(map(repr, found.metadata.values())) == list(map(repr, metadata.values()))  # True is not 1


def test_no_number_is_one_too() -> None:
    found = load_header(json.loads(json.dumps(dump_header(header(f=math.nan, g=(math.nan, 1.0))), allow_nan=False)))
    assert repr(found.metadata) == "{'general.architecture': 'x', 'x.f': nan, 'x.g': (nan, 1.0)}"


USUAL = dump_header(header(Tensor("t", (32, 2), "Q8_0", 68), n=8, ns=(1, 2), s=GgufArray("string", 3)))


@pytest.mark.parametrize("data", [None, 5, "x", [], {}, {"format": 2}, {"format": 1}, [["format", 1]]])
def test_something_else_is_no_header(data: Any) -> None:
    with pytest.raises(ValueError, match="this is no saved GGUF header"):
        load_header(data)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", 0),
        ("version", "3"),
        ("version", None),
        ("size_bytes", -1),
        ("header_bytes", 1.5),
        ("header_bytes", True),
        ("metadata", []),
        ("metadata", {"k": {}}),
        ("metadata", {"k": {"array_of": "string"}}),
        ("metadata", {"k": {"array_of": 5, "length": 3}}),
        ("metadata", {"k": ["text"]}),
        ("metadata", {"k": [[1]]}),
        ("metadata", {"k": {"real": "text"}}),
        ("tensors", 5),
        ("tensors", [5]),
        ("tensors", [["t", [32]]]),
        ("tensors", [["t", [32], "Q9"]]),
        ("tensors", [["t", [33], "Q8_0"]]),
        ("tensors", [["t", ["32"], "Q8_0"]]),
        ("tensors", [[5, [32], "Q8_0"]]),
        ("tensors", [["t", 32, "Q8_0"]]),
    ],
)
def test_a_damaged_one_is_no_header(key: str, value: Any) -> None:
    assert load_header(USUAL).tensor_bytes == 68
    with pytest.raises(ValueError, match="this is no saved GGUF header"):
        load_header({**USUAL, key: value})
