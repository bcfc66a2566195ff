"""What earlier cells taught, and which cells it makes pointless: asked before each cell, told after each.

Under xdist the controller decides, with what all workers have learnt: a worker tells and asks over a channel of its
own, in that order, so that an answer never lacks what was told before.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterable
from typing import Any, Protocol

from pytest_llmbench.adapters.channel import Controller
from pytest_llmbench.core.blocking import Blocking, Candidate
from pytest_llmbench.core.cell import Cell
from pytest_llmbench.core.records import CellRecord, Reason, to_line


class Candidates(Protocol):
    """Whoever knows what the configuration asks of a cell."""

    def candidate(self, cell: Cell, nodeid: str, host: str) -> Candidate: ...


class Decisions(Protocol):
    """Where a process tells and asks."""

    def learn(self, record: CellRecord) -> None:
        """Tell of a cell that ended."""
        ...

    def why(self, cell: Cell, nodeid: str, host: str, available_bytes: int | None) -> Reason | None:
        """Why a cell is not worth running; None where it is.

        Args:
            host: fingerprint of the machine that would run it.
            available_bytes: memory there, where no better prediction than the trend of earlier cells exists.
        """
        ...


class NoDecisions:
    """``--llmbench-no-blocking``."""

    def learn(self, record: CellRecord) -> None:
        """Nothing is learnt."""

    def why(self, cell: Cell, nodeid: str, host: str, available_bytes: int | None) -> Reason | None:
        """Every cell is worth running."""
        return None


class OwnDecisions:
    """Decides in this process; several threads may ask, one per worker."""

    def __init__(self, blocking: Blocking, candidates: Candidates, earlier: Iterable[CellRecord] = ()) -> None:
        self._blocking = blocking
        self._candidates = candidates
        self._lock = threading.Lock()
        for record in earlier:
            self._blocking.learn(record)

    def learn(self, record: CellRecord) -> None:
        """See :class:`Decisions`."""
        with self._lock:
            self._blocking.learn(record)

    def why(self, cell: Cell, nodeid: str, host: str, available_bytes: int | None) -> Reason | None:
        """See :class:`Decisions`."""
        candidate = self._candidates.candidate(cell, nodeid, host)
        with self._lock:
            return self._blocking.why(candidate, lambda: available_bytes)

    def answer(self, message: dict[str, Any]) -> dict[str, Any] | None:
        """To a worker that asks ``why``."""
        reason = self.why(Cell(**message["cell"]), message["nodeid"], message["host"], message["available_bytes"])
        return reason.model_dump() if reason is not None else None


class AskedDecisions:
    """On a worker: the controller decides. Where it can not be asked, the cell is run."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    def learn(self, record: CellRecord) -> None:
        """See :class:`Decisions`."""
        self._controller.tell("learn", record=to_line(record))

    def why(self, cell: Cell, nodeid: str, host: str, available_bytes: int | None) -> Reason | None:
        """See :class:`Decisions`."""
        answer = self._controller.ask(
            "why", cell=dataclasses.asdict(cell), nodeid=nodeid, host=host, available_bytes=available_bytes
        )
        return Reason.model_validate(answer) if answer is not None else None
