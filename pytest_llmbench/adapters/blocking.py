"""What earlier cells taught, and which cells it makes pointless: asked before each cell, told after each.

Under xdist the controller decides, with what all workers have learnt: a worker tells and asks over a channel of its
own, in that order, so that an answer never lacks what was told before.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
from collections.abc import Iterable
from typing import Any, Protocol

from pytest_llmbench.core.blocking import Blocking, Candidate
from pytest_llmbench.core.cell import Cell
from pytest_llmbench.core.records import CellRecord, Reason, cell_from, to_line

logger = logging.getLogger(__name__)
_ANSWER_SECONDS = 30.0


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

    def answer(self, message: dict[str, Any]) -> Reason | None:
        """What a worker tells or asks; None also where it only told something."""
        if message["kind"] == "learn":
            self.learn(cell_from(message["record"], "a worker's record"))
            return None
        return self.why(Cell(**message["cell"]), message["nodeid"], message["host"], message["available_bytes"])


class AskedDecisions:
    """On a worker: the controller decides. Where it can not be asked, the cell is run."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._questions = 0

    def learn(self, record: CellRecord) -> None:
        """See :class:`Decisions`."""
        self._send({"kind": "learn", "record": json.loads(to_line(record))})

    def why(self, cell: Cell, nodeid: str, host: str, available_bytes: int | None) -> Reason | None:
        """See :class:`Decisions`."""
        self._questions += 1
        question = {
            "kind": "why",
            "number": self._questions,
            "cell": dataclasses.asdict(cell),
            "nodeid": nodeid,
            "host": host,
            "available_bytes": available_bytes,
        }
        if not self._send(question):
            return None
        try:
            while (answer := json.loads(self._channel.receive(_ANSWER_SECONDS)))["number"] != self._questions:
                pass  # the late answer to an earlier question
        except (
            OSError,
            EOFError,
            ValueError,
            self._channel.RemoteError,
        ) as exc:  # execnet's TimeoutError is an OSError
            logger.warning("the controller did not say whether %s is worth running: %r", nodeid, exc)
            return None
        return Reason.model_validate(answer["reason"]) if answer["reason"] is not None else None

    def _send(self, message: dict[str, Any]) -> bool:
        try:
            self._channel.send(json.dumps(message))  # as ASCII: execnet can not send every string
        except OSError as exc:
            logger.warning("the controller can not be told: %r", exc)
            return False
        return True
