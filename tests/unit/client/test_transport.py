"""Connections over real sockets: how they are made, lost and used again, and whose time is whose."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest

from pytest_llmbench.client import load
from pytest_llmbench.client.exchange import Deadlines
from pytest_llmbench.client.load import ClosedLoop, ConstantRate, run_load, send
from pytest_llmbench.client.transport import new_event_loop
from pytest_llmbench.core.records import RequestRecord, to_line
from tests.servers.faulty import FAULTS, Expected, Fault, FaultyServer, Turn, closing, framed, good, head, token
from tests.servers.scripted import STREAM_HEAD, ScriptedServer, chunk, http_response, replies
from tests.unit.client.helpers import (
    ASK,
    END,
    KEY,
    AnsweringServer,
    answer,
    deadlines_of,
    differences,
    endpoint,
    turn,
)

pytestmark = pytest.mark.usefixtures("no_leaks")
ONE_BY_ONE = ClosedLoop(1)
QUICK = Deadlines(connect=10, first_token=10, gap=10, whole=20)
BOTH_LOOPS = pytest.mark.usefixtures("event_loop_kind")
P: Final = "llama_cpp"


def asked(fault: Fault, deadlines: Deadlines | None = None, arrivals: Any = ONE_BY_ONE) -> list[RequestRecord]:
    """The records of a client that asks a faulty server."""
    records: list[RequestRecord] = []
    with FaultyServer(fault) as server:
        target = endpoint(server.url, fault.protocol)
        run_load(target, [ASK] * fault.requests, arrivals, records.append, deadlines=deadlines or deadlines_of(fault))
    return sorted(records, key=lambda record: record.index)


def server_of(*turns: Turn, requests: int = 1) -> Fault:
    return Fault(P, turns, Expected(), requests=requests)


@pytest.mark.parametrize(
    "name",
    [
        "openai_chat: keeps the connection",
        "openai_chat: closes a kept connection under a request",
        "openai_chat: resets a kept connection under a request",
        "openai_chat: resets before a byte",
        "openai_chat: closes inside a chunk",
        "openai_chat: stalls in the middle",
        "openai_chat: refused",
        "openai_chat: endless header",
        "openai_chat: a write for every byte",
    ],
)
@BOTH_LOOPS
def test_either_event_loop_will_do(name: str) -> None:
    assert differences(asked(FAULTS[name])[-1], FAULTS[name].expected) == {}


class TestTimes:
    @BOTH_LOOPS
    def test_are_those_of_the_server(self) -> None:
        first, second, third, final = replies(["Once", " upon", " a"], model="tiny")
        steps = (0.05, STREAM_HEAD), (0.15, first), (0.1, second), (0.1, third), (0.05, final + END)
        (record,) = asked(server_of(turn(*steps)))
        assert record.ok
        assert record.output == "Once upon a"
        assert record.t_first_byte_ns is not None
        assert record.t_first_token_ns is not None
        assert record.t_last_token_ns is not None
        assert record.ttft_seconds is not None
        # Never less than what the server waited; more only by what a busy machine adds.
        assert 0.05e9 <= record.t_first_byte_ns - record.t_send_ns < 5e9
        assert 0.2 <= record.ttft_seconds < 5
        assert record.t_first_token_ns - record.t_first_byte_ns + 0.05e9 >= 0.15e9
        assert 0.4e9 <= record.t_last_token_ns - record.t_send_ns < 8e9
        assert 0.45e9 <= record.t_end_ns - record.t_send_ns < 8e9
        assert record.token_offsets_us == sorted(record.token_offsets_us)
        assert record.decode_tokens_per_second == pytest.approx(
            2e9 / (record.t_last_token_ns - record.t_first_token_ns)
        )

    def test_of_pieces_that_came_apart_are_apart_although_they_are_worked_out_together(self) -> None:
        # A tick of the client is 20 ms: these all lie in a few of them.
        pieces = [(0.003, chunk(framed(P, token(P, "a")))) for _ in range(30)]
        (record,) = asked(server_of(turn((0, head(P)), *pieces, (0, chunk(framed(P, closing(P, 30)[0])) + END))))
        assert record.chunks == 30
        gaps = [after - before for before, after in pairwise(record.token_offsets_us)]
        assert sum(gap > 0 for gap in gaps) > 15
        assert record.token_offsets_us[-1] - record.token_offsets_us[0] > 29 * 3000 * 0.9

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="fills the queue of connections")
    def test_connecting_is_not_part_of_the_time_to_the_first_token(self) -> None:
        (record,) = asked(FAULTS["openai_chat: connects late"])  # by half a second or more; then answers at once
        assert record.connect_seconds is not None
        assert record.ttft_seconds is not None
        assert record.connect_seconds > 0.5
        assert record.ttft_seconds < record.connect_seconds
        assert record.t_send_ns > 0


class TestConnecting:
    @BOTH_LOOPS
    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
    def test_to_nobody_is_refused(self, host: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        record = send(endpoint(f"http://{host}:{port}"), ASK, deadlines=QUICK)
        assert record.error == "connection_refused"
        assert "start the server" in str(record.error_message)
        assert (record.connect_seconds, record.ttft_seconds, record.t_first_byte_ns) == (None, None, None)

    @BOTH_LOOPS
    @pytest.mark.parametrize(
        "host",
        ["no-such-host.invalid", "a..b", "a" * 70 + ".invalid"],
        ids=["unknown", "empty label", "label too long"],
    )
    def test_to_a_name_that_does_not_exist_is_unreachable(self, host: str) -> None:
        assert send(endpoint(f"http://{host}"), ASK, deadlines=QUICK).error == "unreachable"

    @BOTH_LOOPS
    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a full queue of connections is refused elsewhere")
    def test_to_a_host_that_does_not_accept_times_out(self) -> None:
        (record,) = asked(FAULTS["openai_chat: connects never"])
        assert record.error == "connect_timeout"
        assert "0.3 s" in str(record.error_message)

    @BOTH_LOOPS
    def test_to_a_server_that_hangs_up_at_once_is_lost_and_soon(self) -> None:
        """The connection may be gone before the client has come to writing its request."""
        began = time.monotonic()
        stop = threading.Event()
        records: list[RequestRecord] = []
        with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
            listener.settimeout(0.02)
            thread = threading.Thread(target=self._accept_and_reset, args=(listener, stop))
            thread.start()
            try:
                url = f"http://127.0.0.1:{listener.getsockname()[1]}"
                slow = Deadlines(first_token=30)
                run_load(endpoint(url), [ASK] * 100, ClosedLoop(8), records.append, deadlines=slow)
            finally:
                stop.set()
                thread.join(10)
        assert {record.error for record in records} <= {"connection_lost", "unreachable"}
        assert len(records) == 100
        assert time.monotonic() - began < 25

    @staticmethod
    def _accept_and_reset(listener: socket.socket, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()

    @pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"])
    def test_goes_past_every_proxy_of_the_environment(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with AnsweringServer(lambda connection, _: connection.close()).running() as proxy:
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy}")
            monkeypatch.delenv("no_proxy", raising=False)
            monkeypatch.delenv("NO_PROXY", raising=False)
            (record,) = asked(server_of(turn((0, answer()))))
        assert record.ok

    def test_carries_the_request_as_it_was_written(self) -> None:
        with ScriptedServer((0, answer())) as server:
            record = send(
                endpoint(server.url, api_key=KEY), ASK, cell="the cell", index=3, phase="warmup", deadlines=QUICK
            )
        assert server.head.startswith("POST /completion HTTP/1.1\r\nHost: 127.0.0.1:")
        assert f"Authorization: Bearer {KEY}" in server.head
        assert KEY not in to_line(record)
        assert (record.cell, record.index, record.phase) == ("the cell", 3, "warmup")

    def test_carries_a_request_of_many_megabytes(self) -> None:
        long = type(ASK)(max_tokens=4, prompt="x" * 5_000_000)
        with ScriptedServer((0, answer())) as server:
            record = send(endpoint(server.url), long, deadlines=QUICK)
        assert record.ok
        assert len(server.body) > 5_000_000

    @pytest.mark.parametrize("key", ["k€y", "key\r\nX-Injected: yes"], ids=ascii)
    def test_does_not_even_begin_for_a_request_that_can_not_be_written(self, key: str) -> None:
        server = AnsweringServer(lambda connection, _: connection.sendall(answer()))
        with server.running() as port:
            record = send(endpoint(f"http://127.0.0.1:{port}", api_key=key), ASK, deadlines=QUICK)
        assert record.error == "wrong_key"
        assert server.connections == 0


def _ipv6_works() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.skipif(not _ipv6_works(), reason="no IPv6 on this host")
class TestLocalhost:
    """P14, with a resolver that names the IPv6 address first, as many do."""

    @pytest.fixture(autouse=True)
    def resolver(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = socket.getaddrinfo

        def both(host: Any, port: Any, *args: Any, **kwargs: Any) -> list[Any]:
            hosts = ["::1", "127.0.0.1"] if host == "localhost" else [host]
            return [info for one in hosts for info in real(one, port, *args, **kwargs)]

        monkeypatch.setattr(socket, "getaddrinfo", both)
        monkeypatch.setattr(load, "new_event_loop", asyncio.new_event_loop)  # uvloop resolves by itself

    def test_is_127_0_0_1_first(self) -> None:
        old, new = (AnsweringServer(lambda connection, _: connection.sendall(answer())) for _ in range(2))
        with old.running() as port, new.running("::1", port):
            assert send(endpoint(f"http://localhost:{port}"), ASK, deadlines=QUICK).ok
        assert (old.connections, new.connections) == (1, 0)

    def test_may_be_the_other_where_nobody_listens_on_that(self) -> None:
        new = AnsweringServer(lambda connection, _: connection.sendall(answer()))
        with new.running("::1") as port:
            assert send(endpoint(f"http://localhost:{port}"), ASK, deadlines=QUICK).ok
        assert new.connections == 1


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1, with its key, that nobody trusts."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl makes the certificate")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    key = path.with_name("key.pem")
    made = subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"),
            *("-keyout", str(key), "-out", str(path)),
        ],
        capture_output=True,
        check=False,
    )
    if made.returncode != 0:
        pytest.skip(f"openssl made no certificate: {made.stderr.decode()}")
    path.write_bytes(path.read_bytes() + key.read_bytes())
    return path


class TestTls:
    @pytest.fixture
    def wrap(self, certificate: Path) -> Callable[[socket.socket], socket.socket]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        return lambda connection: context.wrap_socket(connection, server_side=True)

    @BOTH_LOOPS
    def test_carries_answers_and_keeps_the_connection(
        self,
        certificate: Path,
        wrap: Callable[[socket.socket], socket.socket],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        server = AnsweringServer(lambda connection, _: connection.sendall(answer()))
        records: list[RequestRecord] = []
        with server.running(wrap=wrap) as port:
            target = endpoint(f"https://127.0.0.1:{port}")
            run_load(target, [ASK] * 3, ClosedLoop(1), records.append, deadlines=QUICK)
        assert [record.error_message for record in records] == [None] * 3
        assert [record.connection_reused for record in records] == [False, True, True]
        assert server.connections == 1

    @BOTH_LOOPS
    def test_does_not_trust_anybody(self, wrap: Callable[[socket.socket], socket.socket]) -> None:
        server = AnsweringServer(lambda connection, _: connection.sendall(answer()))
        with server.running(wrap=wrap) as port:
            record = send(endpoint(f"https://127.0.0.1:{port}", api_key=KEY), ASK, deadlines=QUICK)
        assert record.error == "tls_failed"
        assert server.requests == 0  # nobody got the key

    @BOTH_LOOPS
    def test_with_a_server_that_speaks_none_fails_as_such(self) -> None:
        with ScriptedServer((0, b"HTTP/1.1 400 Bad Request\r\n\r\n"), reads=False) as server:
            record = send(endpoint(f"https://{server.address}"), ASK, deadlines=QUICK)
        assert record.error == "tls_failed"
        assert "check the scheme" in str(record.error_message)


@BOTH_LOOPS
class TestAKeptConnection:
    def test_is_used_again_and_connecting_is_not_paid_twice(self) -> None:
        server = AnsweringServer(lambda connection, _: connection.sendall(answer()))
        records: list[RequestRecord] = []
        with server.running() as port:
            run_load(endpoint(f"http://127.0.0.1:{port}"), [ASK] * 5, ClosedLoop(1), records.append, deadlines=QUICK)
        assert all(record.ok for record in records)
        assert [record.connection_reused for record in records] == [False, True, True, True, True]
        assert [record.connect_seconds is None for record in records] == [False, True, True, True, True]
        assert (server.connections, server.requests) == (1, 5)

    def test_is_not_used_again_where_the_server_says_so(self) -> None:
        body = b"".join(framed(P, event) for event in [token(P, "One"), *closing(P, 1)])
        closes = head(P, "Connection: close", f"Content-Length: {len(body)}") + body
        server = AnsweringServer(lambda connection, _: connection.sendall(closes))
        records: list[RequestRecord] = []
        with server.running() as port:
            run_load(endpoint(f"http://127.0.0.1:{port}"), [ASK] * 3, ClosedLoop(1), records.append, deadlines=QUICK)
        assert [(record.ok, record.connection_reused) for record in records] == [(True, False)] * 3
        assert server.connections == 3

    @pytest.mark.parametrize("how", ["close", "reset"])
    def test_that_broke_under_a_request_costs_one_retry_and_is_the_last(self, how: Any) -> None:
        good_one = turn((0, answer()))
        records = asked(server_of(good_one, Turn(then=how), good_one, requests=4), QUICK)
        assert [record.error_message for record in records] == [None] * 4
        assert [record.retries for record in records] == [0, 1, 0, 0]
        assert not any(record.connection_reused for record in records)

    def test_that_broke_under_an_answer_is_the_last_too_but_nothing_is_asked_again(self) -> None:
        broken = Turn(((0, head(P) + chunk(framed(P, token(P, "One")))), (0.05, b"")), "reset")
        good_one = turn((0, answer()))
        records = asked(server_of(good_one, broken, good_one, requests=4), QUICK)
        assert [record.error for record in records] == [None, "stream_truncated", None, None]
        assert [record.retries for record in records] == [0] * 4
        assert [record.connection_reused for record in records] == [False, True, False, False]

    def test_after_a_failed_request_is_not_used_again(self) -> None:
        refusal = turn((0, http_response("500 Oops", "text/plain", b"why")))
        records = asked(server_of(refusal, requests=3), QUICK)
        assert [(record.error, record.connection_reused) for record in records] == [("http_error", False)] * 3

    def test_that_closed_in_between_costs_nothing(self) -> None:
        fault = FAULTS["llama_cpp: closes a kept connection after the answer"]
        records = asked(Fault(P, fault.turns, good(), requests=2), QUICK, ConstantRate(3))
        assert [(record.ok, record.retries) for record in records] == [(True, 0)] * 2

    # The next two hang, and no deadline of the client's ends them, if a request is lost with the connection it is on.
    @pytest.mark.timeout(30)
    def test_that_said_more_than_it_was_asked_does_not_lose_the_next_request(self) -> None:
        body = b"".join(framed(P, event) for event in [token(P, "One"), *closing(P, 1)])
        whole = head(P, f"Content-Length: {len(body)}") + body
        stray = http_response("408 Request Timeout", "text/plain", b"")
        talks = turn((0, whole), (0.003, stray))
        records = asked(server_of(*[talks, turn((0.2, answer()))] * 3, requests=6), QUICK)
        assert len(records) == 6

    @pytest.mark.timeout(30)
    def test_that_said_something_while_idle_is_not_used_again(self) -> None:
        stray = http_response("408 Request Timeout", "text/plain", b"")
        talks = turn((0, answer()), (0.1, stray))  # says it while nothing is asked, and does not close
        slow = turn((0, head(P)), (0.3, answer().partition(b"\r\n\r\n")[2]))
        records = asked(server_of(talks, slow, requests=2), QUICK, ConstantRate(2))
        assert [record.error_message for record in records] == [None, None]
        assert records[1].output == "One two"


def _events(count: int, pause: float) -> tuple[tuple[float, bytes], ...]:
    return tuple((pause, chunk(framed(P, token(P, "a")))) for _ in range(count))


@BOTH_LOOPS
class TestDeadlines:
    """The client's clock ticks each 20 ms; what matters is that no traffic keeps it from looking."""

    def test_are_kept_while_the_server_pauses_for_less_than_a_tick(self) -> None:
        drips = Turn(((0, head(P)), *_events(2500, 0.002)), "hang")  # five seconds and more
        (record,) = asked(server_of(drips), Deadlines(first_token=20, gap=20, whole=0.3))
        assert record.error == "request_timeout"
        assert record.chunks < 2000
        assert record.t_end_ns - record.t_send_ns < 4e9

    @pytest.mark.parametrize(
        ("piece", "code", "first_token", "whole"),
        [
            (chunk(framed(P, token(P, "word "))), "request_timeout", 10.0, 0.3),
            (chunk(b": ping\n\n" * 200), "first_token_timeout", 0.15, 10.0),
        ],
        ids=["words", "comments"],
    )
    def test_are_kept_while_the_server_never_pauses(
        self, piece: bytes, code: str, first_token: float, whole: float
    ) -> None:
        flood = Turn(((0, head(P)), (0, piece)), "flood")
        (record,) = asked(server_of(flood), Deadlines(first_token=first_token, gap=10, whole=whole))
        assert record.error == code
        assert record.t_end_ns - record.t_send_ns < 8e9  # the flood lasts for twenty seconds

    def test_are_kept_for_one_answer_while_another_keeps_the_client_busy(self) -> None:
        stalls = Turn(((0, head(P)), (0, chunk(framed(P, token(P, "a"))))), "hang")
        busy = Turn(((0, head(P)), *_events(1000, 0.002), (0, chunk(framed(P, closing(P, 1000)[0])) + END)), "keep")
        records = asked(
            server_of(stalls, busy, requests=2), Deadlines(first_token=20, gap=0.3, whole=60), ClosedLoop(2)
        )
        by_error = {record.error: record for record in records}
        # A pause of a busy machine may stall the other as well; then there is nothing to see here.
        if by_error.keys() != {"stream_stalled", None}:
            pytest.skip(f"the machine paused: {list(by_error)}")
        stalled, other = by_error["stream_stalled"], by_error[None]
        assert stalled.t_end_ns < other.t_end_ns - 0.5e9
        assert stalled.t_end_ns - stalled.t_send_ns < 3e9


class TestTheEventLoop:
    def test_is_uvloop_s_where_there_is_one(self) -> None:
        uvloop = pytest.importorskip("uvloop")
        loop = new_event_loop()
        try:
            assert isinstance(loop, uvloop.Loop)
        finally:
            loop.close()

    def test_is_the_standard_library_s_else(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "uvloop", None)
        loop = new_event_loop()
        try:
            assert type(loop).__module__.startswith("asyncio")
        finally:
            loop.close()


@pytest.fixture(autouse=True)
def no_threads_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 10
    while (left := set(threading.enumerate()) - before) and time.monotonic() < deadline:
        time.sleep(0.01)  # a resolver's thread ends by itself
    assert not left
