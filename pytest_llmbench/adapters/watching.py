"""What this process keeps an eye on while its cells run: the memory of its servers, and clocks that stand still."""

from __future__ import annotations

import functools
from collections.abc import Callable

from pytest_llmbench.adapters.cell_run import CellRun
from pytest_llmbench.core.config import LimitsConfig
from pytest_llmbench.core.records import MemoryRecord, Reason
from pytest_llmbench.runtime.guard import Guard, GuardLimits, Sources
from pytest_llmbench.runtime.orphans import reap_orphans, sentence
from pytest_llmbench.runtime.process import running_servers
from pytest_llmbench.telemetry.clock import ClockWatch, Disturbance
from pytest_llmbench.telemetry.pressure import MemoryPressure, SwappedOut
from pytest_llmbench.telemetry.process_tree import ProcessTree


class Watches:
    """Begin with the first cell of a process, end with its session. Neither raises for what it sees.

    Args:
        limits: of the configuration.
    """

    def __init__(self, limits: LimitsConfig) -> None:
        self._limits = limits
        self._begun = False

    @functools.cached_property
    def _guard(self) -> Guard:
        limit_gb = self._limits.max_memory_gb
        limits = GuardLimits(int(limit_gb * 1e9) if limit_gb is not None else None, self._limits.allow_swap)
        return Guard(limits, Sources(tree=ProcessTree, pressure=MemoryPressure(), swapped_out=SwappedOut()))

    @functools.cached_property
    def _clock(self) -> ClockWatch:
        return ClockWatch(lambda: [server.pid for server in running_servers()])

    def begin(self, say: Callable[[str], None]) -> None:
        """Before the first cell: end what killed runs have left here, then watch. Safe to call again.

        Args:
            say: told what was ended.
        """
        if self._begun:
            return
        self._begun = True
        if reaped := sentence(reap_orphans()):
            say(reaped)
        self._clock.start()
        self._guard.start()

    def end(self) -> None:
        """Stop watching. Safe to call again."""
        if self._begun:
            self._begun = False
            self._guard.stop()
            self._clock.stop()

    def begin_cell(self, run: CellRun) -> None:
        """A cell's server is about to be started, or used."""
        run.is_watched = True
        self._guard.begin_cell()

    def end_cell(self, run: CellRun) -> None:
        """Keep with a cell what was seen of the machine's memory while it ran."""
        if not run.is_watched:
            return
        run.is_watched = False
        seen = self._guard.end_cell()
        run.has_swapped = seen.has_swapped
        for error in seen.stopped[:1]:
            run.stopped = Reason(code=error.code, message=error.message, evidence=error.evidence)
        memory = run.memory or MemoryRecord()
        observed = [error.evidence.get("observed_bytes") for error in seen.stopped]
        figures = {
            "observed_peak_bytes": max(
                (size for size in (*observed, memory.observed_peak_bytes) if isinstance(size, int)), default=None
            ),
            "machine_swapped_bytes": seen.machine_swapped_bytes,
            "pressure_percent": seen.pressure_percent,
            "least_left_bytes": seen.least_left_bytes,
        }
        run.memory = memory.model_copy(update=figures)

    def disturbance(self, begin_ns: int, end_ns: int) -> Disturbance | None:
        """What stood still between two times of ``time.perf_counter_ns``."""
        return self._clock.disturbance(begin_ns, end_ns) if self._begun else None
