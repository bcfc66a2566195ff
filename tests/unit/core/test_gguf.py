"""Headers of GGUF files: what they say, and that nothing in them can do more than be refused."""

from __future__ import annotations

import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import pytest

from pytest_llmbench.core import gguf_parser
from pytest_llmbench.core.gguf import (
    FILE_TYPES,
    GgufArray,
    check_header_quantization,
    check_quantization,
    known_quantization,
    read_header,
)
from pytest_llmbench.errors import ModelError
from tests.unit.core.gguf_bytes import (
    ARRAY,
    STRING,
    UINT32,
    USUAL,
    entry,
    header,
    number,
    numbers,
    strings,
    text,
)


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(data: bytes) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(data)
        return path

    return write


def refused(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        read_header(path)
    assert caught.value.code == "bad_model_file"
    assert str(path) in caught.value.message
    return caught.value.message


def test_what_a_header_says(write: Any) -> None:
    found = read_header(write(header(*USUAL)))
    assert (found.version, found.tensor_count) == (3, 0)
    assert (found.architecture, found.block_count, found.context_length) == ("llama", 30, 8192)
    assert found.file_type == "Q4_K_M"
    assert found.metadata["tokenizer.ggml.tokens"] == GgufArray("string", 3)
    assert found.metadata["tokenizer.ggml.scores"] == GgufArray("float32", 2)


def test_every_kind_of_value(tmp_path: Path) -> None:
    """Written by the reference implementation."""
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    values = {"uint8": 200, "int8": -3, "uint16": 60000, "int16": -300, "uint32": 2**32 - 1, "int32": -5}
    values |= {"uint64": 2**63, "int64": -(2**40)}
    for name, value in values.items():
        getattr(writer, f"add_{name}")(f"a.{name}", value)
    writer.add_float32("a.f", 0.5)
    writer.add_float64("a.d", 0.25)
    writer.add_bool("a.yes", True)
    writer.add_string("a.text", "déjà")
    writer.add_string("a.long", "x" * 20_000)
    writer.add_array("a.bools", [True, False])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    metadata = read_header(path).metadata
    assert {name: metadata[f"a.{name}"] for name in values} == values
    assert (metadata["a.f"], metadata["a.d"], metadata["a.yes"], metadata["a.text"]) == (0.5, 0.25, True, "déjà")
    assert metadata["a.long"] == GgufArray("uint8", 20_000)
    assert metadata["a.bools"] == (True, False)


def test_the_names_are_those_of_the_reference() -> None:
    reference = {
        kind.value: kind.name.removeprefix("MOSTLY_").removeprefix("ALL_")
        for kind in gguf.LlamaFileType
        if kind.name != "GUESSED"
    }
    assert {number: reference[number] for number in FILE_TYPES} == FILE_TYPES


def test_a_guessed_type_is_a_type(write: Any) -> None:
    assert read_header(write(header(number("general.file_type", 7 | 1024)))).file_type == "Q8_0"


@pytest.mark.parametrize("value", [4, 99, 2**32 - 1])
def test_an_unknown_type_has_no_name(write: Any, value: int) -> None:
    assert read_header(write(header(number("general.file_type", value)))).file_type is None


@pytest.mark.parametrize(
    "entries",
    [
        (),
        (entry("general.architecture", STRING, text("llama")),),
        (number("general.architecture", 1), number("1.block_count", 3)),
        (entry("general.architecture", STRING, text("llama")), number("llama.block_count", 0)),
        (
            entry("general.architecture", STRING, text("llama")),
            entry("llama.block_count", ARRAY, struct.pack("<IQ", UINT32, 1) + bytes(4)),
        ),
        (
            entry("general.architecture", STRING, text("llama")),
            entry("llama.block_count", 7, b"\1"),
            entry("general.file_type", 7, b"\1"),
        ),
    ],
)
def test_what_a_header_does_not_say_is_none(write: Any, entries: tuple[bytes, ...]) -> None:
    found = read_header(write(header(*entries)))
    assert (found.block_count, found.context_length, found.file_type) == (None, None, None)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "it is empty"),
        (b"GG", "it begins with b'GG'"),
        (b"PK\3\4 and more", "it begins with b'PK"),
        (b"GGUF", "goes beyond its end"),
        (header(version=1), "it has version 1, versions 2 and 3 can be read"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "written for a big-endian machine"),
        (header(keys=1), "goes beyond its end"),
        (header(keys=2**64 - 1), "it claims 18446744073709551615 keys"),
        (header(tensors=1), "it claims 1 tensors, more than fit"),
        (header(tensors=2**64 - 1), "more than fit"),
        (header(struct.pack("<Q", 0)), "a key of 0 bytes"),
        (header(struct.pack("<Q", 2**64 - 1)), "a key of 18446744073709551615 bytes"),
        (header(entry("k", 13, b"")), "'k' has the unknown type 13"),
        (header(entry("k", STRING, struct.pack("<Q", 2**63))), "the text of 'k' of 9223372036854775808 bytes"),
        (header(number("k", 1), number("k", 1)), "the key 'k' is in it twice"),
        (header(entry("k", ARRAY, struct.pack("<IQ", ARRAY, 1))), "'k' is an array of the unknown type 9"),
        (header(entry("k", ARRAY, struct.pack("<IQ", 10, 2**61))), "the array 'k'"),
        (header(entry("k", ARRAY, struct.pack("<IQ", STRING, 2**64 - 1))), "'k' claims 18446744073709551615 texts"),
        (header(entry("k", ARRAY, struct.pack("<IQ", STRING, 5_000_000))), "the 5000000 texts of 'k' go beyond"),
        (header(entry("k", ARRAY, struct.pack("<IQQ", STRING, 1, 9) + b"short")), "a text of 'k' goes beyond its end"),
        (
            header(entry("k", ARRAY, struct.pack("<IQQ", STRING, 2, 2**64 - 1) + bytes(8))),
            "a text of 'k' goes beyond its end",
        ),
    ],
)
def test_what_is_no_header_is_refused_in_words(write: Any, data: bytes, words: str) -> None:
    message = refused(write(data))
    assert words in message
    assert message.endswith("delete it and fetch it again, or correct its name in the models file")


def test_a_file_that_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No such file") as caught:
        read_header(tmp_path / "none")
    assert caught.value.code == "model_not_readable"


def test_a_header_beyond_the_first_read(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_parser, "_PIECE_BYTES", 16)
    assert read_header(write(header(*USUAL) + bytes(1000))).file_type == "Q4_K_M"


def test_a_header_without_an_end(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_parser, "_PIECE_BYTES", 16)
    monkeypatch.setattr(gguf_parser, "_MAX_HEADER_BYTES", 100)
    assert "its header is larger than 100 bytes" in refused(write(header(*USUAL) + bytes(1000)))


def test_a_large_vocabulary_is_skipped_without_being_kept(write: Any) -> None:
    """How long that takes is told by benchmarks/gguf_header.py."""
    tokens = b"".join(text(b"t" * (i % 12)) for i in range(250_000))
    path = write(header(*USUAL[:3], entry("v", ARRAY, struct.pack("<IQ", STRING, 250_000) + tokens), USUAL[-1]))
    tracemalloc.start()
    try:
        found = read_header(path)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (found.metadata["v"], found.file_type) == (GgufArray("string", 250_000), "Q4_K_M")
    assert peak_bytes < len(tokens) / 2


@pytest.mark.parametrize("piece_bytes", [1, 7, 16, 100, 10_000])
def test_texts_are_skipped_wherever_a_piece_ends(write: Any, monkeypatch: pytest.MonkeyPatch, piece_bytes: int) -> None:
    monkeypatch.setattr(gguf_parser, "_PIECE_BYTES", piece_bytes)
    lengths = [0, 1, 7, 8, 9, 300, 0, 0, 70_000, 5, 16]
    found = read_header(write(header(strings("v", ["x" * length for length in lengths]), *USUAL)))
    assert (found.metadata["v"], found.file_type) == (GgufArray("string", len(lengths)), "Q4_K_M")


def test_short_arrays_are_kept(write: Any) -> None:
    entries = [
        numbers("llama.attention.head_count_kv", "I", [8, 0, 4]),
        numbers("llama.sliding_window_pattern", "?", [True, False]),
        numbers("llama.factors", "f", [0.5]),
        numbers("llama.none", "I", []),
        numbers("llama.most", "I", range(4096)),
        numbers("llama.more", "I", range(4097)),
        numbers("tokenizer.ggml.types", "I", [1, 2]),
        strings("general.tags", ["a", "b"]),
    ]
    metadata = read_header(write(header(*entries))).metadata
    assert metadata["llama.attention.head_count_kv"] == (8, 0, 4)
    assert metadata["llama.sliding_window_pattern"] == (True, False)
    assert metadata["llama.factors"] == (0.5,)
    assert metadata["llama.none"] == ()
    assert metadata["llama.most"] == tuple(range(4096))
    assert metadata["llama.more"] == GgufArray("uint32", 4097)
    assert metadata["tokenizer.ggml.types"] == GgufArray("uint32", 2)
    assert metadata["general.tags"] == GgufArray("string", 2)


def test_what_is_kept_is_bounded(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_parser, "_MAX_KEPT_BYTES", 200)
    assert "more than 200 bytes of names" in refused(write(header(numbers("k", "?", [True] * 7))))
    assert "more than 200 bytes of names" in refused(write(header(entry("k", STRING, text("x" * 200)))))
    assert read_header(write(header(numbers("k", "?", [True] * 6)))).metadata["k"] == (True,) * 6


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelError, match="is no file") as caught:
        read_header(tmp_path / "pipe")
    assert caught.value.code == "model_not_readable"


# ---------------------------------------------------------------- is it what it is listed as?


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("Q4_K_M", "Q4_K_M"),
        ("q4_k_m", "Q4_K_M"),
        ("Q4_K", "Q4_K_M"),
        ("FP16", "F16"),
        ("UD-Q4_K_XL", None),
        ("Q4", None),
        ("", None),
    ],
)
def test_names_of_quantizations(name: str, known: str | None) -> None:
    assert known_quantization(name) == known


@pytest.mark.parametrize("name", ["Q4_K_M", "Q4_K", "UD-Q4_K_XL", "whatever", None])
def test_a_file_that_may_be_what_it_is_listed_as(write: Any, name: str | None) -> None:
    assert check_quantization(write(header(*USUAL)), name).block_count == 30


def test_a_file_that_does_not_say_what_it_is(write: Any) -> None:
    check_quantization(write(header(*USUAL[:-1])), "Q8_0")


def test_a_header_that_is_not_of_a_file_here(write: Any) -> None:
    found = read_header(write(header(*USUAL)))
    check_header_quantization(found, "Q4_K_M", "https://hub/m.gguf")
    with pytest.raises(ModelError, match=r"^https://hub/m\.gguf is listed as Q8_0, but its header says Q4_K_M"):
        check_header_quantization(found, "Q8_0", "https://hub/m.gguf")


def test_a_file_that_is_not_what_it_is_listed_as(write: Any) -> None:
    path = write(header(*USUAL))
    with pytest.raises(ModelError) as caught:
        check_quantization(path, "Q8_0")
    assert caught.value.code == "wrong_quantization"
    assert caught.value.evidence == {"file_type": "Q4_K_M", "quantization": "Q8_0"}
    assert f"{path} is listed as Q8_0, but its header says Q4_K_M" in caught.value.message
    assert "list it as Q4_K_M in the models file, or replace the file" in caught.value.message
