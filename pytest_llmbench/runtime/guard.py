"""Watches the memory of our servers, and stops one before the kernel would stop something else.

A look at a server takes some 0.1 ms. There are several a second, and more while memory runs out: the next one comes
before the limit would be reached at the present growth. All of them together take no more than 0.5 % of a core, of
which some is saved up for such a moment.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import psutil

from pytest_llmbench.errors import ServerError
from pytest_llmbench.runtime import guard_rules as rules
from pytest_llmbench.runtime.guard_rules import Holding, Left, Usage
from pytest_llmbench.runtime.process import running_servers

logger = logging.getLogger(__name__)
_SHARE = 0.005  # of one core
_SAVED_SECONDS = 0.02  # of CPU, for the moments in which memory runs out: some hundred looks
_SHORTEST_PAUSE_SECONDS = 0.01
_PAUSE_AFTER_AN_ERROR_SECONDS = 5.0
_SEARCH_SHARE, _SEARCH_SECONDS = 0.001, 0.4
_CHECK_SHARE = 0.002  # of reading PSS
_FASTEST_GROWTH = 4 * 2**30  # bytes a second: several threads that touch new pages
_MACHINE_SECONDS, _PRESSURE_SECONDS = 1.0, 1.0
_RIVAL_SECONDS = 2.0
_STALLED_SECONDS = 2.0
_JOIN_SECONDS = 10.0


class Server(rules.Named, Protocol):
    """What the guard needs of a :class:`~pytest_llmbench.runtime.process.ServerProcess`."""

    @property
    def alive(self) -> bool: ...
    def end_because(self, error: ServerError) -> bool: ...
    def remember(self, pids: Collection[int]) -> None: ...


class Tree(Protocol):
    """A server's processes: :class:`pytest_llmbench.telemetry.process_tree.ProcessTree` is one."""

    @property
    def pids(self) -> tuple[int, ...]: ...
    def search(self) -> None: ...
    def samples(self) -> Sequence[Usage]: ...
    def reading(self) -> Usage | None: ...


class Pressure(Protocol):
    """:class:`pytest_llmbench.telemetry.pressure.Pressure` is one."""

    @property
    def full_percent(self) -> float: ...
    @property
    def source(self) -> str: ...


@dataclass(frozen=True, slots=True)
class GuardLimits:
    """``max_memory_bytes``: ``limits.max_memory_gb``, of each server; ``allow_swap``: ``limits.allow_swap``."""

    max_memory_bytes: int | None = None
    allow_swap: bool = False


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the figures come from.

    Attributes:
        tree: the processes of a server, by its process number.
        pressure: how much the machine or our control group stalls, None where it does not tell.
        swapped_out: bytes the machine has swapped out since it was started, None where it does not tell.
        left: what may still be allocated.
        servers: those to watch.
    """

    tree: Callable[[int], Tree]
    pressure: Callable[[], Pressure | None]
    swapped_out: Callable[[], int | None]
    left: Callable[[], Sequence[Left]] = rules.memory_left
    servers: Callable[[], Sequence[Server]] = running_servers


@dataclass(frozen=True, slots=True)
class Observed:
    """What was seen since :meth:`Guard.begin_cell`."""

    swapped_bytes: int  # of one server, the most that was added to what had been swapped out before
    machine_swapped_bytes: int | None  # of whatever process; None where the system does not tell
    pressure_percent: float | None  # the most; None where the system does not tell
    least_left_bytes: int | None  # of the machine or the tightest control group
    stopped: tuple[ServerError, ...]  # what servers were stopped for

    @property
    def has_swapped(self) -> bool:
        """Whether so much of a server was swapped out that its speed is in doubt."""
        return self.swapped_bytes > rules.ALLOWED_SWAP_BYTES


class _Watched:
    """A server, and what was seen of it."""

    def __init__(self, server: Server, tree: Tree) -> None:
        self.server = server
        self.tree = tree
        self.holding: Holding | None = None
        self.at = 0.0
        self.growth = 0.0  # bytes a second
        self.swap_before = 0
        self.most_swap = 0
        self.next_search = 0.0
        self.next_check = 0.0
        self.is_condemned = False
        self._pids: frozenset[int] = frozenset()

    @property
    def swapped_bytes(self) -> int:
        """The most that was swapped out, beyond what had been when the cell began."""
        return self.most_swap - self.swap_before

    def search(self) -> None:
        began = time.thread_time()
        self.tree.search()
        pids = frozenset(self.tree.pids)
        if pids != self._pids:
            self._pids = pids
            self.server.remember(pids)
        self.next_search = max(_SEARCH_SECONDS, (time.thread_time() - began) / _SEARCH_SHARE)

    def sample(self, now: float) -> Sequence[Usage]:
        usages = self.tree.samples()
        before, elapsed = self.holding, now - self.at
        self.holding = rules.held_by(usages) if usages else None
        if self.holding is not None:
            self.most_swap = max(self.most_swap, self.holding.swap_bytes)
            if before is not None and elapsed > 0:
                # One quiet look between two bursts is no end of a growth.
                self.growth = max((self.holding.bytes - before.bytes) / elapsed, self.growth / 2)
        self.at = now
        return usages


class Guard:
    """One thread for all servers of this process, from :meth:`start` to :meth:`stop`; also a context manager.

    It stops a server that holds more than its limit, that is the largest reason why the machine or the control group
    runs out of memory or stalls, or whose memory is swapped out; that server's death is then told as the error that
    says so (see :meth:`~pytest_llmbench.runtime.process.ServerProcess.end_because`).

    Args:
        interval_seconds: between two looks, while nothing is urgent.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        limits: GuardLimits,
        sources: Sources,
        *,
        interval_seconds: float = 0.2,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._sources = sources
        self._interval = interval_seconds
        self._clock = clock
        self._lock = threading.RLock()  # one look at a time; a signal's handler may end a cell at any moment
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._watched: dict[int, _Watched] = {}  # by id of the server
        self._left: tuple[Left, ...] = ()
        self._next_machine = self._next_pressure = self._next_rival = 0.0
        self._stalled_since: float | None = None
        self._machine_swap_before: int | None = None
        self._pressure_percent: float | None = None
        self._least_left: int | None = None
        self._stops: list[ServerError] = []
        self._most_swapped = 0  # of servers that were stopped
        self._cpu_seconds = 0.0
        self._looks = 0

    def __enter__(self) -> Guard:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def cpu_seconds(self) -> float:
        """What the thread has cost until now."""
        return self._cpu_seconds

    @property
    def looks(self) -> int:
        """How often it has looked until now."""
        return self._looks

    def start(self) -> None:
        """Begin. Safe to call again."""
        if self._thread is None:
            self._stopping.clear()
            self._thread = threading.Thread(target=self._run, name="memory guard", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread. Safe to call again; :meth:`start` begins anew."""
        thread, self._thread = self._thread, None
        self._stopping.set()
        if thread is not None:
            thread.join(_JOIN_SECONDS)
            if thread.is_alive():
                logger.warning("the memory of the servers takes over %g s to read", _JOIN_SECONDS)

    def begin_cell(self) -> None:
        """From now on :meth:`end_cell` counts; a server that runs already may have something swapped out."""
        with self._lock:
            self._next_pressure = 0.0
            self._try_to_look()
            for watched in self._watched.values():
                watched.most_swap = watched.swap_before = watched.holding.swap_bytes if watched.holding else 0
            self._machine_swap_before = self._sources.swapped_out()
            self._least_left = min((left.bytes for left in self._left), default=None)
            self._pressure_percent = None
            self._stops = []
            self._most_swapped = 0

    def end_cell(self) -> Observed:
        """What was seen since :meth:`begin_cell`."""
        with self._lock:
            self._next_pressure = self._next_machine = 0.0
            self._try_to_look()
            swapped_out, before = self._sources.swapped_out(), self._machine_swap_before
            return Observed(
                swapped_bytes=max([self._most_swapped, *(one.swapped_bytes for one in self._watched.values())]),
                machine_swapped_bytes=None if swapped_out is None or before is None else swapped_out - before,
                pressure_percent=self._pressure_percent,
                least_left_bytes=self._least_left,
                stopped=tuple(self._stops),
            )

    def look(self) -> float:
        """One look at everything that is due; returns after how many seconds the next one is, at the latest."""
        with self._lock:
            return self._look()

    def _run(self) -> None:
        allowance = _Allowance(self._clock())
        pause = spent = 0.0
        while not self._stopping.wait(pause):
            with self._lock:
                pause = self._try_to_look()
            cost, spent = time.thread_time() - spent, time.thread_time()
            self._cpu_seconds += cost
            pause = max(pause, allowance.pause_after(cost, self._clock()))

    def _try_to_look(self) -> float:
        try:
            return self._look()
        except Exception:  # whatever it is: a benchmark does not end because its memory can not be told
            logger.warning("the memory of the servers could not be watched just now", exc_info=True)
            return _PAUSE_AFTER_AN_ERROR_SECONDS

    def _look(self) -> float:
        now = self._clock()
        self._looks += 1
        self._follow()
        if not self._watched:
            return self._interval
        for watched in list(self._watched.values()):
            self._watch(watched, now)
        if now >= self._next_pressure:
            self._next_pressure = now + _PRESSURE_SECONDS
            self._judge_pressure(now)
        if now >= self._next_machine:
            self._judge_machine(now)
        return self._pause(now)

    def _follow(self) -> None:
        """New servers, and those that were stopped."""
        servers = {id(server): server for server in self._sources.servers()}
        for key in set(self._watched) - set(servers):
            self._most_swapped = max(self._most_swapped, self._watched.pop(key).swapped_bytes)
        for key in set(servers) - set(self._watched):
            self._watched[key] = _Watched(servers[key], self._sources.tree(servers[key].pid))

    def _watch(self, watched: _Watched, now: float) -> None:
        """A server's own limit, and its swap."""
        if now >= watched.next_search:
            watched.search()
            watched.next_search += now
        usages = watched.sample(now)
        holding, limit = watched.holding, self._limits.max_memory_bytes
        if holding is None or watched.is_condemned:
            return
        if limit is not None and holding.is_exact and holding.bytes > limit:
            confirmed = self._confirmed(watched, usages, holding, limit, now)
            if confirmed is not None:
                self._end(watched, rules.over_limit(watched.server, confirmed, limit))
                return
        swapped = holding.swap_bytes - watched.swap_before
        if swapped > rules.ALLOWED_SWAP_BYTES and not self._limits.allow_swap:
            before, out = self._machine_swap_before, self._sources.swapped_out()
            of_machine = None if before is None or out is None else out - before
            self._end(watched, rules.swapping(watched.server, holding, swapped, of_machine))

    def _confirmed(
        self, watched: _Watched, usages: Sequence[Usage], holding: Holding, limit: int, now: float
    ) -> Holding | None:
        """What it really holds, if that is more than the limit.

        The sum over several processes counts what they share several times, as after a fork. So where no process alone
        is above the limit, PSS is read, which takes some milliseconds per GB.
        """
        if len(usages) == 1 or any(rules.held_by([usage]).bytes > limit for usage in usages):
            return holding
        if now < watched.next_check:
            return None
        began = time.thread_time()
        reading = watched.tree.reading()
        watched.next_check = now + (time.thread_time() - began) / _CHECK_SHARE
        exact = rules.held_by([reading]) if reading is not None else None
        return exact if exact is not None and exact.bytes > limit else None

    def _judge_machine(self, now: float) -> None:
        self._left = tuple(self._sources.left())
        least = min((left.bytes for left in self._left), default=None)
        if least is not None:
            self._least_left = least if self._least_left is None else min(least, self._least_left)
        for left in self._left:
            if left.headroom_bytes < 0 and (reason := self._largest_reason(left, now)) is not None:
                watched, holding = reason
                self._end(watched, rules.almost_full(watched.server, holding, left))
                break
        headroom = min((left.headroom_bytes for left in self._left), default=0)
        seconds = min(_MACHINE_SECONDS, headroom / (2 * _FASTEST_GROWTH)) if headroom > 0 else self._interval
        self._next_machine = now + max(seconds, _SHORTEST_PAUSE_SECONDS)

    def _judge_pressure(self, now: float) -> None:
        pressure = self._sources.pressure()
        if pressure is None:
            return
        percent = pressure.full_percent
        self._pressure_percent = max(percent, self._pressure_percent or 0.0)
        if percent < rules.STALL_PERCENT:
            self._stalled_since = None
            return
        if self._stalled_since is None:
            self._stalled_since = now
        if now - self._stalled_since >= _STALLED_SECONDS:
            reason = self._largest_reason(None, now)
            if reason is not None:
                watched, holding = reason
                self._end(watched, rules.stalled(watched.server, holding, percent, pressure.source))
                self._stalled_since = None  # the average remembers for a while what is over now

    def _largest_reason(self, left: Left | None, now: float) -> tuple[_Watched, Holding] | None:
        """The largest of our servers, if nothing else is larger; None also while one that was ended is still going."""
        if now < self._next_rival or any(one.is_condemned and one.server.alive for one in self._watched.values()):
            return None
        for one in self._watched.values():
            one.search()  # what a server has started since is a part of it, and no rival
            one.next_search += now
            one.sample(now)
        candidates = [one for one in self._watched.values() if not one.is_condemned]
        ours = [(one, one.holding) for one in candidates if one.holding is not None]
        if not ours:
            return None
        watched, holding = max(ours, key=lambda pair: pair[1].bytes)
        if left is not None and 2 * holding.bytes >= left.total_bytes - left.bytes:
            return watched, holding  # no other can be larger
        members = {pid for one in self._watched.values() for pid in one.tree.pids}
        others: Iterable[int] = (
            psutil.pids() if left is None or left.folder is None else rules.processes_of(left.folder)
        )
        for pid in others:
            if pid not in members and rules.held_by(self._sources.tree(pid).samples()).bytes > holding.bytes:
                self._next_rival = now + _RIVAL_SECONDS  # looking at all processes is costly
                return None
        return watched, holding

    def _end(self, watched: _Watched, error: ServerError) -> None:
        if watched.server.end_because(error):
            watched.is_condemned = True
            self._stops.append(error)
            logger.warning("%s", error.message)

    def _pause(self, now: float) -> float:
        """Until half of the way to the nearest limit is done, at the present growth."""
        pause = min(self._interval, self._next_machine - now)
        limit = self._limits.max_memory_bytes
        for watched in self._watched.values():
            if limit is not None and watched.holding is not None and watched.growth > 0 and not watched.is_condemned:
                pause = min(pause, (limit - watched.holding.bytes) / (2 * watched.growth))
        return max(pause, _SHORTEST_PAUSE_SECONDS)


class _Allowance:
    """CPU time that may be spent: a share of the time that passes, of which a little can be saved up."""

    def __init__(self, now: float) -> None:
        self._seconds = _SAVED_SECONDS
        self._at = now

    def pause_after(self, cost_seconds: float, now: float) -> float:
        """How long to wait after work of this cost, at least."""
        earned = (now - self._at) * _SHARE
        self._seconds = min(_SAVED_SECONDS, self._seconds + earned) - cost_seconds
        self._at = now
        return max(0.0, -self._seconds / _SHARE)
