"""Tensors of GGUF files, and models that are split over several."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from pytest_llmbench.core import gguf_parser
from pytest_llmbench.core.gguf import (
    TENSOR_TYPES,
    GgufHeader,
    Tensor,
    parse_header,
    read_header,
    read_model,
    shard_names,
)
from pytest_llmbench.core.gguf_types import tensor_size_bytes
from pytest_llmbench.errors import ModelError
from tests.unit.core.gguf_bytes import DATA_BYTES, F32, Q4_K, TENSORS, USUAL, gguf_file, header, number, tensor, text

WHOLE = gguf_file(USUAL, TENSORS, DATA_BYTES)


def parse(data: bytes, **options: Any) -> GgufHeader:
    return parse_header(lambda offset, count: data[offset : offset + count], len(data), "m.gguf", **options)


def refused(data: bytes, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        parse(data, **options)
    assert caught.value.code == "bad_model_file"
    assert "m.gguf" in caught.value.message
    return caught.value.message


def test_the_types_are_those_of_the_reference() -> None:
    reference = {kind.value: (kind.name, *gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGMLQuantizationType}
    assert {number: tuple(kind) for number, kind in TENSOR_TYPES.items()} == reference


def test_tensors_of_a_file() -> None:
    found = parse(WHOLE)
    embedding = Tensor("token_embd.weight", (256, 3), "Q4_K", 3 * 144)
    assert found.tensors == (embedding, Tensor("output_norm.weight", (256,), "F32", 1024))
    assert (found.tensor_count, found.tensor_bytes) == (2, 3 * 144 + 1024)
    assert found.size_bytes == len(WHOLE)
    assert found.header_bytes == len(WHOLE) - DATA_BYTES


@pytest.mark.parametrize("alignment", [None, 64])
def test_a_file_of_the_reference_implementation(tmp_path: Path, alignment: int | None) -> None:
    """Each type's size, and where data begins, as the reference writes them and reads them back."""
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    for kind, (block, size) in gguf.GGML_QUANT_SIZES.items():
        rows = np.zeros((3, 2 * size), dtype=np.uint8)
        writer.add_tensor(f"t.{kind.name}", rows, raw_shape=(3, 2 * size), raw_dtype=kind)
        assert block
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found, reference = read_header(path), gguf.GGUFReader(path)
    expected = [(t.name, tuple(int(n) for n in t.shape), t.tensor_type.name, int(t.n_bytes)) for t in reference.tensors]
    assert [(t.name, t.dimensions, t.type, t.size_bytes) for t in found.tensors] == expected
    assert found.header_bytes == reference.data_offset
    assert len(expected) == len(TENSOR_TYPES)


@pytest.mark.parametrize(
    ("dimensions", "kind", "size_bytes"),
    [((), 0, 4), ((0,), 0, 0), ((256, 0), 12, 0), ((32, 5, 2), 8, 340), ((2**40, 2**20), 0, 2**62)],
)
def test_sizes(dimensions: tuple[int, ...], kind: int, size_bytes: int) -> None:
    assert tensor_size_bytes(dimensions, TENSOR_TYPES[kind]) == size_bytes


def changed(*tensors: bytes, entries: tuple[bytes, ...] = (), claimed: int | None = None) -> bytes:
    head = header(*entries, *tensors, tensors=len(tensors) if claimed is None else claimed, keys=len(entries))
    return head + bytes(10_000)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            changed(tensor("t", (4,), 4)),
            "the tensor 't' has the type 4, which is not known here; update pytest-llmbench",
        ),
        (changed(tensor("t", (4,), 2**32 - 1)), "the tensor 't' has the type 4294967295"),
        (changed(tensor("t", (255, 2), Q4_K)), "rows of 255 numbers, which is no multiple of Q4_K's 256"),
        (changed(tensor("t", (), Q4_K)), "rows of 1 numbers"),
        (changed(tensor("t", (1,) * 9)), "the tensor 't' has 9 dimensions"),
        (changed(text("t") + struct.pack("<I", 2**32 - 1)), "the tensor 't' has 4294967295 dimensions"),
        (changed(tensor("t", (2**64 - 1,) * 8)), "the tensor 't' is larger than any file"),
        (changed(tensor("t", (4,), F32, 2**63)), "the tensor 't' is larger than any file"),
        (changed(tensor("t", (4,), F32, 33)), "begins at 33, which is no multiple of 32 bytes"),
        (changed(tensor("t", (4,), F32, 32), entries=(number("general.alignment", 64),)), "no multiple of 64 bytes"),
        (changed(tensor("t", (4,)), tensor("t", (4,), F32, 32)), "two tensors have the same name"),
        (changed(tensor("a", (4,)), tensor("b", (4,))), "its tensors lie upon one another"),
        (changed(tensor("t", (10_000,))), "it is cut off: 10"),
        (changed(tensor("t" * 1025, (4,))), "a tensor's name of 1025 bytes"),
        (changed(tensor("", (4,))), "a tensor's name of 0 bytes"),
        (changed(tensor("t", (4,)), claimed=500), "it claims 500 tensors"),
        (changed(tensor("t", (4,)), claimed=300), "a tensor's name of 0 bytes"),
        (changed(entries=(number("general.alignment", 0),)), "its alignment is 0"),
        (changed(entries=(number("general.alignment", 48),)), "its alignment is 48"),
        (changed(entries=(number("general.alignment", 2**31),)), "its alignment is 2147483648"),
    ],
)
def test_tensors_that_can_not_be_are_refused_in_words(data: bytes, words: str) -> None:
    assert words in refused(data)


def test_every_way_to_cut_a_file_off() -> None:
    for length in range(len(WHOLE) - DATA_BYTES):
        refused(WHOLE[:length])
    for length in (len(WHOLE) - DATA_BYTES, len(WHOLE) - 1):
        assert f"it is cut off: {length} of {len(WHOLE)} bytes are there; delete it and fetch" in refused(
            WHOLE[:length]
        )


def test_data_that_may_be_missing() -> None:
    head = WHOLE[:-DATA_BYTES]
    found = parse(head, allow_missing_data=True)
    assert found.tensors == parse(WHOLE).tensors
    assert (found.size_bytes, found.header_bytes) == (len(head), len(head))
    refused(head[:-40], allow_missing_data=True)


def test_too_many_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_parser, "_MAX_TENSORS", 1)
    assert "it claims 2 tensors, more than" in refused(WHOLE)


def test_what_is_read_of_a_file() -> None:
    """In order, nothing twice that is not needed, and no byte of the tensors' data."""
    data = gguf_file(USUAL, TENSORS, DATA_BYTES)
    asked: list[tuple[int, int]] = []

    def read(offset: int, count: int) -> bytes:
        asked.append((offset, count))
        return data[offset : offset + min(count, 100)]  # never all at once

    assert parse_header(read, len(data), "m") == parse(data)
    offsets = [offset for offset, _ in asked]
    assert offsets == sorted(offsets)
    assert all(offset + count <= len(data) for offset, count in asked)
    assert offsets[-1] + 100 <= len(data) - DATA_BYTES + 100


# ---------------------------------------------------------------- split models


def shards(folder: Path, count: int = 3, *, total: int | None = None, order: tuple[int, ...] = (0, 1, 2)) -> list[Path]:
    """As gguf-split writes them: the model's keys and no tensor in the first one of these."""
    paths = [folder / name for name in shard_names(f"m-00001-of-{count:05}.gguf")]
    for index, path in enumerate(paths):
        split = (
            number("split.no", order[index]),
            number("split.count", count),
            number("split.tensors.count", 2 * (count - 1) if total is None else total),
        )
        tensors = [tensor(f"{index}.{name}", (8,), F32, 32 * at) for at, name in enumerate("ab")] if index else []
        path.write_bytes(gguf_file((*USUAL, *split) if index == 0 else split, tensors, 64 if index else 0))
    return paths


def test_a_split_model_is_read_as_one(tmp_path: Path) -> None:
    paths = shards(tmp_path)
    found, first = read_model(paths), read_header(paths[0])
    assert (found.split_count, found.block_count, found.file_type) == (3, 30, "Q4_K_M")
    assert [t.name for t in found.tensors] == ["1.a", "1.b", "2.a", "2.b"]
    assert found.size_bytes == sum(path.stat().st_size for path in paths)
    assert (found.metadata, found.header_bytes) == (first.metadata, first.header_bytes)


def test_a_model_that_is_not_split(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(WHOLE)
    assert read_model([path]) == read_header(path)
    assert read_model([path]).split_count == 1


def test_shards_that_are_not_of_one_model(tmp_path: Path) -> None:
    paths = shards(tmp_path)
    for listed, words in (
        ([], "the model has no files"),
        (paths[:1], "is one of 3 shards, but 1 files are listed"),
        ([paths[0], paths[2], paths[1]], "is listed as shard 2 of 3, but its header has it as number 2"),
        ([paths[0], paths[1], paths[1]], "is listed as shard 3 of 3"),
    ):
        with pytest.raises(ModelError, match=words) as caught:
            read_model(listed)
        assert caught.value.code == "bad_model_file"
    with pytest.raises(ModelError, match="have 4 tensors instead of 5"):
        read_model(shards(tmp_path, total=5))
    with pytest.raises(ModelError, match="No such file"):
        read_model([*paths[:2], tmp_path / "none"])


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("x.gguf", ["x.gguf"]),
        ("x-00001-of-00002.gguf", ["x-00001-of-00002.gguf", "x-00002-of-00002.gguf"]),
        ("a/x-00002-of-00002.gguf", ["a/x-00001-of-00002.gguf", "a/x-00002-of-00002.gguf"]),
        ("x-00001-of-00001.gguf", ["x-00001-of-00001.gguf"]),
        ("x-00000-of-00002.gguf", ["x-00000-of-00002.gguf"]),
        ("x-00003-of-00002.gguf", ["x-00003-of-00002.gguf"]),
        ("x-1-of-2.gguf", ["x-1-of-2.gguf"]),
    ],
)
def test_names_of_shards(name: str, names: list[str]) -> None:
    assert shard_names(name) == names
