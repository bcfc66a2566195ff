"""One request over a real socket, against a server that plays scripts: timing, every failure, every deadline."""

from __future__ import annotations

import gc
import json
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any, Literal

import pytest

from pytest_llmbench.client.request import Deadlines, Endpoint, Generation, send
from pytest_llmbench.core.records import RequestRecord, to_line
from tests.servers.scripted import (
    STREAM_END,
    STREAM_HEAD,
    Ending,
    ScriptedServer,
    Step,
    chunk,
    http_response,
    replies,
)

KEY = "sk-not-to-be-told"
QUICK = Deadlines(connect=5, first_token=5, gap=5, whole=10)
ASK = Generation(max_tokens=4, prompt="Once")


@pytest.fixture(autouse=True, scope="module")
def _no_leaked_sockets() -> Iterator[None]:
    """A socket that is left to the garbage collector warns, and warnings are errors: collect it inside a test."""
    yield
    gc.collect()


def exchange(
    *steps: Step,
    then: Ending = "close",
    protocol: Literal["llama_cpp", "openai_chat"] = "llama_cpp",
    deadlines: Deadlines = QUICK,
) -> RequestRecord:
    """What is recorded when a server plays a script."""
    with ScriptedServer(*steps, then=then) as server:
        endpoint = Endpoint(server.url, protocol, api_key=KEY)
        record = send(endpoint, ASK, deadlines=deadlines)
    assert KEY not in to_line(record)
    return record


def event(**fields: Any) -> bytes:
    return chunk(b"data: " + json.dumps(fields).encode() + b"\n\n")


def sent_at_once(*pieces: bytes) -> Step:
    return 0.0, b"".join([STREAM_HEAD, *pieces, STREAM_END])


class TestAGoodAnswer:
    def test_times_are_those_of_the_script(self) -> None:
        first, second, third, final = replies(["Once", " upon", " a"], model="tiny")
        record = exchange(
            (0.05, STREAM_HEAD), (0.15, first), (0.1, second), (0.1, third), (0.05, final + STREAM_END), then="hang"
        )
        assert record.ok
        assert record.error is None
        assert record.output == "Once upon a"
        assert record.chunks == 3
        assert (record.prompt_tokens, record.cached_tokens, record.output_tokens) == (7, 0, 3)
        assert record.finish_reason == "length"
        assert record.server_timings == {"cache_n": 0, "predicted_n": 3, "predicted_ms": 1.5}

        assert record.t_first_byte_ns is not None
        assert record.t_first_token_ns is not None
        assert record.t_last_token_ns is not None
        assert 0.05e9 <= record.t_first_byte_ns - record.t_send_ns < 1e9
        assert record.ttft_seconds is not None
        assert 0.2 <= record.ttft_seconds < 1.5
        assert record.ttft_seconds == (record.t_first_token_ns - record.t_send_ns) / 1e9
        assert 0.4e9 <= record.t_last_token_ns - record.t_send_ns < 2e9
        assert 0.45e9 <= record.t_end_ns - record.t_send_ns < 2.5e9
        assert len(record.token_offsets_us) == 3
        assert record.token_offsets_us[1] >= 300_000
        assert record.token_offsets_us == sorted(record.token_offsets_us)
        # Two intervals of 0.1 s: ten tokens a second.
        assert record.decode_tokens_per_second is not None
        assert 2 < record.decode_tokens_per_second < 100
        assert record.decode_tokens_per_second == pytest.approx(
            2e9 / (record.t_last_token_ns - record.t_first_token_ns)
        )

    def test_connecting_is_not_part_of_the_first_token_time(self) -> None:
        record = exchange(sent_at_once(*replies(["a"])))
        assert record.connect_seconds is not None
        assert record.ttft_seconds is not None
        assert record.connect_seconds > 0
        assert record.ttft_seconds < 1

    def test_pieces_that_came_together_have_no_rate(self) -> None:
        record = exchange(sent_at_once(*replies(["Once", " upon"])))
        assert record.ok
        assert record.chunks == 2
        assert record.decode_tokens_per_second is None

    def test_bytes_in_any_pieces_make_the_same_answer(self) -> None:
        whole = sent_at_once(*replies(["héllo", " 😀"]))[1]
        record = exchange(*[(0.001, whole[place : place + 23]) for place in range(0, len(whole), 23)])
        assert record.ok
        assert record.output == "héllo 😀"
        assert record.chunks == 2

    def test_without_a_count_there_is_no_rate(self) -> None:
        first, second, final = replies(["Once", " upon"], timings=None)
        record = exchange((0, STREAM_HEAD + first), (0.02, second + final + STREAM_END))
        assert record.ok
        assert record.output_tokens is None
        assert record.decode_tokens_per_second is None

    def test_chat_with_reasoning_and_usage(self) -> None:
        def delta(**fields: str) -> bytes:
            return event(choices=[{"delta": fields}])

        record = exchange(
            (0, STREAM_HEAD + delta(role="assistant")),
            (0.05, delta(reasoning_content="Hm.")),
            (0.05, delta(content="4")),
            (0.05, delta(content="2") + event(choices=[{"delta": {}, "finish_reason": "stop"}])),
            (0, event(choices=[], usage={"prompt_tokens": 9, "completion_tokens": 5})),
            (0, chunk(b"data: [DONE]\n\n") + STREAM_END),
            protocol="openai_chat",
        )
        assert record.ok
        assert (record.output, record.reasoning, record.chunks) == ("42", "Hm.", 3)
        assert (record.prompt_tokens, record.output_tokens) == (9, 5)
        assert record.output_tokens_source == "usage.completion_tokens"
        assert record.t_first_event_ns is not None
        assert record.t_first_reasoning_ns is not None
        assert record.t_first_token_ns is not None
        assert record.t_first_event_ns < record.t_first_reasoning_ns < record.t_first_token_ns
        assert record.ttft_seconds is not None
        assert 0.1 <= record.ttft_seconds < 1.5
        assert record.time_to_first_reasoning_seconds is not None
        assert 0.05 <= record.time_to_first_reasoning_seconds < record.ttft_seconds

    def test_the_rate_spans_reasoning_which_the_server_counts_too(self) -> None:
        pieces = [(0.02, event(choices=[{"delta": {"reasoning_content": "hm "}}])) for _ in range(4)]
        pieces.append((0.02, event(choices=[{"delta": {"content": "4"}, "finish_reason": "length"}])))
        usage = event(choices=[], usage={"completion_tokens": 5}) + chunk(b"data: [DONE]\n\n") + STREAM_END
        record = exchange((0, STREAM_HEAD), *pieces, (0, usage), protocol="openai_chat")
        assert record.decode_tokens_per_second is not None
        assert record.decode_tokens_per_second <= 4 / 0.08

    def test_a_rate_that_chunks_would_falsify_is_absent(self) -> None:
        def answer(tokens: int) -> RequestRecord:
            pieces = [(0.01, event(content="x" * 9)) for _ in range(3)]
            end = event(content="", stop=True, stop_type="limit", timings={"predicted_n": tokens})
            return exchange((0, STREAM_HEAD), *pieces, (0, end + STREAM_END))

        assert answer(3).decode_tokens_per_second is not None
        assert answer(60).decode_tokens_per_second is None
        assert answer(60).output_tokens == 60

    def test_a_body_that_ends_with_the_connection(self) -> None:
        body = b'data: {"content": "a"}\n\ndata: {"content": "", "stop": true}\n\n'
        record = exchange((0, b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + body))
        assert record.ok
        assert record.output == "a"

    def test_text_that_utf8_can_not_hold_is_recorded(self) -> None:
        record = exchange(sent_at_once(event(content="a\ud800"), *replies([])))
        assert record.ok
        assert json.loads(to_line(record))["output"] == "a\ud800"


class TestWhatIsAsked:
    def ask(self, generation: Generation, **endpoint: Any) -> tuple[str, dict[str, Any], RequestRecord]:
        with ScriptedServer(sent_at_once()) as server:
            fields: dict[str, Any] = {"base_url": server.url, "completion_protocol": "llama_cpp", **endpoint}
            record = send(Endpoint(**fields), generation, cell="the cell", index=3, phase="warmup", deadlines=QUICK)
        return server.head, json.loads(server.body), record

    def test_a_completion(self) -> None:
        generation = Generation(max_tokens=4, prompt="Once", demand_length=True)
        head, body, record = self.ask(generation, ignores_end_of_sequence=True, controls_cache=True, api_key=KEY)
        assert head.startswith("POST /completion HTTP/1.1\r\nHost: 127.0.0.1:")
        assert f"Authorization: Bearer {KEY}" in head
        expected = {"prompt": "Once", "n_predict": 4, "temperature": 0.0, "ignore_eos": True, "cache_prompt": False}
        assert body == {"stream": True, **expected}
        assert record.params == expected
        assert (record.cell, record.index, record.phase, record.protocol) == ("the cell", 3, "warmup", "llama_cpp")

    def test_what_the_server_does_not_know_is_not_asked(self) -> None:
        head, body, _ = self.ask(Generation(max_tokens=4, prompt="Once", demand_length=True))
        assert "Authorization" not in head
        assert {"ignore_eos", "cache_prompt"}.isdisjoint(body)

    def test_chat_messages(self) -> None:
        messages = ({"role": "user", "content": "Hi"},)
        head, body, record = self.ask(Generation(max_tokens=4, messages=messages), model="tiny")
        assert head.startswith("POST /v1/chat/completions ")
        assert body["messages"] == [{"role": "user", "content": "Hi"}]
        assert (body["model"], body["max_tokens"]) == ("tiny", 4)
        assert body["stream_options"] == {"include_usage": True}
        assert record.protocol == "openai_chat"

    def test_a_prompt_for_a_server_that_only_chats(self) -> None:
        _, body, _ = self.ask(Generation(max_tokens=4, prompt="Once"), completion_protocol="openai_chat")
        assert body["messages"] == [{"role": "user", "content": "Once"}]


class TestABrokenConnection:
    def test_refused(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        record = send(Endpoint(f"http://127.0.0.1:{port}", "llama_cpp"), ASK, deadlines=QUICK)
        assert not record.ok
        assert record.error == "connection_refused"
        assert record.connect_seconds is None
        assert record.ttft_seconds is None

    def test_a_name_that_does_not_exist(self) -> None:
        record = send(Endpoint("http://no-such-host.invalid", "llama_cpp"), ASK, deadlines=QUICK)
        assert record.error == "unreachable"

    @pytest.mark.parametrize("then", ["close", "reset"])
    def test_lost_before_a_byte(self, then: Ending) -> None:
        record = exchange(then=then)
        assert record.error == "connection_lost"
        assert record.t_first_byte_ns is None

    @pytest.mark.parametrize("then", ["close", "reset"])
    def test_lost_in_the_middle(self, then: Ending) -> None:
        record = exchange((0, STREAM_HEAD + b"".join(replies(["Once", " upon"])[:2])), (0.05, b""), then=then)
        assert record.error == "stream_truncated"
        assert "after 2 pieces" in str(record.error_message)
        assert record.output == "Once upon"
        assert record.chunks == 2

    def test_ended_in_good_order_but_without_a_final_event(self) -> None:
        record = exchange(sent_at_once(*replies(["Once"])[:1]))
        assert record.error == "stream_truncated"

    def test_a_plain_server_behind_a_https_address(self) -> None:
        with ScriptedServer((0, b"HTTP/1.1 400 Bad Request\r\n\r\n"), reads=False) as server:
            record = send(Endpoint(f"https://{server.address}", "llama_cpp"), ASK, deadlines=QUICK)
        assert record.error == "tls_failed"


class TestARefusal:
    @pytest.mark.parametrize(
        ("status", "code"),
        [
            ("401 Unauthorized", "wrong_key"),
            ("403 Forbidden", "wrong_key"),
            ("404 Not Found", "not_found"),
            ("500 Internal Server Error", "http_error"),
            ("503 Service Unavailable", "server_busy"),
        ],
    )
    @pytest.mark.parametrize(
        ("content_type", "body", "shown"),
        [
            ("application/json", b'{"error": {"code": 1, "message": "the reason why"}}', "the reason why"),
            ("application/json", b'{"error": "the reason why"}', "the reason why"),
            ("application/json", b'{"detail": "the reason why"}', "the reason why"),
            ("text/html", b"<html><h1>the reason why</h1>", "the reason why"),
            ("text/plain", b"", "without a message"),
            ("application/json", b"[1]", "[1]"),
            ("application/json", b'{"error": {"message": "\\ud800\xff"}}', "\\ud800"),
        ],
        ids=["object", "string", "other json", "html", "nothing", "list", "not utf-8"],
    )
    def test_says_what_the_server_said(
        self, status: str, code: str, content_type: str, body: bytes, shown: str
    ) -> None:
        record = exchange((0, http_response(status, content_type, body)))
        assert record.error == code
        assert f"HTTP {status[:3]}: " in str(record.error_message)
        assert shown in str(record.error_message)

    def test_a_status_line_alone_counts(self) -> None:
        record = exchange((0, b"HTTP/1.1 503 Busy\r\n\r\ncome back later"))
        assert record.error == "server_busy"
        assert "come back later" in str(record.error_message)

    def test_a_long_body_is_cut(self) -> None:
        record = exchange((0, http_response("500 Oops", "text/html", b"x" * 300_000)))
        assert record.error == "http_error"
        assert len(str(record.error_message)) < 1000

    @pytest.mark.parametrize(
        "answer",
        [
            http_response("401 Unauthorized", "application/json", json.dumps({"error": f"bad key {KEY}"}).encode()),
            http_response("200 OK", f"text/html; key={KEY}", b"hello"),
            sent_at_once(event(error={"message": f"bad key {KEY}"}))[1],
            sent_at_once(chunk(f"data: {KEY}\n\n".encode()))[1],
        ],
        ids=["error body", "header", "error event", "no json"],
    )
    def test_a_server_that_repeats_the_key_does_not_get_it_into_the_record(self, answer: bytes) -> None:
        record = exchange((0, answer))  # checks for the key
        assert not record.ok


class TestAnUnusableAnswer:
    @pytest.mark.parametrize(
        "answer",
        [
            http_response("200 OK", "text/html", b"<html>hello"),
            http_response("200 OK", "application/json", b'{"content": "a"}'),
            http_response("200 OK", "text/event-stream", b""),
            b"SSH-2.0-OpenSSH_9.6\r\n",
            STREAM_HEAD + chunk(b"data: hello\n\n"),
            STREAM_HEAD + b"zz\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        ],
        ids=["html", "json", "nothing", "ssh", "no json", "bad chunk", "upgrade"],
    )
    def test_no_event_stream(self, answer: bytes) -> None:
        record = exchange((0, answer))
        assert record.error == "bad_response"

    @pytest.mark.parametrize("texts", [[], [""], [" ", "\n\t"]], ids=["none", "empty", "blank"])
    def test_no_text(self, texts: list[str]) -> None:
        record = exchange(sent_at_once(*replies(texts)))
        assert record.error == "empty_answer"

    def test_nothing_but_reasoning(self) -> None:
        thought = event(choices=[{"delta": {"reasoning_content": "Hm"}, "finish_reason": "length"}])
        record = exchange(sent_at_once(thought), protocol="openai_chat")
        assert record.error == "empty_answer"
        assert "reasoning" in str(record.error_message)

    def test_an_error_event_after_text(self) -> None:
        record = exchange(sent_at_once(event(content="Once"), event(error={"message": "out of memory"})))
        assert record.error == "server_error_event"
        assert "out of memory" in str(record.error_message)
        assert record.output == "Once"

    def test_an_absurd_count_does_not_break_the_client(self) -> None:
        first, second, _ = replies(["Once", " upon", ""])[:3]
        final = b'data: {"stop": true, "timings": {"predicted_n": 1' + b"0" * 400 + b"}}\n\n"
        record = exchange((0, STREAM_HEAD + first), (0.05, second + chunk(final) + STREAM_END))
        assert record.error == "bad_response"


class TestDeadlines:
    def test_no_byte(self) -> None:
        record = exchange(then="hang", deadlines=Deadlines(first_token=0.15, gap=5, whole=5))
        assert record.error == "first_token_timeout"
        assert 0.15e9 <= record.t_end_ns - record.t_send_ns < 2e9

    def test_no_text(self) -> None:
        pings = [(0.02, chunk(b": ping\n\n")) for _ in range(150)]
        record = exchange((0, STREAM_HEAD), *pings, then="hang", deadlines=Deadlines(first_token=0.2, gap=5, whole=5))
        assert record.error == "first_token_timeout"
        assert 0.2e9 <= record.t_end_ns - record.t_send_ns < 2.5e9

    def test_stalled(self) -> None:
        first, *_ = replies(["Once", " upon"])
        record = exchange((0, STREAM_HEAD + first), then="hang", deadlines=Deadlines(first_token=5, gap=0.15, whole=5))
        assert record.error == "stream_stalled"
        assert "after 1 pieces" in str(record.error_message)
        assert record.output == "Once"
        assert 0.15e9 <= record.t_end_ns - record.t_send_ns < 2e9

    def test_the_gap_does_not_limit_the_first_token(self) -> None:
        *texts, final = replies(["Once", " upon"])
        record = exchange(
            (0.3, STREAM_HEAD + b"".join(texts)),
            (0, final + STREAM_END),
            deadlines=Deadlines(first_token=5, gap=0.15, whole=5),
        )
        assert record.ok

    def test_never_finished(self) -> None:
        words = [(0.05, event(content="word ")) for _ in range(40)]
        deadlines = Deadlines(first_token=5, gap=1.5, whole=0.3)
        record = exchange((0, STREAM_HEAD), *words, then="hang", deadlines=deadlines)
        assert record.error == "request_timeout"
        assert 1 <= record.chunks <= 6
        assert 0.3e9 <= record.t_end_ns - record.t_send_ns < 1.5e9

    @pytest.mark.parametrize(
        ("piece", "code", "first_token"),
        [(event(content="word "), "request_timeout", 5.0), (chunk(b": ping\n\n" * 200), "first_token_timeout", 0.15)],
        ids=["words", "comments"],
    )
    def test_a_server_that_never_pauses_is_stopped_too(self, piece: bytes, code: str, first_token: float) -> None:
        deadlines = Deadlines(first_token=first_token, gap=5, whole=0.25)
        began = time.monotonic()
        record = exchange((0, STREAM_HEAD), (0, piece), then="flood", deadlines=deadlines)
        assert record.error == code
        assert time.monotonic() - began < 2

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a full queue of connections is refused elsewhere")
    def test_a_host_that_does_not_accept(self) -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
            waiting = []
            try:
                for _ in range(3):  # fill the queue of connections nobody accepts
                    waiting.append(socket.socket())
                    waiting[-1].setblocking(False)
                    waiting[-1].connect_ex(full.getsockname())
                url = f"http://127.0.0.1:{full.getsockname()[1]}"
                record = send(Endpoint(url, "llama_cpp"), ASK, deadlines=Deadlines(connect=0.15))
            finally:
                for connection in waiting:
                    connection.close()
        assert record.error == "connect_timeout"


@pytest.mark.parametrize("key", ["k€y", "key\n", "key\r\nX-Injected: yes"], ids=ascii)
def test_a_key_that_no_header_can_carry(key: str) -> None:
    with ScriptedServer() as server:
        record = send(Endpoint(server.url, "llama_cpp", api_key=key), ASK, deadlines=QUICK)
    assert record.error == "wrong_key"
    assert key not in str(record.error_message)
    assert server.request == b""


def test_the_key_is_not_shown() -> None:
    assert KEY not in repr(Endpoint("http://127.0.0.1:1", "llama_cpp", api_key=KEY))
