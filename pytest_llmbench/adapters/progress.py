"""How far a download is, on the terminal and past pytest's capture."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest

from pytest_llmbench.runtime.bars import Bars
from pytest_llmbench.runtime.modelstore.store import Progress

logger = logging.getLogger(__name__)
_SHOW_AFTER_SECONDS = 0.5


def tell(config: pytest.Config, text: str) -> None:
    """Print a line now, past pytest's capture, which would keep it until the test has failed; nothing on a worker."""
    reporter: pytest.TerminalReporter | None = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or hasattr(config, "workerinput"):
        return
    capture: Any = config.pluginmanager.get_plugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture is not None else nullcontext():
        reporter.ensure_newline()
        reporter.write_line(f"llmbench: {text}")


class _Silent:
    """On an xdist worker: there is no terminal."""

    def step(self, what: str, done_bytes: int, total_bytes: int | None) -> None: ...


class _Lines:
    """Not a terminal: one line when something long begins."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._started: dict[str, float] = {}
        self._said: set[str] = set()

    def step(self, what: str, done_bytes: int, total_bytes: int | None) -> None:
        started = self._started.setdefault(what, time.monotonic())
        if what not in self._said and time.monotonic() - started > _SHOW_AFTER_SECONDS:
            self._said.add(what)
            tell(self._config, f"{what} …")


@contextmanager
def shown_progress(config: pytest.Config) -> Iterator[Progress]:
    """A progress display fitting where pytest runs: bars, lines, or nothing."""
    reporter: pytest.TerminalReporter | None = config.pluginmanager.get_plugin("terminalreporter")
    capture: Any = config.pluginmanager.get_plugin("capturemanager")
    if reporter is None or hasattr(config, "workerinput"):
        yield _Silent()
    elif not reporter.isatty or capture is None:
        yield _Lines(config)
    else:
        with capture.global_and_fixture_disabled():
            bars = Bars()
            try:
                yield bars
            finally:
                bars.close()
