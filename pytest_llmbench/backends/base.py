"""What every kind of server looks like from outside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pytest_llmbench.client.endpoint import Endpoint
from pytest_llmbench.core.cell import ServerSpec
from pytest_llmbench.core.records import ServerInfo
from pytest_llmbench.errors import ServerError


@dataclass(frozen=True)
class StartRequest:
    """What a backend needs to provide a server.

    Attributes:
        spec: what is asked for.
        model_path: the local file of ``spec.model_file``, None where the server brings its own.
        log_stem: log files are this path plus ``_stdout.log`` and ``_stderr.log``.
        quantization: what the model's file is listed as, to be compared with its header; None: not compared.
        rootdir: what relative paths of the configuration are relative to; None: the working directory.
        may_download: whether a server may be asked to download a model; False under ``--llmbench-no-download``.
        progress: told of a transfer as it goes on: what, bytes done, bytes in all if known.
    """

    spec: ServerSpec
    model_path: Path | None
    log_stem: Path
    quantization: str | None = None
    rootdir: Path | None = None
    may_download: bool = True
    progress: Callable[[str, int, int | None], None] | None = None


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
    def flags(self) -> tuple[str, ...]:
        """Doubts about everything measured on this server, codes of :data:`pytest_llmbench.core.records.FLAGS`."""
        ...

    @property
    def alive(self) -> bool: ...

    def identity(self) -> str | None:
        """A text that is another one when the server was restarted; None where it is gone or can not be known.

        It may ask the server, so never call it while something is timed.
        """
        ...

    def death(self) -> ServerError:
        """Describe how it died; only called when it is not alive."""
        ...

    def stop(self) -> None:
        """End it (or let go of it, if it is not ours). Safe to call again."""
        ...


class Backend(Protocol):
    """A kind of server.

    ``brings_model``: its models have names on the server (``served``) and never a file of ours. Read only for kinds
    that users register: where ours get their models from stands in :mod:`pytest_llmbench.core.matrix`.

    A kind may have a method ``first_look(spec) -> ServerError | None`` too: a quick look, before the first test, at a
    server that should be running.
    """

    brings_model: bool

    def start(self, request: StartRequest) -> RunningServer:
        """Provide a running server, proven by one small answer.

        Raises:
            CellError: it will not start, or is not what was asked for.
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
        f"{where} runs with a context of {actual} tokens, {asked} were asked for; lower ctx_size, or what settings ask "
        "for, to what the model was trained for, or correct the server's settings",
        {"asked_tokens": asked, "actual_tokens": actual},
    )
