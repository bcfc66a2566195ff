"""SIGTERM and a closed terminal: end in order, as Ctrl-C does, instead of dying without a teardown."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import FrameType

import pytest

_DESCRIPTORS = 64  # capturing takes the lowest free ones, and it begins before anything else is opened
_TOLD = {
    signal.SIGTERM: "llmbench: asked to end (SIGTERM); stopping servers",
    signal.SIGHUP: "llmbench: the terminal was closed (SIGHUP); stopping servers",
}
ENDED_BY_SIGNAL = {128 + number for number in _TOLD}


def end_in_order_on_signals(children: Callable[[], Iterable[int]]) -> Callable[[], None]:
    """Install the handlers; returns how to restore what was there. A signal that is ignored (``nohup``) stays so.

    Args:
        children: pids of our own workers, which are told too: xdist would let them finish their cell first.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    terminal = _terminal()

    def handle(number: int, _frame: FrameType | None) -> None:
        for other in ours:
            signal.signal(other, signal.SIG_IGN)  # a second one must not break the teardown of the first
        if number == signal.SIGHUP:
            _write_to_nowhere(terminal)
        for pid in children():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        # pytest.exit, not SystemExit: pytest would report the latter as a failed test and go on.
        pytest.exit(_TOLD[signal.Signals(number)], returncode=128 + number)

    previous = {number: signal.getsignal(number) for number in _TOLD}
    ours = [number for number, handler in previous.items() if handler is not signal.SIG_IGN]
    for number in ours:
        signal.signal(number, handle)

    def restore() -> None:
        for number in ours:
            signal.signal(number, previous[number])

    return restore


def _terminal() -> int | None:
    """The device number of the terminal we have open somewhere, None where there is none.

    Not necessarily as standard output: while pytest captures, that is a file, and the terminal has another number.
    """
    return next((os.fstat(fd).st_rdev for fd in range(_DESCRIPTORS) if os.isatty(fd)), None)


def _write_to_nowhere(terminal: int | None) -> None:
    """Point every descriptor of a terminal that is gone at nothing: writing to it would raise, and end us half way."""
    if terminal is None:
        return
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in range(_DESCRIPTORS):
        with suppress(OSError):
            if os.fstat(fd).st_rdev == terminal:
                os.dup2(nothing, fd)
    os.close(nothing)
