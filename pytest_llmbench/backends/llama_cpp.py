"""A ``llama-server`` binary of the user's, started with what a benchmark has to pin."""

from __future__ import annotations

import dataclasses
import os
import re
import secrets
import time
from pathlib import Path
from typing import Any

from pytest_llmbench.backends.base import RunningServer, StartRequest
from pytest_llmbench.backends.checks import answers
from pytest_llmbench.backends.llama_binary import LlamaBinary, describe_binary, find_program
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
from pytest_llmbench.core.cell import ServerSpec
from pytest_llmbench.core.gguf import check_quantization
from pytest_llmbench.core.records import ServerInfo
from pytest_llmbench.errors import RequestError, ServerError
from pytest_llmbench.runtime.host import page_cache_percent, usable_cores
from pytest_llmbench.runtime.process import LOOPBACK, ServerProcess, free_port

_PORT_TAKEN = re.compile(r"couldn't bind|address already in use", re.IGNORECASE)
_NO_GPU = "no usable GPU found"

# Not for extra_args: what is recorded would no longer be what runs.
_RESERVED = {
    **dict.fromkeys(("--host", "--port", "--api-key", "--api-key-file", "--alias"), "it is chosen for each start"),
    **dict.fromkeys(("--model", "--model-url", "--hf-repo"), "the model comes from the models file"),
    "--parallel": "one request is answered at a time",
    "--ctx-size": "write default_ctx_size, or ctx_size in a variant",
    "--threads": "write default_threads, or threads in a variant",
    "--gpu-layers": "write gpu_layers",
    "--cache-type-k": "write cache_type_k in a variant",
    "--cache-type-v": "write cache_type_v in a variant",
}


class LlamaCppBackend:
    """Starts a llama-server."""

    brings_model = False

    def start(self, request: StartRequest) -> RunningServer:
        """See :class:`~pytest_llmbench.backends.base.Backend`."""
        spec, model_path = request.spec, request.model_path
        assert spec.server_path is not None and model_path is not None  # noqa: S101, PT018 -- its specs have both
        binary = describe_binary(find_program(spec.server_path, request.rootdir, "llama_cpp.server_path"))
        binary.check_extra(spec.extra_args, _RESERVED)
        cached_percent = page_cache_percent(model_path)  # before anything reads from it
        header = check_quantization(model_path, request.quantization)
        threads = spec.threads or usable_cores()
        gpu_layers, notes = clamp_gpu_layers(spec.gpu_layers, header)
        arguments, dropped = binary.keep_known(_pinned(spec, model_path.absolute(), threads, gpu_layers))
        environment, ignored = _environment(binary)
        try:
            process, endpoint = _launch(request, binary, [*arguments, *spec.extra_args], environment)
        except _PortTaken:  # between our choice of a port and the server's use of it
            process, endpoint = _launch(request, binary, [*arguments, *spec.extra_args], environment, last_try=True)
        load_seconds = time.monotonic() - process.started_monotonic
        with stopped_on_failure(process):
            context_size = _check_it_is_ours(spec, endpoint)
            endpoint = prove_ours(process, endpoint)
        flags, doubts = without_gpu(gpu_layers, has_gpu=not process.logged(_NO_GPU))
        info = ServerInfo(
            kind=spec.kind,
            version=f"llama-server {binary.version}",
            args={**spec.as_args(), "threads": threads, "gpu_layers": gpu_layers},
            context_size=context_size,
            pid=process.pid,
            load_seconds=load_seconds,
            page_cache_percent=cached_percent,
        )
        return LlamaServer(process, endpoint, info, (*notes, *doubts, *dropped, *ignored), flags)


def _pinned(spec: ServerSpec, model_path: Path, threads: int, gpu_layers: int) -> list[list[str]]:
    """What a benchmark pins: one slot, nothing fitted, nothing cached, nothing fetched."""
    pinned = [
        ["-m", str(model_path)],
        ["--alias", spec.label],
        ["--host", LOOPBACK],
        ["-np", "1"],  # several slots would divide the context
        ["-fit", "off"],  # would shrink the context in silence
        ["--cache-ram", "0"],  # would keep prompts of earlier requests
        ["-ctxcp", "0"],
        ["--offline"],
        ["--no-webui|--no-ui"],
        ["-t", str(threads)],
        ["-ngl", str(gpu_layers)],
    ]
    if spec.context_size is not None:
        pinned.append(["-c", str(spec.context_size)])
    if spec.cache_type_k is not None:
        pinned.append(["-ctk", spec.cache_type_k])
    if spec.cache_type_v is not None:
        pinned.append(["-ctv", spec.cache_type_v])
    return pinned


def _environment(binary: LlamaBinary) -> tuple[dict[str, str | None], tuple[str, ...]]:
    """Changes to the environment: a key where the binary takes one from there, and no options nobody wrote down."""
    stray = sorted(name for name in os.environ if name.startswith("LLAMA_ARG_"))
    environment: dict[str, str | None] = {**dict.fromkeys(stray), "LLAMA_API_KEY": None}
    notes = []
    if stray:
        notes.append(f"environment variables are ignored: {', '.join(stray)}; write them into extra_args")
    if binary.key_from_environment:
        environment["LLAMA_API_KEY"] = secrets.token_urlsafe(24)
    else:
        notes.append("this llama-server takes no key from the environment; others on this machine could use it")
    return environment, tuple(notes)


class _PortTaken(Exception):
    """Another program was faster."""


def _launch(
    request: StartRequest,
    binary: LlamaBinary,
    arguments: list[str],
    environment: dict[str, str | None],
    *,
    last_try: bool = False,
) -> tuple[ServerProcess, Endpoint]:
    """Start the server and wait until it is healthy."""
    spec, port = request.spec, free_port()
    endpoint = Endpoint(
        base_url=f"http://{LOOPBACK}:{port}",
        protocol="llama_cpp",
        model=spec.label,
        api_key=environment["LLAMA_API_KEY"],
        capabilities=dataclasses.replace(LLAMA_CPP, memory=True),
    )
    command = [str(binary.path), *arguments, "--port", str(port)]
    process = ServerProcess(command, request.log_stem, environment=environment, cwd=request.rootdir)
    try:
        process.wait_until(answers(endpoint, "/health"), spec.max_load_seconds)
    except ServerError as exc:
        process.stop()
        if not last_try and _PORT_TAKEN.search(str(exc.evidence.get("log_tail", ""))):
            raise _PortTaken from exc
        raise
    except BaseException:
        process.stop()
        raise
    return process, endpoint


def _check_it_is_ours(spec: ServerSpec, endpoint: Endpoint) -> int:
    """Only our server refuses strangers and takes our key; returns its context size in tokens."""
    props: Any = get_json(endpoint, "/props")
    if endpoint.api_key is not None:
        try:
            get_json(endpoint.replace(api_key=None), "/props")
        except RequestError as exc:
            if exc.code != "wrong_key":
                raise
        else:
            raise ServerError(
                "server_mismatch", f"{endpoint.base_url} answers without our key, so it is not the server we started"
            )
    return check_properties(spec, props)
