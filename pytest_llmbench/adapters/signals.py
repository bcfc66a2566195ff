"""SIGTERM: end in order, as Ctrl-C does, instead of dying without a teardown."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import FrameType

import pytest

TERMINATED = 128 + signal.SIGTERM


def end_in_order_on_sigterm(children: Callable[[], Iterable[int]]) -> Callable[[], None]:
    """Install the handler; returns how to restore what was there.

    Args:
        children: pids of our own workers, which are told too: xdist would let them finish their cell first.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None

    def handle(_signum: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not break the teardown of the first
        for pid in children():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        # pytest.exit, not SystemExit: pytest would report the latter as a failed test and go on.
        pytest.exit("llmbench: asked to end (SIGTERM); stopping servers", returncode=TERMINATED)

    previous = signal.signal(signal.SIGTERM, handle)

    def restore() -> None:
        signal.signal(signal.SIGTERM, previous)

    return restore
