"""llama.cpp's server from the ``xllamacpp`` wheel, in a child process of its own."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import secrets
import time
from typing import Any

from pytest_llmbench.backends.base import RunningServer, StartRequest
from pytest_llmbench.backends.llama_common import (
    LlamaServer,
    check_properties,
    clamp_gpu_layers,
    prove_ours,
    stopped_on_failure,
    without_gpu,
)
from pytest_llmbench.client.control import get_json
from pytest_llmbench.client.endpoint import LLAMA_CPP, Endpoint
from pytest_llmbench.core.gguf import check_quantization
from pytest_llmbench.core.records import ServerInfo
from pytest_llmbench.errors import ServerError
from pytest_llmbench.runtime.host import page_cache_percent, usable_cores
from pytest_llmbench.runtime.process import ReportingProcess, python_module


class EmbeddedBackend:
    """Starts the embedded engine."""

    brings_model = False

    def start(self, request: StartRequest) -> RunningServer:
        """See :class:`~pytest_llmbench.backends.base.Backend`."""
        if importlib.util.find_spec("xllamacpp") is None:
            raise ServerError(
                "engine_missing",
                "the embedded engine (xllamacpp) is not installed, there may be no wheel for this platform; "
                "install it, or use backend: llama_cpp with a llama-server of your own",
            )
        spec, model_path = request.spec, request.model_path
        assert model_path is not None  # noqa: S101 -- its specs have a file
        cached_percent = page_cache_percent(model_path)  # before anything reads from it
        header = check_quantization(model_path, request.quantization)
        threads = spec.threads or usable_cores()
        gpu_layers, notes = clamp_gpu_layers(spec.gpu_layers, header)
        api_key = secrets.token_urlsafe(24)
        instructions: dict[str, Any] = {
            "parent_pid": os.getpid(),
            "model_path": str(model_path),
            "alias": spec.label,
            "api_key": api_key,
            "context_size": spec.context_size,
            "threads": threads,
            "gpu_layers": gpu_layers,
            "cache_type_k": spec.cache_type_k,
            "cache_type_v": spec.cache_type_v,
        }
        command = python_module("pytest_llmbench.backends.embedded_child")
        process = ReportingProcess(command, instructions, request.log_stem)
        with stopped_on_failure(process):
            report = process.wait_ready(spec.max_load_seconds)
            endpoint = Endpoint(
                base_url=report["url"],
                protocol="llama_cpp",
                model=spec.label,
                api_key=api_key,
                capabilities=dataclasses.replace(LLAMA_CPP, memory=True),
            )
            get_json(endpoint, "/health")
            load_seconds = time.monotonic() - process.started_monotonic
            context_size = check_properties(spec, get_json(endpoint, "/props"))
            endpoint = prove_ours(process, endpoint)
        info = ServerInfo(
            kind=spec.kind,
            version=f"xllamacpp {report['version']}",
            args={**spec.as_args(), "threads": threads, "gpu_layers": gpu_layers},
            context_size=context_size,
            pid=process.pid,
            load_seconds=load_seconds,
            page_cache_percent=cached_percent,
        )
        flags, doubts = without_gpu(gpu_layers, has_gpu=report["has_gpu"])
        return LlamaServer(process, endpoint, info, (*notes, *doubts), flags)
