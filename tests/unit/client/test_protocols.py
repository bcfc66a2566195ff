"""Parsers of streamed answers, against every way of cutting bytes and every nonsense a server may send."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmbench.client import protocols
from pytest_llmbench.client.protocols import AnswerParser, LlamaCppCompletion, OpenAIChat, SseParser
from pytest_llmbench.errors import RequestError

PARSERS = pytest.mark.parametrize("new_parser", [LlamaCppCompletion, OpenAIChat])
KNOWN_KEYS = [
    "content",
    "stop",
    "stop_type",
    "timings",
    "predicted_n",
    "cache_n",
    "tokens_evaluated",
    "model",
    "error",
    "message",
    "choices",
    "delta",
    "finish_reason",
    "reasoning_content",
    "usage",
    "prompt_tokens",
    "completion_tokens",
    "prompt_tokens_details",
    "cached_tokens",
]
NewParser = Callable[[], AnswerParser]

_SCRAPS = [
    b"data:",
    b"data: ",
    b"data",
    b":",
    b" ",
    b"\n",
    b"\n\n",
    b"\r\n",
    b"\r",
    b"x",
    "é€".encode(),
    b"\xff",
    b"id: 1",
]
sse_streams = st.lists(st.sampled_from(_SCRAPS) | st.binary(max_size=4), max_size=40).map(b"".join)
data_lines = st.binary(max_size=12).filter(lambda line: not {10, 13} & set(line))


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    """The stream in pieces, some of them empty."""
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[begin:end] for begin, end in pairwise(edges)]


def events_of(*chunks: bytes) -> list[bytes]:
    parser = SseParser()
    return [event for chunk in chunks for event in parser.feed(chunk)]


class TestSseParser:
    @given(stream=sse_streams, places=st.lists(st.integers(0, 1000), max_size=12))
    def test_any_split_gives_the_same_events(self, stream: bytes, places: list[int]) -> None:
        assert events_of(*cut(stream, places)) == events_of(stream)

    @given(
        events=st.lists(st.lists(data_lines, min_size=1, max_size=3), max_size=5),
        line_end=st.sampled_from([b"\n", b"\r\n"]),
        noise=st.sampled_from([b"", b": a comment", b"event: message", b"retry: 5", b"data-of-mine: no"]),
    )
    def test_what_was_written_is_read_back(self, events: list[list[bytes]], line_end: bytes, noise: bytes) -> None:
        stream = b"".join(
            b"".join(line + line_end for line in [noise, *(b"data: " + data for data in lines), b""] if line) + line_end
            for lines in events
        )
        assert events_of(stream) == [b"\n".join(lines) for lines in events]

    def test_data_without_a_space(self) -> None:
        assert events_of(b"data:{}\n\n") == [b"{}"]

    def test_only_one_space_is_taken_off(self) -> None:
        assert events_of(b"data:  x\n\n") == [b" x"]

    def test_several_lines_are_joined(self) -> None:
        assert events_of(b"data: a\ndata:b\ndata:\n\n") == [b"a\nb\n"]

    def test_comments_and_blank_lines_are_no_events(self) -> None:
        assert events_of(b": ping\n\n\n\n:\n\n") == []

    def test_an_unfinished_event_is_none(self) -> None:
        assert events_of(b"data: a\n") == []

    def test_a_character_may_be_cut_in_two(self) -> None:
        stream = "data: héé€😀\n\n".encode()
        single_bytes = [stream[i : i + 1] for i in range(len(stream))]
        assert [event.decode() for event in events_of(*single_bytes)] == ["héé€😀"]

    @pytest.mark.parametrize(
        "chunks",
        [
            [b"data: " + b"x" * 1001],
            [b"data: " + b"x" * 1001 + b"\n\n"],
            [b"data: ", *[b"x" * 100] * 11],
            [b"data: " + b"x" * 100 + b"\n"] * 11,
            [b": " + b"x" * 1001],
        ],
        ids=["unfinished line", "finished", "in pieces", "many lines", "comment"],
    )
    def test_an_endless_event_is_refused(self, chunks: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(protocols, "MAX_EVENT_BYTES", 1000)
        with pytest.raises(RequestError, match="1000 bytes") as caught:
            events_of(*chunks)
        assert caught.value.code == "bad_response"

    def test_many_events_are_not_one_long_event(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(protocols, "MAX_EVENT_BYTES", 1000)
        assert len(events_of(*[b": ping\n\ndata: " + b"x" * 500 + b"\n\n"] * 20)) == 20


def feed(parser: AnswerParser, *events: Any) -> None:
    """Give a parser events, one at each 10 ns."""
    for number, event in enumerate(events):
        parser.on_data(event if isinstance(event, bytes) else json.dumps(event).encode(), 10 * number)


class TestLlamaCppCompletion:
    def test_a_whole_answer(self) -> None:
        parser = LlamaCppCompletion()
        timings = {"cache_n": 3, "prompt_n": 4, "predicted_n": 2, "predicted_ms": 20.5}
        final = {"content": "", "stop": True, "stop_type": "limit", "tokens_evaluated": 7, "timings": timings}
        feed(parser, {"content": "Once"}, {"content": " upon"}, {**final, "model": "tiny"})
        answer = parser.answer
        assert answer.text == ["Once", " upon"]
        assert answer.piece_times_ns == [0, 10]
        assert (answer.prompt_tokens, answer.cached_tokens, answer.output_tokens) == (7, 3, 2)
        assert answer.output_tokens_source == "timings.predicted_n"
        assert answer.finish_reason == "length"
        assert answer.server_timings == timings
        assert answer.finished

    def test_empty_content_is_an_event_but_no_token(self) -> None:
        parser = LlamaCppCompletion()
        feed(parser, {"content": ""}, {"index": 0}, {"content": None}, {"content": "a"})
        assert parser.answer.t_first_event_ns == 0
        assert parser.answer.piece_times_ns == [30]

    def test_the_last_event_may_hold_text(self) -> None:
        parser = LlamaCppCompletion()
        feed(parser, {"content": "a", "stop": True, "stop_type": "eos"})
        assert parser.answer.text == ["a"]
        assert parser.answer.finish_reason == "eos"

    def test_a_missing_stop_type_is_no_finish_reason(self) -> None:
        parser = LlamaCppCompletion()
        feed(parser, {"content": "a", "stop": True})
        assert parser.answer.finished
        assert parser.answer.finish_reason is None

    def test_not_finished_without_the_final_event(self) -> None:
        parser = LlamaCppCompletion()
        feed(parser, {"content": "a", "stop": False}, {"content": "b", "stop": "yes"})
        assert not parser.answer.finished


def delta(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


class TestOpenAIChat:
    def test_a_whole_answer_with_usage_in_the_last_chunk(self) -> None:
        parser = OpenAIChat()
        usage = {"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}
        stop = {"choices": [{"delta": {}, "finish_reason": "length"}]}
        feed(parser, delta(content="Hel"), delta(content="lo"), stop, {"choices": [], "usage": usage}, b"[DONE]")
        answer = parser.answer
        assert answer.text == ["Hel", "lo"]
        assert answer.piece_times_ns == [0, 10]
        assert (answer.prompt_tokens, answer.cached_tokens, answer.output_tokens) == (9, 4, 3)
        assert answer.output_tokens_source == "usage.completion_tokens"
        assert answer.finish_reason == "length"
        assert answer.finished

    def test_role_only_and_empty_deltas_are_no_tokens(self) -> None:
        parser = OpenAIChat()
        feed(parser, delta(role="assistant"), delta(content=""), delta(content=None), delta(), delta(content="a"))
        assert parser.answer.t_first_event_ns == 0
        assert parser.answer.piece_times_ns == [40]
        assert parser.answer.text == ["a"]

    @pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
    def test_reasoning_is_not_the_answer(self, field: str) -> None:
        parser = OpenAIChat()
        feed(parser, delta(role="assistant"), delta(**{field: "Hm"}), delta(**{field: "m"}), delta(content="42"))
        assert parser.answer.reasoning == ["Hm", "m"]
        assert parser.answer.t_first_reasoning_ns == 10
        assert parser.answer.text == ["42"]
        assert parser.answer.t_first_token_ns == 30
        assert parser.answer.piece_times_ns == [10, 20, 30]  # the server counts reasoning, so the rate spans it

    def test_timings_win_over_usage(self) -> None:
        parser = OpenAIChat()
        feed(parser, {"choices": [], "usage": {"completion_tokens": 3}, "timings": {"predicted_n": 5, "cache_n": 1}})
        assert parser.answer.output_tokens == 5
        assert parser.answer.output_tokens_source == "timings.predicted_n"
        assert parser.answer.cached_tokens == 1

    @pytest.mark.parametrize("count", [-1, True, "3", 3.0, None])
    def test_a_count_that_is_none_is_not_taken(self, count: Any) -> None:
        parser = OpenAIChat()
        feed(parser, {"usage": {"completion_tokens": count, "prompt_tokens": count}, "timings": {"predicted_n": count}})
        assert parser.answer.output_tokens is None
        assert parser.answer.prompt_tokens is None

    def test_done_alone_finishes(self) -> None:
        parser = OpenAIChat()
        feed(parser, b" [DONE] ")
        assert parser.answer.finished


@PARSERS
class TestEveryParser:
    @pytest.mark.parametrize("error", [{"message": "out of memory", "code": 500}, "out of memory"])
    def test_an_error_event_inside_the_stream(self, new_parser: NewParser, error: Any) -> None:
        with pytest.raises(RequestError, match="out of memory") as caught:
            feed(new_parser(), {"error": error})
        assert caught.value.code == "server_error_event"

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" * 400])
    def test_numbers_that_can_not_be_recorded_are_refused(self, new_parser: NewParser, number: str) -> None:
        event = f'{{"content": "a", "stop": true, "timings": {{"predicted_n": 3, "predicted_ms": {number}}}}}'
        with pytest.raises(RequestError, match="not JSON") as caught:
            feed(new_parser(), event.encode())
        assert caught.value.code == "bad_response"

    @pytest.mark.parametrize("data", [b"", b"{", b"hello", b"[1]", b"null", b'"text"', b"[" * 100_000, b"\xff\xfe"])
    def test_what_is_no_json_object_is_refused(self, new_parser: NewParser, data: bytes) -> None:
        with pytest.raises(RequestError) as caught:
            feed(new_parser(), data)
        assert caught.value.code == "bad_response"

    @given(data=st.binary(max_size=60))
    def test_random_bytes_raise_nothing_else(self, new_parser: NewParser, data: bytes) -> None:
        with suppress(RequestError):
            feed(new_parser(), data)

    @given(
        event=st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(KNOWN_KEYS),
                    inner,
                    max_size=6,
                )
            ),
            max_leaves=20,
        )
    )
    def test_any_shape_of_event_raises_nothing_else(self, new_parser: NewParser, event: Any) -> None:
        parser = new_parser()
        with suppress(RequestError):
            feed(parser, event)
        for count in (parser.answer.prompt_tokens, parser.answer.cached_tokens, parser.answer.output_tokens):
            assert count is None or (type(count) is int and count >= 0)
        assert len(parser.answer.text) == len(parser.answer.piece_times_ns)
