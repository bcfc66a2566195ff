"""A real quantization ladder from one small file: the same weights at every quantization, in seconds.

Legacy types and F16 need only the ``gguf`` package; mixes of k-quants need ``llama-quantize``. The source being a 4-bit
file, quality on such a ladder is that of requantizing: it tests us, and says nothing of the model.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PACKAGE_QUANTIZATIONS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16")
TOOL_QUANTIZATIONS = ("Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K")
_CHUNK_ELEMENTS = 4 * 1024 * 1024  # quantized at a time: 16 MB of single precision, and some copies of it
_TOOL_SECONDS = 120.0
_OWN_KEYS = {"general.architecture", "general.file_type"}  # written by the writer, or by us


def write_ladder(
    source: Path, folder: Path, quantizations: Sequence[str], *, binary_dir: Path | None = None
) -> list[Path]:
    """Write ``<stem without quantization>.<quantization>.gguf`` for each quantization that is not there yet.

    Args:
        quantizations: of ``PACKAGE_QUANTIZATIONS``, and of ``TOOL_QUANTIZATIONS`` where ``binary_dir`` is given.
        binary_dir: where ``llama-quantize`` is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = source.stem.rpartition(".")[0] or source.stem
    paths = []
    for quantization in quantizations:
        path = folder / f"{stem}.{quantization}.gguf"
        unfinished = path.with_suffix(".part")
        if not path.exists():
            if quantization in PACKAGE_QUANTIZATIONS:
                requantize(source, unfinished, quantization)
            else:
                assert binary_dir is not None, f"{quantization} needs llama-quantize: scripts/build-llama-server"
                requantize_with_tool(binary_dir, source, unfinished, quantization)
            unfinished.replace(path)
        paths.append(path)
    return paths


def requantize(source: Path, target: Path, quantization: str) -> Path:
    """Write a file at another quantization with the ``gguf`` package alone.

    Tensors of single precision, such as norms, stay as they are. The embedding, which here is the output's matrix too,
    gets no less than Q8_0: what llama-quantize does where rows are no multiple of 256.

    Args:
        quantization: one of ``PACKAGE_QUANTIZATIONS``.
    """
    import gguf
    import numpy as np

    reader = gguf.GGUFReader(source)
    kinds = [_kind(tensor, quantization) for tensor in reader.tensors]
    writer = gguf.GGUFWriter(target, str(reader.fields["general.architecture"].contents()))
    try:
        _copy_metadata(reader, writer)
        writer.add_file_type(int(gguf.LlamaFileType[f"MOSTLY_{quantization}"]))
        for tensor, kind in zip(reader.tensors, kinds, strict=True):
            block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
            # Shape in elements; a type of numpy other than bytes leaves it alone.
            shape = [int(length) for length in reversed(tensor.shape)]
            writer.add_tensor_info(
                tensor.name, shape, np.dtype("float32"), int(tensor.n_elements) // block * block_bytes, kind
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor, kind in zip(reader.tensors, kinds, strict=True):
            writer.write_tensor_data(tensor.data if tensor.tensor_type == kind else _requantized(tensor, kind))
    finally:
        writer.close()
    return target


def requantize_with_tool(binary_dir: Path, source: Path, target: Path, quantization: str) -> Path:
    """Write a file at another quantization with ``llama-quantize``, on one thread.

    Raises:
        subprocess.CalledProcessError: the tool failed; ``output`` tells why.
    """
    command = [str(binary_dir / "llama-quantize"), "--allow-requantize", str(source), str(target), quantization, "1"]
    subprocess.run(
        command,
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=_TOOL_SECONDS,
    )
    return target


def _copy_metadata(reader: Any, writer: Any) -> None:
    for key, entry in reader.fields.items():
        if key.startswith("GGUF.") or key in _OWN_KEYS:
            continue
        writer.add_key_value(key, entry.contents(), entry.types[0], entry.types[-1] if len(entry.types) > 1 else None)


def _kind(tensor: Any, quantization: str) -> Any:
    """The type a tensor gets."""
    import gguf

    if tensor.tensor_type == gguf.GGMLQuantizationType.F32:
        return tensor.tensor_type
    if tensor.name == "token_embd.weight" and quantization != "F16":
        return gguf.GGMLQuantizationType.Q8_0
    return gguf.GGMLQuantizationType[quantization]


def _requantized(tensor: Any, kind: Any) -> Any:
    """A tensor's bytes at another type, some rows at a time."""
    import gguf
    import numpy as np

    rows = tensor.data.reshape(-1, tensor.data.shape[-1])
    step = max(1, _CHUNK_ELEMENTS // int(tensor.shape[0]))
    parts = [
        gguf.quants.quantize(gguf.quants.dequantize(rows[begin : begin + step], tensor.tensor_type), kind)
        for begin in range(0, len(rows), step)
    ]
    return np.concatenate(parts)
