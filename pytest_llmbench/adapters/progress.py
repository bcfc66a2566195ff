"""What is shown while something takes long, on the terminal and past pytest's capture: lines, bars, a status line."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest

from pytest_llmbench.runtime.bars import Bars
from pytest_llmbench.runtime.modelstore.store import Progress

logger = logging.getLogger(__name__)
_SHOW_AFTER_SECONDS = 0.5
_LEAST_WIDTH = 20
_WRITE_MEANWHILE = ("setupshow", "setuponly", "setupplan", "log_cli_level")  # options of pytest


def tell(config: pytest.Config, text: str) -> None:
    """Print a line now, past pytest's capture, which would keep it until the test has failed; nothing on a worker."""
    reporter: pytest.TerminalReporter | None = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or hasattr(config, "workerinput"):
        return
    with _past_capture(config):
        erase_status(config)
        reporter.ensure_newline()
        if config.get_terminal_writer().width_of_current_line:  # letters of workers' tests, of which it does not know
            reporter.write_line("")
        reporter.write_line(f"llmbench: {text}")


def _past_capture(config: pytest.Config) -> AbstractContextManager[None]:
    capture: Any = config.pluginmanager.get_plugin("capturemanager")
    return capture.global_and_fixture_disabled() if capture is not None else nullcontext()


class StatusLine:
    """One line below pytest's own, changed in place, and gone before anything else is written.

    The cursor goes back to where pytest left it, so that what pytest writes next stands where it would have stood, and
    one sequence (erase all that follows the cursor) takes the line away.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._is_shown = False

    @staticmethod
    def fits(config: pytest.Config) -> bool:
        """Whether the terminal is a person's, and nobody but pytest and us writes to it while a test runs."""
        reporter: pytest.TerminalReporter | None = config.pluginmanager.get_plugin("terminalreporter")
        return (
            reporter is not None
            and bool(reporter.isatty)
            and os.environ.get("TERM", "dumb") != "dumb"
            and config.pluginmanager.hasplugin("capturemanager")
            and config.option.capture != "no"
            and not any(getattr(config.option, name, None) for name in _WRITE_MEANWHILE)
            and not (config.pluginmanager.hasplugin("logging") and config.getini("log_cli"))
        )

    def show(self, *texts: str) -> None:
        """Put up a line, or change it: the first text that fits, or of the last what does.

        What wraps could not be taken away.
        """
        writer = self._config.get_terminal_writer()
        width, column = writer.fullwidth, writer.width_of_current_line
        if width < _LEAST_WIDTH or (column and column % width == 0):  # at the edge, terminals differ in where one is
            return
        text = next((text for text in texts if len(text) < width), texts[-1])
        line = text.encode("ascii", "replace").decode("ascii")[: width - 1]
        with _past_capture(self._config):
            writer.write_raw(f"\r\n{line}\x1b[K\x1b[A\x1b[{column % width + 1}G", flush=True)
        self._is_shown = True

    def erase(self) -> None:
        """Take it away. Safe to call again."""
        if self._is_shown:
            self._is_shown = False
            with _past_capture(self._config):
                self._config.get_terminal_writer().write_raw("\x1b[J", flush=True)


STATUS_LINE_KEY = pytest.StashKey[StatusLine]()


def erase_status(config: pytest.Config) -> None:
    """Take the status line away, where there is one: something else is about to be written."""
    if (line := config.stash.get(STATUS_LINE_KEY, None)) is not None:
        line.erase()


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


class _BarsBelow:
    """Bars on lines of their own: where they are taken away, pytest's line would go with them."""

    def __init__(self, config: pytest.Config, reporter: pytest.TerminalReporter) -> None:
        self._config = config
        self._reporter = reporter
        self._bars = Bars()
        self._started: dict[str, float] = {}
        self._is_below = False

    def step(self, what: str, done_bytes: int, total_bytes: int | None) -> None:
        started = self._started.setdefault(what, time.monotonic())
        if not self._is_below and time.monotonic() - started >= _SHOW_AFTER_SECONDS:
            self._is_below = True
            erase_status(self._config)
            self._reporter.ensure_newline()
            self._reporter.flush()
        self._bars.step(what, done_bytes, total_bytes)

    def close(self) -> None:
        self._bars.close()


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
            bars = _BarsBelow(config, reporter)
            try:
                yield bars
            finally:
                bars.close()
