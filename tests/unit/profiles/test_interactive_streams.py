"""What a single stream tells."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_llmbench.core.records import RequestRecord
from pytest_llmbench.profiles import streams
from pytest_llmbench.profiles.streams import WINDOW_PIECES
from tests.unit.profiles.stories import answer

TWO_WINDOWS = 1 + 2 * WINDOW_PIECES


def record(**fields: Any) -> RequestRecord:
    labels = {"cell": None, "index": 1, "phase": "sample", "ok": True, "protocol": "llama_cpp", "t_send_ns": 0}
    return RequestRecord(**{**labels, **answer(**fields)})


def slow_start(pieces: int) -> list[float]:
    """One window at 10 tokens/s, then 100 tokens/s."""
    first = [0.5 + number / 10 for number in range(WINDOW_PIECES + 1)]
    return first + [first[-1] + number / 100 for number in range(1, pieces - WINDOW_PIECES)]


def test_windows_are_rates_of_parts_of_the_stream() -> None:
    found = streams.windows(record(tokens=TWO_WINDOWS, seconds=slow_start(TWO_WINDOWS)))
    assert found == pytest.approx([10, 100])


def test_the_steady_rate_leaves_out_the_first_window() -> None:
    even = record(tokens=TWO_WINDOWS, rate=40)
    assert streams.steady_rate(even) == pytest.approx(40)
    slow = record(tokens=TWO_WINDOWS, seconds=slow_start(TWO_WINDOWS))
    assert streams.steady_rate(slow) == pytest.approx(100)
    assert slow.decode_tokens_per_second == pytest.approx(2 * WINDOW_PIECES / 2.75)


def test_the_steady_rate_counts_tokens_and_not_pieces() -> None:
    found = record(tokens=TWO_WINDOWS, rate=40, output_tokens=2 * TWO_WINDOWS)
    assert streams.steady_rate(found) == pytest.approx(80)


@pytest.mark.parametrize(
    "fields",
    [
        {"tokens": TWO_WINDOWS - 1},
        {"tokens": TWO_WINDOWS, "output_tokens": None},
        {"tokens": TWO_WINDOWS, "token_offsets_us": [1] * TWO_WINDOWS},
        {"tokens": TWO_WINDOWS, "chunks": 0, "token_offsets_us": [], "piece_characters": []},
    ],
)
def test_no_steady_rate(fields: dict[str, Any]) -> None:
    assert streams.steady_rate(record(**fields)) is None


class TestTheFirstSentence:
    def test_can_be_read_when_its_last_character_has_come(self) -> None:
        found = record(tokens=4, ttft=1, rate=10, text="It rained. So.", piece_characters=[2, 7, 1, 4])
        assert streams.first_sentence_seconds(found) == pytest.approx(1.2)

    def test_may_come_with_what_follows(self) -> None:
        found = record(tokens=3, ttft=1, rate=10, text="It rained. So.", piece_characters=[2, 10, 2])
        assert streams.first_sentence_seconds(found) == pytest.approx(1.1)

    def test_is_waited_for_while_the_model_reasons(self) -> None:
        found = record(tokens=5, thoughts=3, ttft=1, rate=10, text="It rained.", piece_characters=[0, 0, 0, 3, 7])
        assert streams.first_sentence_seconds(found) == pytest.approx(1.4)

    @pytest.mark.parametrize("fields", [{"text": "It rained and"}, {"piece_characters": []}])
    def test_is_not_known(self, fields: dict[str, Any]) -> None:
        assert streams.first_sentence_seconds(record(**{"tokens": 5, **fields})) is None


def test_reasoning_apart_from_answering() -> None:
    found = record(tokens=11, thoughts=4, ttft=1, rate=10)
    assert streams.reasoning_seconds(found) == pytest.approx(0.4)
    assert streams.answering_seconds(found) == pytest.approx(0.6)
    plain = record(tokens=11, ttft=1, rate=10)
    assert streams.reasoning_seconds(plain) is None
    assert streams.answering_seconds(plain) == pytest.approx(1.0)


def test_reasoning_that_begins_after_the_answer_is_not_waited_for() -> None:
    assert streams.reasoning_seconds(record(t_first_reasoning_ns=2_000_000_000)) is None


def test_gaps_are_within_streams_and_not_between_them() -> None:
    one, other = record(tokens=3, ttft=1, rate=10), record(tokens=2, ttft=9, rate=5)
    assert streams.gaps_ms([one, other]) == pytest.approx([100, 100, 200])
