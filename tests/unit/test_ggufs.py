"""Files of well-known shapes: that they are what they claim to be, and that llama.cpp takes them for it."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import psutil
import pytest

from pytest_llmbench.core.gguf import GgufArray, read_header
from tests.ggufs import ladder
from tests.ggufs.attention_models import dense
from tests.ggufs.mixes import BASES
from tests.ggufs.probe import MIB, ProbeFailed, probe, read_log
from tests.ggufs.published import GIGABYTES, PARAMETERS
from tests.ggufs.shapes import SHAPES, write_shape
from tests.ggufs.writer import tensor_bytes, write_gguf
from tests.integration.engines import LLAMA_SERVER, needs_llama_server

BINARIES = LLAMA_SERVER.parent if LLAMA_SERVER is not None else Path()
needs_llama_quantize = pytest.mark.skipif(
    not os.access(BINARIES / "llama-quantize", os.X_OK),
    reason="no llama-quantize; build it: scripts/build-llama-server",
)
SMALL = dense("llama", 8, 512, 8, 2, 1024, 320, 2048, tokenizer="llama")


@pytest.mark.parametrize("name", SHAPES)
def test_another_reader_finds_every_tensor_of_a_file_without_weights(name: str, tmp_path: Path) -> None:
    quantization = "MXFP4_MOE" if name == "gpt-oss-20b" else "Q4_K_M"
    path = write_shape(tmp_path / "shape.gguf", SHAPES[name], quantization, vocabulary="none")

    reader = gguf.GGUFReader(path)

    assert sum(int(tensor.n_bytes) for tensor in reader.tensors) == SHAPES[name].weight_bytes(quantization)
    assert [tensor.name for tensor in reader.tensors] == [tensor for tensor, _ in SHAPES[name].tensors()]
    last = reader.tensors[-1]
    assert path.stat().st_size - 32 < last.data_offset + int(last.n_bytes) <= path.stat().st_size
    assert path.stat().st_blocks * 512 < MIB
    assert reader.fields["general.architecture"].contents() == SHAPES[name].architecture


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_shape_has_the_published_number_of_parameters(name: str) -> None:
    assert SHAPES[name].parameter_count() == PARAMETERS[name]


@pytest.mark.parametrize(
    ("name", "quantization"), [(name, quantization) for name, sizes in GIGABYTES.items() for quantization in sizes]
)
def test_a_file_is_as_large_as_the_published_one(name: str, quantization: str, tmp_path: Path) -> None:
    path = write_shape(tmp_path / "shape.gguf", SHAPES[name], quantization, vocabulary="none")

    # The published are rounded, and have a vocabulary of up to 10 MB.
    assert path.stat().st_size / 1e9 == pytest.approx(GIGABYTES[name][quantization], rel=0.006, abs=0.015)


@pytest.mark.parametrize(("name", "tokens"), [("llama-3.1-8b", 128256), ("gemma-3-4b", 262144)])
def test_a_realistic_header_has_a_real_one_s_size(name: str, tokens: int, tmp_path: Path) -> None:
    path = write_shape(tmp_path / "shape.gguf", SHAPES[name])

    header = read_header(path)

    assert (header.architecture, header.file_type) == (SHAPES[name].architecture, "Q4_K_M")
    assert (header.block_count, header.context_length) == (SHAPES[name].layers, SHAPES[name].context)
    assert header.metadata["tokenizer.ggml.tokens"] == GgufArray("string", tokens)
    assert 5e6 < path.stat().st_size - SHAPES[name].weight_bytes("Q4_K_M") < 9e6
    assert path.stat().st_blocks * 512 < 9e6


def test_a_row_that_is_no_whole_number_of_blocks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a row of 100 elements can not be Q4_K, whose blocks have 256"):
        write_gguf(tmp_path / "wrong.gguf", {}, [("wrong", (100, 256), "Q4_K")])


@needs_llama_quantize
@pytest.mark.parametrize(
    "name", ["llama-3.1-70b", "mixtral-8x7b", "deepseek-v2-lite", "gemma-3n-e2b", "qwen3-next-80b-a3b", "lfm2-1.2b"]
)
def test_a_mix_has_the_size_that_llama_quantize_would_make_it(name: str, tmp_path: Path) -> None:
    shape = SHAPES[name]
    source = write_shape(tmp_path / "f16.gguf", shape, "F16", vocabulary="none")
    for quantization in sorted(set(BASES) - {"F16", "BF16"}):
        command = [str(BINARIES / "llama-quantize"), "--dry-run", str(source), quantization, "1"]
        told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        expected = (told.stdout + told.stderr).partition("quant size  =")[2].split("MiB")[0]
        assert shape.weight_bytes(quantization) / MIB == pytest.approx(float(expected), abs=0.006), quantization


@needs_llama_quantize
@pytest.mark.parametrize("quantization", ladder.TOOL_QUANTIZATIONS)
def test_each_tensor_has_the_type_that_llama_quantize_gives_it(quantization: str, tmp_path: Path) -> None:
    source = write_shape(tmp_path / "small.F16.gguf", SMALL, "F16")

    [path] = ladder.write_ladder(source, tmp_path, [quantization], binary_dir=BINARIES)

    made = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    assert made == {name: kind for name, _, kind in SMALL.typed_tensors(quantization)}
    assert path.name == f"small.{quantization}.gguf"
    assert read_header(path).file_type == quantization


@needs_llama_server
@pytest.mark.parametrize("parallel", [1, 4])
def test_seventy_billion_parameters_are_probed_in_no_time(parallel: int, tmp_path: Path) -> None:
    path = write_shape(tmp_path / "shape.gguf", SHAPES["llama-3.1-70b"], vocabulary="none")
    begun = time.monotonic()

    memory = probe(BINARIES, path, context=131072, parallel=parallel)

    assert time.monotonic() - begun < 5  # 0.05 s where nothing else runs
    assert memory.kv_bytes == 2 * 80 * 8 * 128 * 2 * 131072
    assert memory.output_bytes == pytest.approx(4 * 128256 * parallel, abs=0.005 * MIB)
    weights = SHAPES["llama-3.1-70b"].weight_bytes("Q4_K_M")
    assert weights - MIB * len(memory.buffers) < memory.model_bytes <= weights
    assert 100 * MIB < memory.compute_bytes < 1000 * MIB
    assert memory.recurrent_bytes == 0
    assert any("n_outputs_max         = " + str(parallel) in line for line in memory.lines)
    assert not [child for child in psutil.Process().children() if child.name() == "llama-server"]


@needs_llama_server
def test_options_of_the_cache_are_the_servers(tmp_path: Path) -> None:
    path = write_shape(tmp_path / "shape.gguf", SHAPES["gemma-3-4b"], vocabulary="none")
    plain = probe(BINARIES, path, context=32768, parallel=4)

    smaller = probe(BINARIES, path, context=32768, parallel=4, cache_type_k="q8_0", cache_type_v="q8_0")
    unified = probe(BINARIES, path, context=32768, parallel=4, unified_kv=True)
    slow = probe(BINARIES, path, context=32768, parallel=4, flash_attention="off")
    full = probe(BINARIES, path, context=32768, parallel=4, extra=["--swa-full"])

    assert smaller.kv_bytes == plain.kv_bytes * 34 // 64
    assert unified.compute_bytes > plain.compute_bytes
    assert slow.compute_bytes > 1.5 * plain.compute_bytes
    assert full.kv_bytes == 2 * 34 * 4 * 256 * 2 * 32768 > plain.kv_bytes


@needs_llama_server
@pytest.mark.parametrize("name", ["mamba-2.8b", "lfm2-1.2b", "qwen3-next-80b-a3b"])
def test_states_of_recurrent_layers_grow_with_slots_not_with_context(name: str, tmp_path: Path) -> None:
    path = write_shape(tmp_path / "shape.gguf", SHAPES[name], vocabulary="none")

    one, long, four = (probe(BINARIES, path, context=c, parallel=p) for c, p in [(4096, 1), (65536, 1), (4096, 4)])

    assert one.recurrent_bytes == long.recurrent_bytes > 0
    assert four.recurrent_bytes == pytest.approx(4 * one.recurrent_bytes, abs=0.03 * MIB)
    assert (long.kv_bytes == 16 * one.kv_bytes > 0) == (name != "mamba-2.8b")


@needs_llama_server
@pytest.mark.parametrize("name", ["mistral-7b", "qwen2.5-1.5b"])
def test_llama_cpp_loads_a_realistic_vocabulary(name: str, tmp_path: Path) -> None:
    with_words = write_shape(tmp_path / "words.gguf", SHAPES[name])
    without = write_shape(tmp_path / "none.gguf", SHAPES[name], vocabulary="none")

    memory = probe(BINARIES, with_words, context=4096)

    assert replace(memory, lines=()) == replace(probe(BINARIES, without, context=4096), lines=())


@needs_llama_server
@pytest.mark.parametrize("parallel", [1, 3])
def test_a_server_that_really_loads_reserves_what_was_probed(parallel: int, tmp_path: Path) -> None:
    path = write_shape(tmp_path / "small.gguf", SMALL)
    command = [str(LLAMA_SERVER), "-m", str(path), "-c", "2048", "-np", str(parallel), "-fit", "off", "-lv", "4"]
    command += ["--no-warmup", "--cache-ram", "0", "-ctxcp", "0", "--offline", "--host", "127.0.0.1", "--port", "0"]
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if "sched_reserve: reserve took" in line:
                process.kill()
    loaded = read_log(lines)

    memory = probe(BINARIES, path, context=2048, parallel=parallel)

    assert loaded.compute_bytes > MIB
    assert loaded.kv_bytes == memory.kv_bytes > MIB
    assert (loaded.compute_bytes, loaded.output_bytes) == (memory.compute_bytes, memory.output_bytes)


@needs_llama_server
def test_what_can_not_be_loaded_says_why(tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(b"GGUF" + bytes(16))
    with pytest.raises(ProbeFailed, match="failed to load model"):
        probe(BINARIES, cut, context=4096)
    path = write_shape(tmp_path / "shape.gguf", SHAPES["deepseek-v2-lite"], vocabulary="none")
    with pytest.raises(ProbeFailed, match="does not support different K"):
        probe(BINARIES, path, context=4096, cache_type_k="q8_0")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Two matrices and a norm, random, at Q4_1."""
    random = np.random.default_rng(7)
    path = tmp_path / "tiny.Q4_1.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_file_type(int(gguf.LlamaFileType.MOSTLY_Q4_1))
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    for name, rows in [("token_embd.weight", 40), ("blk.0.ffn_up.weight", 64)]:
        data = random.standard_normal((rows, 96), dtype=np.float32)
        quantized = gguf.quants.quantize(data, gguf.GGMLQuantizationType.Q4_1)
        writer.add_tensor(name, quantized, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    writer.add_tensor("output_norm.weight", np.linspace(0, 1, 96, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def weights(path: Path) -> dict[str, Any]:
    return {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("quantization", ladder.PACKAGE_QUANTIZATIONS)
def test_a_ladder_has_the_same_weights_at_every_quantization(
    quantization: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [whole] = ladder.write_ladder(tiny, tmp_path / "whole", [quantization])
    monkeypatch.setattr(ladder, "_CHUNK_ELEMENTS", 7 * 96)

    [path] = ladder.write_ladder(tiny, tmp_path / "in parts", [quantization])

    assert path.read_bytes() == whole.read_bytes()
    reader, before, after = gguf.GGUFReader(path), weights(tiny), weights(path)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    embedding = "F16" if quantization == "F16" else "Q8_0"
    assert kinds == {
        "token_embd.weight": embedding,
        "blk.0.ffn_up.weight": quantization,
        "output_norm.weight": "F32",
    }
    assert np.array_equal(before["output_norm.weight"], after["output_norm.weight"])
    for name in before:
        assert np.abs(before[name] - after[name]).max() < 0.5
    assert read_header(path).file_type == quantization
    assert reader.fields["general.name"].contents() == "tiny"
    assert reader.fields["tokenizer.ggml.tokens"].contents() == ["a", "b"]


def test_a_ladder_s_files_are_written_once(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ladder"
    first = ladder.write_ladder(tiny, folder, ["Q8_0"])
    made = first[0].stat().st_mtime_ns

    paths = ladder.write_ladder(tiny, folder, ["Q8_0", "Q4_0"])

    assert [path.name for path in paths] == ["tiny.Q8_0.gguf", "tiny.Q4_0.gguf"]
    assert paths[0].stat().st_mtime_ns == made
    assert sorted(path.name for path in folder.iterdir()) == ["tiny.Q4_0.gguf", "tiny.Q8_0.gguf"]


def test_sizes_of_types_are_those_of_the_gguf_package() -> None:
    for quantization, base in BASES.items():
        kind = gguf.GGMLQuantizationType[base]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        assert tensor_bytes((4 * block, 3), base) == 12 * size, quantization
