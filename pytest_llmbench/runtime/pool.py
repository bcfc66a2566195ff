"""One start per server key: keeps the server of the current group of cells, remembers starts that failed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from pytest_llmbench.core.cell import ServerSpec
from pytest_llmbench.errors import CellError, ServerError

logger = logging.getLogger(__name__)


class Stoppable(Protocol):
    """What the pool needs of a running server."""

    @property
    def alive(self) -> bool: ...

    def stop(self) -> None: ...


ServerT = TypeVar("ServerT", bound=Stoppable)


class ServerPool(Generic[ServerT]):
    """Holds at most one server: two of one process would share the memory and cores that are being measured."""

    def __init__(self) -> None:
        self._key: ServerSpec | None = None
        self._server: ServerT | None = None
        self._failures: dict[ServerSpec, CellError] = {}

    def lease(self, key: ServerSpec, start: Callable[[], ServerT]) -> ServerT:
        """The running server of this key, started if need be.

        Raises:
            CellError: it will not start; for later cells of the key at once, with the first failure's reason.
        """
        if key in self._failures:
            first = self._failures[key]
            raise ServerError(first.code, f"not tried again: {first.message}", {**first.evidence, "remembered": True})
        if self._key == key and self._server is not None and self._server.alive:
            return self._server
        self.release()
        try:
            server = start()
        except CellError as exc:
            logger.info("%s on %s did not start: %s", key.kind, key.label, exc.code)
            self._failures[key] = exc
            raise
        logger.info("started %s on %s", key.kind, key.label)
        self._key, self._server = key, server
        return server

    def holds(self, key: ServerSpec) -> bool:
        """Whether the server of this key is the one running."""
        return self._key == key

    def release(self) -> None:
        """Stop the current server, if any."""
        server, self._key, self._server = self._server, None, None
        if server is not None:
            logger.info("stopping the server")
            server.stop()
