"""Events from bytes, whatever way they were cut."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmbench.client import framing
from pytest_llmbench.client.framing import Framer, NdjsonParser, SseParser
from pytest_llmbench.errors import RequestError
from tests.unit.client.helpers import PATIENT, cut

NewFramer = Callable[[], Framer]
FRAMERS = pytest.mark.parametrize("new_framer", [SseParser, NdjsonParser])
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
    b"{}",
]
streams = st.lists(st.sampled_from(_SCRAPS) | st.binary(max_size=4), max_size=40).map(b"".join)
data_lines = st.binary(max_size=12).filter(lambda line: not {10, 13} & set(line))


def events_of(framer: Framer, *chunks: bytes) -> list[bytes]:
    return [event for chunk in chunks for event in framer.feed(chunk)]


def sse(*chunks: bytes) -> list[bytes]:
    return events_of(SseParser(), *chunks)


def ndjson(*chunks: bytes) -> list[bytes]:
    return events_of(NdjsonParser(), *chunks)


@FRAMERS
class TestBoth:
    @PATIENT
    @given(stream=streams, places=st.lists(st.integers(0, 1000), max_size=12))
    def test_any_split_gives_the_same_events(self, new_framer: NewFramer, stream: bytes, places: list[int]) -> None:
        assert events_of(new_framer(), *cut(stream, places)) == events_of(new_framer(), stream)

    @PATIENT
    @given(stream=streams)
    def test_byte_by_byte_gives_the_same_events(self, new_framer: NewFramer, stream: bytes) -> None:
        single = [stream[place : place + 1] for place in range(len(stream))]
        assert events_of(new_framer(), *single) == events_of(new_framer(), stream)

    @PATIENT
    @given(
        chunks=st.lists(
            st.binary(max_size=200) | st.sampled_from([b"\n", b"\n\n", b"data: x", b"x" * 100 + b"\n"]), max_size=30
        ),
        limit=st.integers(1, 500),
    )
    def test_what_is_held_back_never_exceeds_the_limit(
        self, new_framer: NewFramer, chunks: list[bytes], limit: int
    ) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(framing, "MAX_EVENT_BYTES", limit)
            with suppress(RequestError):
                for event in events_of(new_framer(), *chunks):
                    assert len(event) <= limit

    def test_a_character_may_be_cut_in_two(self, new_framer: NewFramer) -> None:
        stream = "data: héé€😀\n\n".encode()
        single_bytes = [stream[i : i + 1] for i in range(len(stream))]
        events = [event.decode() for event in events_of(new_framer(), *single_bytes)]
        assert events == ["héé€😀" if new_framer is SseParser else "data: héé€😀"]

    def test_several_events_may_come_in_one_chunk(self, new_framer: NewFramer) -> None:
        stream = b"data: 1\n\ndata: 2\n\ndata: 3\n\ndata: "
        expected = [b"1", b"2", b"3"] if new_framer is SseParser else [b"data: 1", b"data: 2", b"data: 3"]
        assert events_of(new_framer(), stream) == expected


class TestServerSentEvents:
    @PATIENT
    @given(
        events=st.lists(st.lists(data_lines, min_size=1, max_size=3), max_size=5),
        line_end=st.sampled_from([b"\n", b"\r\n"]),
        noise=st.sampled_from([b"", b": a comment", b"event: message", b"retry: 5", b"data-of-mine: no"]),
        space=st.booleans(),
    )
    def test_what_was_written_is_read_back(
        self, events: list[list[bytes]], line_end: bytes, noise: bytes, space: bool
    ) -> None:
        def written(data: bytes) -> bytes:
            return (b"data: " if space or data.startswith(b" ") else b"data:") + data

        stream = b"".join(
            b"".join(line + line_end for line in [noise, *map(written, lines)] if line) + line_end for lines in events
        )
        assert sse(stream) == [b"\n".join(lines) for lines in events]

    def test_data_without_a_space(self) -> None:
        assert sse(b"data:{}\n\n") == [b"{}"]

    def test_only_one_space_is_taken_off(self) -> None:
        assert sse(b"data:  x\n\n") == [b" x"]

    def test_several_lines_are_joined(self) -> None:
        assert sse(b"data: a\ndata:b\ndata:\n\n") == [b"a\nb\n"]

    def test_comments_and_blank_lines_are_no_events(self) -> None:
        assert sse(b": ping\n\n\n\n:\n\n") == []

    def test_a_comment_inside_an_event_does_not_end_it(self) -> None:
        assert sse(b"data: a\n: ping\ndata: b\n\n") == [b"a\nb"]

    def test_lines_may_end_in_carriage_return_and_line_feed(self) -> None:
        assert sse(b"data: a\r", b"\n\r", b"\ndata: b\r\n\r\n") == [b"a", b"b"]

    def test_an_unfinished_event_is_none(self) -> None:
        assert sse(b"data: a\n") == []

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
        monkeypatch.setattr(framing, "MAX_EVENT_BYTES", 1000)
        with pytest.raises(RequestError, match="1000 bytes") as caught:
            sse(*chunks)
        assert caught.value.code == "bad_response"

    def test_many_events_are_not_one_long_event(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(framing, "MAX_EVENT_BYTES", 1000)
        assert len(sse(*[b": ping\n\ndata: " + b"x" * 500 + b"\n\n"] * 20)) == 20


class TestLinesOfJson:
    def test_a_line_is_an_event(self) -> None:
        assert ndjson(b'{"a": 1}\n{"b"', b": 2}\n") == [b'{"a": 1}', b'{"b": 2}']

    def test_blank_lines_are_no_events(self) -> None:
        assert ndjson(b"\n \n\r\n{}\n\n") == [b"{}"]

    def test_lines_may_end_in_carriage_return_and_line_feed(self) -> None:
        assert [line.strip() for line in ndjson(b"{}\r", b"\n[]\r\n")] == [b"{}", b"[]"]

    @pytest.mark.parametrize(
        "chunks",
        [[b"x" * 1001], [b"x" * 1001 + b"\n"], [b"x" * 100] * 11, [b"{}\n" + b"x" * 1001 + b"\n{}\n"]],
        ids=["unfinished line", "finished", "in pieces", "between others"],
    )
    def test_an_endless_line_is_refused(self, chunks: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(framing, "MAX_EVENT_BYTES", 1000)
        with pytest.raises(RequestError, match="1000 bytes") as caught:
            ndjson(*chunks)
        assert caught.value.code == "bad_response"

    def test_many_lines_are_not_one_long_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(framing, "MAX_EVENT_BYTES", 1000)
        assert len(ndjson(*[b"x" * 500 + b"\n"] * 20)) == 20
