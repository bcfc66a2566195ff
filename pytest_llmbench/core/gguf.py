"""What a GGUF file says of itself in its header, read without reading its arrays.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The file is not trusted: every size in it is compared
with what is left of the file, and anything else than a well-formed header is a ``ModelError``.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

from pytest_llmbench.errors import ModelError, Primitive

_FIRST_READ_BYTES = 8 * 1024 * 1024  # holds the vocabulary of most models; more is read where it does not
_MAX_HEADER_BYTES = 256 * 1024 * 1024
_MAX_KEYS = 65_536
_MAX_KEY_BYTES = 65_535  # by the specification
_MAX_STRINGS = 8_000_000  # in all arrays together; the largest vocabulary with its merges has less than one million
_MAX_KEPT_STRING_BYTES = 16 * 1024
_SMALLEST_TENSOR_ENTRY_BYTES = 8 + 4 + 4 + 8  # length of a name, dimensions, type, offset

# Value types of the metadata: number → name and struct format.
_SCALARS = {
    0: ("uint8", "<B"),
    1: ("int8", "<b"),
    2: ("uint16", "<H"),
    3: ("int16", "<h"),
    4: ("uint32", "<I"),
    5: ("int32", "<i"),
    6: ("float32", "<f"),
    7: ("bool", "<B"),
    10: ("uint64", "<Q"),
    11: ("int64", "<q"),
    12: ("float64", "<d"),
}
_BOOL, _STRING, _ARRAY = 7, 8, 9

# general.file_type → name: enum llama_ftype of llama.cpp's include/llama.h, and the names llama-quantize knows them by.
# 4 to 6 and 33 to 35 were removed there.
FILE_TYPES: dict[int, str] = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4_MOE",
    39: "NVFP4",
    40: "Q1_0",
}
_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "FP16": "F16", "FP32": "F32", "MXFP4": "MXFP4_MOE"}
_GUESSED = 1024  # a bit that llama.cpp adds where it inferred the type from the tensors


@dataclass(frozen=True, slots=True)
class GgufArray:
    """Stands for an array of the metadata, or for a string too long to keep (then of type ``uint8``)."""

    type: str
    length: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """A header without its arrays' contents.

    Attributes:
        metadata: scalars and strings by key, a :class:`GgufArray` for the rest.
        size_bytes: of the file.
    """

    version: int
    tensor_count: int
    metadata: dict[str, Primitive | GgufArray]
    size_bytes: int

    @property
    def architecture(self) -> str | None:
        """Such as ``llama``; the prefix of the keys that describe the model."""
        value = self.metadata.get("general.architecture")
        return value if isinstance(value, str) else None

    @property
    def block_count(self) -> int | None:
        """Number of layers, without the output layer."""
        return self._positive("block_count")

    @property
    def context_length(self) -> int | None:
        """Tokens of context the model was trained for."""
        return self._positive("context_length")

    @property
    def file_type(self) -> str | None:
        """Name of the quantization, None where the header gives none or one that is not known here."""
        value = self.metadata.get("general.file_type")
        return FILE_TYPES.get(value & ~_GUESSED) if isinstance(value, int) and not isinstance(value, bool) else None

    def _positive(self, name: str) -> int | None:
        value = self.metadata.get(f"{self.architecture}.{name}")
        return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31 else None


class _Malformed(Exception):
    """The header breaks a rule; the text says which."""


class _NeedsMore(Exception):
    """The header goes on behind what was read."""


def read_header(path: Path) -> GgufHeader:
    """Read the header of a GGUF file.

    Raises:
        ModelError: ``bad_model_file``: no GGUF, damaged or cut off; ``model_not_readable``.
    """
    try:
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            data = b""
            while True:
                wanted = max(_FIRST_READ_BYTES, 8 * len(data))
                data += file.read(min(wanted, _MAX_HEADER_BYTES) - len(data))
                whole = len(data) >= size_bytes
                try:
                    return _Parser(data, max(size_bytes, len(data))).header()
                except _NeedsMore as exc:
                    if whole or len(data) < wanted:
                        raise _Malformed(f"it ends inside its header, after {len(data)} bytes") from exc
    except _Malformed as exc:
        raise ModelError(
            "bad_model_file",
            f"{path} is no usable GGUF file: {exc}; delete it and fetch it again, or correct its name in the models "
            "file",
        ) from exc
    except OSError as exc:
        message = f"{path} can not be read: {exc.strerror or exc}; check its permissions"
        raise ModelError("model_not_readable", message) from exc


def known_quantization(name: str) -> str | None:
    """The type a quantization's name stands for, None for one that is no type of llama.cpp (``UD-Q4_K_XL``)."""
    upper = name.upper()
    upper = _ALIASES.get(upper, upper)
    return upper if upper in FILE_TYPES.values() else None


def check_quantization(path: Path, quantization: str | None) -> GgufHeader:
    """Refuse a file whose header names another quantization than the one it is measured as; returns the header.

    Args:
        quantization: as the models file names it; None and names that are no type of llama.cpp are not judged.

    Raises:
        ModelError: ``wrong_quantization``, or what :func:`read_header` raises.
    """
    header = read_header(path)
    expected = known_quantization(quantization) if quantization is not None else None
    if expected is not None and header.file_type is not None and header.file_type != expected:
        raise ModelError(
            "wrong_quantization",
            f"{path} is listed as {quantization}, but its header says {header.file_type}; a number measured with it "
            f"would bear the wrong name: list it as {header.file_type} in the models file, or replace the file",
            {"file_type": header.file_type, "quantization": quantization},
        )
    return header


class _Parser:
    """Walks over the bytes of a header."""

    def __init__(self, data: bytes, size_bytes: int) -> None:
        self._data = data
        self._size_bytes = size_bytes
        self._position = 0
        self._strings_left = _MAX_STRINGS

    def header(self) -> GgufHeader:
        if not self._data.startswith(b"GGUF"):
            shown = self._data[:4]
            raise _Malformed("it is empty" if not shown else f"it begins with {shown!r}, not with b'GGUF'")
        self._position = 4
        version = self._number("<I")
        if version not in {2, 3}:
            if version in {2 << 24, 3 << 24}:
                raise _Malformed("it was written for a big-endian machine")
            raise _Malformed(f"it has version {version}, versions 2 and 3 can be read")
        tensor_count, key_count = self._number("<Q"), self._number("<Q")
        if key_count > _MAX_KEYS:
            raise _Malformed(f"it claims {key_count} keys")
        metadata: dict[str, Primitive | GgufArray] = {}
        for _ in range(key_count):
            key = self._key()
            if key in metadata:
                raise _Malformed(f"the key {key!r} is in it twice")
            metadata[key] = self._value(key)
        if tensor_count > (self._size_bytes - self._position) // _SMALLEST_TENSOR_ENTRY_BYTES:
            raise _Malformed(f"it claims {tensor_count} tensors, more than fit into it")
        return GgufHeader(version, tensor_count, metadata, self._size_bytes)

    def _number(self, form: str) -> int:
        value = self._scalar(form)
        assert isinstance(value, int)  # noqa: S101 -- only called with formats of integers
        return value

    def _scalar(self, form: str) -> int | float:
        begin = self._position
        self._skip(struct.calcsize(form), "a value")
        value: int | float = struct.unpack_from(form, self._data, begin)[0]
        return value

    def _skip(self, count: int, what: str) -> None:
        """Go forward; what lies behind is then known to be in ``data``."""
        if count > self._size_bytes - self._position:
            raise _Malformed(f"{what} of {count} bytes goes beyond its end")
        if count > _MAX_HEADER_BYTES - self._position:
            raise _Malformed(f"its header is larger than {_MAX_HEADER_BYTES} bytes")
        self._position += count
        if self._position > len(self._data):
            raise _NeedsMore

    def _key(self) -> str:
        length = self._number("<Q")
        if not 0 < length <= _MAX_KEY_BYTES:
            raise _Malformed(f"a key of {length} bytes is in it")
        begin = self._position
        self._skip(length, "a key")
        return self._data[begin : self._position].decode("utf-8", "replace")

    def _value(self, key: str) -> Primitive | GgufArray:
        kind = self._number("<I")
        if kind == _STRING:
            length = self._number("<Q")
            begin = self._position
            self._skip(length, f"the text of {key!r}")
            if length > _MAX_KEPT_STRING_BYTES:
                return GgufArray("uint8", length)
            return self._data[begin : self._position].decode("utf-8", "replace")
        if kind == _ARRAY:
            return self._array(key)
        if kind not in _SCALARS:
            raise _Malformed(f"{key!r} has the unknown type {kind}")
        value = self._scalar(_SCALARS[kind][1])
        return bool(value) if kind == _BOOL else value

    def _array(self, key: str) -> GgufArray:
        kind, length = self._number("<I"), self._number("<Q")
        if kind == _STRING:
            self._skip_strings(length, key)
            return GgufArray("string", length)
        if kind not in _SCALARS:  # arrays of arrays among them, which llama.cpp does not load either
            raise _Malformed(f"{key!r} is an array of the unknown type {kind}")
        name, form = _SCALARS[kind]
        self._skip(length * struct.calcsize(form), f"the array {key!r}")
        return GgufArray(name, length)

    def _skip_strings(self, count: int, key: str) -> None:
        if count > self._strings_left:
            raise _Malformed(f"{key!r} claims {count} texts")
        if 8 * count > self._size_bytes - self._position:
            raise _Malformed(f"the {count} texts of {key!r} go beyond its end")
        self._strings_left -= count
        data, position, length_at = self._data, self._position, struct.Struct("<Q").unpack_from
        try:
            for _ in repeat(None, count):  # some hundred thousand times, so nothing is checked that need not be
                position += 8 + length_at(data, position)[0]
        except (struct.error, OverflowError):  # a length lies behind what was read
            pass
        else:
            if position <= len(data):
                self._position = position
                return
        if position > self._size_bytes:
            raise _Malformed(f"a text of {key!r} goes beyond its end")
        if position > _MAX_HEADER_BYTES:
            raise _Malformed(f"its header is larger than {_MAX_HEADER_BYTES} bytes")
        raise _NeedsMore
