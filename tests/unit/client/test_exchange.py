"""One request and its answer, without a socket and without a clock: bytes and invented times in, an outcome out."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pytest_llmbench.client.exchange import MAX_RETRIES, Deadlines, Exchange
from pytest_llmbench.client.record import record_of
from pytest_llmbench.core.records import RequestRecord, to_line
from pytest_llmbench.errors import RequestError
from tests.servers.faulty import (
    FAULTS,
    OLLAMA,
    OPENAI,
    PROTOCOLS,
    SSE,
    TEXTS,
    Fault,
    ProtocolName,
    body_of,
    chat_delta,
    closing,
    done_mark,
    events_of,
    framed,
    head,
    opening,
    token,
)
from tests.servers.scripted import chunk, http_response
from tests.unit.client.helpers import ASK, END, KEY, PATIENT, SECOND, answer, cut, deadlines_of, differences, endpoint

URL = "http://127.0.0.1:8080"
LIMITS = Deadlines(connect=1, first_token=10, gap=2, whole=60)
SENT = 5 * SECOND  # when requests leave, unless a test says otherwise
EVERY_PROTOCOL = pytest.mark.parametrize("protocol", PROTOCOLS)
EVERY_LINE = pytest.mark.parametrize("protocol", SSE)


def new(protocol: ProtocolName = "llama_cpp", deadlines: Deadlines = LIMITS, **fields: Any) -> Exchange:
    """An exchange whose request has just left."""
    exchange = Exchange(endpoint(URL, protocol, **fields), ASK, deadlines)
    exchange.sent(SENT)
    return exchange


def after(seconds: float) -> int:
    return SENT + int(seconds * 1e9)


def says(protocol: ProtocolName, text: str) -> bytes:
    return chunk(framed(protocol, token(protocol, text)))


def ending(protocol: ProtocolName, tokens: int) -> bytes:
    return chunk(body_of(protocol, closing(protocol, tokens)) + body_of(protocol, done_mark(protocol)))


def error_of(exchange: Exchange) -> RequestError:
    assert exchange.done
    assert exchange.error is not None
    return exchange.error


def heard(data: bytes, protocol: ProtocolName = "llama_cpp", **fields: Any) -> Exchange:
    """An exchange whose server sent this and hung up."""
    exchange = new(protocol, **fields)
    exchange.received(data, after(0.5))
    if not exchange.done:
        exchange.connection_lost("the server hung up", after(1))
    return exchange


def record(exchange: Exchange) -> RequestRecord:
    return record_of(exchange, cell=None, index=0, phase="sample")


class TestTheRequest:
    def test_is_a_post_of_what_the_generation_asks(self) -> None:
        exchange = new(api_key=KEY)
        top, _, body = exchange.request.partition(b"\r\n\r\n")
        lines = top.decode().split("\r\n")
        assert lines[0] == "POST /completion HTTP/1.1"
        assert {"Host: 127.0.0.1:8080", f"Authorization: Bearer {KEY}"} <= set(lines)
        assert json.loads(body) == exchange.params
        assert exchange.params["prompt"] == "Once"

    def test_has_no_authorization_without_a_key(self) -> None:
        assert b"Authorization" not in new().request

    @pytest.mark.parametrize("slash", ["", "/"])
    def test_goes_below_the_path_of_the_address(self, slash: str) -> None:
        exchange = Exchange(endpoint(f"http://example.com:81/llm{slash}", "openai_chat"), ASK, LIMITS)
        assert exchange.request.startswith(b"POST /llm/v1/chat/completions HTTP/1.1\r\nHost: example.com:81\r\n")

    def test_can_hold_text_that_utf8_can_not(self) -> None:
        exchange = Exchange(endpoint(URL), type(ASK)(max_tokens=4, prompt="a\ud800"), LIMITS)
        assert json.loads(exchange.request.partition(b"\r\n\r\n")[2])["prompt"] == "a\ud800"

    @pytest.mark.parametrize("key", ["k€y", "key\n", "key\r\nX-Injected: yes"], ids=ascii)
    def test_with_a_key_that_no_header_can_carry_has_failed_before_it_is_sent(self, key: str) -> None:
        exchange = Exchange(endpoint(URL, api_key=key), ASK, LIMITS)
        assert error_of(exchange).code == "wrong_key"
        assert key not in error_of(exchange).message
        assert exchange.request == b""

    def test_that_the_protocol_can_not_carry_has_failed_before_it_is_sent(self) -> None:
        exchange = Exchange(endpoint(URL, "ollama_chat"), type(ASK)(max_tokens=4, prompt=(1, 2)), LIMITS)
        assert error_of(exchange).code == "prompt_not_supported"
        assert record(exchange).protocol == "ollama_chat"


@EVERY_PROTOCOL
class TestAGoodAnswer:
    def test_is_timed_to_the_nanosecond(self, protocol: ProtocolName) -> None:
        exchange = new(protocol)
        exchange.received(head(protocol), SENT + 1)
        assert exchange.t_first_byte_ns == SENT + 1
        for number, text in enumerate(TEXTS):
            exchange.received(says(protocol, text), SENT + 1000 + 100 * number)
        done = []
        for offset, data in ((1500, ending(protocol, 3)), (1600, END)):
            exchange.received(data, SENT + offset)
            done.append(exchange.done)
        assert done == [False, True]
        assert exchange.error is None
        assert exchange.answer.piece_times_ns == [SENT + 1000, SENT + 1100, SENT + 1200]
        assert exchange.answer.t_first_token_ns == SENT + 1000
        assert (exchange.t_send_ns, exchange.t_end_ns) == (SENT, SENT + 1600)
        assert exchange.keeps_connection

    def test_is_whole_without_the_end_of_the_message_if_the_server_hangs_up(self, protocol: ProtocolName) -> None:
        exchange = heard(answer(protocol).removesuffix(END), protocol)
        assert exchange.error is None
        assert exchange.t_end_ns == after(1)
        assert not exchange.keeps_connection

    def test_is_done_once(self, protocol: ProtocolName) -> None:
        exchange = heard(answer(protocol), protocol)
        assert exchange.t_end_ns == after(0.5)
        exchange.received(b"HTTP/1.1 408 Request Timeout\r\n\r\n", after(9))
        assert (exchange.error, exchange.t_end_ns) == (None, after(0.5))

    def test_may_come_compressed(self, protocol: ProtocolName) -> None:
        body = gzip.compress(body_of(protocol, events_of(protocol)))
        exchange = heard(head(protocol, "Content-Encoding: gzip") + chunk(body[:20]) + chunk(body[20:]) + END, protocol)
        assert exchange.error is None
        assert exchange.answer.text == list(TEXTS)

    def test_on_a_connection_that_closes_does_not_keep_it(self, protocol: ProtocolName) -> None:
        exchange = new(protocol)
        body = body_of(protocol, events_of(protocol))
        exchange.received(head(protocol, "Connection: close", f"Content-Length: {len(body)}") + body, after(1))
        assert exchange.done
        assert exchange.error is None
        assert not exchange.keeps_connection

    def test_ends_with_its_last_event_whatever_follows(self, protocol: ProtocolName) -> None:
        stray = says(protocol, " stray")
        exchange = new(protocol)
        exchange.received(answer(protocol).removesuffix(END) + stray, after(1))
        exchange.received(stray, after(1.1))
        exchange.received(END, after(1.2))
        assert exchange.error is None
        assert exchange.answer.text == ["One", " two"]


class TestDeadlines:
    def expired(self, exchange: Exchange) -> RequestError:
        exchange.time_out(exchange.deadline_ns)
        return error_of(exchange)

    @EVERY_PROTOCOL
    def test_of_the_first_token_runs_from_the_sending(self, protocol: ProtocolName) -> None:
        exchange = new(protocol)
        assert exchange.deadline_ns == after(10)
        exchange.received(head(protocol), after(4))
        assert exchange.deadline_ns == after(10)
        error = self.expired(exchange)
        assert error.code == "first_token_timeout"
        assert "10.0 s" in error.message

    @EVERY_PROTOCOL
    def test_of_a_gap_runs_from_the_last_text(self, protocol: ProtocolName) -> None:
        exchange = new(protocol)
        exchange.received(head(protocol) + says(protocol, "One"), after(4))
        assert exchange.deadline_ns == after(4 + 2)
        exchange.received(says(protocol, " two"), after(5))
        assert exchange.deadline_ns == after(5 + 2)
        error = self.expired(exchange)
        assert error.code == "stream_stalled"
        assert "2 pieces" in error.message
        assert exchange.answer.text == ["One", " two"]

    @EVERY_PROTOCOL
    @pytest.mark.parametrize("begun", [False, True], ids=["before the first token", "after it"])
    def test_are_not_moved_by_events_without_text(self, protocol: ProtocolName, begun: bool) -> None:
        exchange = new(protocol)
        exchange.received(head(protocol), after(1))
        if begun:
            exchange.received(says(protocol, "One"), after(1))
        before = exchange.deadline_ns
        nothing = [token(protocol, ""), *opening(protocol)]
        exchange.received(chunk(body_of(protocol, nothing)), after(1.5))
        exchange.received(chunk(b"\n\n"), after(1.6))
        if protocol in SSE:
            exchange.received(chunk(b": ping\n\n"), after(1.7))
        assert not exchange.done
        assert exchange.deadline_ns == before

    @pytest.mark.parametrize(
        "event",
        [
            chat_delta(reasoning_content="Hm"),
            chat_delta(tool_calls=[{"index": 0, "function": {"name": "a", "arguments": "{"}}]),
        ],
        ids=["reasoning", "a tool call"],
    )
    def test_are_moved_by_all_that_a_model_generates(self, event: dict[str, Any]) -> None:
        exchange = new("openai_chat")
        exchange.received(head("openai_chat") + chunk(framed("openai_chat", event)), after(4))
        assert exchange.deadline_ns == after(4 + 2)

    def test_of_the_whole_can_not_be_moved(self) -> None:
        exchange = new(deadlines=Deadlines(first_token=10, gap=2, whole=4.5))
        exchange.received(head("llama_cpp"), after(1))
        for second in (2, 3, 4):
            exchange.received(says("llama_cpp", "a"), after(second))
        assert exchange.deadline_ns == after(4.5)
        error = self.expired(exchange)
        assert error.code == "request_timeout"
        assert "pieces: 3" in error.message

    @pytest.mark.parametrize("whole", [0.3, 2.3, 1234.567, 1 / 3, 2 / 3])
    def test_of_the_whole_is_told_as_such_at_its_very_nanosecond(self, whole: float) -> None:
        exchange = new(deadlines=Deadlines(first_token=9999, gap=9999, whole=whole))
        assert self.expired(exchange).code == "request_timeout"

    @EVERY_PROTOCOL
    def test_of_the_end_of_the_message_is_a_second_after_the_last_event(self, protocol: ProtocolName) -> None:
        exchange = new(protocol)
        exchange.received(answer(protocol).removesuffix(END), after(4))
        assert exchange.deadline_ns == after(4 + 1)
        exchange.time_out(after(5))
        assert exchange.done
        assert exchange.error is None
        assert exchange.t_end_ns == after(4)  # waiting for nothing is no part of the answer
        assert not exchange.keeps_connection

    @EVERY_LINE
    def test_of_the_end_of_the_message_is_not_moved_by_comments(self, protocol: ProtocolName) -> None:
        exchange = new(protocol)
        exchange.received(answer(protocol).removesuffix(END), after(4))
        exchange.received(chunk(b": ping\n\n"), after(4.9))
        assert exchange.deadline_ns == after(4 + 1)

    def test_of_the_end_of_the_message_lies_within_that_of_the_whole(self) -> None:
        exchange = new(deadlines=Deadlines(whole=4.5))
        exchange.received(answer().removesuffix(END), after(4))
        assert exchange.deadline_ns == after(4.5)

    def test_an_empty_answer_without_the_end_of_the_message_is_still_empty(self) -> None:
        exchange = new()
        exchange.received(head("llama_cpp") + ending("llama_cpp", 0), after(4))
        assert self.expired(exchange).code == "empty_answer"


class TestALostConnection:
    def test_before_a_byte_is_tried_again_and_counted(self) -> None:
        exchange = new()
        for number in range(1, MAX_RETRIES + 1):
            assert exchange.connection_lost("the server hung up", after(number))
            assert exchange.retries == number
            assert not exchange.done
            exchange.sent(after(number + 0.5))
        exchange.received(answer(), after(9))
        assert exchange.error is None
        assert exchange.t_send_ns == after(MAX_RETRIES + 0.5)  # the last try is what is timed
        assert record(exchange).retries == MAX_RETRIES

    def test_before_a_byte_is_not_tried_for_ever(self) -> None:
        exchange = new()
        for _ in range(MAX_RETRIES):
            assert exchange.connection_lost("the server hung up", after(1))
            exchange.sent(after(1))
        assert not exchange.connection_lost("the server hung up", after(2))
        error = error_of(exchange)
        assert error.code == "connection_lost"
        assert "3 times in a row" in error.message
        assert exchange.retries == MAX_RETRIES
        assert exchange.t_end_ns == after(2)

    @pytest.mark.parametrize("came", [b"H", b"HTTP/1.1 200 OK\r\n", head("llama_cpp")])
    def test_after_a_byte_is_never_tried_again(self, came: bytes) -> None:
        exchange = new()
        exchange.received(came, after(1))
        assert not exchange.connection_lost("the server hung up", after(2))
        assert error_of(exchange).code == "stream_truncated"
        assert exchange.retries == 0

    def test_what_was_said_on_the_client_s_lateness_is_forgotten_with_a_try(self) -> None:
        exchange = new()
        exchange.client_was_late(5)
        exchange.connection_lost("the server hung up", after(1))
        assert (exchange.lag_ns, exchange.first_token_lag_ns) == (0, 0)

    @EVERY_PROTOCOL
    def test_in_the_middle_tells_how_far_it_came(self, protocol: ProtocolName) -> None:
        exchange = new(protocol)
        exchange.received(head(protocol) + says(protocol, "One") + says(protocol, " two"), after(1))
        exchange.connection_lost("the connection broke (reset)", after(2))
        error = error_of(exchange)
        assert error.code == "stream_truncated"
        assert "the connection broke (reset) after 2 pieces" in error.message
        assert exchange.answer.text == ["One", " two"]
        assert not exchange.keeps_connection

    @EVERY_PROTOCOL
    def test_a_message_that_ends_without_a_final_event_is_truncated_too(self, protocol: ProtocolName) -> None:
        exchange = new(protocol)
        exchange.received(head(protocol) + says(protocol, "One") + END, after(1))
        assert error_of(exchange).code == "stream_truncated"
        assert "without a final event after 1 pieces" in error_of(exchange).message

    @pytest.mark.parametrize("protocol", OPENAI)
    def test_after_the_finish_reason_the_answer_is_whole(self, protocol: ProtocolName) -> None:
        first = closing(protocol, 1)[0]
        exchange = heard(head(protocol) + says(protocol, "One") + chunk(framed(protocol, first)), protocol)
        assert exchange.error is None
        assert record(exchange).output_tokens is None


class TestARefusal:
    @pytest.mark.parametrize(
        ("status", "code"),
        [
            ("400 Bad Request", "http_error"),
            ("401 Unauthorized", "wrong_key"),
            ("403 Forbidden", "wrong_key"),
            ("404 Not Found", "not_found"),
            ("429 Too Many Requests", "server_busy"),
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
            ("text/event-stream", b'data: {"error": "the reason why"}\n\n', "the reason why"),
            ("text/plain", b"", "without a message"),
            ("application/json", b"[1]", "[1]"),
            ("application/json", b'{"error": {"message": "\\ud800\xff"}}', "\\ud800"),
            ("application/json", b"[" * 60_000, "[[["),
            ("application/json", b'{"error": ' + b"9" * 5000 + b"}", "999"),
        ],
        ids=["object", "string", "other", "html", "events", "nothing", "list", "not utf-8", "deep", "long number"],
    )
    def test_says_what_the_server_said(
        self, status: str, code: str, content_type: str, body: bytes, shown: str
    ) -> None:
        error = error_of(heard(http_response(status, content_type, body)))
        assert error.code == code
        assert f"HTTP {status[:3]}: " in error.message
        assert shown in error.message
        assert len(error.message) < 1000
        assert error.evidence["http_status"] == int(status[:3])

    @EVERY_PROTOCOL
    def test_for_a_model_that_is_not_there_names_it(self, protocol: ProtocolName) -> None:
        body = json.dumps({"error": "model 'tiny' not found"}).encode()
        error = error_of(heard(http_response("404 Not Found", "application/json", body), protocol))
        assert error.code == "model_missing"
        assert "'tiny'" in error.message

    def test_of_a_prompt_that_is_too_long_tells_the_numbers(self) -> None:
        details = {"code": 400, "message": "too long", "type": "exceed_context_size_error"}
        body = json.dumps({"error": {**details, "n_prompt_tokens": 900, "n_ctx": 512}}).encode()
        error = error_of(heard(http_response("400 Bad Request", "application/json", body)))
        assert error.code == "prompt_too_long"
        assert error.evidence == {"http_status": 400, "n_prompt_tokens": 900, "n_ctx": 512}

    def test_with_a_status_line_alone_counts(self) -> None:
        error = error_of(heard(b"HTTP/1.1 503 Busy\r\n\r\ncome back later"))
        assert error.code == "server_busy"
        assert "come back later" in error.message

    def test_of_endless_length_does_not_fill_the_memory(self) -> None:
        exchange = new()
        exchange.received(b"HTTP/1.1 500 Oops\r\n\r\n", after(1))
        for _ in range(100):
            exchange.received(b"x" * 100_000, after(1))
        assert exchange._kept_body is not None
        assert len(exchange._kept_body) <= 65536

    def test_in_a_connection_that_stays_open_keeps_it_from_being_used_again(self) -> None:
        exchange = new()
        exchange.received(http_response("500 Oops", "text/plain", b"why"), after(1))
        assert exchange.response.keeps_alive
        assert not exchange.keeps_connection

    @EVERY_PROTOCOL
    def test_under_200_is_an_error_all_the_same(self, protocol: ProtocolName) -> None:
        for error in ("out of memory", {"message": "out of memory"}):
            body = json.dumps({"error": error}).encode()
            exchange = heard(http_response("200 OK", "application/json", body), protocol)
            assert error_of(exchange).code == "server_error_event"
            assert "out of memory" in error_of(exchange).message

    @EVERY_PROTOCOL
    def test_inside_the_stream_keeps_what_came_before(self, protocol: ProtocolName) -> None:
        failure = chunk(framed(protocol, {"error": "out of memory"}))
        exchange = heard(head(protocol) + says(protocol, "One") + failure, protocol)
        assert error_of(exchange).code == "server_error_event"
        assert exchange.answer.text == ["One"]
        assert not exchange.keeps_connection

    @EVERY_PROTOCOL
    @pytest.mark.parametrize("depth", [900, 950, 985, 1020])
    def test_of_absurd_depth_under_200_does_not_break_the_client(self, protocol: ProtocolName, depth: int) -> None:
        body = b'{"error": ' + b"[" * depth + b"]" * depth + b"}\n"
        error_of(heard(http_response("200 OK", "application/json", body), protocol))


class TestNoStream:
    @EVERY_PROTOCOL
    def test_an_answer_in_one_piece_is_named_as_such(self, protocol: ProtocolName) -> None:
        whole: dict[ProtocolName, dict[str, Any]] = {
            "llama_cpp": {"content": "One", "stop": True},
            "openai_chat": {"choices": [{"message": {"content": "One"}}]},
            "openai_completions": {"choices": [{"text": "One"}]},
            "ollama_generate": {"response": "One two", "done": True, "eval_count": 2},
            "ollama_chat": {"message": {"content": "One two"}, "done": True, "eval_count": 2},
        }
        body = json.dumps(whole[protocol]).encode()
        exchange = heard(http_response("200 OK", "application/json; charset=utf-8", body), protocol)
        assert error_of(exchange).code == "not_streamed"
        assert not record(exchange).ok

    @pytest.mark.parametrize("protocol", OLLAMA)
    def test_an_answer_of_one_token_can_not_come_in_more_pieces(self, protocol: ProtocolName) -> None:
        events = [{**token(protocol, "One"), "done": True, "eval_count": 1}]
        assert heard(head(protocol) + chunk(body_of(protocol, events)) + END, protocol).error is None

    @EVERY_PROTOCOL
    @pytest.mark.parametrize("kind", ["text/html", "text/html; charset=utf-8", "TEXT/HTML"])
    def test_a_web_page_is_no_model_server(self, protocol: ProtocolName, kind: str) -> None:
        error = error_of(heard(http_response("200 OK", kind, b"<!doctype html><title>Router</title>"), protocol))
        assert error.code == "not_an_llm_server"
        assert "Router" in error.message

    @EVERY_PROTOCOL
    @pytest.mark.parametrize("encoding", ["br", "zstd"])
    def test_an_encoding_that_is_not_spoken_is_named(self, protocol: ProtocolName, encoding: str) -> None:
        data = head(protocol, f"Content-Encoding: {encoding}") + chunk(b"\x8b\x03\x80") + END
        error = error_of(heard(data, protocol))
        assert error.code == "unsupported_encoding"
        assert encoding in error.message

    @EVERY_PROTOCOL
    @pytest.mark.parametrize(
        "data",
        [
            http_response("200 OK", "application/json", b'{"status": "ok"}'),
            http_response("200 OK", "application/json", b"[]"),
            http_response("200 OK", "application/json", b"{"),
            http_response("200 OK", "application/json", b"[" * 60_000),
            http_response("200 OK", "application/json", b""),
            http_response("200 OK", "text/event-stream", b""),
            http_response("200 OK", "text/plain", b"hello\n\n"),
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            b"SSH-2.0-OpenSSH_9.6\r\n",
            b"\x16\x03\x01\x02\x00",
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        ],
        ids=[
            "other json",
            "list",
            "half",
            "deep",
            "empty json",
            "no event",
            "text",
            "no content type",
            "ssh",
            "tls",
            "upgrade",
        ],
    )
    def test_what_is_no_event_stream_is_a_bad_response(self, protocol: ProtocolName, data: bytes) -> None:
        assert error_of(heard(data, protocol)).code == "bad_response"

    @EVERY_PROTOCOL
    @pytest.mark.parametrize(
        "event", [b"hello", b"[1]", b'{"a": 1e999}', b'{"a": 1' + b"0" * 400 + b"}"], ids=lambda event: event[:12]
    )
    def test_an_event_that_is_none_is_a_bad_response(self, protocol: ProtocolName, event: bytes) -> None:
        exchange = heard(head(protocol) + says(protocol, "One") + chunk(framed(protocol, event)) + END, protocol)
        assert error_of(exchange).code == "bad_response"
        assert exchange.answer.text == ["One"]

    def test_a_broken_chunk_is_a_bad_response(self) -> None:
        assert error_of(heard(head("llama_cpp") + b"zz\r\n")).code == "bad_response"


class TestAnEmptyAnswer:
    @EVERY_PROTOCOL
    @pytest.mark.parametrize(
        "texts", [(), ("",), (" ", "\n\t"), ("\u00a0\u2003",)], ids=["none", "empty", "blank", "wide"]
    )
    def test_is_a_failed_request(self, protocol: ProtocolName, texts: tuple[str, ...]) -> None:
        data = head(protocol) + chunk(body_of(protocol, events_of(protocol, texts))) + END
        error = error_of(heard(data, protocol))
        assert error.code == "empty_answer"
        assert "reasoning" not in error.message

    @pytest.mark.parametrize(
        ("protocol", "thought"),
        [
            ("openai_chat", chat_delta(reasoning_content="Hm")),
            ("openai_chat", chat_delta(reasoning="Hm")),
            ("ollama_generate", {"response": "", "thinking": "Hm"}),
            ("ollama_chat", {"message": {"content": "", "thinking": "Hm"}}),
        ],
    )
    def test_of_which_all_tokens_went_to_reasoning_says_so(
        self, protocol: ProtocolName, thought: dict[str, Any]
    ) -> None:
        exchange = heard(head(protocol) + chunk(framed(protocol, thought)) + ending(protocol, 1) + END, protocol)
        assert error_of(exchange).code == "empty_answer"
        assert "all tokens went to reasoning" in error_of(exchange).message
        assert exchange.answer.reasoning == ["Hm"]

    def test_is_none_if_it_is_a_tool_call(self) -> None:
        call = chat_delta(tool_calls=[{"index": 0, "function": {"name": "a", "arguments": "{}"}}])
        said = chunk(framed("openai_chat", call)) + ending("openai_chat", 1)
        assert heard(head("openai_chat") + said + END, "openai_chat").error is None


class TestTheKey:
    def repeated(self, told: str) -> list[bytes]:
        """Every way for a server to repeat what it was told."""
        body = json.dumps({"error": told}).encode()
        return [
            http_response("401 Unauthorized", "application/json", body),
            http_response("401 Unauthorized", "text/plain", told.encode()),
            http_response("500 Oops", "application/json", json.dumps({"why": [told]}).encode()),
            http_response("200 OK", "application/json", body),
            http_response("200 OK", "application/json", told.encode()),
            http_response("200 OK", "text/html", f"<html>{told}".encode()),
            http_response("200 OK", f"text/html; key={told}", b"hello"),
            http_response("200 OK", f"x-{told}", b""),
            head("llama_cpp") + chunk(framed("llama_cpp", {"error": {"message": told}})),
            head("llama_cpp") + chunk(framed("llama_cpp", told.encode())),
            head("llama_cpp", f"Content-Encoding: {told}") + chunk(b"x"),
            told.encode() + b"\r\n",
        ]

    @pytest.mark.parametrize("key", [KEY, "s3cr3t!"], ids=["long", "short"])
    def test_is_in_no_message_whatever_the_server_repeats(self, key: str) -> None:
        for data in self.repeated(f"bad key {key}"):
            exchange = heard(data, api_key=key)
            assert key not in error_of(exchange).message
            assert key not in to_line(record(exchange))

    def test_is_in_no_message_where_the_client_itself_repeats_what_went_wrong(self) -> None:
        exchange = new(api_key=KEY)
        for _ in range(MAX_RETRIES):
            exchange.connection_lost(f"the connection broke ({KEY})", after(1))
        exchange.connection_lost(f"the connection broke ({KEY})", after(1))
        assert KEY not in error_of(exchange).message

    def test_does_not_hide_the_rest_of_a_message(self) -> None:
        body = json.dumps({"error": f"the key {KEY} is bad"}).encode()
        exchange = heard(http_response("401 Unauthorized", "application/json", body), api_key=KEY)
        assert "the key [the key] is bad" in error_of(exchange).message

    @pytest.mark.parametrize("limit", [60, 80, 500])
    def test_is_not_told_in_part_where_a_long_message_is_cut(self, limit: int) -> None:
        for shown in range(8, len(KEY)):
            for data in self.repeated("x" * (limit - shown) + KEY):
                assert KEY[:8] not in error_of(heard(data, api_key=KEY)).message


def outcome(exchange: Exchange) -> tuple[Any, ...]:
    error = exchange.error
    return (
        exchange.done,
        exchange.answer,
        exchange.keeps_connection,
        None if error is None else (error.code, error.message, error.evidence),
    )


# Responses that end, so that cutting them can not change when the client gave up.
WHOLE = {
    name: b"".join(data for _, data in fault.turns[-1].steps)
    for name, fault in FAULTS.items()
    if fault.turns and fault.turns[-1].then in {"keep", "close"}
}
assert len(WHOLE) > 100


@PATIENT
@given(name=st.sampled_from(sorted(WHOLE)), places=st.lists(st.integers(0, 10_000), max_size=12))
def test_any_split_of_a_response_gives_the_same_outcome(name: str, places: list[int]) -> None:
    def fed(*reads: bytes) -> tuple[Any, ...]:
        exchange = new(FAULTS[name].protocol)
        for data in filter(None, reads):
            exchange.received(data, after(1))
        if not exchange.done:
            exchange.connection_lost("the server hung up", after(1))
        return outcome(exchange)

    assume(WHOLE[name])
    assert fed(*cut(WHOLE[name], places)) == fed(WHOLE[name])


@EVERY_PROTOCOL
def test_a_response_byte_by_byte_gives_the_same_outcome(protocol: ProtocolName) -> None:
    data = answer(protocol, "ä", " €", " 😀")
    whole, single = new(protocol), new(protocol)
    whole.received(data, after(1))
    for place in range(len(data)):
        single.received(data[place : place + 1], after(1))
    assert outcome(single) == outcome(whole)
    assert single.answer.text == ["ä", " €", " 😀"]


@PATIENT
@given(
    protocol=st.sampled_from(PROTOCOLS),
    reads=st.lists(
        st.binary(max_size=30)
        | st.sampled_from(
            [
                b"HTTP/1.1 200 OK\r\n\r\n",
                b"HTTP/1.1 404 \r\n\r\n",
                head("llama_cpp"),
                head("ollama_chat"),
                b"data: ",
                b"{}\n\n",
                says("llama_cpp", "a"),
                says("ollama_chat", "a"),
                END,
            ]
        ),
        max_size=12,
    ),
    lost=st.booleans(),
)
def test_random_bytes_break_nothing_and_can_be_recorded(protocol: ProtocolName, reads: list[bytes], lost: bool) -> None:
    exchange = new(protocol)
    for number, data in enumerate(filter(None, reads)):
        exchange.received(data, after(number / 100))
        assert exchange.deadline_ns > SENT
    if not exchange.done and lost and exchange.t_first_byte_ns is not None:
        exchange.connection_lost("the server hung up", after(1))
    elif not exchange.done:
        exchange.time_out(exchange.deadline_ns)
    assert exchange.done
    assert json.loads(to_line(record(exchange)))["ok"] is (exchange.error is None)


def played(fault: Fault) -> Exchange:
    """The catalogue's server and this client, on an invented clock."""
    exchange = Exchange(endpoint(URL, fault.protocol), ASK, deadlines_of(fault))
    now_ns, turns = SENT, iter([*fault.turns, *[fault.turns[-1]] * MAX_RETRIES])
    while not exchange.done:
        turn = next(turns)
        exchange.sent(now_ns)
        for pause, data in turn.steps:
            now_ns += int(pause * 1e9)
            if now_ns >= exchange.deadline_ns:
                exchange.time_out(exchange.deadline_ns)
            if data:
                exchange.received(data, now_ns)
        if turn.then in {"close", "reset"} and not exchange.done:
            exchange.connection_lost(f"the server did {turn.then}", now_ns)
        while turn.then == "flood" and not exchange.done:
            exchange.received(turn.steps[-1][1], now_ns)
        if turn.then in {"hang", "keep"} and not exchange.done:
            exchange.time_out(exchange.deadline_ns)
    return exchange


@pytest.mark.parametrize(
    "name", [name for name, fault in FAULTS.items() if fault.accepts == "at once" and fault.requests == 1]
)
def test_what_goes_wrong_is_recorded_as_the_catalogue_says(name: str) -> None:
    assert differences(record(played(FAULTS[name])), FAULTS[name].expected) == {}


@pytest.mark.parametrize("protocol", OLLAMA)
def test_the_last_line_needs_no_line_end(protocol: ProtocolName) -> None:
    body = body_of(protocol, events_of(protocol)).removesuffix(b"\n")
    exchange = new(protocol)
    exchange.received(head(protocol) + chunk(body) + END, after(1))
    assert exchange.done
    assert exchange.error is None
    assert exchange.answer.output_tokens == 3
