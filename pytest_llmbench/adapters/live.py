"""What runs, how fast, and how much is left: shown while cells run, never while a request is under way."""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Sequence

import pytest

from pytest_llmbench.adapters.collection import cell_of
from pytest_llmbench.adapters.progress import STATUS_LINE_KEY, StatusLine, erase_status, tell
from pytest_llmbench.adapters.state import Suite
from pytest_llmbench.core.cell import Cell
from pytest_llmbench.core.records import RequestRecord
from pytest_llmbench.reports.plan import duration

_LONG_SECONDS = 10.0  # what takes longer gets a line where there is no line to change
_PAUSE_SECONDS = 0.25  # between two changes of the status line, at least
_IN_BRACKETS = re.compile(r"\[([^\[\]]*)\]\Z")


class Live:
    """A plugin of the process that has the terminal: a status line on a terminal, else a line for what takes long.

    A request's record is filed when its answer is complete and before the next request is sent. Only then, and when a
    test begins, is anything written: no thread of ours ever runs beside one that reads tokens. Under xdist the requests
    are sent elsewhere, and there are lines only.
    """

    def __init__(self, config: pytest.Config, suite: Suite) -> None:
        self._config = config
        self._suite = suite
        self._to_come: dict[str, str | None] = {}  # node id → kind of server, in order
        self._count = 0
        self._workers = 1
        self._running: dict[str, float] = {}
        self._requests = 0
        self._rate: float | None = None
        self._said: set[str] = set()
        self._shown_at = 0.0
        self._line: StatusLine | None = None
        self._is_quiet: bool = getattr(config.option, "verbose", -1) < 0  # none where pytest has no terminal
        if not self._is_quiet:
            suite.on_request = self.requested

    @pytest.hookimpl(trylast=True)  # when what is finished already was taken out
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        cells = {item.nodeid: cell for item in session.items if (cell := cell_of(item)) is not None}
        self._expect({nodeid: self._suite.spec(cell).kind for nodeid, cell in cells.items()})
        if not self._is_quiet and StatusLine.fits(self._config):
            self._line = self._config.stash[STATUS_LINE_KEY] = StatusLine(self._config)

    @pytest.hookimpl(optionalhook=True, trylast=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        """The same under xdist, where this process has no items; every worker collects the same, and tells it."""
        if self._count:
            return
        suite = self._suite
        cells = {cell.id: cell for name in sorted(suite.enabled_profiles) for cell in suite.matrix.cells(name)}
        finished = suite.earlier.finished if suite.earlier is not None else {}
        self._workers = max(1, len(self._config.option.tx))
        self._expect({nodeid: self._kind(nodeid, cells) for nodeid in ids if nodeid not in finished})

    def _kind(self, nodeid: str, cells: dict[str, Cell]) -> str | None:
        """The kind of server of a cell, which its id tells; None of any other test."""
        found = _IN_BRACKETS.search(nodeid)
        cell = cells.get(found.group(1)) if found else None
        return self._suite.spec(cell).kind if cell is not None else None

    def _expect(self, kinds: dict[str, str | None]) -> None:
        self._to_come = {nodeid: kind for nodeid, kind in kinds.items() if kind is not None}
        self._count = len(self._to_come)

    @pytest.hookimpl(trylast=True)  # after the terminal has written its part of the line
    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test begins."""
        if self._is_quiet or nodeid not in self._to_come:
            return
        self._running[nodeid] = time.monotonic()
        self._requests, self._rate = 0, None
        if self._line is not None:
            self._show(nodeid)
        elif (seconds := self._usual_seconds(nodeid)) is not None and seconds > _LONG_SECONDS:
            self._said.add(nodeid)
            tell(self._config, f"{self._name(nodeid)} took {duration(seconds)} before{self._left()}")

    def requested(self, record: RequestRecord) -> None:
        """A request has been answered, or failed, and the next has not been sent."""
        nodeid = record.cell
        if nodeid is None or nodeid not in self._running:
            return
        self._requests += 1
        self._rate = record.decode_tokens_per_second or self._rate
        now = time.monotonic()
        if self._line is not None:
            if now - self._shown_at >= _PAUSE_SECONDS:
                self._show(nodeid)
        elif nodeid not in self._said and now - self._running[nodeid] > _LONG_SECONDS:
            self._said.add(nodeid)
            tell(self._config, f"{self._name(nodeid)} goes on{self._speed()}{self._left()}")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self) -> None:
        erase_status(self._config)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """A test has ended, and is not to come any more."""
        erase_status(self._config)
        self._running.pop(nodeid, None)
        self._to_come.pop(nodeid, None)

    @pytest.hookimpl(tryfirst=True)
    def pytest_internalerror(self) -> None:
        erase_status(self._config)

    @pytest.hookimpl(tryfirst=True)
    def pytest_enter_pdb(self) -> None:
        erase_status(self._config)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self) -> Generator[None, object, object]:
        """Whatever has ended the run in the middle of a test, what follows is written on a clean screen."""
        erase_status(self._config)
        return (yield)

    def _show(self, nodeid: str) -> None:
        assert self._line is not None  # noqa: S101 -- asked before
        self._shown_at = time.monotonic()
        name, left = self._name(nodeid), self._left()
        began = f"{name}{self._speed() or ', starting'}"
        self._line.show(f"{began}{left}", f"{began}{left.partition(',')[0]}", f"{name}{left.partition(',')[0]}")

    def _name(self, nodeid: str) -> str:
        number = self._count - len(self._to_come) + max(1, len(self._running))
        return f"{number}/{self._count} {nodeid.rpartition('::')[2]}"

    def _speed(self) -> str:
        rate = f", {self._rate:.1f} tokens/s" if self._rate is not None else ""
        return f"{rate}, request {self._requests}" if self._requests else ""

    def _left(self) -> str:
        """The time that is left, by what the cells took in earlier runs; nothing where these tell of none."""
        now, left, unknown = time.monotonic(), 0.0, 0
        for nodeid in self._to_come:
            seconds = self._usual_seconds(nodeid)
            if seconds is None:
                unknown += 1
            else:
                left += max(0.0, seconds - (now - self._running.get(nodeid, now)))
        if unknown and not left:
            return ""
        ends = time.strftime("%H:%M", time.localtime(time.time() + left / self._workers))
        about = "at least" if unknown or self._workers > 1 else "about"
        return f"; {about} {duration(left / self._workers)} left, until {ends}"

    def _usual_seconds(self, nodeid: str) -> float | None:
        kind = self._to_come.get(nodeid)
        return self._suite.history.duration_seconds(nodeid, kind) if kind is not None else None
