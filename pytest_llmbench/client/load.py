"""Sending requests: one, a few at a time, or at a rate, and a record of each.

In a closed loop a slow server is asked less often. With a rate, requests leave when the schedule says, whatever the
server does; what counts from the scheduled time is not flattered by a client that waits for answers before it asks
(coordinated omission).
"""

from __future__ import annotations

import asyncio
import gc
import random
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from pytest_llmbench.client.endpoint import Endpoint
from pytest_llmbench.client.exchange import Deadlines, Exchange
from pytest_llmbench.client.generation import Generation
from pytest_llmbench.client.record import record_of
from pytest_llmbench.client.transport import Transport, clock_ns, new_event_loop
from pytest_llmbench.core.records import RequestRecord

_RECORDS_WAITING = 8  # beside two per stream; more would be memory for nothing
_CHORES_NS = 300_000
_SETTLING_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """``streams`` requests are always under way; each stream sends its next when the last is answered.

    Attributes:
        ramp_seconds: the streams begin spread over this time, instead of all at once.
    """

    streams: int = 1
    ramp_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class ConstantRate:
    """A request every 1 / ``per_second`` seconds."""

    per_second: float


@dataclass(frozen=True, slots=True)
class PoissonRate:
    """Requests at random, ``per_second`` on average, independent of each other; the same ones for the same seed."""

    per_second: float
    seed: int = 0


Arrivals: TypeAlias = ClosedLoop | ConstantRate | PoissonRate


@dataclass(frozen=True, slots=True)
class LoadSummary:
    """What became of a load.

    Attributes:
        duration_seconds: from the first request's start to the last one's end.
        max_lag_ms: the longest the client was late itself.
    """

    sent: int
    failed: int
    duration_seconds: float
    max_lag_ms: float


def send(
    endpoint: Endpoint,
    generation: Generation,
    *,
    cell: str | None = None,
    index: int = 0,
    phase: Literal["warmup", "sample"] = "sample",
    deadlines: Deadlines | None = None,
) -> RequestRecord:
    """Send one request and time its answer. Never raises for what a server does: the record says what went wrong."""
    records: list[RequestRecord] = []
    run_load(
        endpoint,
        [generation],
        ClosedLoop(1),
        records.append,
        cell=cell,
        first_index=index,
        phase=phase,
        deadlines=deadlines,
    )
    return records[0]


def run_load(
    endpoint: Endpoint,
    generations: Iterable[Generation],
    arrivals: Arrivals,
    sink: Callable[[RequestRecord], None],
    *,
    cell: str | None = None,
    first_index: int = 0,
    phase: Literal["warmup", "sample"] = "sample",
    deadlines: Deadlines | None = None,
) -> LoadSummary:
    """Send every generation as ``arrivals`` says, and hand each record to ``sink``.

    Never raises for what a server does: the records say what went wrong. Memory grows with the streams, not with the
    requests, if ``sink`` does not keep them.
    """
    load = _Load(endpoint, generations, arrivals, deadlines or Deadlines())

    def on_record(number: int, exchange: Exchange) -> None:
        sink(record_of(exchange, cell=cell, index=first_index + number, phase=phase))

    started_ns = clock_ns()
    with _short_collections():
        _run_on_a_loop_of_its_own(load.run(on_record))
    duration_seconds = max(0, load.ended_ns - started_ns) / 1e9
    return LoadSummary(load.sent, load.failed, duration_seconds, load.longest_lag_ns / 1e6)


class _Load:
    """One run of :func:`run_load`."""

    def __init__(
        self, endpoint: Endpoint, generations: Iterable[Generation], arrivals: Arrivals, deadlines: Deadlines
    ) -> None:
        self._endpoint = endpoint
        self._deadlines = deadlines
        self._generations = iter(generations)
        self._streams = arrivals.streams if isinstance(arrivals, ClosedLoop) else 0
        self._send_times = _send_times(arrivals)
        self._under_way: dict[Exchange, int] = {}
        self._prepared: deque[Exchange] = deque()
        self._to_record: deque[tuple[int, Exchange]] = deque()
        self._transport: Transport
        self._over: asyncio.Future[None]
        self._on_record: Callable[[int, Exchange], None]
        self.sent = self.failed = 0
        self.ended_ns = clock_ns()
        self.longest_lag_ns = 0

    async def run(self, on_record: Callable[[int, Exchange], None]) -> None:
        """Send everything; ``on_record`` gets each exchange when it is done, with its number."""
        self._loop = asyncio.get_running_loop()
        self._on_record = on_record
        self._over = self._loop.create_future()
        # What a callback raises (a full disk, a signal's handler) must end the load, not be logged and forgotten.
        self._loop.set_exception_handler(lambda _, context: self._give_up(context))
        self._transport = Transport(self._endpoint, self._deadlines, self._on_done, self._do_chores)
        try:
            self._start_ns = clock_ns()
            self._schedule_next()
            await self._over
        finally:
            await self._transport.close()

    def _give_up(self, context: dict[str, Any]) -> None:
        if not self._over.done():
            self._over.set_exception(context.get("exception") or RuntimeError(context["message"]))

    def _schedule_next(self) -> None:
        """Plan the next request of the schedule; the first ones of a closed loop all leave at once, or ramp up."""
        offset = next(self._send_times, None)
        exchange = self._next_exchange() if offset is not None else None
        if offset is None or exchange is None:
            self._end_if_over()
            return
        due_ns = self._start_ns + int(offset * 1e9)
        if not self._streams:
            exchange.t_scheduled_ns = due_ns
        self._loop.call_later(max(0.0, (due_ns - clock_ns()) / 1e9), self._send_scheduled, exchange)

    def _send_scheduled(self, exchange: Exchange) -> None:
        if not self._over.done():
            self._transport.start(exchange)
            self._schedule_next()

    def _next_exchange(self) -> Exchange | None:
        if not self._prepared and not self._prepare():
            return None
        exchange = self._prepared.popleft()
        self._under_way[exchange] = self.sent
        self.sent += 1
        return exchange

    def _prepare(self) -> bool:
        """Make the next request ready to be sent; False: there is none."""
        generation = next(self._generations, None)
        if generation is not None:
            self._prepared.append(Exchange(self._endpoint, generation, self._deadlines))
        return generation is not None

    def _on_done(self, exchange: Exchange) -> None:
        self.ended_ns = clock_ns()
        self.failed += exchange.error is not None
        self.longest_lag_ns = max(self.longest_lag_ns, exchange.lag_ns)
        self._to_record.append((self._under_way.pop(exchange), exchange))
        if self._streams and (following := self._next_exchange()) is not None:
            self._transport.start(following)
        if not self._under_way or len(self._to_record) > _RECORDS_WAITING + 2 * self._streams:
            self._loop.call_soon(self._record_one)

    def _do_chores(self) -> None:
        """What can wait, a little at a time: records of what is done, requests that will be sent next.

        Streams that began together end together; all that work at once would make the client late for their next ones.
        """
        until_ns = clock_ns() + _CHORES_NS
        while clock_ns() < until_ns:
            if self._to_record:
                self._record_one()
            elif len(self._prepared) >= self._streams or not self._prepare():
                return

    def _record_one(self) -> None:
        if self._to_record:
            started_ns = clock_ns()
            self._on_record(*self._to_record.popleft())
            self._transport.client_was_late(clock_ns() - started_ns)
        self._end_if_over()

    def _end_if_over(self) -> None:
        if self._under_way:
            return
        if self._to_record:
            self._loop.call_soon(self._record_one)
        elif not self._over.done():
            self._over.set_result(None)


def _run_on_a_loop_of_its_own(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end; in a thread where the caller is inside an event loop already, as in an asynchronous test."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        _run(work)
    else:
        loop = new_event_loop()
        task = loop.create_task(work)
        with ThreadPoolExecutor(1) as executor:
            ending = executor.submit(_drive, loop, task)
            try:
                ending.result()
            except BaseException:  # a signal's handler may raise while this thread waits
                with suppress(RuntimeError):  # the loop is closed already
                    loop.call_soon_threadsafe(task.cancel)
                raise


def _run(work: Coroutine[Any, Any, None]) -> None:
    loop = new_event_loop()
    _drive(loop, loop.create_task(work))


def _drive(loop: asyncio.AbstractEventLoop, task: asyncio.Task[None]) -> None:
    try:
        loop.run_until_complete(task)
    finally:
        _settle(loop)
        loop.close()


def _settle(loop: asyncio.AbstractEventLoop) -> None:
    """End what is left of tasks: a signal's handler may have raised out of the loop, in the midst of any of them."""
    for _ in range(_SETTLING_ROUNDS):
        left = asyncio.all_tasks(loop)
        if not left:
            return
        for task in left:
            task.cancel()
        with suppress(BaseException):  # what such a task raises, the loop raises again; the first is on its way
            loop.run_until_complete(asyncio.wait(left))


def _send_times(arrivals: Arrivals) -> Iterator[float]:
    """Seconds from the start at which requests are due, those of a closed loop only for each stream's first."""
    if isinstance(arrivals, ClosedLoop):
        for stream in range(arrivals.streams):
            yield arrivals.ramp_seconds * stream / arrivals.streams
        return
    chance = random.Random(arrivals.seed) if isinstance(arrivals, PoissonRate) else None  # noqa: S311 -- no secret
    due, number = 0.0, 0
    while True:
        yield due
        number += 1
        due = number / arrivals.per_second if chance is None else due + chance.expovariate(arrivals.per_second)


@contextmanager
def _short_collections() -> Generator[None, None, None]:
    """Keep what exists already out of the garbage collector's walks: those of a large program take milliseconds."""
    if gc.get_freeze_count():  # somebody else's, and it is all or nothing: to thaw ours would thaw theirs
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
