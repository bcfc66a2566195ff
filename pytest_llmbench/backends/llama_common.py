"""What the embedded engine and a llama-server binary have in common: the same server, started in two ways."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from pytest_llmbench.backends.base import check_context
from pytest_llmbench.backends.checks import prove
from pytest_llmbench.client.endpoint import Endpoint
from pytest_llmbench.core.cell import ServerSpec
from pytest_llmbench.core.gguf import GgufHeader
from pytest_llmbench.core.records import ServerInfo
from pytest_llmbench.errors import RequestError, ServerError
from pytest_llmbench.runtime.process import ServerProcess


class LlamaServer:
    """A running process of ours with llama.cpp's server in it."""

    def __init__(
        self,
        process: ServerProcess,
        endpoint: Endpoint,
        info: ServerInfo,
        notes: tuple[str, ...] = (),
        flags: tuple[str, ...] = (),
    ) -> None:
        self._process = process
        self.endpoint = endpoint
        self.info = info
        self.notes = notes
        self.flags = flags

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.alive

    def identity(self) -> str | None:
        """Process number and start time."""
        return self._process.identity()

    def death(self) -> ServerError:
        """How the process died, with the tail of its log."""
        return self._process.died("server_died", "the server ended while it was being used")

    def stop(self) -> None:
        """End the process, verified."""
        self._process.stop()


@contextmanager
def stopped_on_failure(process: ServerProcess) -> Generator[None, None, None]:
    """End a server that turns out not to be what was asked for.

    Raises:
        ServerError: ``server_unhealthy`` where it does not answer; what else went wrong is passed on.
    """
    try:
        yield
    except RequestError as exc:
        if process.ended_because is not None:
            raise process.died("server_died", "the server ended while it was being checked") from exc
        process.stop()
        raise ServerError("server_unhealthy", f"the server started, but does not answer: {exc.message}") from exc
    except BaseException:
        process.stop()
        raise


def prove_ours(process: ServerProcess, endpoint: Endpoint) -> Endpoint:
    """One real answer from a server of ours; where it dies of that, its death is the story.

    Returns:
        The endpoint, with the name that signed the answer.

    Raises:
        ServerError: what :func:`~pytest_llmbench.backends.checks.prove` raises, or ``server_died``.
    """
    try:
        return endpoint.replace(signed=prove(endpoint, endpoint.model).response_model)
    except ServerError as exc:
        if process.ends_within(0.5):
            raise process.died("server_died", "the server ended while it gave its first answer") from exc
        raise


def clamp_gpu_layers(asked: int | None, header: GgufHeader) -> tuple[int, tuple[str, ...]]:
    """The layers to put on the GPU, at most those the model has, and a note where fewer than asked for.

    A model has its blocks and one output layer. All of them are meant by −1.
    """
    asked = asked or 0
    if header.block_count is None:
        return asked, ()
    layers = header.block_count + 1
    if asked > layers:
        return layers, (f"gpu_layers: {asked} were asked for, the model has {layers}",)
    return (layers if asked < 0 else asked), ()


def without_gpu(gpu_layers: int, *, has_gpu: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The flags and notes of layers that are to be on a GPU, where there is none: the engine goes on without (P25)."""
    if has_gpu or not gpu_layers:
        return (), ()
    note = "this engine found no GPU it can use, so gpu_layers has no effect and the whole model runs on the CPU"
    return ("partial_gpu_offload",), (note,)


def check_properties(spec: ServerSpec, props: Any) -> int:
    """Compare what the server says of itself with what was asked for; returns its context size in tokens.

    Raises:
        ServerError: ``server_unhealthy``, ``server_mismatch`` or ``context_mismatch``.
    """
    try:
        context_size, slots, model = (
            int(props["default_generation_settings"]["n_ctx"]),
            props["total_slots"],
            props["model_alias"],
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise ServerError("server_unhealthy", "the server does not describe itself in /props as expected") from exc
    if slots != 1 or model != spec.label:
        raise ServerError(
            "server_mismatch",
            f"the server has {slots} slots and serves {model!r}; one slot and {spec.label!r} were asked for",
            {"slots": str(slots), "model": str(model)},
        )
    check_context(spec.context_size, context_size, spec.label)
    return context_size
