"""The process that holds the embedded engine, so that its memory and its crashes are its own.

Run as ``python -m pytest_llmbench.backends.embedded_child FD``: instructions come as one JSON line on standard input,
readiness goes as one JSON line to the pipe FD, and the end of standard input is the order (or the parent's death) to
stop.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from pytest_llmbench.runtime.lifeline import die_with_parent


def main() -> int:
    """Serve until standard input ends. Returns the exit status."""
    ready_fd = int(sys.argv[1])
    instructions: dict[str, Any] = json.loads(sys.stdin.readline())
    die_with_parent(int(instructions["parent_pid"]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for pytest, which then stops us in order

    import xllamacpp

    params = build_params(xllamacpp, instructions)
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as exc:
        print(f"the engine gave up: {exc}", file=sys.stderr)  # noqa: T201 -- standard error is this server's log
        return 1
    report = {"url": server.listening_address, "version": xllamacpp.__version__, "has_gpu": has_gpu(xllamacpp)}
    os.write(ready_fd, json.dumps(report).encode() + b"\n")
    os.close(ready_fd)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    sys.stdin.read()
    del server  # ends its threads in order
    return 0


def has_gpu(engine: Any) -> bool:
    """Whether the engine sees a GPU that it was built for; integrated ones count."""
    return any(device["type"].name.endswith("GPU") for device in engine.get_device_info())


def build_params(engine: Any, instructions: dict[str, Any]) -> Any:
    """The engine's parameters for a benchmark: one slot, nothing fitted, nothing cached, nothing fetched."""
    params = engine.CommonParams()
    params.model.path = instructions["model_path"]
    params.model_alias = {instructions["alias"]}
    params.hostnames = ["127.0.0.1"]
    params.port = 0  # the kernel picks a free one
    params.api_keys = [instructions["api_key"]]
    params.n_ctx = instructions["context_size"]
    params.n_parallel = 1
    params.n_gpu_layers = instructions["gpu_layers"]
    params.cpuparams.n_threads = instructions["threads"]
    params.fit_params = False  # would shrink the context in silence
    params.cache_ram_mib = 0  # would keep prompts of earlier requests
    params.cache_idle_slots = False  # belongs to the cache above
    params.n_ctx_checkpoints = 0
    params.offline = True
    params.ui = False
    for name in ("cache_type_k", "cache_type_v"):
        if instructions[name] is not None:
            setattr(params, name, getattr(engine.ggml_type, f"GGML_TYPE_{instructions[name].upper()}"))
    return params


if __name__ == "__main__":
    sys.exit(main())
