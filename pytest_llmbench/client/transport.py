"""Connections: bytes out, bytes in with a timestamp, as close to the kernel as Python gets.

What arrives is stamped at once and put aside. What it means is worked out at the next tick of a slow clock, or when an
answer seems to end: a few pieces at a time, with a look at the sockets in between. So the work on one answer hardly
delays the timestamps of another, and a woken process does little before it sleeps again, which is what costs. The loop
sleeps in the kernel, and samples how late it is itself.

uvloop, where it is installed, keeps Python out of the way between the kernel and the timestamp: a token that wakes a
sleeping process costs a fraction of what it costs with the standard library's loop, and is stamped earlier.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias, cast
from urllib.parse import urlsplit

from pytest_llmbench.client.endpoint import Endpoint
from pytest_llmbench.client.exchange import Deadlines, Exchange
from pytest_llmbench.errors import RequestError

clock_ns = time.perf_counter_ns  # on Linux CLOCK_MONOTONIC, so that processes of one machine can compare readings

_WORK_AT_ONCE = 8  # arrivals worked out before the sockets are looked at again
_HURRY_ABOVE = 64  # arrivals that are not kept waiting for the tick
_END_OF_BODY = b"0\r\n\r\n"  # of a chunked one
_TICK_SECONDS = 0.02  # how often the loop's own lateness is sampled and deadlines are checked
_CLOSING_SECONDS = 2.0
_TIMER_GRAIN_NS = 1_000_000  # the loop's timers are whole milliseconds; no more than that is no lateness
_Arrival: TypeAlias = bytes | Exception | None  # bytes, or how the connection ended: broken, or closed in order


def new_event_loop() -> asyncio.AbstractEventLoop:
    """The best event loop there is."""
    try:
        import uvloop
    except ImportError:  # no wheel for this platform
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


class _Wire(asyncio.Protocol):
    """One connection, carrying one exchange at a time."""

    def __init__(self, owner: Transport) -> None:
        self._owner = owner
        self.exchange: Exchange | None = None
        self.closed = False
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is none by name
        self._owner.opened(self)
        self.transport.set_write_buffer_limits(0)  # else uvloop writes at the end of its iteration, not at once

    def data_received(self, data: bytes) -> None:
        self._owner.arrived(self, data, clock_ns())

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._owner.lost(self)
        self._owner.arrived(self, exc, clock_ns())

    def send(self, exchange: Exchange) -> None:
        self.exchange = exchange
        exchange.sent(clock_ns())
        self.transport.write(exchange.request)


class Transport:
    """Carries exchanges with one endpoint on a running event loop.

    Args:
        on_done: called with each exchange when it is done.
        on_quiet: called at most once a tick, when nothing waits to be worked out.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        deadlines: Deadlines,
        on_done: Callable[[Exchange], None],
        on_quiet: Callable[[], None],
    ) -> None:
        self._endpoint = endpoint
        self._deadlines = deadlines
        self._on_done = on_done
        self._on_quiet = on_quiet
        self._loop = asyncio.get_running_loop()
        address = urlsplit(endpoint.base_url)
        self._host = address.hostname or ""
        self._port = address.port or (443 if address.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if address.scheme == "https" else None
        self._addresses: list[tuple[int, str]] | None = None
        self._connecting: set[asyncio.Task[None]] = set()
        self._open_wires: set[_Wire] = (
            set()
        )  # also those whose task was cancelled before it was told that they are open
        self._busy: set[_Wire] = set()
        self._idle: list[_Wire] = []
        self._inbox: deque[tuple[_Wire, Exchange | None, _Arrival, int]] = deque()
        self._work_scheduled = False
        self._reuses = True
        self._closed = self._chores_due = False
        self._next_tick_ns = 0
        self._tick_timer: asyncio.TimerHandle | None = None

    def start(self, exchange: Exchange) -> None:
        """Send an exchange's request, on an idle connection where there is one."""
        if self._closed:
            return
        if exchange.done:  # it could not even be written down
            self._loop.call_soon(self._on_done, exchange)
            return
        if self._tick_timer is None:
            self._plan_tick()
        while self._idle and not exchange.retries:
            wire = self._idle.pop()
            if not wire.closed and not wire.transport.is_closing():
                exchange.connection_reused = True
                self._send(wire, exchange)
                return
        exchange.connection_reused = False
        task = self._loop.create_task(self._connect(exchange))
        self._connecting.add(task)
        task.add_done_callback(self._connected)

    async def close(self) -> None:
        """Close every connection, also those in use; nothing can be started any more."""
        self._closed = True
        if self._tick_timer is not None:
            self._tick_timer.cancel()
        for task in list(self._connecting):
            task.cancel()
        if self._connecting:
            await asyncio.wait(self._connecting, timeout=_CLOSING_SECONDS)
        for wire in self._open_wires:
            wire.transport.abort()
        deadline_ns = clock_ns() + int(_CLOSING_SECONDS * 1e9)
        while self._open_wires and clock_ns() < deadline_ns:  # uvloop can not close a loop that something is open on
            await asyncio.sleep(0.001)

    def opened(self, wire: _Wire) -> None:
        """A connection is open."""
        self._open_wires.add(wire)

    def lost(self, wire: _Wire) -> None:
        """A connection is gone."""
        self._open_wires.discard(wire)

    def client_was_late(self, lag_ns: int) -> None:
        """Tell the exchanges under way that their bytes may have waited so long for this process."""
        for wire in self._busy:
            if wire.exchange is not None:
                wire.exchange.client_was_late(lag_ns)

    # Connecting

    def _connected(self, task: asyncio.Task[None]) -> None:
        self._connecting.discard(task)
        if not task.cancelled():
            task.result()  # what a signal's handler raised in there is for the loop's exception handler

    async def _connect(self, exchange: Exchange) -> None:
        started_ns = clock_ns()
        try:
            wire = await asyncio.wait_for(self._open(), self._deadlines.connect)
        except (TimeoutError, asyncio.TimeoutError):
            message = f"{self._endpoint.base_url}: no connection within {self._deadlines.connect:g} s; "
            exchange.fail(RequestError("connect_timeout", message + "is the host reachable?"), clock_ns())
        except (OSError, UnicodeError) as exc:  # the latter of a name that can be no host's
            exchange.fail(_connect_error(self._endpoint.base_url, exc), clock_ns())
        else:
            exchange.connect_seconds = (clock_ns() - started_ns) / 1e9
            if wire.closed or wire.transport.is_closing():  # again, before this task was told that it is open
                self._lost(wire, exchange, None, clock_ns())
            else:
                self._send(wire, exchange)
            return
        self._on_done(exchange)

    async def _open(self) -> _Wire:
        """Connect, trying IPv4 first: ``localhost`` may name an IPv6 address nobody listens on."""
        if self._addresses is None:
            found = await self._loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            found.sort(key=lambda info: info[0] != socket.AF_INET)
            self._addresses = list(dict.fromkeys((info[0], str(info[4][0])) for info in found))
        first_error: OSError | None = None
        for family, address in self._addresses:
            options: dict[str, Any] = {"ssl": self._tls, "server_hostname": self._host} if self._tls else {}
            try:
                _, wire = await self._loop.create_connection(
                    lambda: _Wire(self), address, self._port, family=family, **options
                )
            except OSError as exc:
                first_error = first_error or exc  # that of the preferred address says most
            else:
                return wire
        raise first_error or OSError("no address")

    # Carrying

    def _send(self, wire: _Wire, exchange: Exchange) -> None:
        self._busy.add(wire)
        wire.send(exchange)

    def arrived(self, wire: _Wire, what: _Arrival, t_ns: int) -> None:
        """Put aside what came, to be worked out when the sockets have been read."""
        if self._closed:
            return
        self._inbox.append((wire, wire.exchange, what, t_ns))
        if not isinstance(what, bytes) or what.endswith(_END_OF_BODY) or len(self._inbox) > _HURRY_ABOVE:
            self._work_soon()

    def _work_soon(self) -> None:
        if not self._work_scheduled:
            self._work_scheduled = True
            self._loop.call_soon(self._work)

    def _work(self) -> None:
        """Work out a few arrivals, then let the loop look at the sockets."""
        self._work_scheduled = False
        self._work_off(_WORK_AT_ONCE)
        if self._inbox:
            self._work_soon()
        elif self._chores_due:
            self._chores_due = False
            self._on_quiet()

    def _work_off(self, at_most: int) -> None:
        for _ in range(min(at_most, len(self._inbox))):
            wire, exchange, what, t_ns = self._inbox.popleft()
            if exchange is None or exchange.done:  # the server closed an idle connection, or says what nobody asked for
                if wire.exchange is None:
                    self._drop(wire)
                else:  # and somebody has just begun to use it
                    self._lost(wire, wire.exchange, None, t_ns)
            elif isinstance(what, bytes):
                if exchange.received(what, t_ns):
                    self._end(wire, exchange)
            else:
                self._lost(wire, exchange, what, t_ns)

    def _lost(self, wire: _Wire, exchange: Exchange, error: Exception | None, t_ns: int) -> None:
        self._drop(wire)
        # llama.cpp's server answers keep-alive and hangs up all the same; once is enough to learn it.
        self._reuses = self._reuses and not exchange.connection_reused
        how = f"the connection broke ({error})" if error is not None else "the server hung up"
        if exchange.connection_lost(how, t_ns):
            self.start(exchange)
        else:
            self._on_done(exchange)

    # Ending

    def _end(self, wire: _Wire, exchange: Exchange) -> None:
        """The exchange is done: keep the connection where both sides want to."""
        if exchange.keeps_connection and self._reuses and not wire.closed:
            self._busy.discard(wire)
            wire.exchange = None
            self._idle.append(wire)
        else:
            self._drop(wire)
        self._on_done(exchange)

    def _drop(self, wire: _Wire) -> None:
        self._busy.discard(wire)
        if wire in self._idle:
            self._idle.remove(wire)
        wire.exchange = None
        wire.transport.abort()

    # The loop's own lateness, and deadlines

    def _plan_tick(self) -> None:
        self._next_tick_ns = clock_ns() + int(_TICK_SECONDS * 1e9)
        self._tick_timer = self._loop.call_later(_TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        now_ns = clock_ns()
        lag_ns = now_ns - self._next_tick_ns - _TIMER_GRAIN_NS
        if lag_ns > 0:
            self.client_was_late(lag_ns)
        late = [wire for wire in self._busy if wire.exchange is not None and now_ns >= wire.exchange.deadline_ns]
        if late:
            self._work_off(len(self._inbox))  # what has arrived may be what is waited for
        for wire in late:
            exchange = wire.exchange
            if exchange is not None and now_ns >= exchange.deadline_ns:
                exchange.time_out(now_ns)
                self._end(wire, exchange)
        self._chores_due = True
        self._work_soon()
        self._tick_timer = None
        if self._busy or self._connecting:
            self._plan_tick()


def _connect_error(base_url: str, error: OSError | UnicodeError) -> RequestError:
    if isinstance(error, ssl.SSLError | ssl.CertificateError):
        return RequestError("tls_failed", f"{base_url}: TLS failed: {error.reason or error}; check the scheme")
    if isinstance(error, ConnectionRefusedError):
        return RequestError("connection_refused", f"{base_url}: nothing listens there; start the server")
    return RequestError("unreachable", f"{base_url}: can not be reached: {getattr(error, 'strerror', None) or error}")
