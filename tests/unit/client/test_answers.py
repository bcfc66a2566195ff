"""What the events of each protocol are taken to say, and every nonsense a server may send."""

from __future__ import annotations

import dataclasses
import json
import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmbench.client.answers import (
    ANSWER_PARSERS,
    Answer,
    AnswerParser,
    LlamaCppCompletion,
    OllamaStream,
    OpenAIStream,
)
from pytest_llmbench.client.framing import NdjsonParser, SseParser
from pytest_llmbench.client.http import ResponseParser
from pytest_llmbench.core.records import RequestRecord, to_line
from pytest_llmbench.errors import RequestError
from tests.servers.faulty import FAULTS, OLLAMA, OPENAI, PROTOCOLS, ProtocolName, chat_delta, closing, opening, token
from tests.unit.client.helpers import PATIENT, cut

NewParser = Callable[[], AnswerParser]
EVERY_PARSER = pytest.mark.parametrize("new_parser", [LlamaCppCompletion, OpenAIStream, OllamaStream])
EVERY_PROTOCOL = pytest.mark.parametrize("protocol", PROTOCOLS)
KNOWN_KEYS = [
    "content",
    "stop",
    "stop_type",
    "timings",
    "predicted_n",
    "cache_n",
    "tokens_evaluated",
    "truncated",
    "model",
    "id",
    "error",
    "message",
    "choices",
    "delta",
    "text",
    "finish_reason",
    "reasoning_content",
    "reasoning",
    "usage",
    "prompt_tokens",
    "completion_tokens",
    "prompt_tokens_details",
    "cached_tokens",
    "tool_calls",
    "function",
    "name",
    "arguments",
    "index",
    "response",
    "thinking",
    "done",
    "done_reason",
    "prompt_eval_count",
    "eval_count",
    "eval_duration",
]
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
# Objects of known fields, each of which may hold anything, also a list of such objects.
ANY_EVENT = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KNOWN_KEYS), inner, max_size=6),
    max_leaves=20,
)
# Such an object where a parser looks deeper.
DEEP_EVENT = ANY_EVENT.flatmap(
    lambda event: st.sampled_from(
        [
            event,
            {"choices": [event]},
            {"choices": [{"delta": event}]},
            {"choices": [{"delta": {"tool_calls": [event]}}]},
            {"choices": [{"delta": {"tool_calls": [{"function": event}]}}]},
            {"usage": event},
            {"timings": event, "stop": True},
            {"message": event},
            {"message": {"tool_calls": [{"function": {"arguments": event}}]}},
            {"done": True, "eval_count": event, "eval_duration": event},
        ]
    )
)


def feed(parser: AnswerParser, *events: Any) -> Answer:
    """Give a parser events, one at each 10 ns."""
    for number, event in enumerate(events):
        parser.on_data(event if isinstance(event, bytes) else json.dumps(event).encode(), 10 * number)
    return parser.answer


def heard(protocol: ProtocolName, *events: Any) -> Answer:
    return feed(ANSWER_PARSERS[protocol](), *events)


def delta(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


def line(**fields: Any) -> dict[str, Any]:
    """A line of Ollama's chat."""
    return {"model": "tiny", "message": {"role": "assistant", "content": "", **fields}, "done": False}


@EVERY_PROTOCOL
class TestEveryProtocol:
    def test_a_whole_answer(self, protocol: ProtocolName) -> None:
        first = opening(protocol)
        done = [b"[DONE]"] if protocol in OPENAI else []
        answer = heard(protocol, *first, token(protocol, "Hel"), token(protocol, "lo"), *closing(protocol, 2), *done)
        assert answer.text == ["Hel", "lo"]
        start = 10 * len(first)
        assert answer.piece_times_ns == [start, start + 10]
        assert (answer.t_first_event_ns, answer.t_first_token_ns) == (0, start)
        assert (answer.prompt_tokens, answer.output_tokens) == (7, 2)
        assert answer.finish_reason == "length"
        assert answer.response_model == "tiny"
        assert answer.finished
        assert answer.ended
        assert not answer.is_empty

    def test_where_the_count_came_from_is_told(self, protocol: ProtocolName) -> None:
        source = "timings.predicted_n" if protocol == "llama_cpp" else "usage.completion_tokens"
        expected = "eval_count" if protocol in OLLAMA else source
        assert heard(protocol, *closing(protocol, 2)).output_tokens_source == expected

    def test_an_empty_piece_is_an_event_but_no_token(self, protocol: ProtocolName) -> None:
        answer = heard(protocol, token(protocol, ""), token(protocol, ""), token(protocol, "a"), token(protocol, ""))
        assert answer.t_first_event_ns == 0
        assert answer.t_first_token_ns == 20
        assert answer.piece_times_ns == [20]
        assert answer.text == ["a"]

    def test_several_tokens_in_one_piece_are_counted_as_the_server_counts(self, protocol: ProtocolName) -> None:
        answer = heard(protocol, token(protocol, "three tokens here"), *closing(protocol, 3))
        assert (len(answer.piece_times_ns), answer.output_tokens) == (1, 3)

    def test_without_a_final_event_it_is_not_finished(self, protocol: ProtocolName) -> None:
        answer = heard(protocol, *opening(protocol), token(protocol, "a"))
        assert not answer.finished
        assert not answer.ended
        assert answer.output_tokens is None

    @pytest.mark.parametrize(
        "error",
        [
            {"error": "out of memory"},
            {"error": {"message": "out of memory", "code": 500, "type": "server_error"}},
            {"error": {"message": "out of memory"}, "choices": [], "done": True},
            {"error": {"detail": "out of memory"}},
        ],
        ids=["ollama", "llama.cpp", "beside other fields", "unknown shape"],
    )
    def test_an_error_inside_the_stream(self, protocol: ProtocolName, error: dict[str, Any]) -> None:
        with pytest.raises(RequestError, match="out of memory") as caught:
            heard(protocol, token(protocol, "a"), error)
        assert caught.value.code == "server_error_event"

    def test_a_long_error_is_cut(self, protocol: ProtocolName) -> None:
        with pytest.raises(RequestError) as caught:
            heard(protocol, {"error": "x" * 100_000})
        assert len(caught.value.message) < 1000

    def test_an_error_of_absurd_depth_is_still_an_error_of_the_server(self, protocol: ProtocolName) -> None:
        # As deep as the JSON parser goes: Python itself can not write such a list down.
        deep = b'{"error": ' + b"[" * 1020 + b"]" * 1020 + b"}"
        with pytest.raises(RequestError):
            heard(protocol, deep)

    def test_a_lone_surrogate_is_text_like_any_other(self, protocol: ProtocolName) -> None:
        answer = heard(protocol, token(protocol, "a\ud800"), *closing(protocol, 1))
        assert answer.text == ["a\ud800"]

    def test_broken_utf8_is_replaced(self, protocol: ProtocolName) -> None:
        broken = json.dumps(token(protocol, "a?b")).encode().replace(b"a?b", b"a\xffb")
        assert heard(protocol, broken).text == ["a\ufffdb"]

    def test_text_that_is_no_text_is_not_taken(self, protocol: ProtocolName) -> None:
        for nonsense in (None, 0, 7, True, ["a"], {"a": 1}):
            event = token(protocol, "")
            raw = json.dumps(event).replace('""', json.dumps(nonsense)).encode()
            assert heard(protocol, raw).piece_times_ns == []


@EVERY_PARSER
class TestEveryParser:
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

    @PATIENT
    @given(data=st.binary(max_size=60))
    def test_random_bytes_raise_nothing_else(self, new_parser: NewParser, data: bytes) -> None:
        with suppress(RequestError):
            feed(new_parser(), data)

    @PATIENT
    @given(events=st.lists(DEEP_EVENT, max_size=4))
    def test_any_shape_of_event_raises_nothing_else_and_leaves_sane_facts(
        self, new_parser: NewParser, events: list[Any]
    ) -> None:
        parser = new_parser()
        with suppress(RequestError):
            feed(parser, *events)
        check_sanity(parser.answer)


def check_sanity(answer: Answer) -> None:
    """What must hold whatever a server said."""
    for count in (answer.prompt_tokens, answer.cached_tokens, answer.output_tokens):
        assert count is None or (type(count) is int and count >= 0)
    assert len(answer.text) + len(answer.reasoning) <= len(answer.piece_times_ns)
    assert all(type(piece) is str and piece for piece in [*answer.text, *answer.reasoning])
    assert answer.piece_times_ns == sorted(answer.piece_times_ns)
    assert (answer.output_tokens is None) == (answer.output_tokens_source is None)
    for value in (answer.finish_reason, answer.response_id, answer.response_model):
        assert value is None or type(value) is str
    for call in answer.tool_calls.values():
        assert call.keys() == {"name", "arguments"}
        assert all(type(part) is str for part in call.values())


class TestLlamaCpp:
    def test_the_final_event_counts(self) -> None:
        timings = {"cache_n": 3, "prompt_n": 4, "predicted_n": 2, "predicted_ms": 20.5}
        final = {"content": "", "stop": True, "stop_type": "limit", "tokens_evaluated": 7, "timings": timings}
        answer = heard("llama_cpp", {"content": "Once"}, {"content": " upon"}, {**final, "model": "tiny"})
        assert (answer.prompt_tokens, answer.cached_tokens, answer.output_tokens) == (7, 3, 2)
        assert answer.server_timings == timings
        assert answer.response_model == "tiny"
        assert not answer.truncated_prompt

    def test_a_shifted_prompt_is_told(self) -> None:
        assert heard("llama_cpp", {"content": "a", "stop": True, "truncated": True}).truncated_prompt

    def test_an_event_without_content_is_no_token(self) -> None:
        answer = heard("llama_cpp", {"content": ""}, {"index": 0}, {"content": None}, {"content": "a"})
        assert answer.t_first_event_ns == 0
        assert answer.piece_times_ns == [30]

    @pytest.mark.parametrize(("stop_type", "reason"), [("limit", "length"), ("eos", "eos"), ("word", "word")])
    def test_only_the_limit_is_a_length(self, stop_type: str, reason: str) -> None:
        answer = heard("llama_cpp", {"content": "a", "stop": True, "stop_type": stop_type})
        assert answer.finish_reason == reason
        assert answer.text == ["a"]  # the last event may hold text

    @pytest.mark.parametrize("stop_type", [{}, {"stop_type": None}, {"stop_type": 3}])
    def test_a_missing_stop_type_is_no_finish_reason(self, stop_type: dict[str, Any]) -> None:
        answer = heard("llama_cpp", {"content": "a", "stop": True, **stop_type})
        assert answer.finished
        assert answer.finish_reason is None

    @pytest.mark.parametrize("stop", [False, "yes", 1, None])
    def test_only_a_true_stop_ends_it(self, stop: Any) -> None:
        assert not heard("llama_cpp", {"content": "b", "stop": stop}).finished

    def test_without_timings_there_is_no_count(self) -> None:
        answer = heard("llama_cpp", {"content": "a", "stop": True, "timings": None})
        assert (answer.output_tokens, answer.output_tokens_source, answer.server_timings) == (None, None, None)


@pytest.mark.parametrize("protocol", OPENAI)
class TestUsage:
    USAGE: ClassVar = {
        "usage": {"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}
    }

    def test_in_a_chunk_of_its_own(self, protocol: ProtocolName) -> None:
        last = closing(protocol, 3)[0]
        answer = heard(protocol, token(protocol, "a"), last, {"choices": [], **self.USAGE}, b"[DONE]")
        assert (answer.prompt_tokens, answer.cached_tokens, answer.output_tokens) == (9, 4, 3)

    def test_in_the_last_chunk(self, protocol: ProtocolName) -> None:
        answer = heard(protocol, token(protocol, "a"), {**closing(protocol, 3)[0], **self.USAGE}, b"[DONE]")
        assert (answer.prompt_tokens, answer.cached_tokens, answer.output_tokens) == (9, 4, 3)

    def test_the_last_of_those_repeated_counts(self, protocol: ProtocolName) -> None:
        growing = [{**token(protocol, "a"), "usage": {"completion_tokens": n, "prompt_tokens": 9}} for n in (1, 2, 3)]
        answer = heard(protocol, *growing)
        assert (answer.prompt_tokens, answer.output_tokens) == (9, 3)

    @pytest.mark.parametrize("usage", [{}, {"usage": None}, {"usage": {}}, {"usage": [3]}])
    def test_none_is_no_count(self, protocol: ProtocolName, usage: dict[str, Any]) -> None:
        answer = heard(protocol, {**token(protocol, "a"), **usage}, b"[DONE]")
        assert (answer.output_tokens, answer.output_tokens_source) == (None, None)

    def test_a_later_null_does_not_take_a_count_back(self, protocol: ProtocolName) -> None:
        answer = heard(protocol, {"choices": [], **self.USAGE}, {**token(protocol, ""), "usage": None})
        assert answer.output_tokens == 3

    @pytest.mark.parametrize("turned", [False, True], ids=["usage first", "timings first"])
    def test_llama_cpp_s_timings_win(self, protocol: ProtocolName, turned: bool) -> None:
        events = [{"choices": [], "usage": {"completion_tokens": 3}}, {"timings": {"predicted_n": 5, "cache_n": 1}}]
        answer = heard(protocol, *(reversed(events) if turned else events))
        assert (answer.output_tokens, answer.cached_tokens) == (5, 1)
        assert answer.output_tokens_source == "timings.predicted_n"

    def test_llama_cpp_s_timings_win_in_the_same_chunk(self, protocol: ProtocolName) -> None:
        answer = heard(protocol, {"usage": {"completion_tokens": 3}, "timings": {"predicted_n": 5}})
        assert answer.output_tokens == 5

    @pytest.mark.parametrize("count", [-1, True, "3", 3.0, None])
    def test_a_count_that_is_none_is_not_taken(self, protocol: ProtocolName, count: Any) -> None:
        usage = {"completion_tokens": count, "prompt_tokens": count, "prompt_tokens_details": {"cached_tokens": count}}
        answer = heard(protocol, {"usage": usage, "timings": {"predicted_n": count, "cache_n": count}})
        assert (answer.prompt_tokens, answer.cached_tokens, answer.output_tokens) == (None, None, None)


class TestOpenAI:
    def test_role_only_and_empty_deltas_are_no_tokens(self) -> None:
        deltas = [delta(role="assistant"), delta(content=""), delta(content=None), delta(), delta(content="a")]
        answer = heard("openai_chat", *deltas)
        assert answer.t_first_event_ns == 0
        assert answer.piece_times_ns == [40]
        assert answer.text == ["a"]

    @pytest.mark.parametrize("protocol", OPENAI)
    def test_done_alone_ends_it(self, protocol: ProtocolName) -> None:
        answer = heard(protocol, b" [DONE] ")
        assert answer.finished
        assert answer.ended
        assert answer.is_empty

    @pytest.mark.parametrize("protocol", OPENAI)
    def test_a_finish_reason_finishes_but_counts_may_follow(self, protocol: ProtocolName) -> None:
        answer = heard(protocol, closing(protocol, 3)[0])
        assert answer.finished
        assert not answer.ended

    @pytest.mark.parametrize("protocol", OPENAI)
    def test_an_error_that_is_null_is_none(self, protocol: ProtocolName) -> None:
        assert heard(protocol, {**token(protocol, "a"), "error": None}).text == ["a"]

    def test_who_answered_is_told(self) -> None:
        answer = heard("openai_chat", chat_delta(content="a", model="another"))
        assert (answer.response_model, answer.response_id) == ("another", "chatcmpl-7")


class TestReasoning:
    @pytest.mark.parametrize(
        ("protocol", "thought", "said"),
        [
            ("openai_chat", lambda text: delta(reasoning_content=text, content=None), delta(content="42")),
            ("openai_chat", lambda text: delta(reasoning=text), delta(content="42")),
            ("ollama_chat", lambda text: line(thinking=text), line(content="42")),
            ("ollama_generate", lambda text: {"response": "", "thinking": text}, {"response": "42"}),
        ],
        ids=["reasoning_content", "reasoning", "thinking in a chat", "thinking"],
    )
    def test_is_not_the_answer_but_is_timed(
        self, protocol: ProtocolName, thought: Callable[[str], dict[str, Any]], said: dict[str, Any]
    ) -> None:
        answer = heard(protocol, thought(""), thought("Hm"), thought("m"), said)
        assert (answer.reasoning, answer.text) == (["Hm", "m"], ["42"])
        assert (answer.t_first_reasoning_ns, answer.t_first_token_ns) == (10, 30)
        assert answer.piece_times_ns == [10, 20, 30]  # the server counts reasoning, so the rate spans it

    def test_that_comes_under_two_names_at_once_is_taken_once(self) -> None:
        assert heard("openai_chat", delta(reasoning_content="Hm", reasoning="Hm")).reasoning == ["Hm"]

    def test_alone_is_an_empty_answer(self) -> None:
        assert heard("openai_chat", delta(reasoning_content="Hm")).is_empty


class TestToolCalls:
    def test_streamed_in_pieces(self) -> None:
        start = {"index": 0, "id": "call-1", "type": "function", "function": {"name": "weather", "arguments": ""}}
        parts = [{"index": 0, "function": {"arguments": text}} for text in ('{"city"', ': "Rome"}')]
        answer = heard("openai_chat", delta(role="assistant"), *(delta(tool_calls=[part]) for part in (start, *parts)))
        assert answer.tool_calls == {0: {"name": "weather", "arguments": '{"city": "Rome"}'}}
        assert answer.t_first_token_ns == 10  # a call is the answer
        assert answer.piece_times_ns == [10, 20, 30]
        assert not answer.is_empty

    def test_interleaved_pieces_find_their_call(self) -> None:
        pieces = [(0, "a", "1"), (1, "b", "2"), (0, "", "3"), (1, "", "4")]
        events = [
            delta(tool_calls=[{"index": index, "function": {"name": name, "arguments": text}}])
            for index, name, text in pieces
        ]
        calls = heard("openai_chat", *events).tool_calls
        assert calls == {0: {"name": "a", "arguments": "13"}, 1: {"name": "b", "arguments": "24"}}

    @pytest.mark.parametrize("nonsense", [None, [], {}, "a", [None], [{}], [{"function": None}], [7]])
    def test_none_is_no_token(self, nonsense: Any) -> None:
        answer = heard("openai_chat", delta(tool_calls=nonsense, content=""))
        assert (answer.tool_calls, answer.piece_times_ns) == ({}, [])

    def test_ollama_sends_whole_ones(self) -> None:
        answer = heard("ollama_chat", line(tool_calls=[{"function": {"name": "a", "arguments": {"city": "Rome"}}}]))
        assert answer.tool_calls == {0: {"name": "a", "arguments": '{"city": "Rome"}'}}
        assert answer.t_first_token_ns == 0

    def test_ollama_may_send_two_at_once(self) -> None:
        two = [{"function": {"index": n, "name": name, "arguments": {"n": n}}} for n, name in enumerate("ab")]
        calls = heard("ollama_chat", line(tool_calls=two)).tool_calls
        assert list(calls.values()) == [{"name": "a", "arguments": '{"n": 0}'}, {"name": "b", "arguments": '{"n": 1}'}]

    @pytest.mark.parametrize("counted", [True, False], ids=["with index", "without"])
    def test_ollama_s_second_one_in_a_later_line_is_another_call(self, counted: bool) -> None:
        # Ollama sends each call when it is parsed, whole; its index stands beside the name, in old versions nowhere.
        events = [
            line(tool_calls=[{"function": {**({"index": n} if counted else {}), "name": name, "arguments": {"n": n}}}])
            for n, name in enumerate("ab")
        ]
        calls = heard("ollama_chat", *events).tool_calls
        assert list(calls.values()) == [{"name": "a", "arguments": '{"n": 0}'}, {"name": "b", "arguments": '{"n": 1}'}]

    def test_arguments_of_absurd_depth_raise_nothing_else(self) -> None:
        deep = b"[" * 1000 + b"]" * 1000
        event = b'{"message": {"tool_calls": [{"function": {"name": "a", "arguments": {"a": ' + deep + b"}}}]}}"
        with suppress(RequestError):
            heard("ollama_chat", event)


@pytest.mark.parametrize("protocol", OLLAMA)
class TestOllama:
    def test_zero_fields_that_are_left_out_are_zero_where_nothing_else_can_be_meant(
        self, protocol: ProtocolName
    ) -> None:
        last = closing(protocol, 0)[0]
        answer = heard(protocol, {name: value for name, value in last.items() if not name.endswith("_count")})
        assert answer.finished
        assert (answer.output_tokens, answer.output_tokens_source) == (0, "eval_count")
        assert answer.prompt_tokens is None  # P02: left out means that all came from the cache, not that it was empty

    def test_its_own_times_are_kept_and_nothing_else(self, protocol: ProtocolName) -> None:
        answer = heard(protocol, {**closing(protocol, 3)[0], "context": [1, 2, 3]})
        assert answer.server_timings == {
            "total_duration": 9,
            "load_duration": 1,
            "prompt_eval_count": 7,
            "prompt_eval_duration": 1,
            "eval_count": 3,
            "eval_duration": 7,
        }

    def test_a_model_that_was_only_loaded_has_answered_nothing(self, protocol: ProtocolName) -> None:
        answer = heard(protocol, {"model": "tiny", "response": "", "done": True, "done_reason": "load"})
        assert answer.is_empty
        assert answer.finish_reason == "load"

    @pytest.mark.parametrize("done", [1, "true", None, False])
    def test_only_a_true_done_ends_it(self, protocol: ProtocolName, done: Any) -> None:
        assert not heard(protocol, {**token(protocol, "a"), "done": done}).finished


def _streams() -> dict[ProtocolName, list[bytes]]:
    """All whole responses of the catalogue."""
    found: dict[ProtocolName, list[bytes]] = {protocol: [] for protocol in PROTOCOLS}
    for fault in FAULTS.values():
        for turn in fault.turns:
            found[fault.protocol].append(b"".join(data for _, data in turn.steps)[:100_000])
    return found


_WORDS = [
    b"null",
    b"true",
    b"-1",
    b"1e999",
    b"NaN",
    b"[]",
    b"{}",
    b'""',
    b'"\\ud800"',
    b"\xff",
    b"\xf0\x9f",
    b"\n",
    b"\r\n",
    b"\n\n",
    b"data:",
    b":",
    b"[DONE]",
    b"0\r\n\r\n",
    b"ffffffff\r\n",
    b"HTTP/1.1 200 OK\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Content-Encoding: gzip\r\n",
    b"[" * 1100,
    b"[" * 300 + b"]" * 300,
    b"[" * 1000 + b"]" * 1000,
    b'{"a":' * 600,
    b"9" * 5000,
    *(json.dumps(key).encode() for key in KNOWN_KEYS),
]


def mutated(stream: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """A stream with a few things wrong in it."""
    data = bytearray(stream)
    for _ in range(chance.randrange(5)):
        place = chance.randrange(len(data) + 1)
        kind = chance.randrange(6)
        if kind == 0 and data:
            data[place % len(data)] = chance.randrange(256)
        elif kind == 1:
            data[place:place] = chance.choice(_WORDS)
        elif kind == 2:
            del data[place : place + chance.randrange(40)]
        elif kind == 3:
            begin = chance.randrange(len(data) + 1)
            data[place:place] = data[begin : begin + chance.randrange(200)]
        elif kind == 4:
            other = chance.choice(others)
            data[place:] = other[chance.randrange(len(other) + 1) :]
        else:  # a field gets another value
            key = data.find(b'":', place)
            if key >= 0:
                end = min((found for mark in b",}" if (found := data.find(mark, key)) >= 0), default=key + 2)
                data[key + 2 : end] = chance.choice(_WORDS)
    return bytes(data)


def play(protocol: ProtocolName, reads: list[bytes]) -> Answer:
    """What is made of a response."""
    response, parser = ResponseParser(), ANSWER_PARSERS[protocol]()
    framer = NdjsonParser() if protocol in OLLAMA else SseParser()
    with suppress(RequestError):
        for t_ns, data in enumerate(reads):
            for piece in response.feed(data):
                for event in framer.feed(piece):
                    parser.on_data(event, t_ns)
    return parser.answer


def fuzz_once(seed: int, streams: dict[ProtocolName, list[bytes]]) -> None:
    chance = random.Random(seed)
    protocol = chance.choice(PROTOCOLS)
    stream = mutated(chance.choice(streams[protocol]), streams[chance.choice(PROTOCOLS)], chance)
    places = [chance.randrange(len(stream) + 1) for _ in range(chance.randrange(30))]
    answer = play(protocol, cut(stream, places))
    check_sanity(answer)
    facts = dataclasses.asdict(answer)
    kept = {name: facts[name] for name in RequestRecord.model_fields.keys() & facts.keys() - {"tool_calls"}}
    times = {"t_send_ns": 0, "t_end_ns": 0, "output": "".join(answer.text), "reasoning": "".join(answer.reasoning)}
    calls = list(answer.tool_calls.values())
    to_line(
        RequestRecord(
            cell=None,
            index=0,
            phase="sample",
            ok=True,
            protocol=protocol,
            **{**kept, **times, "tool_calls": calls},
        )
    )


def test_mutated_streams_never_break_the_client_briefly() -> None:
    streams = _streams()
    for seed in range(300):
        fuzz_once(seed, streams)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_mutated_streams_never_break_the_client() -> None:
    streams, first = _streams(), random.SystemRandom().randrange(2**40)
    deadline, seed = time.monotonic() + 60, first
    while time.monotonic() < deadline:
        seed += 1
        try:
            fuzz_once(seed, streams)
        except Exception as exc:
            raise AssertionError(f"fuzz_once({seed}, _streams()) raised {exc!r}") from exc
    assert seed - first > 100
