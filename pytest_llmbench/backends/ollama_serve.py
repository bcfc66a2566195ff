"""``ollama serve`` as a process of ours, on a port of its own, beside whatever Ollama runs on this machine."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path

from pytest_llmbench.client.control import get_json
from pytest_llmbench.client.endpoint import Endpoint
from pytest_llmbench.core.cell import ServerSpec
from pytest_llmbench.errors import RequestError, ServerError
from pytest_llmbench.runtime.process import ServerProcess, free_port

_ANSWER_SECONDS = 2.0
_PRIVATE = ("KEY", "TOKEN", "SECRET", "PASSWORD")

# The user's folder of models stays in use, wherever OLLAMA_MODELS says it is.
_ALWAYS: dict[str, str] = {
    "OLLAMA_NUM_PARALLEL": "1",
    "OLLAMA_MAX_LOADED_MODELS": "1",
    "OLLAMA_KEEP_ALIVE": "24h",
    "OLLAMA_NOPRUNE": "1",  # would delete what another server of the same folder is downloading
    "OLLAMA_NO_CLOUD": "1",  # nothing measured here may run elsewhere
}
_BY_CONFIGURATION = ("OLLAMA_HOST", "OLLAMA_LOAD_TIMEOUT")


def check_cache_types(spec: ServerSpec) -> None:
    """Refuse types of the KV cache that Ollama can not be told: it takes one for both halves, when it starts.

    Raises:
        ServerError: ``unsupported_option``.
    """
    types = {spec.cache_type_k, spec.cache_type_v}
    if types == {None} or (len(types) == 1 and spec.start_server):
        return
    raise ServerError(
        "unsupported_option",
        "Ollama has one type for both halves of the KV cache, set when it starts; give cache_type_k and cache_type_v "
        "the same, with ollama.start: true, or leave both out",
    )


def spawn(spec: ServerSpec, log_stem: Path) -> tuple[ServerProcess, str]:
    """Start a server; returns its process and its address.

    Raises:
        ServerError: ``engine_missing``, ``server_start_failed``.
    """
    binary, address = _binary(), f"127.0.0.1:{free_port()}"
    environment: dict[str, str | None] = {
        **_ALWAYS,
        "OLLAMA_HOST": address,
        "OLLAMA_LOAD_TIMEOUT": f"{max(1, round(spec.max_load_seconds))}s",
    }
    if spec.cache_type_k is not None:
        environment["OLLAMA_KV_CACHE_TYPE"] = spec.cache_type_k
        environment["OLLAMA_FLASH_ATTENTION"] = "1"  # without it, no other type than f16
    return ServerProcess([binary, "serve"], log_stem, environment=environment), f"http://{address}"


def wait_until_up(process: ServerProcess, base_url: str, timeout_seconds: float) -> None:
    """Wait for the first answer.

    Raises:
        ServerError: ``server_start_failed``, ``server_start_timeout``.
    """
    endpoint = Endpoint(base_url, "ollama_generate")
    process.wait_until(lambda: _is_up(endpoint), timeout_seconds)
    if not process.alive:  # somebody else took the port, and that one answered
        raise process.died("server_start_failed", "the server ended while it was starting")


def inherited_settings() -> str | None:
    """Settings of Ollama that come from the user's environment, for the record; never a secret."""
    settings = [
        f"{name}={value}"
        for name, value in sorted(os.environ.items())
        if name.startswith("OLLAMA_") and name not in {*_ALWAYS, *_BY_CONFIGURATION} and not name.endswith(_PRIVATE)
    ]
    return shlex.join(settings) or None


def _is_up(endpoint: Endpoint) -> bool:
    try:
        get_json(endpoint, "/api/version", _ANSWER_SECONDS)
    except RequestError:
        return False
    return True


def _binary() -> str:
    found = shutil.which("ollama")
    if found is None:
        raise ServerError(
            "engine_missing",
            "no program `ollama` is on PATH, so no server can be started; install it (https://ollama.com/download), or "
            "set ollama.start: false and ollama.base_url to a server that runs",
        )
    return found
