"""llama.cpp's server from the ``xllamacpp`` wheel, in a child process of its own."""

from __future__ import annotations

import importlib.util
import os
import secrets
import sys
import time
from typing import Any

from pytest_llmbench.backends.base import RunningServer, StartRequest, check_context
from pytest_llmbench.client.control import get_json
from pytest_llmbench.client.request import Endpoint
from pytest_llmbench.core.cell import ServerSpec
from pytest_llmbench.core.records import ServerInfo
from pytest_llmbench.errors import RequestError, ServerError
from pytest_llmbench.runtime.host import page_cache_percent, usable_cores
from pytest_llmbench.runtime.process import ServerProcess


class EmbeddedServer:
    """A running child with the engine in it."""

    def __init__(self, process: ServerProcess, endpoint: Endpoint, info: ServerInfo) -> None:
        self._process = process
        self.endpoint = endpoint
        self.info = info
        self.notes: tuple[str, ...] = ()

    @property
    def alive(self) -> bool:
        """Whether the child runs."""
        return self._process.alive

    def death(self) -> ServerError:
        """How the child died, with the tail of its log."""
        return self._process.died("server_died", "the server ended while it was being used")

    def stop(self) -> None:
        """End the child, verified."""
        self._process.stop()


class EmbeddedBackend:
    """Starts the embedded engine."""

    brings_model = False

    def start(self, request: StartRequest) -> RunningServer:
        """See :class:`~pytest_llmbench.backends.base.Backend`."""
        if importlib.util.find_spec("xllamacpp") is None:
            raise ServerError(
                "engine_missing",
                "the embedded engine (xllamacpp) is not installed, there may be no wheel for this platform; "
                "install it, or use backend: openai with a server of your own",
            )
        spec, model_path = request.spec, request.model_path
        assert model_path is not None  # noqa: S101 -- brings_model is False
        cached_percent = page_cache_percent(model_path)
        threads = spec.threads or usable_cores()
        api_key = secrets.token_urlsafe(24)
        process = _spawn(request, str(model_path), threads, api_key)
        try:
            report = process.wait_ready(spec.max_load_seconds)
            endpoint = Endpoint(
                base_url=report["url"],
                completion_protocol="llama_cpp",
                model=spec.label,
                api_key=api_key,
                ignores_end_of_sequence=True,
                controls_cache=True,
            )
            get_json(endpoint, "/health")
            load_seconds = time.monotonic() - process.started_monotonic
            context_size = _check_properties(spec, get_json(endpoint, "/props"))
        except RequestError as exc:
            process.stop()
            raise ServerError("server_unhealthy", f"the server started, but does not answer: {exc.message}") from exc
        except BaseException:
            process.stop()
            raise
        info = ServerInfo(
            kind=spec.kind,
            version=f"xllamacpp {report['version']}",
            args={**spec.as_args(), "threads": threads},
            context_size=context_size,
            pid=process.pid,
            load_seconds=load_seconds,
            page_cache_percent=cached_percent,
        )
        return EmbeddedServer(process, endpoint, info)


def _spawn(request: StartRequest, model_path: str, threads: int, api_key: str) -> ServerProcess:
    spec = request.spec
    instructions: dict[str, Any] = {
        "parent_pid": os.getpid(),
        "model_path": model_path,
        "alias": spec.label,
        "api_key": api_key,
        "context_size": spec.context_size,
        "threads": threads,
        "gpu_layers": spec.gpu_layers,
        "cache_type_k": spec.cache_type_k,
        "cache_type_v": spec.cache_type_v,
    }
    # -P keeps the working directory, where anything may lie, off the child's import path (3.11+).
    safe_path = ["-P"] if sys.version_info >= (3, 11) else []
    command = [sys.executable, *safe_path, "-m", "pytest_llmbench.backends.embedded_child"]
    return ServerProcess(command, instructions, request.log_stem)


def _check_properties(spec: ServerSpec, props: Any) -> int:
    """Compare what the server says of itself with what was asked for; returns its context size in tokens."""
    try:
        context_size, slots, model = (
            props["default_generation_settings"]["n_ctx"],
            props["total_slots"],
            props["model_alias"],
        )
    except (KeyError, TypeError) as exc:
        raise ServerError("server_unhealthy", "the server does not describe itself in /props as expected") from exc
    if slots != 1 or model != spec.label:
        raise ServerError(
            "server_mismatch",
            f"the server has {slots} slots and serves {model!r}; one slot and {spec.label!r} were asked for",
            {"slots": slots, "model": str(model)},
        )
    check_context(spec.context_size, int(context_size), spec.label)
    return int(context_size)
