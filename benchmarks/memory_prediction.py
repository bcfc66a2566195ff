"""Predicted memory against what llama.cpp logs and what its process was observed to take.

Two parts, either of which can be chosen:

``ladder``: SmolLM2-135M at up to eleven quantizations (made from the Q4_1 file: six with the ``gguf`` package, K-quants
where ``llama-quantize`` was built), contexts of 2k, 8k and 32k tokens, 1 and 4 slots, KV cache in F16 and Q8_0. Each is
a real ``llama-server`` that answers one prompt of 600 tokens per slot at the same time; its log tells the sizes of its
buffers, and its process tree is watched for the peak of its PSS. The embedded engine follows, with one slot.

``shapes``: header-only files of models that are too large to run here (8B at 128k, 70B, mixtures of experts, MLA,
sliding windows, recurrent and hybrid ones), through the engine's first pass, which lays everything out without
allocating it.

Bounds: weights and KV cache equal to the log (to its last digit; buffers are padded by a few bytes per tensor); compute
within 5 %; total against the observed peak: median error at most 3 %, worst 10 %, never more than 3 % below; shapes:
median error of the total at most 3 %. Exit status: 0 inside the bounds, 1 outside, 2 where nothing could be compared.

    python benchmarks/memory_prediction.py [--only ladder|shapes] [--quick] [--json] [--model FILE]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from pytest_llmbench.backends.base import StartRequest  # noqa: E402
from pytest_llmbench.backends.checks import answers  # noqa: E402
from pytest_llmbench.backends.embedded import EmbeddedBackend  # noqa: E402
from pytest_llmbench.client.control import post_json  # noqa: E402
from pytest_llmbench.client.endpoint import Endpoint  # noqa: E402
from pytest_llmbench.core.cell import ServerSpec  # noqa: E402
from pytest_llmbench.core.gguf import GgufHeader, read_header  # noqa: E402
from pytest_llmbench.core.memory import MIB, ServingSettings, estimate_memory, is_repacked  # noqa: E402
from pytest_llmbench.runtime.host import repacked_types, usable_cores  # noqa: E402
from pytest_llmbench.runtime.memory_check import settings_of  # noqa: E402
from pytest_llmbench.runtime.process import ServerProcess, free_port  # noqa: E402
from pytest_llmbench.telemetry.process import MemoryWatch  # noqa: E402
from tests.ggufs.ladder import write_ladder  # noqa: E402
from tests.ggufs.probe import probe  # noqa: E402
from tests.ggufs.shapes import SHAPES, write_shape  # noqa: E402

MODEL = REPOSITORY / "models" / "135M" / "SmolLM2-135M-Instruct.Q4_1.gguf"
MADE_HERE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16")
MADE_BY_TOOL = ("Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K")
SHAPE_CASES = ((8192, 1, "f16"), (8192, 4, "f16"), (32768, 1, "q8_0"), (131072, 1, "f16"), (131072, 4, "q8_0"))
TRAINED_TOKENS = 8192  # of the ladder's model
PROMPT_TOKENS, ANSWER_TOKENS = 600, 8
MAX_COMPUTE_PERCENT, MAX_MEDIAN_PERCENT, MAX_WORST_PERCENT, MAX_BELOW_PERCENT = 5.0, 3.0, 10.0, 3.0
LOG_DIGIT_BYTES = 0.01 * MIB  # the log rounds to hundredths of a MiB
PADDING_BYTES = 64  # per tensor, at most
BUFFERS = re.compile(r"(\S+) +(model|KV|compute|output|RS) +buffer size = +([\d.]+) MiB")


@dataclass(frozen=True)
class Row:
    """One comparison: bytes as predicted and in truth, 0 where the truth is not told; and the number of tensors."""

    case: str
    weights_bytes: tuple[int, int]
    repacked_bytes: tuple[int, int]
    kv_bytes: tuple[int, int]
    compute_bytes: tuple[int, int]
    total_bytes: tuple[int, int]
    tensors: int


def main() -> int:
    options = _options()
    parts = [options.only] if options.only else ["ladder", "shapes"]
    binary_dir = _binary_dir()
    results: dict[str, list[Row]] = {}
    with TemporaryDirectory(prefix="llmbench-memory-") as folder:
        if "ladder" in parts:
            files = write_ladder(
                options.model,
                Path(folder),
                [*MADE_HERE, *(MADE_BY_TOOL if binary_dir else ())],
                binary_dir=binary_dir,
            )
            if binary_dir is not None:
                results["llama-server"] = list(_on_binary(binary_dir, files, Path(folder), quick=options.quick))
                _show("llama-server", results["llama-server"])
            results["embedded"] = list(_on_embedded(files, Path(folder), quick=options.quick))
            _show("embedded", results["embedded"])
        if "shapes" in parts and binary_dir is not None:
            results["shapes"] = list(_shapes(binary_dir, Path(folder), quick=options.quick))
            _show("shapes", results["shapes"])
    if not any(results.values()):
        print("nothing could be compared: build the engine first, scripts/build-llama-server", file=sys.stderr)
        return 2
    problems = [problem for part, rows in results.items() for problem in _judge(part, rows)]
    if options.json:
        print(json.dumps({"rows": {part: [asdict(row) for row in rows] for part, rows in results.items()}}))
    for problem in problems:
        print(f"outside the bounds: {problem}")
    return 1 if problems else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", choices=["ladder", "shapes"], help="one of the two parts")
    parser.add_argument("--quick", action="store_true", help="a tenth of the cases")
    parser.add_argument("--json", action="store_true", help="print every row as JSON too")
    parser.add_argument("--model", type=Path, default=MODEL, help="the Q4_1 file the ladder is made of")
    return parser.parse_args()


def _binary_dir() -> Path | None:
    configured = os.environ.get("LLAMA_SERVER")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    found = [Path(configured)] if configured else sorted(cache.glob("pytest-llmbench/llama.cpp-*/bin/llama-server"))
    return found[-1].parent if found else None


def _cases(*, quick: bool) -> list[tuple[int, int, str]]:
    """Context per slot, slots, cache type. The engine's context is that of all slots together."""
    cases = list(product((2048, 8192, 32768), (1, 4), ("f16", "q8_0")))
    return cases[:1] if quick else cases


def _on_binary(binary_dir: Path, files: list[Path], folder: Path, *, quick: bool) -> Iterator[Row]:
    for file, (context, parallel, cache) in product(files, _cases(quick=quick)):
        settings = ServingSettings(
            context_tokens=context * parallel,
            parallel=parallel,
            cache_type_k=cache,
            cache_type_v=cache,
            engine="llama_cpp",
            repacked_types=repacked_types(),
        )
        name = f"{_name(file)} {context} ×{parallel} {cache}"
        observed, log = _run_binary(binary_dir / "llama-server", file, settings, folder / name.replace(" ", "-"))
        yield _row(name, read_header(file), settings, observed, log)


def _run_binary(server: Path, file: Path, settings: ServingSettings, log_stem: Path) -> tuple[int, str]:
    """Start llama-server as the ``llama_cpp`` backend does, but with any number of slots; its peak and its log."""
    port = free_port()
    command = [str(server), "-m", str(file), "--host", "127.0.0.1", "--port", str(port), "--offline", "--no-ui"]
    command += [
        "-c",
        str(settings.context_tokens),
        "-np",
        str(settings.parallel),
        "-t",
        str(usable_cores()),
        "-lv",
        "4",
    ]
    command += ["-ctk", settings.cache_type_k, "-ctv", settings.cache_type_v]
    command += ["-fit", "off", "--cache-ram", "0", "-ctxcp", "0"]
    process = ServerProcess(command, log_stem)
    endpoint = Endpoint(f"http://127.0.0.1:{port}", protocol="llama_cpp", model=file.stem)
    try:
        process.wait_until(answers(endpoint, "/health"), 120.0)
        observed = _observed(process.pid, endpoint, settings.parallel)
    finally:
        process.stop()
    logs = (Path(f"{log_stem}_{name}.log") for name in ("stdout", "stderr"))
    return observed, "".join(log.read_text(encoding="utf-8", errors="replace") for log in logs)


def _on_embedded(files: list[Path], folder: Path, *, quick: bool) -> Iterator[Row]:
    """One slot and no more than the trained context, as the backend demands; its log is not read, only the total."""
    for file, (context, parallel, cache) in product(files, _cases(quick=quick)):
        if parallel > 1 or context > TRAINED_TOKENS:
            continue
        spec = ServerSpec("embedded", "small", context_size=context, cache_type_k=cache, cache_type_v=cache)
        server = EmbeddedBackend().start(StartRequest(spec, file, folder / "server"))
        try:
            assert server.info.pid is not None
            observed = _observed(server.info.pid, server.endpoint, 1)
        finally:
            server.stop()
        yield _row(f"{_name(file)} {context} {cache}", read_header(file), settings_of(spec, None), observed, "")


def _observed(pid: int, endpoint: Endpoint, parallel: int) -> int:
    """The peak of a server's PSS while it reads and answers one prompt per slot, all at the same time."""
    watch = MemoryWatch(pid, interval_seconds=0.05)
    watch.start()
    try:
        with ThreadPoolExecutor(parallel) as executor:
            list(executor.map(lambda slot: _ask(endpoint, slot), range(parallel)))
    finally:
        peak = watch.stop()
    assert peak is not None
    return peak.peak_pss_bytes


def _ask(endpoint: Endpoint, slot: int) -> None:
    prompt = [1 + (slot * 7919 + index * 37) % 40_000 for index in range(PROMPT_TOKENS)]
    body = {"prompt": prompt, "n_predict": ANSWER_TOKENS, "ignore_eos": True, "cache_prompt": False}
    post_json(endpoint, "/completion", body, timeout_seconds=600.0)


def _row(case: str, header: GgufHeader, settings: ServingSettings, observed: int, log: str) -> Row:
    estimate = estimate_memory(header, settings)
    parts = estimate.parts
    true: dict[str, float] = defaultdict(float)
    for backend, kind, size in BUFFERS.findall(log):
        true["repacked" if backend == "CPU_REPACK" else kind] += float(size) * MIB
    return Row(
        case,
        (parts.weights_bytes, round(true["model"]) + _beyond_the_map(header, settings) if true else 0),
        (parts.repacked_bytes, round(true["repacked"])),
        (parts.kv_bytes, round(true["KV"])),
        (parts.compute_bytes, round(true["compute"])),
        (estimate.total_bytes, observed),
        header.tensor_count,
    )


def _beyond_the_map(header: GgufHeader, settings: ServingSettings) -> int:
    """Weights that the log does not count as mapped: what is copied at an end of the file is unmapped afterwards."""
    repacks = dict(settings.repacked_types)
    copied = [tensor.size_bytes if is_repacked(tensor, repacks) else 0 for tensor in header.tensors]
    ends = (itertools.takewhile(bool, copied), itertools.takewhile(bool, reversed(copied)))
    return sum(map(sum, ends))


def _shapes(binary_dir: Path, folder: Path, *, quick: bool) -> Iterator[Row]:
    """What the engine would reserve; its process is not part of it, so neither is overhead."""
    for name, shape in SHAPES.items():
        quantization = "MXFP4_MOE" if name.startswith("gpt-oss") else "Q4_K_M"
        file = write_shape(folder / f"{name}.gguf", shape, quantization, vocabulary="none")
        header = read_header(file)
        longest = header.context_length or 8192
        for context, parallel, cache in SHAPE_CASES[:1] if quick else SHAPE_CASES:
            if context // parallel > longest:
                continue
            settings = ServingSettings(context, parallel, cache_type_k=cache, cache_type_v=cache)
            settings = replace(settings, repacked_types=repacked_types())
            true = probe(binary_dir, file, context=context, parallel=parallel, cache_type_k=cache, cache_type_v=cache)
            estimate = estimate_memory(header, settings)
            parts = estimate.parts
            reserved = parts.total_bytes - parts.overhead_bytes - parts.repacked_bytes
            yield Row(
                f"{name} {quantization} {context} ×{parallel} {cache}",
                (parts.weights_bytes, true.model_bytes),
                (0, 0),
                (parts.kv_bytes + parts.recurrent_bytes, true.kv_bytes + true.recurrent_bytes),
                (parts.compute_bytes, true.compute_bytes),
                (reserved, true.total_bytes),
                header.tensor_count,
            )
        file.unlink()


def _judge(part: str, rows: list[Row]) -> Iterator[str]:
    errors = [_error_percent(*row.total_bytes) for row in rows]
    if not errors:
        return
    if median(map(abs, errors)) > MAX_MEDIAN_PERCENT:
        yield f"{part}: median error of the total {median(map(abs, errors)):.1f} %"
    if part == "shapes":
        return
    if max(map(abs, errors)) > MAX_WORST_PERCENT:
        yield f"{part}: worst error of the total {max(errors, key=abs):+.1f} %"
    if min(errors) < -MAX_BELOW_PERCENT:
        yield f"{part}: predicted {-min(errors):.1f} % below the truth"
    for row in rows:
        for what, (predicted, true) in (("weights", row.weights_bytes), ("KV cache", row.kv_bytes)):
            if true and abs(predicted - true) > LOG_DIGIT_BYTES + PADDING_BYTES * row.tensors:
                yield f"{part}: {row.case}: {what} {predicted} bytes, the log says {true}"
        if row.compute_bytes[1] and abs(_error_percent(*row.compute_bytes)) > MAX_COMPUTE_PERCENT:
            yield f"{part}: {row.case}: compute {_error_percent(*row.compute_bytes):+.1f} %"


def _show(part: str, rows: list[Row]) -> None:
    """One line per model: its cases' errors together."""
    print(f"\n{part}: {len(rows)} cases; errors in percent of the truth: median of the absolute, lowest and highest")
    print(f"{'':24}{'cases':>6}{'weights':>18}{'repacked':>18}{'KV':>18}{'compute':>18}{'total':>18}")
    by_model: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_model[row.case.split()[0]].append(row)
    for name, group in [*by_model.items(), ("all", rows)]:
        columns = []
        for field in ("weights_bytes", "repacked_bytes", "kv_bytes", "compute_bytes", "total_bytes"):
            errors = [_error_percent(*getattr(row, field)) for row in group if getattr(row, field)[1]]
            columns.append(
                f"{median(map(abs, errors)):.2f} [{min(errors):+.1f}, {max(errors):+.1f}]" if errors else "–"
            )
        print(f"{name:24}{len(group):>6}" + "".join(f"{column:>18}" for column in columns), flush=True)


def _error_percent(predicted: int, true: int) -> float:
    return 100 * (predicted - true) / true


def _name(file: Path) -> str:
    return file.name.removesuffix(".gguf").rpartition(".")[2]


if __name__ == "__main__":
    sys.exit(main())
