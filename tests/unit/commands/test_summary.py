"""What requests say together: which count for which number, and percentiles only where there is evidence for them."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pytest_llmbench.commands.summary import (
    Totals,
    gap_spread,
    nearest_rank,
    quantile_interval,
    read_requests,
    spread_of,
    values_needed,
)
from pytest_llmbench.core.records import RequestRecord, to_line
from pytest_llmbench.core.statistics import median_interval


def request(**changes: Any) -> dict[str, Any]:
    """An answer of 11 tokens: the first after 0.1 s, then one each 10 ms."""
    fields: dict[str, Any] = {
        "cell": None,
        "index": 0,
        "phase": "sample",
        "ok": True,
        "protocol": "x",
        "t_send_ns": 1_000_000_000,
        "t_first_token_ns": 1_100_000_000,
        "t_end_ns": 1_200_000_000,
        "ttft_seconds": 0.1,
        "decode_tokens_per_second": 100.0,
        "output_tokens": 11,
        "chunks": 11,
        "prompt_tokens": 40,
        "token_offsets_us": [100_000 + 10_000 * i for i in range(11)],
    }
    return RequestRecord(**{**fields, **changes}).model_dump()


def totals(*requests: dict[str, Any]) -> Totals:
    return Totals.of(iter(requests))


class TestTotals:
    def test_a_clean_request(self) -> None:
        one = totals(request())
        assert list(one.ttft) == [0.1]
        assert list(one.rates) == [100.0]
        assert one.gaps_us == Counter({10_000: 10})
        assert (one.finished, one.succeeded, one.output_tokens, one.duration_seconds) == (1, 1, 11, 0.2)
        assert one.doubts() == []

    def test_the_warm_up_counts_nowhere(self) -> None:
        one = totals(request(phase="warmup", prompt_tokens=999))
        assert (one.finished, one.prompt_max, one.duration_seconds, list(one.ttft)) == (0, None, 0.0, [])

    def test_failures_by_cause(self) -> None:
        failed = {"ok": False, "error": "server_busy", "ttft_seconds": None, "decode_tokens_per_second": None}
        one = totals(
            request(**failed, error_message="first"),
            request(**failed, error_message="second"),
            request(ok=False, error="prompt_truncated", error_message="cut", flags=["prompt_truncated"]),
            request(),
        )
        assert (one.finished, one.succeeded, len(one.ttft)) == (4, 1, 1)
        assert {code: (f.count, f.first_message) for code, f in one.failed.items()} == {
            "server_busy": (2, "first"),
            "prompt_truncated": (1, "cut"),
        }
        assert one.doubts() == ["prompt_truncated"]

    @pytest.mark.parametrize(
        ("flag", "ttfts", "rates"),
        [
            ("short_answer", 1, 0),
            ("prompt_cache_hit", 0, 1),
            ("model_reloaded", 0, 1),
            ("another_model_answered", 0, 0),
            ("client_late", 1, 1),
        ],
    )
    def test_a_doubt_takes_out_only_what_it_touches(self, flag: str, ttfts: int, rates: int) -> None:
        one = totals(request(flags=[flag]))
        assert (one.succeeded, len(one.ttft), len(one.rates)) == (1, ttfts, rates)
        assert one.flags[flag] == 1
        assert one.doubts() == [flag]

    def test_a_client_that_is_rarely_late_is_no_doubt(self) -> None:
        assert totals(request(flags=["client_late"]), *[request()] * 5).doubts() == []

    def test_from_the_scheduled_time(self) -> None:
        one = totals(request(t_scheduled_ns=700_000_000))
        assert list(one.from_schedule) == pytest.approx([0.4])
        assert list(one.ttft) == [0.1]

    def test_the_server_disagrees(self) -> None:
        timings = {"predicted_n": 11, "predicted_ms": 200.0}  # 50 tokens/s
        assert totals(request(server_timings=timings)).doubts() == ["server_timing_mismatch"]
        agrees = {"predicted_n": 11, "predicted_ms": 101.0}
        assert totals(request(server_timings=agrees)).doubts() == []

    def test_several_tokens_a_chunk(self) -> None:
        assert totals(request(output_tokens=22)).doubts() == ["chunked_stream"]

    def test_the_span_is_from_first_to_last(self) -> None:
        one = totals(request(t_send_ns=5_000_000_000, t_end_ns=6_000_000_000), request())
        assert one.duration_seconds == 5.0

    def test_a_request_that_was_never_sent_has_no_start(self) -> None:
        one = totals(request(ok=False, error="wrong_key", t_send_ns=0, t_end_ns=0), request())
        assert one.duration_seconds == 0.2

    def test_a_torn_line_is_passed_over(self, tmp_path: Path) -> None:
        path = tmp_path / "requests.jsonl"
        line = to_line(RequestRecord(**request())) + "\n"
        path.write_text(line + line + line[:50])
        assert Totals.of(read_requests(path)).finished == 2


class TestQuantiles:
    def test_how_many_values_it_takes(self) -> None:
        assert [values_needed(share) for share in (0.5, 0.9, 0.95, 0.99)] == [6, 36, 72, 368]

    @pytest.mark.parametrize("share", [0.5, 0.9, 0.95, 0.99])
    def test_none_with_one_fewer(self, share: float) -> None:
        n = values_needed(share)
        assert quantile_interval(range(n), share) is not None
        assert quantile_interval(range(n - 1), share) is None
        assert quantile_interval([], share) is None

    @pytest.mark.parametrize("n", [6, 7, 20, 101])
    def test_the_median_as_everywhere_else(self, n: int) -> None:
        values = [float(value * value) for value in range(n)]
        assert quantile_interval(values, 0.5) == median_interval(values)

    @pytest.mark.parametrize(("share", "n"), [(0.9, 36), (0.9, 200), (0.99, 500)])
    def test_covers_the_true_quantile(self, share: float, n: int) -> None:
        chance = random.Random(1)
        covered = 0
        for _ in range(1000):
            interval = quantile_interval(sorted(chance.random() for _ in range(n)), share)
            assert interval is not None
            covered += interval.low <= share <= interval.high
        assert covered >= 940  # 950 less two standard deviations or so

    def test_nearest_rank(self) -> None:
        values = list(range(1, 101))
        assert [nearest_rank(values, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1, 50, 99, 100]
        assert nearest_rank([7.0], 0.99) == 7.0


class TestSpread:
    def test_none_of_nothing(self) -> None:
        assert spread_of([], "s") is None
        assert gap_spread(Counter()) is None

    def test_a_few(self) -> None:
        spread = spread_of([3.0, 1.0, 2.0], "s")
        assert spread is not None
        assert (spread.n, spread.median.value, spread.median.ci_low, spread.percentiles) == (3, 2.0, None, {})
        assert (spread.mean, spread.minimum, spread.maximum) == (2.0, 1.0, 3.0)

    def test_percentiles_come_with_their_interval(self) -> None:
        spread = spread_of([float(value) for value in range(1, 101)], "s")
        assert spread is not None
        assert list(spread.percentiles) == ["p50", "p90", "p95"]
        p90 = spread.percentiles["p90"]
        assert p90.value == 90
        assert p90.ci_low is not None
        assert p90.ci_high is not None
        assert p90.ci_low < 90 < p90.ci_high

    def test_gaps_keep_three_digits(self) -> None:
        assert totals(request(token_offsets_us=[0, 123_456, 123_465])).gaps_us == Counter({123_000: 1, 9: 1})

    def test_gaps_agree_with_values(self) -> None:
        chance = random.Random(2)
        gaps = [chance.randrange(1, 1000) for _ in range(5000)]
        spread, exact = gap_spread(Counter(gaps)), sorted(gap / 1e3 for gap in gaps)
        assert spread is not None
        assert spread.n == 5000
        assert spread.median.ci_low is None
        for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
            assert spread.percentiles[name].value == pytest.approx(nearest_rank(exact, share))
