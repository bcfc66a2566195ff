"""What llama.cpp itself reserves for a GGUF file, without reading its weights and without allocating anything.

``llama-server -fit on`` first lays the model and its context out without memory behind them, logs every buffer's size
(at ``-lv 5``) and a table of all of them, and only then loads. It is ended there: a file of 70 GB takes no longer than
one of 70 MB, and one whose data region is a hole will do. That first pass is the server's own, with its settings:
logits are reserved for one token per slot. (``llama-fit-params`` reserves them for every token of a micro-batch, some
``4 · (ubatch − 1) · n_vocab`` bytes more, so it is of no use here.)

A server that then loads the file by ``mmap``, as it does on a CPU, maps all of the weights and holds a second copy of
those that it repacks: the file counts in full, and the row ``CPU_REPACK`` once more, as memory that is not the file's.
"""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

MIB = 1024 * 1024
_TABLE = "common_memory_breakdown_print"
_SIZES = {  # MiB as logged, once per cache; without memory behind it, a cache's "buffer size" is logged as 0
    "kv": re.compile(r"llama_kv_cache\S*: size = +([\d.]+) MiB"),
    "recurrent": re.compile(r"llama_memory_recurrent: size = +([\d.]+) MiB"),
    "output": re.compile(r"output buffer size = +([\d.]+) MiB"),
}
_COMPUTE = re.compile(r"(\S+) compute buffer size = +([\d.]+) MiB")
_GIVEN_UP = "common_fit_params: "  # the first pass is over, and what follows would load the weights
_ROW = re.compile(r"\| +- (\S+).*\|.*?(\d+) = +(\d+) \+ +(\d+) \+ +(\d+)")

FlashAttention = Literal["auto", "on", "off"]


class ProbeFailed(AssertionError):
    """The server refused the file or the settings, ended, or was too slow; the text ends with its last lines."""


@dataclass(frozen=True, slots=True)
class ProbedMemory:
    """Bytes that a server would reserve, over all of its backends.

    Attributes:
        model_bytes: weights, rounded down to whole MiB per backend; the other sizes are known to 0.01 MiB.
        kv_bytes: attention's cache, of full and of sliding-window layers.
        compute_bytes: activations of the largest graph.
        output_bytes: logits of one token per slot, on the host.
        recurrent_bytes: states of recurrent layers, and of convolutions.
        buffers: MiB of ``model``, ``context`` and ``compute`` by the table's row, such as ``Host`` or ``CPU_REPACK``.
        lines: what was logged about memory.
    """

    model_bytes: int
    kv_bytes: int
    compute_bytes: int
    output_bytes: int
    recurrent_bytes: int
    buffers: dict[str, dict[str, int]]
    lines: tuple[str, ...]

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.model_bytes + self.kv_bytes + self.compute_bytes + self.output_bytes + self.recurrent_bytes


def probe(
    binary_dir: Path,
    gguf: Path,
    *,
    context: int,
    parallel: int = 1,
    cache_type_k: str = "f16",
    cache_type_v: str = "f16",
    ubatch: int = 512,
    batch: int = 2048,
    flash_attention: FlashAttention = "auto",
    unified_kv: bool | None = None,
    extra: Sequence[str] = (),
    timeout_seconds: float = 30.0,
) -> ProbedMemory:
    """Ask the ``llama-server`` of a folder what it would reserve for a file.

    Args:
        context: tokens of all slots together, as in ``-c``.
        unified_kv: None for the server's default, which is one stream per slot where ``-np`` is given.
        extra: further options of the server.

    Raises:
        ProbeFailed: it does not load the file, or needs longer.
    """
    unified = [] if unified_kv is None else ["-kvu" if unified_kv else "-no-kvu"]
    command = [str(binary_dir / "llama-server"), "-m", str(gguf), "-c", str(context), "-np", str(parallel)]
    command += ["-ctk", cache_type_k, "-ctv", cache_type_v, "-ub", str(ubatch), "-b", str(batch)]
    command += ["-fa", flash_attention, "-fit", "on", "--no-warmup", "--cache-ram", "0", "-ctxcp", "0"]
    command += ["--offline", "--host", "127.0.0.1", "--port", "0", "-lv", "5", *unified, *extra]
    return read_log(_log_until_table(command, timeout_seconds))


def _log_until_table(command: Sequence[str], timeout_seconds: float) -> list[str]:
    """Lines of the log about memory, up to the end of the first table."""
    kept: list[str] = []
    last: list[str] = []
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        timer = threading.Timer(timeout_seconds, process.kill)
        timer.start()
        try:
            assert process.stdout is not None
            for raw in process.stdout:
                line = raw.decode("utf-8", "replace").rstrip()
                if _TABLE in line or " size = " in line or "n_outputs_max" in line:
                    kept.append(line)
                elif kept and _TABLE in kept[-1]:
                    return kept
                if " D " not in line:  # of debugging
                    last = [*last[-7:], line]
                if _GIVEN_UP in line:
                    break
        finally:
            timer.cancel()
            timer.join()
            process.kill()
    raise ProbeFailed("the server did not tell its memory; its last lines:\n" + "\n".join(last))


def read_log(lines: Sequence[str]) -> ProbedMemory:
    """What a server's log says of its buffers; without the table, nothing of the model's."""
    text = "\n".join(lines)
    sizes = {kind: _bytes(sum(map(float, pattern.findall(text)))) for kind, pattern in _SIZES.items()}
    compute = {backend: float(mib) for backend, mib in _COMPUTE.findall(text)}  # logged again where reserved again
    rows = {
        name: {"model": int(model), "context": int(context), "compute": int(computed)}
        for name, _, model, context, computed in _ROW.findall(text)
    }
    return ProbedMemory(
        model_bytes=sum(row["model"] for row in rows.values()) * MIB,
        kv_bytes=sizes["kv"],
        compute_bytes=_bytes(sum(compute.values())),
        output_bytes=sizes["output"],
        recurrent_bytes=sizes["recurrent"],
        buffers=rows,
        lines=tuple(lines),
    )


def _bytes(mib: float) -> int:
    return round(mib * MIB)
