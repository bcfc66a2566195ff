"""Parses the header of a GGUF file, of which it asks for a few pieces.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.

The file is not trusted: every size in it is compared with what is left of the file, what is kept of it is bounded, and
anything else than a well-formed header is a ``ModelError``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import repeat
from operator import length_hint

from pytest_llmbench.core.gguf_header import MAX_KEPT_ENTRIES, GgufArray, GgufHeader, Tensor, Value
from pytest_llmbench.core.gguf_types import TENSOR_TYPES, tensor_size_bytes
from pytest_llmbench.errors import ModelError

_PIECE_BYTES = 256 * 1024  # read at once; stays in the processor's cache
_MAX_HEADER_BYTES = 256 * 1024 * 1024
_MAX_KEPT_BYTES = 32 * 1024 * 1024  # of names, texts and arrays' entries together
_MAX_KEYS = 65_536
_MAX_KEY_BYTES = 65_535  # by the specification
_MAX_STRINGS = 8_000_000  # in all arrays together; the largest vocabulary with its merges has less than one million
_MAX_TEXT_BYTES = 16 * 1024  # of a text that is kept
_MAX_TENSORS = 200_000
_MAX_TENSOR_NAME_BYTES = 1024  # ggml allows 63
_MAX_DIMENSIONS = 8  # ggml allows 4
_MAX_ALIGNMENT_BYTES = 1024 * 1024
_SMALLEST_TENSOR_ENTRY_BYTES = 8 + 4 + 4 + 8  # length of a name, dimensions, type, offset
_ENTRY_COST_BYTES = 32  # memory an entry of a kept array takes

# Value types of the metadata: number → name, format of struct and bytes.
_SCALARS = {
    0: ("uint8", "B", 1),
    1: ("int8", "b", 1),
    2: ("uint16", "H", 2),
    3: ("int16", "h", 2),
    4: ("uint32", "I", 4),
    5: ("int32", "i", 4),
    6: ("float32", "f", 4),
    7: ("bool", "?", 1),
    10: ("uint64", "Q", 8),
    11: ("int64", "q", 8),
    12: ("float64", "d", 8),
}
_STRING, _ARRAY = 8, 9

_length_at = struct.Struct("<Q").unpack_from

Read = Callable[[int, int], bytes]
REFETCH = "delete it and fetch it again, or correct its name in the models file"


class _Malformed(Exception):
    """The header breaks a rule; the text says which."""


class _Unknown(_Malformed):
    """The header may follow rules that are newer than these."""


def parse_header(
    read: Read, size_bytes: int, name: str, *, allow_missing_data: bool = False, advice: str = REFETCH
) -> GgufHeader:
    """Parse the header of a GGUF file.

    Args:
        read: takes an offset and a count, both in bytes, and gives at least one and at most so many bytes; none where
            the file has ended. Offsets only grow, and no count is over 256 KiB or leads beyond ``size_bytes``.
        size_bytes: of the file.
        name: what messages call the file.
        allow_missing_data: whether the file may end before its tensors' data does.
        advice: what to do where it is no usable file.

    Raises:
        ModelError: ``bad_model_file``: no GGUF, damaged or cut off. What ``read`` raises is passed on.
    """
    try:
        return _Parser(_Source(read, size_bytes), allow_missing_data).header()
    except _Unknown as exc:
        message = f"{name} can not be used: {exc}; update pytest-llmbench, or take another quantization of the model"
        raise ModelError("bad_model_file", message) from exc
    except _Malformed as exc:
        raise ModelError("bad_model_file", f"{name} is no usable GGUF file: {exc}; {advice}") from exc


class _Source:
    """Walks over a file, of which it holds the piece it is in."""

    def __init__(self, read: Read, size_bytes: int) -> None:
        self._read = read
        self.size_bytes = size_bytes
        self._piece = b""
        self._begin = 0  # of the piece, in the file
        self._at = 0  # in the piece, or behind it

    @property
    def position(self) -> int:
        """Offset in the file, in bytes."""
        return self._begin + self._at

    def number(self, form: str) -> int:
        """An integer in struct's format ``form``."""
        begin = self._take(struct.calcsize(form), "a value")
        value: int = struct.unpack_from(form, self._piece, begin)[0]
        return value

    def scalars(self, form: str, size_bytes: int, count: int, what: str) -> tuple[int | float | bool, ...]:
        """So many values in struct's format ``form``, of so many bytes each."""
        begin = self._take(count * size_bytes, what)
        return struct.unpack_from(f"<{count}{form}", self._piece, begin)

    def text(self, length: int, what: str) -> str:
        """A text of so many bytes; what is no UTF-8 is replaced."""
        return self.raw(length, what).decode("utf-8", "replace")

    def raw(self, count: int, what: str) -> bytes:
        begin = self._take(count, what)
        return self._piece[begin : self._at]

    def skip(self, count: int, what: str) -> None:
        """Go forward, without reading what lies between."""
        self._check(count, what)
        self._at += count

    def skip_texts(self, count: int, what: str) -> None:
        """Go behind so many texts, each with its length before it."""
        while count:
            self._hold(8, what)
            piece, at, texts = self._piece, self._at, repeat(None, count)
            try:
                for _ in texts:  # some hundred thousand times, so nothing is checked that need not be
                    at += 8 + _length_at(piece, at)[0]
                count = 0
            except (struct.error, OverflowError):  # this length lies behind the piece
                count = length_hint(texts) + 1
            if self._begin + at > self.size_bytes:
                raise _Malformed(f"{what} goes beyond its end")
            self.skip(at - self._at, what)

    def _take(self, count: int, what: str) -> int:
        """Go forward over what is then held; returns where in the piece it begins."""
        self._hold(count, what)
        self._at += count
        return self._at - count

    def _hold(self, count: int, what: str) -> None:
        """Have the next ``count`` bytes in the piece; never many."""
        if self._at + count <= len(self._piece):
            return
        self._check(count, what)
        self._begin, self._at, self._piece = self.position, 0, b""
        while len(self._piece) < count:
            begin = self._begin + len(self._piece)
            more = self._read(begin, min(max(_PIECE_BYTES, count), self.size_bytes - begin))
            if not more:
                raise _Malformed(f"it ends inside its header, after {begin} bytes")
            self._piece += more

    def _check(self, count: int, what: str) -> None:
        if count > self.size_bytes - self.position:
            raise _Malformed(f"{what} of {count} bytes goes beyond its end")
        if count > _MAX_HEADER_BYTES - self.position:
            raise _Malformed(f"its header is larger than {_MAX_HEADER_BYTES} bytes")


class _Parser:
    """Knows what comes after what."""

    def __init__(self, source: _Source, allow_missing_data: bool) -> None:
        self._source = source
        self._allow_missing_data = allow_missing_data
        self._strings_left = _MAX_STRINGS
        self._kept_left_bytes = _MAX_KEPT_BYTES

    def header(self) -> GgufHeader:
        source = self._source
        version = self._version()
        tensor_count, key_count = source.number("<Q"), source.number("<Q")
        if key_count > _MAX_KEYS:
            raise _Malformed(f"it claims {key_count} keys")
        if tensor_count > min(_MAX_TENSORS, (source.size_bytes - source.position) // _SMALLEST_TENSOR_ENTRY_BYTES):
            raise _Malformed(f"it claims {tensor_count} tensors, more than fit into it or than any model has")
        metadata: dict[str, Value] = {}
        for _ in range(key_count):
            key = self._name("a key", _MAX_KEY_BYTES)
            if key in metadata:
                raise _Malformed(f"the key {_quoted(key)} is in it twice")
            metadata[key] = self._value(key)
        alignment = _alignment(metadata)
        found = [self._tensor(alignment) for _ in range(tensor_count)]
        header_bytes = source.position + -source.position % alignment
        self._check_tensors(found, header_bytes)
        tensors = tuple(tensor for tensor, _ in found)
        return GgufHeader(version, metadata, tensors, source.size_bytes, header_bytes)

    def _version(self) -> int:
        source = self._source
        magic = source.raw(min(4, source.size_bytes), "its magic")
        if magic != b"GGUF":
            raise _Malformed(f"it begins with {magic!r}, not with b'GGUF'" if magic else "it is empty")
        version = source.number("<I")
        if version not in {2, 3}:
            if version in {2 << 24, 3 << 24}:
                raise _Malformed("it was written for a big-endian machine")
            raise _Malformed(f"it has version {version}, versions 2 and 3 can be read")
        return version

    def _name(self, what: str, limit: int) -> str:
        length = self._source.number("<Q")
        if not 0 < length <= limit:
            raise _Malformed(f"{what} of {length} bytes is in it")
        self._keep(length)
        return self._source.text(length, what)

    def _keep(self, size_bytes: int) -> None:
        self._kept_left_bytes -= size_bytes
        if self._kept_left_bytes < 0:
            raise _Malformed(f"it has more than {_MAX_KEPT_BYTES} bytes of names, texts and numbers")

    def _value(self, key: str) -> Value:
        source = self._source
        kind = source.number("<I")
        if kind == _STRING:
            length, what = source.number("<Q"), f"the text of {_quoted(key)}"
            if length > _MAX_TEXT_BYTES:
                source.skip(length, what)
                return GgufArray("uint8", length)
            self._keep(length)
            return source.text(length, what)
        if kind == _ARRAY:
            return self._array(key)
        if kind not in _SCALARS:
            raise _Malformed(f"{_quoted(key)} has the unknown type {kind}")
        _, form, size_bytes = _SCALARS[kind]
        return source.scalars(form, size_bytes, 1, "a value")[0]

    def _array(self, key: str) -> Value:
        source = self._source
        kind, length = source.number("<I"), source.number("<Q")
        if kind == _STRING:
            self._skip_strings(length, key)
            return GgufArray("string", length)
        if kind not in _SCALARS:  # arrays of arrays among them, which llama.cpp does not load either
            raise _Malformed(f"{_quoted(key)} is an array of the unknown type {kind}")
        name, form, size_bytes = _SCALARS[kind]
        what = f"the array {_quoted(key)}"
        if length > MAX_KEPT_ENTRIES or key.startswith("tokenizer."):
            source.skip(length * size_bytes, what)
            return GgufArray(name, length)
        self._keep(length * _ENTRY_COST_BYTES)
        return source.scalars(form, size_bytes, length, what)

    def _skip_strings(self, count: int, key: str) -> None:
        source = self._source
        if count > self._strings_left:
            raise _Malformed(f"{_quoted(key)} claims {count} texts")
        if 8 * count > source.size_bytes - source.position:
            raise _Malformed(f"the {count} texts of {_quoted(key)} go beyond its end")
        self._strings_left -= count
        source.skip_texts(count, f"a text of {_quoted(key)}")

    def _tensor(self, alignment: int) -> tuple[Tensor, int]:
        """A tensor, and where its data begins: bytes behind the header."""
        source = self._source
        name = self._name("a tensor's name", _MAX_TENSOR_NAME_BYTES)
        count = source.number("<I")
        if count > _MAX_DIMENSIONS:
            raise _Malformed(f"the tensor {_quoted(name)} has {count} dimensions")
        dimensions = tuple(source.number("<Q") for _ in range(count))
        kind, offset = source.number("<I"), source.number("<Q")
        if kind not in TENSOR_TYPES:
            raise _Unknown(f"the tensor {_quoted(name)} has the type {kind}, which is not known here")
        try:
            size_bytes = tensor_size_bytes(dimensions, TENSOR_TYPES[kind])
        except ValueError as exc:
            raise _Malformed(f"the tensor {_quoted(name)} has {exc}") from exc
        if offset % alignment:
            raise _Malformed(
                f"the tensor {_quoted(name)} begins at {offset}, which is no multiple of {alignment} bytes"
            )
        if offset + size_bytes >= 2**63:
            raise _Malformed(f"the tensor {_quoted(name)} is larger than any file")
        return Tensor(name, dimensions, TENSOR_TYPES[kind].name, size_bytes), offset

    def _check_tensors(self, found: list[tuple[Tensor, int]], header_bytes: int) -> None:
        if len({tensor.name for tensor, _ in found}) < len(found):
            raise _Malformed("two tensors have the same name")
        needed_bytes = header_bytes + max((offset + tensor.size_bytes for tensor, offset in found), default=0)
        if found and needed_bytes > self._source.size_bytes and not self._allow_missing_data:
            raise _Malformed(f"it is cut off: {self._source.size_bytes} of {needed_bytes} bytes are there")
        if header_bytes + sum(tensor.size_bytes for tensor, _ in found) > needed_bytes:
            raise _Malformed("its tensors lie upon one another")


def _quoted(name: str) -> str:
    """A name out of the file, as much of it as a message can bear."""
    return repr(name if len(name) <= 80 else f"{name[:80]}…")


def _alignment(metadata: dict[str, Value]) -> int:
    """What tensors' data begins at a multiple of, in bytes."""
    value = metadata.get("general.alignment", 32)
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or not 0 < value <= _MAX_ALIGNMENT_BYTES
        or value & (value - 1)
    ):
        raise _Malformed(f"its alignment is {value!r}, not a power of two")
    return value
