"""Whether a machine still responds: how late something small that sleeps is woken on it.

A thread sleeps until a deadline, fifty times a second, and notes how late it was. That is what a keypress, or any other
program that waits for something, would feel. Python's own lock is in it: where this process computes, that adds up to
the interpreter's switch interval (5 ms). Where waking up is costly, as in some virtual machines, it is done less often.
"""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Callable, Sequence

_PERIOD_NS, _MOST_PERIOD_NS = 20_000_000, 500_000_000
_SHARE = 0.0019  # of a core, at most: 0.2 % with what ends after the last look
_MOST_KEPT = 1_000_000  # over five hours, 16 MB
_JOIN_SECONDS = 1.0
# A delay, in ms, after which a machine counts as unresponsive; and one, if several follow each other.
STANDSTILL_MS = 5000.0
SLUGGISH_MS, SLUGGISH_IN_A_ROW = 1000.0, 3


class Responsiveness:
    """Probes from :meth:`start` to :meth:`stop`, at no more than 0.2 % of a core.

    Args:
        sleep: waits for so many seconds.
    """

    def __init__(self, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._sleep = sleep
        self._lock = threading.RLock()
        self._woken_ns = array("q")
        self._delays_ms = array("d")
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._cost_seconds = 0.0

    @property
    def cost_seconds(self) -> float:
        """Time on a core that probing has cost; so far, since the latest start."""
        return self._cost_seconds

    def start(self) -> None:
        """Begin. Safe to call again."""
        if self._thread is None:
            self._stopping = threading.Event()
            self._thread = threading.Thread(
                target=self._run, args=(self._stopping,), name="responsiveness", daemon=True
            )
            self._thread.start()

    def stop(self) -> list[float]:
        """End. All delays in ms, in order; of a very long run the last hours. Safe to call again."""
        thread, self._thread = self._thread, None
        self._stopping.set()
        if thread is not None:
            thread.join(_JOIN_SECONDS)
        return self.since(0)

    def since(self, t_ns: int) -> list[float]:
        """Delays in ms of the probes that were woken after a time of ``time.perf_counter_ns``, in order."""
        with self._lock:
            first = len(self._woken_ns)
            while first > 0 and self._woken_ns[first - 1] > t_ns:
                first -= 1
            return self._delays_ms[first:].tolist()

    def _run(self, stopping: threading.Event) -> None:
        began_ns = time.perf_counter_ns()
        deadline_ns = began_ns + _PERIOD_NS
        while not stopping.is_set():
            self._sleep(max(0, deadline_ns - time.perf_counter_ns()) / 1e9)
            now_ns = time.perf_counter_ns()
            self._note(now_ns, max(0, now_ns - deadline_ns) / 1e6)
            self._cost_seconds = time.thread_time()
            affordable_ns = began_ns + round(1e9 * self._cost_seconds / _SHARE)
            # From now on: what was slept through is one delay, not many.
            deadline_ns = min(max(now_ns + _PERIOD_NS, affordable_ns), now_ns + _MOST_PERIOD_NS)

    def _note(self, now_ns: int, delay_ms: float) -> None:
        with self._lock:
            self._woken_ns.append(now_ns)
            self._delays_ms.append(delay_ms)
            if len(self._woken_ns) >= _MOST_KEPT:
                del self._woken_ns[: _MOST_KEPT // 2]
                del self._delays_ms[: _MOST_KEPT // 2]


def is_unresponsive(delays_ms: Sequence[float]) -> bool:
    """Whether the machine stood still: one delay above 5 s, or three in a row above 1 s each."""
    row = 0
    for delay_ms in delays_ms:
        row = row + 1 if delay_ms > SLUGGISH_MS else 0
        if delay_ms > STANDSTILL_MS or row >= SLUGGISH_IN_A_ROW:
            return True
    return False
