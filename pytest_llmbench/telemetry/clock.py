"""Whether this process, the machine or a server stood still in a span of time: what was timed then is not true.

The clock of all measurements (``time.perf_counter_ns``) does not count while a machine is suspended, and goes on while
a process is stopped. So a thread ticks several times a second, and looks at three things: whether the clock that counts
suspension too has gained on the other; whether it was itself woken late; and whether a server is in the state in which
SIGSTOP leaves a process.

A busy machine wakes it late as well. But then it has waited for a core, which Linux counts per thread
(``/proc/self/task/TID/schedstat``), or this process itself has used the time, for example in a call that lets no other
thread run. Both are taken off, and what remains above one second is a stop.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

logger = logging.getLogger(__name__)
_TICK_SECONDS = 0.25
_SUSPENDED_SECONDS = 0.1
_STOPPED_SECONDS = 1.0
_ANSWER_SECONDS = 2.0
_KEPT = 256
_JOIN_SECONDS = 5.0
_NS = 1_000_000_000
# The clock that counts suspension, and the one of perf_counter that does not; by name, as each system has its own.
_CLOCKS = {"linux": ("CLOCK_BOOTTIME", "CLOCK_MONOTONIC"), "darwin": ("CLOCK_MONOTONIC_RAW", "CLOCK_UPTIME_RAW")}


@dataclass(frozen=True, slots=True)
class Disturbance:
    """Something stood still between two ticks. ``begin_ns`` and ``end_ns`` are of ``time.perf_counter_ns``."""

    kind: Literal["suspended", "stopped", "server_stopped"]
    seconds: float
    begin_ns: int
    end_ns: int

    @property
    def sentence(self) -> str:
        """What happened, for the record of a sample that is discarded."""
        what = {
            "suspended": "the machine was suspended for {:.1f} s",
            "stopped": "this process did not run for {:.1f} s: it was stopped (SIGSTOP, a debugger) or the machine was "
            "frozen (a virtual machine, a container)",
            "server_stopped": "the server was stopped (SIGSTOP, a debugger) for up to {:.1f} s",
        }[self.kind]
        return what.format(self.seconds) + "; what was timed then is discarded"


@dataclass(frozen=True, slots=True)
class Moment:
    """The clocks at a tick, in nanoseconds, as read by the thread that ticks.

    Attributes:
        now_ns: ``time.perf_counter_ns``.
        gained_least_ns, gained_most_ns: by how much the clock that counts suspension is ahead. Two clocks are never
            read at once, so that is known within bounds; 0 where there is no such clock.
        waited_ns: how long this thread and the main thread, behind which it may stand, have waited for a core in their
            lives; 0 where that is not told.
        used_ns: CPU time this process has used.
    """

    now_ns: int
    gained_least_ns: int = 0
    gained_most_ns: int = 0
    waited_ns: int = 0
    used_ns: int = 0


class Clocks:
    """Reads a :class:`Moment`."""

    def __init__(self) -> None:
        names = _CLOCKS.get(sys.platform, ("", ""))
        ids = [getattr(time, name, None) for name in names]
        self._ids: tuple[int, int] | None = (ids[0], ids[1]) if ids[0] is not None and ids[1] is not None else None

    def __call__(self) -> Moment:
        """Now, for the thread that asks."""
        least = most = 0
        if self._ids is not None:
            before = time.clock_gettime_ns(self._ids[1])
            counting = time.clock_gettime_ns(self._ids[0])
            after = time.clock_gettime_ns(self._ids[1])
            least, most = counting - after, counting - before
        waited = _waited_ns("thread-self") + _waited_ns("self")
        return Moment(time.perf_counter_ns(), least, most, waited, time.process_time_ns())


class ClockWatch:
    """Ticks from :meth:`start` to :meth:`stop` in a thread of its own; also a context manager.

    What it remembers is bounded: the latest 256 disturbances.

    Args:
        servers: process numbers of the servers now; those that are stopped are noted. A stop shorter than a tick may
            be missed.
        clocks: what reads the clocks.
        is_stopped: whether a process is stopped.
    """

    def __init__(
        self,
        servers: Callable[[], Collection[int]] = tuple,
        *,
        clocks: Callable[[], Moment] | None = None,
        is_stopped: Callable[[int], bool] | None = None,
    ) -> None:
        self._servers = servers
        self._clocks = clocks or Clocks()
        self._is_stopped = is_stopped or is_stopped_now
        self._lock = threading.RLock()  # a signal's handler may ask at any moment
        self._found: deque[Disturbance] = deque(maxlen=_KEPT)
        self._last: Moment | None = None
        self._standing: Disturbance | None = None  # a server stood still at the last tick
        self._stopping = threading.Event()
        self._called = threading.Event()  # to tick now
        self._ticked = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> ClockWatch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Begin. Safe to call again."""
        if self._thread is None:
            self._stopping.clear()
            self._ticked.clear()
            self._last = None  # what has been since the last stop is not known
            self._thread = threading.Thread(target=self._run, name="clock watch", daemon=True)
            self._thread.start()
            self._ticked.wait(_ANSWER_SECONDS)

    def stop(self) -> None:
        """End the thread. Safe to call again; what was seen can still be asked for."""
        thread, self._thread = self._thread, None
        self._stopping.set()
        self._called.set()
        if thread is not None:
            thread.join(_JOIN_SECONDS)

    def disturbance(self, begin_ns: int, end_ns: int) -> Disturbance | None:
        """What stood still between two times of ``time.perf_counter_ns``; the longest, None if nothing did.

        A stop is only known to lie between two ticks, so one just before or after the span counts too. Takes
        microseconds, unless the watch has not ticked for a while, as after a stop: then it is waited for.
        """
        deadline = time.monotonic() + _ANSWER_SECONDS
        while self._thread is not None and not self._covers(end_ns) and time.monotonic() < deadline:
            self._ticked.clear()
            self._called.set()
            self._ticked.wait(_TICK_SECONDS)
        with self._lock:
            found = [one for one in self._found if one.begin_ns <= end_ns and one.end_ns >= begin_ns]
        return max(found, key=lambda one: one.seconds, default=None)

    def tick(self) -> None:
        """Look, and remember what has happened since the last time. Called by the thread; in tests by hand."""
        now = self._clocks()
        standing = any(self._is_stopped(pid) for pid in self._servers())
        with self._lock:
            last, self._last = self._last, now
            if last is not None:
                self._compare(last, now)
                self._note_server(last, now, standing)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.tick()
            except Exception:  # whatever it is: it says nothing of the numbers
                logger.warning("the clocks could not be watched just now", exc_info=True)
            self._ticked.set()
            self._called.wait(_TICK_SECONDS)
            self._called.clear()

    def _covers(self, end_ns: int) -> bool:
        """Whether all until then is known. Between two ticks nothing is; but a late one is what matters."""
        with self._lock:
            last = self._last
        if last is None:
            return False
        now = self._clocks()
        is_late = now.now_ns - last.now_ns > (_TICK_SECONDS + _STOPPED_SECONDS) * _NS
        has_gained = now.gained_least_ns - last.gained_most_ns > _SUSPENDED_SECONDS * _NS
        return end_ns <= last.now_ns or not (is_late or has_gained)

    def _compare(self, last: Moment, now: Moment) -> None:
        suspended = (now.gained_least_ns - last.gained_most_ns) / _NS
        if suspended > _SUSPENDED_SECONDS:
            self._found.append(Disturbance("suspended", suspended, last.now_ns, now.now_ns))
        elsewhere = now.waited_ns - last.waited_ns + now.used_ns - last.used_ns
        late = (now.now_ns - last.now_ns - elsewhere) / _NS - _TICK_SECONDS
        if late > _STOPPED_SECONDS:
            self._found.append(Disturbance("stopped", late, last.now_ns, now.now_ns))

    def _note_server(self, last: Moment, now: Moment, standing: bool) -> None:
        """One disturbance for one stop, which may last for many ticks; it ends before the tick that sees none."""
        before, self._standing = self._standing, None
        if not standing and before is None:
            return
        begin_ns = last.now_ns if before is None else before.begin_ns
        one = Disturbance("server_stopped", (now.now_ns - begin_ns) / _NS, begin_ns, now.now_ns)
        if before is not None and before in self._found:
            self._found.remove(before)
        self._found.append(one)
        self._standing = one if standing else None


def is_stopped_now(pid: int) -> bool:
    """Whether a process is stopped, by SIGSTOP or by a debugger; not where it has ended."""
    if not sys.platform.startswith("linux"):
        with suppress(psutil.Error):
            return psutil.Process(pid).status() in {psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP}
        return False
    with suppress(OSError):
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return text.rpartition(")")[2].split()[:1] in (["T"], ["t"])
    return False


def _waited_ns(whose: Literal["thread-self", "self"]) -> int:
    """How long this thread, or the main one, has waited for a core although it could run; 0 where that is not told."""
    with suppress(OSError, ValueError, IndexError):
        fd = os.open(f"/proc/{whose}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return int(os.read(fd, 100).split()[1])
        finally:
            os.close(fd)
    return 0
