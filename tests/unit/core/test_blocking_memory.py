"""The memory that smaller cells needed, and what is blocked by it."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_llmbench.core.blocking import Blocking
from pytest_llmbench.core.config import BlockingConfig
from pytest_llmbench.core.memory_trend import demand_of
from pytest_llmbench.core.records import CellRecord, MemoryRecord, Reason
from tests.unit.core.blocking_cases import broken, candidate, cell, needed, why

GB = 10**9
# The founding design's example.
FOUNDING = (
    needed(5, model="a-7B", quantization="Q4_K_M"),
    needed(7, model="a-7B", quantization="Q6_K"),
    needed(9, model="b-13B", quantization="Q4_K_M"),
)


def exact(weight_factor: float = 1.0, overhead: float = 1e9, cache: float = 0.0, **changes: Any) -> CellRecord:
    """A cell that needs exactly what the formula says."""
    record = cell(**changes)
    demand = demand_of(record)
    assert demand is not None
    return needed((overhead + weight_factor * demand.weight_bytes + cache * demand.cache) / GB, **changes)


def seven_b(**changes: Any) -> list[CellRecord]:
    return [exact(model="a-7B", quantization=name, **changes) for name in ("Q4_K_M", "Q5_K_M", "Q6_K")]


def predicted_gb(reason: Reason | None) -> tuple[float, float]:
    assert reason is not None
    predicted, margin = reason.evidence["predicted_bytes"], reason.evidence["margin_bytes"]
    assert isinstance(predicted, int)
    assert isinstance(margin, int)
    return predicted / GB, margin / GB


def test_the_founding_example() -> None:
    """13B Q6 is expected at 12.2 GB and runs. 13B Q8 is expected at 15.7 GB, but three observations that do not lie on
    one line leave 2.3 GB of doubt: with 14 GB it is tried, with 13 GB it is not."""
    assert why(candidate("b-13B", "Q6_K"), *FOUNDING, available_bytes=14 * GB) is None
    assert why(candidate("b-13B", "Q8_0"), *FOUNDING, available_bytes=14 * GB) is None
    reason = why(candidate("b-13B", "Q8_0"), *FOUNDING, available_bytes=13 * GB)
    predicted, margin = predicted_gb(reason)
    assert predicted == pytest.approx(15.7, abs=0.1)
    assert margin == pytest.approx(2.3, abs=0.1)


def test_it_says_what_is_known_and_what_is_expected() -> None:
    reason = why(candidate("b-13B", "Q8_0"), *FOUNDING, available_bytes=12 * GB)
    assert reason is not None
    assert reason.code == "blocked_by_memory_trend"
    assert reason.message == (
        "b-13B Q4_K_M needed 9.0 GB; by that and 2 others, b-13B Q8_0 will need at least 13.4 GB, and 12.0 GB may be "
        "used; run it all the same with --llmbench-no-blocking, or switch blocking.memory_trend off"
    )
    assert reason.evidence == {
        "rule": "memory_trend",
        "cell": "test_interactive[b-13B-Q4_K_M-4096]",
        "observations": 3,
        "observed_bytes": 9 * GB,
        "predicted_bytes": reason.evidence["predicted_bytes"],
        "margin_bytes": reason.evidence["margin_bytes"],
        "available_bytes": 12 * GB,
    }


def test_the_margin_is_a_tenth_where_observations_agree() -> None:
    """Seven quantizations of one model, and one step more: the line is known to less than that."""
    names = ("Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0")
    seen = [exact(model="a-7B", quantization=name) for name in names]
    expected = exact(model="a-7B", quantization="F16").memory
    assert expected is not None
    assert expected.observed_peak_bytes is not None
    predicted, margin = predicted_gb(why(candidate("a-7B", "F16"), *seen, available_bytes=1))
    assert predicted == pytest.approx(expected.observed_peak_bytes / GB)
    assert margin == pytest.approx(predicted / 10)
    least = round(expected.observed_peak_bytes * 0.9)
    assert why(candidate("a-7B", "F16"), *seen, available_bytes=least - 1000) is not None
    assert why(candidate("a-7B", "F16"), *seen, available_bytes=least + 1000) is None


def test_the_margin_grows_with_what_residuals_show() -> None:
    names = ("Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M", "Q5_K_M", "Q6_K")
    seen = [
        exact(model="a-7B", quantization=name, weight_factor=1 + 0.3 * (-1) ** index)
        for index, name in enumerate(names)
    ]
    predicted, margin = predicted_gb(why(candidate("a-7B", "Q8_0"), *seen, available_bytes=1))
    assert margin > 0.2 * predicted


def test_observations_that_lie_close_together_do_not_reach_far() -> None:
    """Three models of nearly one size would explain next to everything of a larger quantization."""

    def expected_of(*sizes: str) -> Reason | None:
        seen = [exact(model=f"a-{size}B", quantization="Q4_K_M", cache=0.01) for size in sizes]
        return why(candidate("a-8B", "Q6_K"), *seen, available_bytes=1)

    assert expected_of("7.8", "7.9", "8") is None
    assert expected_of("1", "4", "8") is not None


def test_the_context_has_a_part_where_contexts_differ() -> None:
    contexts = (4096, 8192, 16384)
    seen = [record for context in contexts for record in seven_b(context=context, cache=0.05)]
    expected = exact(model="a-7B", quantization="Q6_K", context=32768, cache=0.05).memory
    assert expected is not None
    assert expected.observed_peak_bytes is not None
    reason = why(candidate("a-7B", "Q6_K", context=32768), *seen, available_bytes=1)
    assert predicted_gb(reason)[0] == pytest.approx(expected.observed_peak_bytes / GB, rel=1e-3)


def test_one_context_tells_nothing_of_a_longer_one() -> None:
    seen = [exact(model=f"a-{size}B", quantization="Q4_K_M", cache=0.1) for size in (1, 3, 7)]
    short = why(candidate("a-7B", "Q8_0"), *seen, available_bytes=1)
    long = why(candidate("a-7B", "Q8_0", context=65536), *seen, available_bytes=1)
    assert predicted_gb(short) == predicted_gb(long)


def test_no_trend_is_followed_beyond_twice_what_was_seen() -> None:
    twice = predicted_gb(why(candidate("a-14B", "Q6_K"), *seven_b(), available_bytes=1))
    assert predicted_gb(why(candidate("a-70B", "Q6_K"), *seven_b(), available_bytes=1)) == twice


def test_the_cache_of_a_model_that_never_ran_is_not_counted_on() -> None:
    """Heads may share keys and values, so its cache may be a small part of that of the others."""
    contexts = (8192, 16384, 32768)
    seen = [
        exact(model=model, quantization=name, context=context, cache=0.1)
        for context in contexts
        for model in ("a-3B", "b-7B")
        for name in ("Q4_K_M", "Q5_K_M", "Q6_K")
    ]
    changes: dict[str, Any] = {"model": "c-7B", "quantization": "Q8_0", "context": 32768}
    stranger = exact(**changes, cache=0.02).memory
    assert stranger is not None
    assert why(candidate(**changes), *seen, available_bytes=stranger.observed_peak_bytes) is None
    known = {**changes, "model": "b-7B"}
    assert why(candidate(**known), *seen, available_bytes=stranger.observed_peak_bytes) is not None


def test_where_one_model_ran_its_cache_may_be_all_that_is_not_weights() -> None:
    seen = seven_b(overhead=3e9)
    assert predicted_gb(why(candidate("c-7B", "Q8_0"), *seen, available_bytes=1))[1] == pytest.approx(3)
    assert predicted_gb(why(candidate("a-7B", "Q8_0"), *seen, available_bytes=1))[1] < 1.5


def test_swap_counts_as_memory() -> None:
    memory = MemoryRecord(observed_peak_bytes=4 * GB, observed_swap_bytes=5 * GB)
    swapped = [*FOUNDING[:2], cell("b-13B", "Q4_K_M", memory=memory)]
    plain = why(candidate("b-13B", "Q8_0"), *FOUNDING, available_bytes=GB)
    assert predicted_gb(why(candidate("b-13B", "Q8_0"), *swapped, available_bytes=GB)) == predicted_gb(plain)


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "error"},
        {"status": "invalid"},
        {"status": "skipped"},
        {"status": "blocked"},
        {"memory": None},
        {"memory": MemoryRecord(predicted_bytes=9 * GB)},
        {"memory": MemoryRecord(observed_peak_bytes=0, observed_swap_bytes=9 * GB)},
        {"memory": MemoryRecord(observed_peak_bytes=9 * GB, observed_device_bytes=GB)},
        {"model_size": "unknown"},
        {"model_size": "8x1B"},
        {"quantization": "mystery"},
        {"quantization": "Q4_K_M", "model": "a-7B"},  # no third size
        {"host": "another"},
        {"backend": "llama_cpp"},
        {"settings": {"context_size": 4096, "threads": 2}},
        {"settings": {"threads": 4}},
    ],
)
def test_what_is_no_observation(changes: dict[str, Any]) -> None:
    third = needed(9, **{"model": "b-13B", "quantization": "Q4_K_M", **changes})
    assert why(candidate("b-13B", "Q8_0"), *FOUNDING[:2], third, available_bytes=1) is None


@pytest.mark.parametrize("status", ["passed", "failed"])
def test_every_measured_cell_is_an_observation(status: str) -> None:
    third = needed(9, model="b-13B", quantization="Q4_K_M", status=status)
    assert why(candidate("b-13B", "Q8_0"), *FOUNDING[:2], third, available_bytes=1) is not None


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "b-8x7B"},
        {"quantization": "mystery"},
        {"model": "a-7B"},  # less than 13B, of which one was seen: two remain
        {"model": "a-7B", "quantization": "F16"},  # more weight than 13B, but not more parameters
        {"context": 2048},
        {"quantization": "Q4_K_M"},  # it ran
        {"quantization": "Q4_K_M", "profile": "batch"},  # the same server ran
    ],
)
def test_candidates_of_which_nothing_is_predicted(changes: dict[str, Any]) -> None:
    one = candidate(**{"model": "b-13B", "quantization": "Q8_0", **changes})
    assert why(one, *FOUNDING, available_bytes=1) is None


def test_what_ran_in_a_larger_cell_is_not_refused() -> None:
    larger = needed(20, model="b-13B", quantization="F16")
    assert why(candidate("b-13B", "Q8_0"), *FOUNDING, larger, available_bytes=1) is None


def test_of_several_runs_of_one_server_the_least_counts() -> None:
    again = needed(12, model="b-13B", quantization="Q4_K_M", profile="batch")
    plain = why(candidate("b-13B", "Q8_0"), *FOUNDING, available_bytes=1)
    for seen in ([*FOUNDING, again], [again, *FOUNDING]):
        assert why(candidate("b-13B", "Q8_0"), *seen, available_bytes=1) == plain


def test_the_caller_may_know_better() -> None:
    assert why(candidate("b-13B", "Q8_0"), *FOUNDING, available_bytes=None) is None


def test_it_can_be_switched_off() -> None:
    assert why(candidate("b-13B", "Q8_0"), *FOUNDING, available_bytes=1, memory_trend=False) is None


def test_a_prediction_follows_what_is_learnt_later() -> None:
    blocking = Blocking(BlockingConfig())
    q8 = candidate("b-13B", "Q8_0")
    for record in FOUNDING[:2]:
        blocking.learn(record)
    assert blocking.why(q8, lambda: 1) is None
    blocking.learn(FOUNDING[2])
    first = blocking.why(q8, lambda: 1)
    assert first is not None
    blocking.learn(needed(10, model="b-13B", quantization="Q4_K_M"))
    second = blocking.why(q8, lambda: 1)
    assert predicted_gb(second)[0] > predicted_gb(first)[0]
    blocking.learn(broken("server_died", model="b-13B", quantization="Q4_K_M"))
    assert blocking.why(q8, lambda: 1) is None
