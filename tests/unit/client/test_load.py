"""Many requests: how many are under way, when they leave, and how a load ends."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from types import FrameType
from typing import Any, Final

import pytest

from pytest_llmbench.client import load, transport
from pytest_llmbench.client.exchange import Deadlines, Exchange
from pytest_llmbench.client.generation import Generation
from pytest_llmbench.client.load import ClosedLoop, ConstantRate, LoadSummary, PoissonRate, run_load, send
from pytest_llmbench.core.records import RequestRecord
from tests.servers.faulty import closing, framed, head, token
from tests.servers.scripted import ScriptedServer, chunk
from tests.unit.client.helpers import ASK, END, AnsweringServer, answer, endpoint

pytestmark = pytest.mark.usefixtures("no_leaks")
BOTH_LOOPS = pytest.mark.usefixtures("event_loop_kind")
PATIENT = Deadlines(connect=30, first_token=30, gap=30, whole=60)
SLOW_MACHINE_SECONDS = 20  # far more than anything here takes, far less than PATIENT's patience
P: Final = "llama_cpp"


def at(port: int, **fields: Any) -> Any:
    return endpoint(f"http://127.0.0.1:{port}", **fields)


def nobody() -> int:
    """A port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def answers(connection: socket.socket, _number: int) -> None:
    connection.sendall(answer())


def loaded(port: int, requests: int, arrivals: Any, **fields: Any) -> tuple[list[RequestRecord], LoadSummary]:
    records: list[RequestRecord] = []
    options = {"deadlines": PATIENT, **fields}
    summary = run_load(at(port), [ASK] * requests, arrivals, records.append, **options)
    return sorted(records, key=lambda record: record.index), summary


class Together:
    """Answers only when so many requests are under way at once; notes whether there ever were more."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._barrier = threading.Barrier(count)
        self._lock = threading.Lock()
        self._under_way = 0
        self.most = 0

    def __call__(self, connection: socket.socket, _number: int) -> None:
        with self._lock:
            self._under_way += 1
            self.most = max(self.most, self._under_way)
        try:
            self._barrier.wait(SLOW_MACHINE_SECONDS)
        except threading.BrokenBarrierError:
            connection.close()
            return
        with self._lock:
            self._under_way -= 1
        connection.sendall(answer())


@BOTH_LOOPS
class TestAClosedLoop:
    @pytest.mark.parametrize("streams", [1, 3, 8])
    def test_keeps_exactly_so_many_under_way(self, streams: int) -> None:
        together = Together(streams)  # one fewer would never be answered
        with AnsweringServer(together).running() as port:
            records, summary = loaded(port, 5 * streams, ClosedLoop(streams))
        assert [record.error_message for record in records] == [None] * (5 * streams)
        assert together.most == streams
        assert (summary.sent, summary.failed) == (5 * streams, 0)

    def test_numbers_its_requests_in_the_order_of_the_generations(self) -> None:
        records: list[RequestRecord] = []
        generations = (Generation(max_tokens=number, prompt="Once") for number in range(1, 21))
        with AnsweringServer(answers).running() as port:
            run_load(at(port), generations, ClosedLoop(4), records.append, first_index=100, cell="c", phase="warmup")
        assert {record.index: record.params["n_predict"] for record in records} == {
            100 + number: number + 1 for number in range(20)
        }
        assert {(record.cell, record.phase) for record in records} == {("c", "warmup")}

    def test_has_no_schedule(self) -> None:
        with AnsweringServer(answers).running() as port:
            records, _ = loaded(port, 3, ClosedLoop(1))
        assert [record.t_scheduled_ns for record in records] == [None] * 3

    def test_with_more_streams_than_requests_ends(self) -> None:
        with AnsweringServer(answers).running() as port:
            records, summary = loaded(port, 2, ClosedLoop(50))
        assert len(records) == summary.sent == 2

    def test_may_ramp_up(self) -> None:
        together = Together(4)  # so that none is answered before the last one has left
        with AnsweringServer(together).running() as port:
            records, _ = loaded(port, 4, ClosedLoop(4, ramp_seconds=0.4))
        assert all(record.ok for record in records)
        starts = sorted(record.t_send_ns for record in records)
        for stream, start in enumerate(starts):
            assert start - starts[0] >= stream * 0.1e9 - 0.05e9

    def test_goes_on_after_failures(self) -> None:
        def every_other(connection: socket.socket, number: int) -> None:
            connection.sendall(answer() if number % 2 else b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n")

        with AnsweringServer(every_other).running() as port:
            records, summary = loaded(port, 10, ClosedLoop(1))
        assert [record.error for record in records] == ["http_error", None] * 5
        assert (summary.sent, summary.failed) == (10, 5)

    def test_goes_on_where_nobody_listens(self) -> None:
        records, summary = loaded(nobody(), 10, ClosedLoop(3))
        assert {record.error for record in records} == {"connection_refused"}
        assert (summary.sent, summary.failed) == (10, 10)

    def test_goes_on_with_requests_that_can_not_be_written(self) -> None:
        bad = Generation(max_tokens=4, prompt=(1, 2, 3))
        records: list[RequestRecord] = []
        with AnsweringServer(answers).running() as port:
            target = at(port, protocol="openai_chat")
            run_load(target, [bad] * 500, ClosedLoop(2), records.append, deadlines=PATIENT)
        assert {record.error for record in records} == {"prompt_not_supported"}
        assert len(records) == 500


def test_no_requests_are_no_load() -> None:
    for arrivals in (ClosedLoop(3), ConstantRate(5), PoissonRate(5)):
        summary = run_load(at(nobody()), [], arrivals, fail)
        assert (summary.sent, summary.failed) == (0, 0)
        assert summary.duration_seconds >= 0


@BOTH_LOOPS
class TestARate:
    @pytest.mark.parametrize("arrivals", [ConstantRate(50), PoissonRate(50, seed=4)], ids=["constant", "poisson"])
    def test_is_kept_although_nothing_is_answered(self, arrivals: Any) -> None:
        """No coordinated omission: all leave before the first answer, or there is none."""
        together = Together(20)
        with AnsweringServer(together).running() as port:
            records, summary = loaded(port, 20, arrivals)
        assert [record.error_message for record in records] == [None] * 20
        assert together.most == 20
        assert summary.sent == 20

    def test_is_that_of_the_schedule_to_the_nanosecond_whatever_the_server_does(self) -> None:
        def slowly(connection: socket.socket, number: int) -> None:
            time.sleep(0.05 * (number % 3))
            connection.sendall(answer())

        with AnsweringServer(slowly).running() as port:
            records, _ = loaded(port, 30, ConstantRate(70))
        due = [record.t_scheduled_ns or 0 for record in records]
        assert [moment - due[0] for moment in due] == [int(number / 70 * 1e9) for number in range(30)]
        for record, moment in zip(records, due, strict=True):
            assert record.t_send_ns >= moment - 2_000_000  # timers are whole milliseconds

    def test_that_is_too_high_for_the_client_is_caught_up_and_told(self) -> None:
        """Requests that leave late keep the time at which they were due."""
        with AnsweringServer(answers).running() as port:
            records, _ = loaded(port, 300, ConstantRate(1e6))
        last = records[-1]
        assert last.t_scheduled_ns is not None
        assert records[0].t_scheduled_ns is not None
        assert last.t_scheduled_ns - records[0].t_scheduled_ns == int(299 / 1e6 * 1e9)
        assert last.t_send_ns > last.t_scheduled_ns

    def test_is_kept_where_nobody_listens(self) -> None:
        records, summary = loaded(nobody(), 10, ConstantRate(200))
        assert [record.error for record in records] == ["connection_refused"] * 10
        assert summary.failed == 10

    def test_uses_kept_connections_again(self) -> None:
        server = AnsweringServer(answers)
        with server.running() as port:
            records, _ = loaded(port, 5, ConstantRate(4))  # far apart
        assert all(record.ok for record in records)
        assert server.connections < 5


class TestAPoissonRate:
    def gaps(self, arrivals: PoissonRate, requests: int = 200) -> list[int]:
        records, _ = loaded(nobody(), requests, arrivals)
        due = [record.t_scheduled_ns or 0 for record in records]
        return [moment - due[0] for moment in due]

    def test_is_the_same_for_the_same_seed(self) -> None:
        assert self.gaps(PoissonRate(5000, seed=7)) == self.gaps(PoissonRate(5000, seed=7))

    def test_is_another_for_another_seed(self) -> None:
        assert self.gaps(PoissonRate(5000, seed=7)) != self.gaps(PoissonRate(5000, seed=8))

    def test_does_not_depend_on_what_else_draws_random_numbers(self) -> None:
        random.seed(1)
        first = self.gaps(PoissonRate(5000, seed=7))
        random.seed(2)
        assert self.gaps(PoissonRate(5000, seed=7)) == first

    def test_has_the_rate_and_the_scatter_of_one(self) -> None:
        due = self.gaps(PoissonRate(10_000, seed=7), requests=1000)
        gaps = [after - before for before, after in pairwise(due)]
        mean = sum(gaps) / len(gaps)
        deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
        assert mean == pytest.approx(1e5, rel=0.1)
        assert deviation == pytest.approx(mean, rel=0.15)  # of an exponential distribution


class SinkFailed(Exception):
    pass


class Interrupted(BaseException):
    """Like the exceptions that pytest's own handlers raise."""


class Holding:
    """A server that answers some requests and keeps the others waiting."""

    def __init__(self, answered: int, on_held: Callable[[], None] = lambda: None) -> None:
        self._answered = answered
        self._on_held = on_held
        self.server = AnsweringServer(self._answer)

    def _answer(self, connection: socket.socket, number: int) -> None:
        if number < self._answered:
            connection.sendall(answer())
            return
        self._on_held()
        while not self.server.stop.is_set():
            try:
                if not connection.recv(1):
                    return
            except TimeoutError:
                continue


@BOTH_LOOPS
class TestTheEnd:
    @pytest.mark.parametrize("error", [SinkFailed, OSError, KeyboardInterrupt, SystemExit, Interrupted])
    def test_comes_with_what_the_sink_raises(self, error: type[BaseException]) -> None:
        holding, began, seen = Holding(answered=3), time.monotonic(), 0

        def sink(record: RequestRecord) -> None:
            nonlocal seen
            seen += 1
            if seen == 2:
                raise error("the disk is full")

        with holding.server.running() as port:
            with pytest.raises(error, match="the disk is full"):
                run_load(at(port), [ASK] * 50, ClosedLoop(3), sink, deadlines=PATIENT)
            assert time.monotonic() - began < SLOW_MACHINE_SECONDS  # those under way are not waited for
            assert seen in {2, 3}

    @pytest.mark.parametrize("arrivals", [ClosedLoop(1), ClosedLoop(2), ConstantRate(100)], ids=str)
    @pytest.mark.parametrize("listens", [True, False], ids=["answered", "refused"])
    def test_comes_with_what_the_generations_raise(self, arrivals: Any, listens: bool) -> None:
        def generations() -> Iterator[Generation]:
            yield ASK
            yield ASK
            raise SinkFailed("no more prompts")

        with AnsweringServer(answers).running() as port, pytest.raises(SinkFailed, match="no more prompts"):
            run_load(at(port if listens else nobody()), generations(), arrivals, lambda _: None, deadlines=PATIENT)

    @pytest.mark.parametrize("error", [SinkFailed, KeyboardInterrupt, SystemExit, Interrupted])
    def test_comes_with_what_a_signal_s_handler_raises(self, error: type[BaseException]) -> None:
        began = time.monotonic()
        with signalled(error), waits_for_a_signal().server.running() as port:
            with pytest.raises(error, match="asked to end"):
                run_load(at(port), [ASK] * 5, ClosedLoop(2), lambda _: None, deadlines=PATIENT)
            assert time.monotonic() - began < SLOW_MACHINE_SECONDS

    @pytest.mark.parametrize("error", [SinkFailed, KeyboardInterrupt, Interrupted])
    def test_comes_with_a_signal_between_the_requests_of_a_rate(self, error: type[BaseException]) -> None:
        began = time.monotonic()
        with signalled(error), waits_for_a_signal(answered=1).server.running() as port:
            with pytest.raises(error, match="asked to end"):
                run_load(at(port), [ASK] * 1000, ConstantRate(2), lambda _: None, deadlines=PATIENT)
            assert time.monotonic() - began < SLOW_MACHINE_SECONDS

    @pytest.mark.parametrize("listens", [True, False], ids=["answered", "refused"])
    def test_leaves_nothing_open_whatever_was_under_way(self, listens: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(transport, "_CLOSING_SECONDS", 0.1)  # uvloop may keep a connection for as long as that
        with AnsweringServer(answers).running() as port:
            for count in range(1, 12):
                seen = 0

                def sink(record: RequestRecord) -> None:
                    nonlocal seen
                    seen += 1
                    if seen == count:  # noqa: B023 -- called in this round only
                        raise SinkFailed

                target, rate = at(port if listens else nobody()), PoissonRate(3000, count)
                with pytest.raises(SinkFailed):
                    in_time(partial(run_load, target, [ASK] * 40, rate, sink, deadlines=PATIENT))

    @pytest.mark.parametrize("somebody_froze", [True, False])
    def test_leaves_the_garbage_collector_as_it_was(self, somebody_froze: bool) -> None:
        (gc.freeze if somebody_froze else gc.unfreeze)()
        enabled = gc.isenabled()
        try:
            with pytest.raises(SinkFailed), AnsweringServer(answers).running() as port:
                run_load(at(port), [ASK], ClosedLoop(1), fail, deadlines=PATIENT)
            assert (gc.get_freeze_count() > 0, gc.isenabled()) == (somebody_froze, enabled)
        finally:
            gc.freeze()  # as tests/conftest.py left it


class InterruptedWhileConnecting(asyncio.SelectorEventLoop):
    """Where a signal's handler may raise just as well as anywhere else."""

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        raise KeyboardInterrupt("asked to end")


def test_an_interrupt_inside_one_of_several_nested_tasks_leaves_no_loop_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes out of the loop once for each task that waits for the one it hit."""
    loop = InterruptedWhileConnecting()
    monkeypatch.setattr(load, "new_event_loop", lambda: loop)
    with pytest.raises(KeyboardInterrupt, match="asked to end"):
        run_load(at(1), [ASK] * 4, ClosedLoop(2), lambda _: None, deadlines=PATIENT)
    closed = loop.is_closed()
    loop.close()
    assert closed


def in_time(work: Callable[[], object]) -> None:
    """Run it in a thread, because what hangs inside uvloop's ``close`` can be interrupted by nothing."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as exc:  # noqa: BLE001 -- handed on
            raised.append(exc)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(SLOW_MACHINE_SECONDS)
    assert not thread.is_alive(), "it hangs"
    if raised:
        raise raised[0]


def fail(record: RequestRecord) -> None:
    raise SinkFailed


class signalled:  # noqa: N801 -- reads as what it is
    """A handler of SIGUSR1 that raises, as long as the context lasts."""

    def __init__(self, error: type[BaseException]) -> None:
        self._error = error

    def __enter__(self) -> None:
        self._previous = signal.signal(signal.SIGUSR1, self._handle)

    def __exit__(self, *exc: object) -> None:
        signal.signal(signal.SIGUSR1, self._previous)

    def _handle(self, _signum: int, _frame: FrameType | None) -> None:
        raise self._error("asked to end")


def waits_for_a_signal(answered: int = 0) -> Holding:
    """Sends this process a signal, once, when a request is under way that will never be answered."""
    once = threading.Lock()

    def on_held() -> None:
        if once.acquire(blocking=False):
            time.sleep(
                0.2
            )  # the client waits by then; Python loses what is raised while it runs a weak reference's callback
            os.kill(os.getpid(), signal.SIGUSR1)

    return Holding(answered, on_held)


@BOTH_LOOPS
class TestInsideAnEventLoop:
    def test_a_load_runs_all_the_same(self) -> None:
        async def asynchronous_test() -> tuple[list[RequestRecord], LoadSummary]:
            return loaded(port, 6, ClosedLoop(2))

        with AnsweringServer(answers).running() as port:
            records, summary = asyncio.run(asynchronous_test())
        assert [record.ok for record in records] == [True] * 6
        assert summary.sent == 6

    def test_a_single_request_too(self) -> None:
        async def asynchronous_test() -> RequestRecord:
            return send(at(port), ASK, deadlines=PATIENT)

        with AnsweringServer(answers).running() as port:
            assert asyncio.run(asynchronous_test()).output == "One two"

    def test_what_the_sink_raises_ends_it(self) -> None:
        async def asynchronous_test() -> None:
            run_load(at(port), [ASK] * 3, ClosedLoop(1), fail, deadlines=PATIENT)

        with AnsweringServer(answers).running() as port, pytest.raises(SinkFailed):
            asyncio.run(asynchronous_test())

    def test_what_a_signal_s_handler_raises_ends_it_at_once(self) -> None:
        async def asynchronous_test() -> None:
            run_load(at(port), [ASK], ClosedLoop(1), lambda _: None, deadlines=Deadlines(first_token=25))

        began = time.monotonic()
        with signalled(Interrupted), waits_for_a_signal().server.running() as port:
            with pytest.raises(Interrupted, match="asked to end"):
                asyncio.run(asynchronous_test())
            assert time.monotonic() - began < SLOW_MACHINE_SECONDS


@BOTH_LOOPS
class TestTheClientSLateness:
    def test_is_told_by_a_record_whose_bytes_waited_for_the_sink(self) -> None:
        """One answer comes while the sink of another sleeps: when it came, nobody can say."""
        sleeps = threading.Event()

        def answers_while_the_sink_sleeps(connection: socket.socket, number: int) -> None:
            if number == 1:
                sleeps.wait(SLOW_MACHINE_SECONDS)
                connection.sendall(answer())
            elif number == 0:
                time.sleep(0.1)  # so that both are under way
                connection.sendall(answer())

        def sink(record: RequestRecord) -> None:
            records.append(record)
            if len(records) == 1:
                sleeps.set()
                time.sleep(0.5)

        records: list[RequestRecord] = []
        with AnsweringServer(answers_while_the_sink_sleeps).running() as port:
            summary = run_load(at(port), [ASK] * 2, ClosedLoop(2), sink, deadlines=PATIENT)
        waited = records[1]
        assert waited.ok
        assert waited.flags == ["client_late"]
        assert waited.client_lag_ms >= 400
        assert summary.max_lag_ms >= 400

    def test_is_told_where_another_thread_takes_the_interpreter(self) -> None:
        """Most of the wait for the first token goes by while this process can not look at its sockets."""
        asked = threading.Event()

        def answers_late(connection: socket.socket, number: int) -> None:
            asked.set()
            time.sleep(0.2)
            connection.sendall(answer())

        def hog() -> None:
            asked.wait(SLOW_MACHINE_SECONDS)
            numbers = [random.random() for _ in range(300_000)]
            end = time.monotonic() + 0.8
            while time.monotonic() < end:
                sorted(numbers)  # one long call without a pause for others

        with AnsweringServer(answers_late).running() as port:
            thread = threading.Thread(target=hog)
            thread.start()
            record = send(at(port), ASK, deadlines=PATIENT)
            thread.join()
        assert record.ok
        assert record.client_lag_ms > 10
        assert record.flags == ["client_late"]

    def test_is_not_made_up_of_what_the_server_takes(self) -> None:
        """Once in a few attempts, even a busy machine leaves 300 ms without a pause of 15."""
        body = answer().partition(b"\r\n\r\n")[2]
        for _ in range(10):
            with ScriptedServer((0, head(P)), (0.3, body)) as server:
                record = send(endpoint(server.url), ASK, deadlines=PATIENT)
            assert record.ok
            if not record.flags:
                break
        assert record.flags == []


@BOTH_LOOPS
def test_memory_does_not_grow_with_the_requests() -> None:
    def living() -> int:
        gc.collect()
        return sum(type(one) is Exchange for one in gc.get_objects())

    alive: list[int] = []
    before = living()  # what failed tests hold on to

    def sink(record: RequestRecord) -> None:
        if record.index % 300 == 299:
            alive.append(living() - before)

    with AnsweringServer(answers).running() as port:
        summary = run_load(at(port), (ASK for _ in range(1500)), ClosedLoop(4), sink, deadlines=PATIENT)
    assert summary.sent == 1500
    assert len(alive) == 5
    assert max(alive) < 60  # those under way, and the few that may wait for a quiet moment to be recorded
    assert living() <= before


def test_generations_are_drawn_when_they_are_needed() -> None:
    drawn = 0
    most_ahead = 0

    def generations() -> Iterator[Generation]:
        nonlocal drawn
        for _ in range(1000):
            drawn += 1
            yield ASK

    def sink(record: RequestRecord) -> None:
        nonlocal most_ahead
        most_ahead = max(most_ahead, drawn - record.index)

    with AnsweringServer(answers).running() as port:
        run_load(at(port), generations(), ClosedLoop(2), sink, deadlines=PATIENT)
    assert drawn == 1000
    assert most_ahead < 60


def test_a_long_stream_of_many_answers_is_all_there() -> None:
    pieces = b"".join(chunk(framed(P, token(P, str(number % 10)))) for number in range(500))
    whole = head(P) + pieces + chunk(framed(P, closing(P, 500)[0])) + END

    with AnsweringServer(lambda connection, _: connection.sendall(whole)).running() as port:
        records, _ = loaded(port, 40, ClosedLoop(8))
    assert {record.output for record in records} == {"0123456789" * 50}
    assert {record.chunks for record in records} == {500}
