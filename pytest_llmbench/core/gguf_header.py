"""A GGUF header in memory: what it says of a model, and its form as JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pytest_llmbench.core.gguf_types import FILE_TYPES, TENSOR_TYPES_BY_NAME, tensor_size_bytes
from pytest_llmbench.errors import Primitive

MAX_KEPT_ENTRIES = 4096  # of one array; more than any model has layers
_GUESSED = 1024  # a bit that llama.cpp adds where it inferred the type from the tensors
_DUMP_FORMAT = 1  # of dump_header; a new number makes what an older version wrote unreadable


@dataclass(frozen=True, slots=True)
class GgufArray:
    """Stands for an array that was skipped, or for a string too long to keep (then of type ``uint8``)."""

    type: str
    length: int


Value = Primitive | tuple[int | float | bool, ...] | GgufArray


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor, without its data.

    Attributes:
        dimensions: lengths as in the file, that of a row first.
        type: ggml's name in upper case, such as ``F32`` or ``Q4_K``.
        size_bytes: of its data, without padding.
    """

    name: str
    dimensions: tuple[int, ...]
    type: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a model's file says before its tensors' data.

    Attributes:
        metadata: scalars, strings and short arrays of numbers by key; a :class:`GgufArray` stands for the rest.
        size_bytes: of the file; of all shards together where they were merged.
        header_bytes: where the tensors' data begins in the (first) file, or would begin in one without tensors.
    """

    version: int
    metadata: dict[str, Value]
    tensors: tuple[Tensor, ...]
    size_bytes: int
    header_bytes: int

    @property
    def tensor_count(self) -> int:
        """Tensors in the file, or in all shards together."""
        return len(self.tensors)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors' data, without padding."""
        return sum(tensor.size_bytes for tensor in self.tensors)

    @property
    def architecture(self) -> str | None:
        """Such as ``llama``; the prefix of the keys that describe the model."""
        return self._text("general.architecture")

    @property
    def name(self) -> str | None:
        """What its makers call the model."""
        return self._text("general.name")

    @property
    def block_count(self) -> int | None:
        """Number of layers, without the output layer."""
        return self.number("block_count") or None

    @property
    def context_length(self) -> int | None:
        """Tokens of context the model was trained for."""
        return self.number("context_length") or None

    @property
    def file_type(self) -> str | None:
        """Name of the quantization, None where the header gives none or one that is not known here."""
        value = _whole(self.metadata.get("general.file_type"))
        return None if value is None else FILE_TYPES.get(value & ~_GUESSED)

    @property
    def split_count(self) -> int:
        """Files the model is spread over."""
        return _whole(self.metadata.get("split.count")) or 1

    @property
    def vocabulary_size(self) -> int | None:
        """Tokens the model knows: the tokenizer's list, else what the model says, else the rows of its embedding."""
        tokens = self.metadata.get("tokenizer.ggml.tokens")
        if isinstance(tokens, GgufArray) and tokens.type == "string":
            return tokens.length
        told = self.number("vocab_size")
        if told is not None:
            return told
        embedding = next((tensor for tensor in self.tensors if tensor.name == "token_embd.weight"), None)
        return embedding.dimensions[1] if embedding is not None and len(embedding.dimensions) > 1 else None

    def number(self, name: str) -> int | None:
        """The architecture's value ``name`` where it is a whole number from 0 to 2³¹ − 1."""
        return _whole(self.metadata.get(f"{self.architecture}.{name}"))

    def numbers(self, name: str, count: int) -> tuple[int, ...] | None:
        """The architecture's value ``name`` for each of ``count`` layers; flags are 0 and 1.

        A single number is that of every layer. None where there is no such value, where it is an array with fewer
        entries, where one of them is not as :meth:`number` wants it, or for more layers than an array is kept for.
        """
        value = self.metadata.get(f"{self.architecture}.{name}")
        entries = value if isinstance(value, tuple) else (value,) * min(count, MAX_KEPT_ENTRIES)
        if len(entries) < count:
            return None
        found = tuple(_whole(int(entry) if isinstance(entry, bool) else entry) for entry in entries[:count])
        whole = tuple(number for number in found if number is not None)
        return whole if len(whole) == count else None

    def _text(self, key: str) -> str | None:
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else None


def dump_header(header: GgufHeader) -> dict[str, Any]:
    """A header as JSON values, for a cache on disk; :func:`load_header` reads it."""
    return {
        "format": _DUMP_FORMAT,
        "version": header.version,
        "metadata": {key: _dump_value(value) for key, value in header.metadata.items()},
        "tensors": [[tensor.name, list(tensor.dimensions), tensor.type] for tensor in header.tensors],
        "size_bytes": header.size_bytes,
        "header_bytes": header.header_bytes,
    }


def load_header(data: Any) -> GgufHeader:
    """The header that :func:`dump_header` wrote, equal to what it was.

    Raises:
        ValueError: ``data`` is something else, or was written by another version.
    """
    if not isinstance(data, dict) or data.get("format") != _DUMP_FORMAT:
        raise ValueError(f"this is no saved GGUF header of format {_DUMP_FORMAT}")
    try:
        return GgufHeader(
            _count(data["version"]),
            {_string(key): _load_value(value) for key, value in data["metadata"].items()},
            tuple(_load_tensor(*entry) for entry in data["tensors"]),
            _count(data["size_bytes"]),
            _count(data["header_bytes"]),
        )
    except (LookupError, TypeError, AttributeError, ValueError) as exc:
        raise ValueError(f"this is no saved GGUF header: {exc}") from exc


def _dump_value(value: Value) -> Any:
    if isinstance(value, GgufArray):
        return {"array_of": value.type, "length": value.length}
    if isinstance(value, tuple):
        return [_dump_value(entry) for entry in value]
    # JSON has no numbers for these, and its writers disagree on what to do then.
    return {"real": repr(value)} if isinstance(value, float) and not math.isfinite(value) else value


def _load_value(value: Any) -> Value:
    if isinstance(value, list):
        return tuple(_load_number(entry) for entry in value)
    if isinstance(value, dict) and "array_of" in value:
        return GgufArray(_string(value["array_of"]), _count(value["length"]))
    return value if value is None or isinstance(value, str) else _load_number(value)


def _load_number(value: Any) -> int | float | bool:
    if isinstance(value, dict):
        return float(_string(value["real"]))
    if not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return value


def _load_tensor(name: Any, dimensions: Any, kind: Any) -> Tensor:
    lengths = tuple(_count(length) for length in dimensions)
    known = TENSOR_TYPES_BY_NAME[_string(kind)]
    return Tensor(_string(name), lengths, known.name, tensor_size_bytes(lengths, known))


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"{value!r} is no count")
    return value
