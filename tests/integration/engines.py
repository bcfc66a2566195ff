"""The real engines there are on this machine, behind one way to start them."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pytest_llmbench.backends.base import Backend, RunningServer, StartRequest
from pytest_llmbench.backends.embedded import EmbeddedBackend
from pytest_llmbench.backends.llama_cpp import LlamaCppBackend
from pytest_llmbench.core.cell import ServerSpec


def find_llama_server() -> Path | None:
    """Where ``scripts/build-llama-server`` puts it, or where LLAMA_SERVER points."""
    configured = os.environ.get("LLAMA_SERVER")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    found = [Path(configured)] if configured else sorted(cache.glob("pytest-llmbench/llama.cpp-*/bin/llama-server"))
    return found[-1] if found and os.access(found[-1], os.X_OK) else None


LLAMA_SERVER = find_llama_server()
needs_llama_server = pytest.mark.skipif(
    LLAMA_SERVER is None, reason="no llama-server; build one: scripts/build-llama-server"
)
ENGINES = ["embedded", pytest.param("llama_cpp", marks=needs_llama_server)]
_BACKENDS: dict[str, Callable[[], Backend]] = {"embedded": EmbeddedBackend, "llama_cpp": LlamaCppBackend}


@contextmanager
def running(kind: str, model_path: Path, log_stem: Path, **fields: Any) -> Generator[RunningServer, None, None]:
    """A server of a kind on the small model, ended afterwards."""
    given: dict[str, Any] = {"context_size": 1024, "max_load_seconds": 120.0, "threads": 1}
    if kind == "llama_cpp":
        given["server_path"] = str(LLAMA_SERVER)
    spec = ServerSpec(kind, "smol_Q4_1", model_file="x", **{**given, **fields})
    server = _BACKENDS[kind]().start(StartRequest(spec, model_path, log_stem, "Q4_1"))
    try:
        yield server
    finally:
        server.stop()
