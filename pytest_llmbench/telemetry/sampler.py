"""One thread that reads all sensors while a cell runs, at a cost that is bounded and known.

Between cells it sleeps. What a source costs on a core is measured each time, and one that costs more than its part of
the bound is read less often: a record then lacks its values. After a source that was busy for long, others get a moment
before the next one is read.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pytest_llmbench.core.records import TelemetryRecord
from pytest_llmbench.errors import Primitive
from pytest_llmbench.telemetry.base import FollowsServer, SeldomRead, Source
from pytest_llmbench.telemetry.ration import Ration

logger = logging.getLogger(__name__)
# Shares of one core: for reading sources, and for waking up and for records. Together 0.5 %.
_SOURCES_SHARE, _OWN_SHARE = 0.0035, 0.0015
_LONG_SECONDS, _PAUSE_SECONDS = 0.001, 0.002
_COSTLY_SECONDS = 0.005  # on a core: what cost as much the last time is not read before it is due, whoever asks
_JOIN_SECONDS = 1.0
_MOST_SAMPLES = 20_000  # of one cell: some 40 MB, and nearly three hours at two a second


@dataclass
class _Slot:
    """A source, and what it may cost."""

    source: Source
    ration: Ration
    lock: threading.RLock = field(default_factory=threading.RLock)  # reading changes what a source remembers


@dataclass
class _Cell:
    """A cell, and its samples. When these are too many, every second one is dropped, and so it goes on."""

    nodeid: str
    interval_seconds: float
    next_monotonic: float
    samples: list[TelemetryRecord] = field(default_factory=list)
    stride: int = 1
    seen: int = 0

    def keep(self, record: TelemetryRecord) -> None:
        if self.seen % self.stride == 0:
            self.samples.append(record)
        self.seen += 1
        if len(self.samples) >= _MOST_SAMPLES:
            del self.samples[1::2]
            self.stride *= 2

    def plan(self, now_monotonic: float, least_seconds: float) -> None:
        """When the next sample is due: at the next multiple of the interval, and not before ``least_seconds``."""
        missed = max(0.0, now_monotonic - self.next_monotonic)
        self.next_monotonic += self.interval_seconds * (1 + missed // self.interval_seconds)
        self.next_monotonic = max(self.next_monotonic, now_monotonic + least_seconds)


class Sampler:
    """Reads sources from :meth:`begin_cell` to :meth:`end_cell`; a :class:`~pytest_llmbench.telemetry.base.Telemetry`.

    Nothing it does raises because of the machine, a source or the sink.

    Args:
        sources: what is read, in this order.
        sink: takes each record, from the thread that samples or from one that calls :meth:`now`, never from both at
            once. After it has raised it is not called again.
        interval_seconds: between two samples, where a cell does not say otherwise.
    """

    def __init__(
        self, sources: Sequence[Source], sink: Callable[[TelemetryRecord], None], interval_seconds: float = 0.5
    ) -> None:
        share = _SOURCES_SHARE / max(1, len(sources))
        self._slots = [
            _Slot(source, Ration(share, source.least_seconds if isinstance(source, SeldomRead) else 0.0))
            for source in sources
        ]
        self._own_seconds = self._latest_own_seconds = 0.0
        self._sink = sink
        self._interval_seconds = interval_seconds
        self._trouble: Exception | None = None
        self._failed: dict[str, str] = {}
        self._told: set[str] = set()
        self._cell: _Cell | None = None
        self._last: _Cell | None = None  # the latest that was begun, which can be asked for after its end
        self._lock = threading.RLock()  # of the cell and the sink; a signal's handler may ask at any moment
        self._called = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def trouble(self) -> Exception | None:
        """What the sink has raised; None while records are written."""
        return self._trouble

    @property
    def cost_seconds(self) -> float:
        """Time on a core that sampling has cost so far."""
        return self._own_seconds + sum(slot.ration.total_seconds for slot in self._slots)

    @property
    def costs_seconds(self) -> Mapping[str, float]:
        """The same by source; what belongs to none is ``sampler``."""
        return {**{slot.source.name: slot.ration.total_seconds for slot in self._slots}, "sampler": self._own_seconds}

    @property
    def why_not(self) -> Mapping[str, str]:
        """See :class:`~pytest_llmbench.telemetry.base.Telemetry`."""
        reasons: dict[str, str] = {}
        for slot in self._slots:
            with slot.lock:
                reasons |= slot.source.why_not
        return reasons | self._failed

    def facts(self) -> Mapping[str, Primitive]:
        """What does not change while a cell runs, of all sources together. Takes milliseconds."""
        facts: dict[str, Primitive] = {}
        for slot in self._slots:
            with slot.lock:
                try:
                    facts |= slot.source.facts()
                except Exception:  # whatever it is: a measurement does not end because of a sensor
                    logger.warning("%s tells no facts", slot.source.name, exc_info=True)
        return facts

    def start(self) -> None:
        """Begin. Safe to call again."""
        if self._thread is None:
            self._stopping = threading.Event()  # a thread that a sensor holds up still ends by its own
            self._thread = threading.Thread(target=self._run, args=(self._stopping,), name="telemetry", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread, and the cell. Safe to call again; what was sampled can still be asked for."""
        self._stopping.set()
        self._called.set()
        self._cell = None
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(_JOIN_SECONDS)
            if thread.is_alive():
                logger.warning("a sensor takes over %g s to read", _JOIN_SECONDS)

    def begin_cell(self, nodeid: str, server_pid: int | None, interval_seconds: float | None = None) -> None:
        """Sample for this cell from now on; a cell that was not ended is.

        Args:
            server_pid: the process of its server, None where that is not known yet (see :meth:`follow`) or not here.
            interval_seconds: between two samples.
        """
        for name, reason in self.why_not.items():
            if name not in self._told:
                self._told.add(name)
                logger.info("not available: %s: %s", name, reason)
        self._follow(server_pid)
        with self._lock:
            self._cell = self._last = _Cell(nodeid, interval_seconds or self._interval_seconds, time.monotonic())
        self._called.set()

    def follow(self, server_pid: int) -> None:
        """The cell's server runs, or another in its place. The next sample is taken at once."""
        self._follow(server_pid)
        with self._lock:
            if self._cell is not None:
                self._cell.next_monotonic = time.monotonic()
        self._called.set()

    def end_cell(self) -> None:
        """Sample no more. Safe to call again."""
        with self._lock:
            self._cell = None

    def now(self) -> TelemetryRecord:
        """See :class:`~pytest_llmbench.telemetry.base.Telemetry`. While a cell runs it is one of its samples too.

        All is read that is not too costly to be read at any time (PSS of a large server is).
        """
        return self._sample(self._cell, is_asked_for=True)

    def between(self, begin_ns: int, end_ns: int) -> Sequence[TelemetryRecord]:
        """See :class:`~pytest_llmbench.telemetry.base.Telemetry`. Of a cell that has ended, until the next begins."""
        with self._lock:
            samples = self._last.samples if self._last is not None else []
            found = [sample for sample in samples if begin_ns <= sample.t_ns <= end_ns]
        return sorted(found, key=lambda sample: sample.t_ns)  # one that was asked for may have come in between

    def _follow(self, server_pid: int | None) -> None:
        for slot in self._slots:
            if isinstance(slot.source, FollowsServer):
                with slot.lock:
                    slot.source.follow(server_pid)

    def _run(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            cell = self._cell
            if cell is None:
                self._called.wait()
            elif (left := cell.next_monotonic - time.monotonic()) > 0:
                self._called.wait(left)
            else:
                self._sample(cell, is_asked_for=False)
                cell.plan(time.monotonic(), self._latest_own_seconds / _OWN_SHARE)
                share = _largest_share([slot.ration.latest_seconds / cell.interval_seconds for slot in self._slots])
                for slot in self._slots:
                    slot.ration.share = share
            self._called.clear()

    def _sample(self, cell: _Cell | None, *, is_asked_for: bool) -> TelemetryRecord:
        """Read what is due, and keep it for the cell if that still runs."""
        t_ns, began, in_sources = time.perf_counter_ns(), time.thread_time(), 0.0
        values: dict[str, float] = {}
        for slot in self._slots:
            ration = slot.ration
            if ration.due() or (is_asked_for and ration.latest_seconds < _COSTLY_SECONDS):
                values |= self._read(slot)
                in_sources += ration.latest_seconds
                if ration.latest_seconds > _LONG_SECONDS and not is_asked_for:
                    self._stopping.wait(_PAUSE_SECONDS)
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        with self._lock:
            nodeid = cell.nodeid if cell is not None and cell is self._cell else None
            record = TelemetryRecord(cell=nodeid, t_ns=t_ns, values=finite)
            if cell is not None and nodeid is not None:
                cell.keep(record)
                self._write(record)
            self._latest_own_seconds = time.thread_time() - began - in_sources
            self._own_seconds += self._latest_own_seconds
        return record

    def _read(self, slot: _Slot) -> Mapping[str, float]:
        """Ask a source; one that raises has a mistake, which is told once, and is asked no more."""
        if slot.source.name in self._failed:
            return {}
        with slot.lock, slot.ration.spent():
            try:
                return slot.source.read()
            except Exception as exc:  # whatever it is: a measurement does not end because of a sensor
                logger.warning("%s is no longer read", slot.source.name, exc_info=True)
                self._failed[slot.source.name] = f"it could not be read ({exc!r}); please report it"
                return {}

    def _write(self, record: TelemetryRecord) -> None:
        if self._trouble is not None:
            return
        try:
            self._sink(record)
        except Exception as exc:  # a full disk, and whatever else a sink may run into
            logger.debug("no more samples are written", exc_info=True)
            self._trouble = exc


def _largest_share(demands: Sequence[float]) -> float:
    """What each source may have at most, so that all together stay within the bound: what cheap ones leave of their
    parts is shared by the costly ones.

    Args:
        demands: shares of a core that the sources would take if each were read in every sample.
    """
    left, share = _SOURCES_SHARE, _SOURCES_SHARE
    for others, demand in zip(range(len(demands), 0, -1), sorted(demands), strict=True):
        share = left / others
        if demand >= share:
            break
        left -= demand
    return share
