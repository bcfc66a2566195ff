"""What is recorded of an exchange, and what is not because it would not be true."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pytest_llmbench.client.exchange import Deadlines, Exchange
from pytest_llmbench.client.generation import Generation
from pytest_llmbench.client.record import LAG_TOLERANCE, LEAST_TOLERATED_LAG_NS, MAX_CHUNKING_BIAS, record_of
from pytest_llmbench.core.records import RequestRecord, to_line
from tests.servers.faulty import (
    OLLAMA,
    OPENAI,
    PROTOCOLS,
    ProtocolName,
    chat_delta,
    closing,
    done_mark,
    framed,
    head,
    opening,
    token,
)
from tests.servers.scripted import chunk
from tests.unit.client.helpers import ASK, END, SECOND, answer, endpoint

URL = "http://127.0.0.1:8080"
SENT = 5 * SECOND
MS = 1_000_000
Event = dict[str, Any]


def exchange(protocol: ProtocolName = "llama_cpp", *timed: tuple[int, Event], tokens: int | None = None) -> Exchange:
    """An exchange whose events came so many nanoseconds after the sending, the last ones with the last of them."""
    one = Exchange(endpoint(URL, protocol), ASK, Deadlines())
    one.sent(SENT)
    one.received(head(protocol), SENT + 1)
    for offset_ns, event in timed:
        one.received(chunk(framed(protocol, event)), SENT + offset_ns)
    last_ns = timed[-1][0] if timed else 2
    ends = closing(protocol, len(timed) if tokens is None else tokens)
    for data in [
        *(framed(protocol, event) for event in ends),
        *(framed(protocol, mark) for mark in done_mark(protocol)),
    ]:
        one.received(chunk(data), SENT + last_ns)
    one.received(END, SENT + last_ns + 7)
    assert one.done
    return one


def record(one: Exchange) -> RequestRecord:
    return record_of(one, cell="the cell", index=3, phase="warmup")


def pieces(*offsets_ns: int, protocol: ProtocolName = "llama_cpp", tokens: int | None = None) -> RequestRecord:
    return record(exchange(protocol, *((offset, token(protocol, "x")) for offset in offsets_ns), tokens=tokens))


@pytest.mark.parametrize("protocol", PROTOCOLS)
class TestTimes:
    def test_are_those_at_which_the_bytes_came(self, protocol: ProtocolName) -> None:
        first = [(100 * MS, event) for event in opening(protocol)]
        said = [(offset * MS, token(protocol, "x")) for offset in (200, 300, 400)]
        found = record(exchange(protocol, *first, *said, tokens=3))
        assert (found.t_send_ns, found.t_first_byte_ns) == (SENT, SENT + 1)
        assert found.t_first_event_ns == SENT + (100 if first else 200) * MS
        assert (found.t_first_token_ns, found.t_last_token_ns) == (SENT + 200 * MS, SENT + 400 * MS)
        assert found.t_end_ns == SENT + 400 * MS + 7
        assert found.ttft_seconds == 0.2
        assert found.token_offsets_us == [200_000, 300_000, 400_000]
        assert found.chunks == 3
        assert (found.t_first_reasoning_ns, found.time_to_first_reasoning_seconds) == (None, None)

    def test_that_never_came_are_absent(self, protocol: ProtocolName) -> None:
        one = Exchange(endpoint(URL, protocol), ASK, Deadlines())
        one.sent(SENT)
        one.time_out(one.deadline_ns)
        found = record(one)
        assert not found.ok
        assert found.error == "first_token_timeout"
        absent = ("t_first_byte_ns", "t_first_event_ns", "t_first_token_ns", "t_last_token_ns", "ttft_seconds")
        assert [getattr(found, name) for name in absent] == [None] * 5
        assert found.decode_tokens_per_second is None
        assert found.token_offsets_us == []


class TestTheDecodeRate:
    def test_is_that_of_the_intervals_between_tokens(self) -> None:
        assert pieces(100 * MS, 150 * MS, 200 * MS).decode_tokens_per_second == pytest.approx(2 / 0.1)

    @pytest.mark.parametrize("protocol", OPENAI)
    def test_is_absent_without_the_server_s_count(self, protocol: ProtocolName) -> None:
        one = Exchange(endpoint(URL, protocol), ASK, Deadlines())
        one.sent(SENT)
        one.received(head(protocol), SENT + 1)
        for number in range(1, 4):
            one.received(chunk(framed(protocol, token(protocol, "x"))), SENT + number * MS)
        one.received(chunk(framed(protocol, closing(protocol, 3)[0])) + END, SENT + 4 * MS)
        found = record(one)
        assert found.ok
        assert (found.output_tokens, found.output_tokens_source) == (None, None)
        assert found.decode_tokens_per_second is None

    def test_is_absent_for_one_token(self) -> None:
        assert pieces(100 * MS).decode_tokens_per_second is None
        assert pieces(100 * MS, 200 * MS, tokens=1).decode_tokens_per_second is None

    def test_is_absent_where_all_came_at_once(self) -> None:
        assert pieces(100 * MS, 100 * MS, 100 * MS).decode_tokens_per_second is None

    def test_is_absent_where_chunks_would_falsify_it(self) -> None:
        found = pieces(100 * MS, 150 * MS, 200 * MS, tokens=60)
        assert found.decode_tokens_per_second is None
        assert (found.output_tokens, found.chunks) == (60, 3)

    def test_bears_chunks_up_to_the_tolerance(self) -> None:
        # (k − 1) / (n − 1) with k tokens a piece: 101 tokens in 34 and in 33 pieces.
        assert (101 / 34 - 1) / 100 < MAX_CHUNKING_BIAS < (101 / 33 - 1) / 100
        rates = [
            pieces(*(number * MS for number in range(1, count + 1)), tokens=101).decode_tokens_per_second
            for count in (34, 33)
        ]
        assert rates[0] == pytest.approx(100 / 0.033)
        assert rates[1] is None

    def test_counts_the_tokens_and_not_the_pieces(self) -> None:
        offsets = [number * MS for number in range(1, 61)]
        assert pieces(*offsets, tokens=62).decode_tokens_per_second == pytest.approx(61 / 0.059)

    def test_spans_reasoning_which_the_server_counts_too(self) -> None:
        thoughts = [(offset * MS, chat_delta(reasoning_content="hm")) for offset in (100, 200)]
        said = [(offset * MS, chat_delta(content="4")) for offset in (300, 400)]
        found = record(exchange("openai_chat", *thoughts, *said))
        assert found.decode_tokens_per_second == pytest.approx(3 / 0.3)
        assert (found.ttft_seconds, found.time_to_first_reasoning_seconds) == (0.3, 0.1)
        assert found.t_last_token_ns == SENT + 400 * MS
        assert found.chunks == 4


class TestWhatEachPieceBrought:
    @pytest.mark.parametrize("protocol", PROTOCOLS)
    def test_is_counted_in_characters(self, protocol: ProtocolName) -> None:
        said = [(number * MS, token(protocol, text)) for number, text in enumerate(("It ", "", "rained", "…"), 1)]
        found = record(exchange(protocol, *said, tokens=3))
        assert found.piece_characters == [3, 6, 1]
        assert len(found.piece_characters) == len(found.token_offsets_us)
        assert sum(found.piece_characters) == len(found.output)

    def test_is_nothing_while_it_reasons(self) -> None:
        thoughts = [(offset * MS, chat_delta(reasoning_content="hmm")) for offset in (100, 200)]
        found = record(exchange("openai_chat", *thoughts, (300 * MS, chat_delta(content="So."))))
        assert found.piece_characters == [0, 0, 3]

    def test_is_not_known_where_it_reasons_in_between(self) -> None:
        events = [{"content": "So"}, {"reasoning_content": "hmm"}, {"content": "."}]
        found = record(exchange("openai_chat", *((n * MS, chat_delta(**delta)) for n, delta in enumerate(events, 1))))
        assert (found.output, found.chunks, found.piece_characters) == ("So.", 3, [])

    def test_is_not_known_beside_tool_calls(self) -> None:
        call = chat_delta(tool_calls=[{"index": 0, "function": {"name": "a", "arguments": "{}"}}])
        found = record(exchange("openai_chat", (MS, chat_delta(content="So.")), (2 * MS, call)))
        assert (found.chunks, found.piece_characters) == (2, [])

    def test_is_nothing_where_nothing_came(self) -> None:
        one = Exchange(endpoint(URL), ASK, Deadlines())
        one.sent(SENT)
        one.time_out(one.deadline_ns)
        assert record(one).piece_characters == []


class TestTheClientSLateness:
    """At 200 and 1200 ms: 5 % of the time to the first token are 10 ms, of the span 50 ms."""

    def late(self, first_token_lag_ms: float, lag_ms: float) -> RequestRecord:
        one = Exchange(endpoint(URL), ASK, Deadlines())
        one.sent(SENT)
        one.client_was_late(int(first_token_lag_ms * MS))
        one.received(head("llama_cpp") + chunk(framed("llama_cpp", token("llama_cpp", "x"))), SENT + 200 * MS)
        one.client_was_late(int(lag_ms * MS))
        one.received(chunk(framed("llama_cpp", token("llama_cpp", "x"))), SENT + 1200 * MS)
        one.received(chunk(framed("llama_cpp", closing("llama_cpp", 2)[0])) + END, SENT + 1200 * MS)
        return record(one)

    def test_is_no_flag_where_there_is_none(self) -> None:
        found = self.late(0, 0)
        assert (found.flags, found.client_lag_ms) == ([], 0)

    def test_is_no_flag_within_the_tolerance(self) -> None:
        assert LAG_TOLERANCE == 0.05
        assert self.late(9.9, 49.9).flags == []

    def test_is_a_flag_where_the_first_token_may_have_waited(self) -> None:
        found = self.late(10.1, 0)
        assert found.flags == ["client_late"]
        assert found.client_lag_ms == 10.1

    def test_after_the_first_token_does_not_touch_its_time(self) -> None:
        assert self.late(0, 40).flags == []

    def test_is_a_flag_where_the_span_of_the_rate_may_have_moved(self) -> None:
        found = self.late(0, 50.1)
        assert found.flags == ["client_late"]
        assert found.client_lag_ms == 50.1

    @pytest.mark.parametrize(("lag_ns", "flags"), [(LEAST_TOLERATED_LAG_NS, []), (3 * MS, ["client_late"])])
    def test_of_two_milliseconds_is_borne_however_short_the_times(self, lag_ns: int, flags: list[str]) -> None:
        one = Exchange(endpoint(URL), ASK, Deadlines())
        one.sent(SENT)
        one.client_was_late(lag_ns)
        one.received(answer(), SENT + 10 * MS)
        assert record(one).flags == flags

    def test_says_nothing_of_a_request_without_a_token(self) -> None:
        one = Exchange(endpoint(URL), ASK, Deadlines())
        one.sent(SENT)
        one.client_was_late(500 * MS)
        one.time_out(one.deadline_ns)
        found = record(one)
        assert (found.flags, found.client_lag_ms) == ([], 500)

    def test_the_longest_counts(self) -> None:
        one = Exchange(endpoint(URL), ASK, Deadlines())
        one.sent(SENT)
        for lag in (3, 8, 5):
            one.client_was_late(lag * MS)
        assert (one.lag_ns, one.first_token_lag_ns) == (8 * MS, 8 * MS)


class TestWhatIsKept:
    @pytest.mark.parametrize("protocol", PROTOCOLS)
    def test_what_was_asked_without_the_streaming_that_is_always_asked(self, protocol: ProtocolName) -> None:
        generation = Generation(max_tokens=4, prompt="Once", temperature=0.8)
        one = Exchange(endpoint(URL, protocol, extra={"keep_alive": "5m"}), generation, Deadlines())
        params = record(one).params
        assert "stream" not in params
        assert params == {name: value for name, value in one.params.items() if name != "stream"}
        assert params["keep_alive"] == "5m"
        assert "seed" in (params["options"] if protocol in OLLAMA else params)

    def test_where_it_belongs(self) -> None:
        found = pieces(MS)
        assert (found.cell, found.index, found.phase, found.protocol) == ("the cell", 3, "warmup", "llama_cpp")

    def test_what_the_transport_knows(self) -> None:
        one = exchange("llama_cpp", (MS, token("llama_cpp", "x")))
        one.retries, one.connection_reused, one.connect_seconds, one.t_scheduled_ns = 1, True, 0.25, SENT - MS
        found = record(one)
        assert (found.retries, found.connection_reused, found.connect_seconds) == (1, True, 0.25)
        assert found.t_scheduled_ns == SENT - MS

    @pytest.mark.parametrize("protocol", PROTOCOLS)
    def test_text_counts_and_the_reason_to_end(self, protocol: ProtocolName) -> None:
        found = pieces(MS, 2 * MS, protocol=protocol)
        assert found.ok
        assert (found.error, found.error_message) == (None, None)
        assert (found.output, found.output_tokens, found.prompt_tokens) == ("xx", 2, 7)
        assert (found.finish_reason, found.response_model) == ("length", "tiny")

    def test_an_error_beside_what_had_come(self) -> None:
        one = Exchange(endpoint(URL), ASK, Deadlines())
        one.sent(SENT)
        one.received(head("llama_cpp") + chunk(framed("llama_cpp", token("llama_cpp", "x"))), SENT + MS)
        one.connection_lost("the server hung up", SENT + 2 * MS)
        found = record(one)
        assert not found.ok
        assert found.error == "stream_truncated"
        assert "after 1 pieces" in str(found.error_message)
        assert found.output == "x"

    def test_tool_calls_in_their_order(self) -> None:
        calls = [
            chat_delta(tool_calls=[{"index": index, "function": {"name": name, "arguments": "{}"}}])
            for index, name in ((1, "b"), (0, "a"))
        ]
        found = record(exchange("openai_chat", *((MS, call) for call in calls)))
        assert [call["name"] for call in found.tool_calls] == ["a", "b"]

    def test_the_answer_s_id_is_its_own_or_the_header_s(self) -> None:
        one = Exchange(endpoint(URL), ASK, Deadlines())
        one.sent(SENT)
        one.received(answer().replace(b"\r\n", b"\r\nX-Request-Id: from-the-header\r\n", 1), SENT + MS)
        assert record(one).response_id == "from-the-header"
        assert record(exchange("openai_chat", (MS, chat_delta(content="a")))).response_id == "chatcmpl-7"

    def test_text_that_utf8_can_not_hold(self) -> None:
        odd = "a\ud800"
        call = {"index": 0, "function": {"name": odd, "arguments": odd}}
        event = chat_delta(odd, model=odd, content=odd, reasoning=odd, tool_calls=[call])
        one = Exchange(endpoint(URL, "openai_chat"), ASK, Deadlines())
        one.sent(SENT)
        data = json.dumps({**event, "id": odd, "timings": {odd: odd}}).encode()
        one.received(head("openai_chat") + chunk(framed("openai_chat", data)) + END, SENT + MS)
        assert one.error is None
        kept = json.loads(to_line(record(one)))
        names = ("output", "reasoning", "response_model", "response_id")
        assert [kept[name] for name in names] == [odd] * 4
        assert kept["tool_calls"] == [{"name": odd, "arguments": odd}]
        assert kept["server_timings"] == {odd: odd}

    @pytest.mark.parametrize("depth", [10, 300, 900])
    def test_times_of_the_server_however_deep_its_nonsense_can_be_written_down(self, depth: int) -> None:
        nested: list[Any] = []
        for _ in range(depth):
            nested = [nested]
        one = exchange("openai_chat", (MS, {**chat_delta(content="a"), "timings": {"predicted_ms": 2, "a": nested}}))
        assert json.loads(to_line(record(one)))["server_timings"]["predicted_ms"] == 2
