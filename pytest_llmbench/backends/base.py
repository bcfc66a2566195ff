"""What every kind of server looks like from outside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pytest_llmbench.client.request import Endpoint
from pytest_llmbench.core.cell import ServerSpec
from pytest_llmbench.core.records import ServerInfo
from pytest_llmbench.errors import ServerError

# Kinds the finished product will have; named so that asking for one is told apart from a misspelling.
PLANNED_BACKENDS = ("llama_cpp", "ollama")


@dataclass(frozen=True)
class StartRequest:
    """What a backend needs to provide a server.

    Attributes:
        spec: what is asked for.
        model_path: the local file, None where the server brings its own model.
        log_stem: log files are this path plus ``_stdout.log`` and ``_stderr.log``.
    """

    spec: ServerSpec
    model_path: Path | None
    log_stem: Path


class RunningServer(Protocol):
    """A server that answered its health check and was found to be what was asked for."""

    @property
    def endpoint(self) -> Endpoint: ...

    @property
    def info(self) -> ServerInfo: ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks without doubt, for every record measured on this server."""
        ...

    @property
    def alive(self) -> bool: ...

    def death(self) -> ServerError:
        """Describe how it died; only called when it is not alive."""
        ...

    def stop(self) -> None:
        """End it (or let go of it, if it is not ours). Safe to call again."""
        ...


class Backend(Protocol):
    """A kind of server. ``brings_model`` tells whether a model file has to be fetched first."""

    brings_model: bool

    def start(self, request: StartRequest) -> RunningServer:
        """Provide a running server.

        Raises:
            ServerError: it will not start, or is not what was asked for.
        """
        ...


CONTEXT_PADDING_TOKENS = 256  # llama.cpp rounds a context up to a multiple of this


def check_context(asked: int | None, actual: int | None, where: str, *, may_be_larger: bool = False) -> None:
    """Refuse a server whose context is not the one asked for: every length measured on it would mean something else.

    Args:
        may_be_larger: for a server that others started, which only has to offer what is needed.

    Raises:
        ServerError: ``context_mismatch``.
    """
    if asked is None or actual is None:
        return
    if asked <= actual and (may_be_larger or actual < asked + CONTEXT_PADDING_TOKENS):
        return
    raise ServerError(
        "context_mismatch",
        f"{where} runs with a context of {actual} tokens, {asked} were asked for; lower ctx_size to what the model was "
        "trained for, or correct the server's settings",
        {"asked_tokens": asked, "actual_tokens": actual},
    )
