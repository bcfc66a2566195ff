"""Recommendations of arbitrary runs: what they must never do."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmbench.core.metrics import METRICS
from pytest_llmbench.core.ranking import ALIKE, SAME_MEMORY, Score, places
from pytest_llmbench.core.ratings import rate
from pytest_llmbench.core.recommend import recommend, use_cases_of
from pytest_llmbench.core.records import CellRecord
from pytest_llmbench.core.thresholds import Limit, judge
from tests.unit.core.recommend_cases import cell, unmeasured

USES = use_cases_of({})
MARKS = "✓⚠✗"
METRICS_OF: dict[str, dict[str, tuple[float, float]]] = {
    "interactive": {"decode_tokens_per_second": (0.5, 60), "ttft_seconds": (0.1, 60), "variance_percent": (1, 40)},
    "long_context": {
        "context_load_seconds": (1, 100),
        "largest_usable_context_tokens": (1024, 65536),
        "recall_percent": (1, 100),
    },
    "batch": {"documents_per_hour": (1, 500), "variance_percent": (1, 40)},
    "quality": {"quality_score_percent": (1, 100), "math_score_percent": (1, 100)},
}


@st.composite
def cells(draw: st.DrawFn, profile: str, model: str, quantization: str) -> CellRecord:
    if draw(st.integers(0, 4)) == 0:
        status = draw(st.sampled_from(["error", "invalid", "skipped", "blocked"]))
        return unmeasured(profile, model, quantization, status, "some_code")
    found: dict[str, float] = {name: draw(st.floats(*bounds)) for name, bounds in METRICS_OF[profile].items()}
    if draw(st.booleans()):
        found["peak_memory_gb"] = draw(st.sampled_from([1, 1.05, 2, 4, 8]))
    changes = {"flags": draw(st.sampled_from([[], [], ["throttled"]]))}
    half_width_percent = draw(st.sampled_from([0.5, 5, 30]))
    return cell(profile, model, quantization, None, half_width_percent, None, changes, **found)


@st.composite
def runs(draw: st.DrawFn) -> list[CellRecord]:
    return [
        draw(cells(profile, model, quantization))
        for model in ("a", "b")
        for quantization in ("Q4_K_M", "Q8_0")
        for profile in METRICS_OF
        if draw(st.integers(0, 5))
    ]


@given(runs(), st.randoms())
@settings(max_examples=40, deadline=None)
def test_only_what_was_measured_in_whatever_order(records: list[CellRecord], random: Any) -> None:
    answer = recommend(records, USES)
    by_nodeid = {record.nodeid: record for record in records}
    for advice in answer.advice:
        marks = [MARKS.index(one.mark) for one in advice.ranked]
        assert marks == sorted(marks)
        for candidate in advice.ranked:
            rests_on = [by_nodeid[nodeid] for nodeid in candidate.nodeids]
            assert {record.status for record in rests_on} <= {"passed", "failed"}
            assert (candidate.mark == "✗") == (candidate.usability == "failed")
            own = [one for one in records if (one.model, one.quantization) == (candidate.model, candidate.quantization)]
            for figure in candidate.figures:
                assert figure.value in {one.metrics[figure.metric].value for one in own if figure.metric in one.metrics}
    random.shuffle(records)
    assert recommend(records, USES) == answer


@given(runs(), st.data())
@settings(max_examples=60, deadline=None)
def test_what_improves_never_falls_behind(records: list[CellRecord], data: st.DataObject) -> None:
    measured = [i for i, record in enumerate(records) if record.metrics]
    if not measured:
        return
    i = data.draw(st.sampled_from(measured))
    name = data.draw(st.sampled_from(sorted(records[i].metrics)))
    factor = data.draw(st.sampled_from([1.01, 1.1, 2.0]))
    better = [*records[:i], improved(records[i], name, factor), *records[i + 1 :]]
    for before, after in zip(recommend(records, USES).advice, recommend(better, USES).advice, strict=True):
        places = [[one.nodeids for one in advice.ranked] for advice in (before, after)]
        for nodeids in places[0]:
            if records[i].nodeid in nodeids:
                assert places[1].index(nodeids) <= places[0].index(nodeids), (before.use_case, name)


def improved(record: CellRecord, name: str, factor: float) -> CellRecord:
    """The same cell with one metric better, interval and all, and judged anew."""
    old = record.metrics[name]
    by = 1 / factor if METRICS[name].better == "lower" else factor
    most = METRICS[name].maximum or float("inf")
    changes = {key: min(most, getattr(old, key) * by) for key in ("value", "ci_low", "ci_high")}
    metrics = {**record.metrics, name: old.model_copy(update=changes)}
    limits = [Limit(one.key, one.metric, one.side, one.limit, one.critical) for one in record.thresholds]
    thresholds = judge(limits, metrics)
    return record.model_copy(update={"metrics": metrics, "thresholds": thresholds, "rating": rate(thresholds)})


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.1, 0.5, 0.52, 0.54, 0.56, 0.58, 0.9]),
            st.sampled_from([0.0, 1.0]),
            st.sampled_from([None, 1.0, 1.05, 2.0, 4.0]),
        ),
        max_size=12,
    )
)
@settings(max_examples=200, deadline=None)
def test_the_order_counts_for_each_how_many_are_better(
    drawn: list[tuple[float, float, float | None]],
) -> None:
    def is_better(one: int, other: int) -> bool:
        (ours, our_fine, our_memory), (theirs, their_fine, their_memory) = drawn[one], drawn[other]
        if max(ours, theirs) <= min(ours, theirs) * ALIKE and our_memory is not None and their_memory is not None:
            if our_memory < SAME_MEMORY * their_memory:
                return True
            if their_memory < SAME_MEMORY * our_memory:
                return False
        return (-ours, -our_fine, one) < (-theirs, -their_fine, other)

    everyone = range(len(drawn))
    better = {i: sum(is_better(j, i) for j in everyone if j != i) for i in everyone}
    expected = sorted(everyone, key=lambda i: (better[i], -drawn[i][0], -drawn[i][1], i))
    assert places([Score(score, fine) for score, fine, _ in drawn], [memory for *_, memory in drawn]) == expected
