"""What the sizes of a context have shown: which are usable, how much slower a deep one is, what of memory is known."""

from __future__ import annotations

import random

import pytest

from pytest_llmbench.core.records import RequestRecord, TelemetryRecord
from pytest_llmbench.profiles.base import PromptTokens
from pytest_llmbench.profiles.context_prompts import Fact, LongPrompt
from pytest_llmbench.profiles.context_results import MemoryUse, SizeResult, slowdown, summarise

FACT = Fact("blue locker", "48213")


def record(tokens: int, load: float = 1.0, rate: float | None = 50.0) -> RequestRecord:
    return RequestRecord(
        cell=None,
        index=0,
        phase="sample",
        ok=True,
        protocol="llama_cpp",
        t_send_ns=0,
        t_end_ns=1,
        prompt_tokens=tokens,
        output_tokens=32,
        ttft_seconds=load,
        decode_tokens_per_second=rate,
    )


def size(
    tokens: int, *rates: float | None, load: float = 1.0, recalled: int = 2, failure: str | None = None
) -> SizeResult:
    """A size with a request per decode rate, of which so many found the fact."""
    result = SizeResult(tokens, failure=failure, memory=MemoryUse(1e9, 0.0, 0.0))
    for number, rate in enumerate(rates):
        result.cold.append(record(tokens - 40, load, rate))
        result.full.append(result.cold[-1])
        prompt = LongPrompt("", FACT, 50.0, tokens - 40, PromptTokens(tokens - 40, exact=True))
        result.add_fact(prompt, FACT.code if number < recalled else "unknown")
    return result


def reading(**values: float) -> TelemetryRecord:
    return TelemetryRecord(cell=None, t_ns=0, values=values)


class TestMemory:
    def test_pss_where_it_is_known_and_the_growth_of_what_was_swapped(self) -> None:
        readings = [
            reading(server_pss_bytes=100, server_rss_bytes=300, server_swap_bytes=7),
            reading(server_rss_bytes=400, server_swap_bytes=12),
            reading(server_pss_bytes=150, server_rss_bytes=350, server_swap_bytes=9),
        ]
        assert MemoryUse.of(readings) == MemoryUse(150, 12, 5)

    def test_rss_where_pss_is_not(self) -> None:
        assert MemoryUse.of([reading(server_rss_bytes=300), reading()]) == MemoryUse(300, None, None)

    def test_nothing_is_known_without_sensors(self) -> None:
        assert MemoryUse.of([reading(), reading()]) == MemoryUse(None, None, None)

    def test_what_was_swapped_before_is_not_this_sizes(self) -> None:
        assert MemoryUse.of([reading(server_swap_bytes=50), reading(server_swap_bytes=40)]).swap_growth_bytes == 0


class TestUsable:
    def test_a_clean_size(self) -> None:
        assert size(512, 50, 50).why_unusable(60) is None

    @pytest.mark.parametrize(
        ("result", "reason"),
        [
            (SizeResult(512), "no load was measured"),
            (size(512, 50, 50, failure="out of memory"), "out of memory"),
            (size(512, 50, 50, load=61), "took 61.0 s to load, more than the limit of 60 s"),
            (size(512, 50, 50, 50, recalled=1), "only 1 of 3 planted facts were answered"),
        ],
    )
    def test_what_keeps_it_from_being_usable(self, result: SizeResult, reason: str) -> None:
        assert result.why_unusable(60) == reason

    def test_half_of_the_facts_are_enough(self) -> None:
        assert size(512, 50, 50, recalled=1).why_unusable(60) is None

    def test_swapped(self) -> None:
        result = size(512, 50, 50)
        result.memory = MemoryUse(1e9, 2e9, 1.5e9)
        assert result.why_unusable(None) == "1.500 GB of the server's memory were swapped out meanwhile"

    def test_too_slow_only_beyond_doubt(self) -> None:
        result = SizeResult(512, cold=[record(480, 59), record(480, 64)])
        assert not result.is_too_slow(60)  # the mean is above it, not the interval
        assert result.why_unusable(60) is not None
        result.cold = [record(480, 64.0), record(480, 64.1)]
        assert result.is_too_slow(60)
        assert not result.is_too_slow(None)
        assert not SizeResult(512, cold=[record(480, 64)]).is_too_slow(60)

    def test_the_largest_usable_one(self) -> None:
        results = [size(512, 50, 50), size(1024, 50, 50), size(2048, 50, 50, recalled=0), SizeResult(4096, failure="x")]
        measurement = summarise(results, 60, 5)
        assert measurement.metrics["largest_usable_context_tokens"].value == 1024
        assert [row["usable"] for row in measurement.details["sizes"]] == [True, True, False, False]
        assert measurement.metrics["recall_percent"].value == pytest.approx(100 * 4 / 6)
        assert measurement.metrics["recall_percent"].n == 6
        assert not any("no context was usable" in note for note in measurement.notes)

    def test_none(self) -> None:
        measurement = summarise([size(512, 50, 50, recalled=0)], 60, 5)
        usable = measurement.metrics["largest_usable_context_tokens"]
        assert (usable.value, usable.ci_low, usable.ci_high) == (0, 0, 0)
        assert "no context was usable; that of 512 tokens: only 0 of 2 planted facts were answered" in measurement.notes


class TestSlowdown:
    def test_percent_of_the_first_rate_per_thousand_tokens(self) -> None:
        results = [size(1040, 100, 100), size(2040, 98, 98), size(4040, 94, 94)]
        slope, points = slowdown(results)
        assert slope is not None
        assert slope.per_unit == pytest.approx(2)
        assert points == 6

    def test_prompts_of_one_size_that_are_a_token_apart_tell_nothing_of_depth(self) -> None:
        results = [size(1040, 100, 99), size(2040, 97, 96)]
        for result in results:
            result.full[1] = record(result.context_tokens - 39, rate=result.rates[1])
        slope, _ = slowdown(results)
        assert slope is not None
        assert slope.per_unit == pytest.approx(3, rel=0.02)
        assert 1.9 < slope.low < slope.high < 4.1

    @pytest.mark.parametrize(
        ("sizes", "samples", "is_told"), [(2, 2, False), (2, 3, False), (2, 4, True), (3, 2, True), (4, 3, True)]
    )
    def test_an_interval_only_where_it_covers(self, sizes: int, samples: int, is_told: bool) -> None:
        noise, covered = random.Random(7), 0
        for _ in range(200):
            rates = [[100 - loss + noise.gauss(0, 1) for _ in range(samples)] for loss in range(sizes)]
            results = [size(1000 * (number + 1), *rates[number]) for number in range(sizes)]
            found = summarise(results, None, 5).metrics["slowdown_percent_per_1k_tokens"]
            assert (found.ci_low is not None) == (found.ci_high is not None) == is_told
            covered += is_told and (found.ci_low or 0) <= 1 <= (found.ci_high or 0)
        assert covered >= 0.9 * 200 or not is_told

    def test_none_from_one_size(self) -> None:
        assert slowdown([size(1040, 100, 99, 98, 97, 96)]) == (None, 0)

    def test_none_where_rates_are_missing(self) -> None:
        assert slowdown([size(1040, 100, 99), size(2040, None, None)]) == (None, 0)
        assert "slowdown_percent_per_1k_tokens" not in summarise([size(512, 50, 50)], None, 5).metrics


class TestSummary:
    def test_metrics_are_of_the_largest_size_that_was_loaded(self) -> None:
        results = [size(512, 50, 51, load=1), size(1024, 40, 41, load=4), SizeResult(2048, failure="not tried: x")]
        metrics = summarise(results, 60, 5).metrics
        assert metrics["context_load_seconds"].value == pytest.approx(4)
        assert metrics["depth_tokens_per_second"].value == pytest.approx((40 * 41) ** 0.5)
        assert metrics["depth_tokens_per_second"].n == 2

    def test_wide_intervals_are_a_doubt(self) -> None:
        assert "imprecise" in summarise([size(512, 30, 60)], None, 5).flags
        assert "imprecise" not in summarise([size(512, 50, 50)], None, 5).flags

    @pytest.mark.parametrize(("tokens", "flag"), [(None, "tokens_not_counted"), (20, "short_answer")])
    def test_an_answer_that_nobody_counted_is_not_called_short(self, tokens: int | None, flag: str) -> None:
        result = size(512, 50, 50)
        result.cold.append(record(472).model_copy(update={"output_tokens": tokens}))
        flags = summarise([result], None, 5).flags
        assert [one for one in flags if one in {"tokens_not_counted", "short_answer"}] == [flag]

    def test_swapping_is_a_doubt_and_not_knowing_it_a_note(self) -> None:
        result = size(512, 50, 50)
        result.memory = MemoryUse(1e9, 5.0, 5.0)
        assert "swapped" in summarise([result], None, 5).flags
        result.memory = MemoryUse(1e9)
        measurement = summarise([result], None, 5)
        assert "swapped" not in measurement.flags
        assert "whether the server's memory was swapped could not be read here" in measurement.notes

    def test_a_row_says_what_was_not_measured(self) -> None:
        row = SizeResult(4096, failure="not tried: x").row(60)
        assert (row["context_tokens"], row["usable"], row["reason"]) == (4096, False, "not tried: x")
        assert {value for key, value in row.items() if key not in {"context_tokens", "usable", "reason"}} == {None}

    def test_a_row(self) -> None:
        row = size(1000, 50, 50, load=2).row(60)
        assert row["prompt_tokens"] == 960
        assert row["filled_percent"] == pytest.approx(96)
        assert row["load_seconds"] == pytest.approx(2)
        assert (row["memory_gb"], row["swap_gb"], row["recalled"], row["facts"]) == (1.0, 0.0, 2, 2)
