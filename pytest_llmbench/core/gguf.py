"""Model files: what a GGUF file, or all shards of one, says of itself before its tensors' data."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from pytest_llmbench.core.gguf_header import GgufArray, GgufHeader, Tensor, dump_header, load_header
from pytest_llmbench.core.gguf_parser import parse_header
from pytest_llmbench.core.gguf_types import FILE_TYPES, TENSOR_TYPES, known_quantization
from pytest_llmbench.errors import ModelError

__all__ = [
    "FILE_TYPES",
    "TENSOR_TYPES",
    "GgufArray",
    "GgufHeader",
    "Tensor",
    "check_header_quantization",
    "check_quantization",
    "dump_header",
    "known_quantization",
    "load_header",
    "parse_header",
    "read_header",
    "read_model",
    "shard_names",
]

_SHARD = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.gguf", re.DOTALL)


def read_header(path: Path) -> GgufHeader:
    """Read the header of one GGUF file.

    Raises:
        ModelError: ``bad_model_file``: no GGUF, damaged or cut off; ``model_not_readable``.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its writer
            raise ModelError("model_not_readable", f"{path} is no file; correct its name in the models file")
        with path.open("rb", buffering=0) as file:

            def read(offset: int, count: int) -> bytes:
                file.seek(offset)
                return file.read(count)

            return parse_header(read, os.fstat(file.fileno()).st_size, str(path))
    except OSError as exc:
        message = f"{path} can not be read: {exc.strerror or exc}; check its permissions"
        raise ModelError("model_not_readable", message) from exc


def read_model(paths: Sequence[Path]) -> GgufHeader:
    """Read the headers of a model's file or of all its shards, as one.

    Args:
        paths: all shards, in order.

    Returns:
        The metadata of the first with the tensors of all.

    Raises:
        ModelError: ``bad_model_file``: as :func:`read_header` does, or the files are not the shards of one model.
    """
    if not paths:
        raise ModelError("bad_model_file", "the model has no files; list at least one in the models file")
    headers = [read_header(path) for path in paths]
    for index, (path, header) in enumerate(zip(paths, headers, strict=True)):
        _check_shard(path, header, index, len(paths))
    first = headers[0]
    tensors = tuple(tensor for header in headers for tensor in header.tensors)
    expected = first.metadata.get("split.tensors.count", len(tensors))
    if len({tensor.name for tensor in tensors}) < len(tensors) or (len(paths) > 1 and expected != len(tensors)):
        raise ModelError(
            "bad_model_file",
            f"{paths[0]} and its other shards have {len(tensors)} tensors instead of {expected}, or some of them "
            "twice; they are not from one model: fetch all of them again",
        )
    size_bytes = sum(header.size_bytes for header in headers)
    return GgufHeader(first.version, first.metadata, tensors, size_bytes, first.header_bytes)


def shard_names(first_name: str) -> list[str]:
    """The names of all shards where a name is that of a shard (``x-00001-of-00003.gguf``), else only the name."""
    match = _SHARD.fullmatch(first_name)
    if match is None or not 1 <= int(match[2]) <= int(match[3]):
        return [first_name]
    return [f"{match[1]}-{number:05}-of-{match[3]}.gguf" for number in range(1, int(match[3]) + 1)]


def check_quantization(path: Path, quantization: str | None) -> GgufHeader:
    """Refuse a file whose header names another quantization than the one it is measured as; returns the header.

    Args:
        quantization: as the models file names it; None and names that are no type of llama.cpp are not judged.

    Raises:
        ModelError: ``wrong_quantization``, or what :func:`read_header` raises.
    """
    header = read_header(path)
    check_header_quantization(header, quantization, str(path))
    return header


def check_header_quantization(header: GgufHeader, quantization: str | None, name: str) -> None:
    """Refuse a header that names another quantization; see :func:`check_quantization`.

    Args:
        name: what messages call the file.

    Raises:
        ModelError: ``wrong_quantization``.
    """
    expected = known_quantization(quantization) if quantization is not None else None
    if expected is not None and header.file_type is not None and header.file_type != expected:
        raise ModelError(
            "wrong_quantization",
            f"{name} is listed as {quantization}, but its header says {header.file_type}; a number measured with it "
            f"would bear the wrong name: list it as {header.file_type} in the models file, or replace the file",
            {"file_type": header.file_type, "quantization": quantization},
        )


def _check_shard(path: Path, header: GgufHeader, index: int, count: int) -> None:
    if header.split_count != count:
        raise ModelError(
            "bad_model_file",
            f"{path} is one of {header.split_count} shards, but {count} files are listed for the model; list all of "
            "them in the models file, in order",
        )
    number = header.metadata.get("split.no", 0)
    if number != index:
        raise ModelError(
            "bad_model_file",
            f"{path} is listed as shard {index + 1} of {count}, but its header has it as number {number!r}, counted "
            "from 0; list the shards in order, or fetch it again",
        )
