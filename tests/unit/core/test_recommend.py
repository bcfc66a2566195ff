"""Recommendations: what is fit, in which order, and what is said of it."""

from __future__ import annotations

import pytest

from pytest_llmbench.core.measured import MEMORY, QUALITY
from pytest_llmbench.core.recommend import recommend, use_cases_of
from pytest_llmbench.core.recommendations import Recommendations
from pytest_llmbench.core.records import CellRecord, MemoryRecord, Reason
from pytest_llmbench.core.use_cases import UseCase
from tests.unit.core.recommend_cases import GB, cell, named, of, places, too_large, unmeasured, value
from tests.unit.factories import metric_comparison

USES = use_cases_of({})


def chat(quantization: str, rate: float = 20, model: str = "m", **metrics: float) -> CellRecord:
    found = {"decode_tokens_per_second": rate, "ttft_seconds": 1.0, **metrics}
    return cell("interactive", model, quantization, None, 3, None, None, **found)


def exam(quantization: str, percent: float, model: str = "m") -> CellRecord:
    return cell("quality", model, quantization, quality_score_percent=percent, math_score_percent=percent)


def found(*records: CellRecord) -> Recommendations:
    return recommend(records, USES)


# ---------------------------------------------------------------- nothing, or nothing fit


def test_without_records_it_says_so() -> None:
    answer = found()
    assert answer.headline == "Nothing was measured, so nothing can be recommended."
    assert [advice.ranked for advice in answer.advice] == [()] * 5
    assert (answer.points, answer.next[1:]) == ((), ())


def test_without_use_cases_there_is_still_a_front() -> None:
    answer = recommend([chat("Q4")], ())
    assert answer.headline == "What was measured tells of none of the uses."
    assert [point.configuration for point in answer.points] == ["m Q4"]


def test_one_configuration_is_said_to_be_the_only_one_and_of_unknown_quality() -> None:
    answer = found(chat("Q4", rate=20.125))
    assert answer.headline == (
        "Run m Q4 (interactive use): 20.1 tokens/s, first token after 1 s. It is the only one that was measured. "
        "Quality was not measured, so this says nothing about whether its answers are right."
    )
    assert answer.next[0].startswith("measure the quality of m Q4 (pytest -m quality)")
    assert of(answer, "long_context").answer == "This run did not measure long_context, so it can not say."
    assert of(answer, "accuracy").answer == "This run did not measure quality, so it can not say."
    assert any('pytest -m "long_context or batch or quality"' in step for step in answer.next)


def test_what_was_measured_of_another_use_only_is_no_reason_to_say_that_nothing_else_was_measured() -> None:
    answer = found(chat("Q4"), exam("Q4", 90), chat("Q4", 40, model="small"))
    assert [one.configuration for one in of(answer, "overall").ranked] == ["m Q4"]
    assert "only one" not in answer.headline


def test_where_nothing_is_fit_the_nearest_is_named_and_what_it_lacks() -> None:
    answer = found(chat("Q4", 1.4), chat("Q8", 0.5))
    advice = of(answer, "interactive")
    assert [one[0] for one in places(advice)] == ["✗", "✗"]
    said = "the nearest is m Q4: 1.40 tokens/s [1.36, 1.44] where at least 2 tokens/s is wanted (min_tokens_per_sec), "
    said += "short by 30 %"
    assert advice.answer == f"Nothing that was measured is fit: {said}."
    assert said in answer.headline
    assert all(one.score is None for one in advice.ranked)


@pytest.mark.parametrize("status", ["error", "invalid", "skipped", "blocked"])
def test_what_was_not_measured_is_no_candidate_and_its_reason_is_told(status: str) -> None:
    record = unmeasured("interactive", "m", "Q4", status, "some_code", "it broke\nin many lines")
    advice = of(found(record, chat("Q8")), "interactive")
    assert [one.configuration for one in advice.ranked] == ["m Q8"]
    assert next(line for line in advice.excluded if line.startswith("m Q4: ")).endswith(": it broke")
    assert of(found(record), "interactive").excluded == advice.excluded


def test_numbers_that_can_not_be_believed_are_not_used() -> None:
    record = chat("Q4").model_copy(
        update={"status": "invalid", "reason": Reason(code="prompt_truncated", message="cut")}
    )
    answer = found(record)
    assert (of(answer, "interactive").ranked, answer.points) == ((), ())


def test_a_users_own_test_without_numbers_is_no_measurement() -> None:
    assert of(found(cell("interactive", "m", "Q4", peak_memory_gb=1)), "interactive").ranked == ()


# ---------------------------------------------------------------- marks


@pytest.mark.parametrize(
    ("record", "reservation"),
    [
        (chat("Q4", variance_percent=30), "variance_percent 30.0 % [29.1, 30.9] where at most 20 % is wanted"),
        (chat("Q4", variance_percent=20), "too uncertain to say whether at most 20 % is wanted"),
        (chat("Q4", 2.2), "little to spare where at least 2 tokens/s is wanted"),
        (chat("Q4").model_copy(update={"flags": ["throttled"]}), "throttled: the hardware lowered its frequency"),
        (
            chat("Q4").model_copy(update={"thresholds": [], "rating": None}),
            "no limit says what is good enough in interactive",
        ),
        (
            chat("Q4").model_copy(update={"status": "failed", "reason": Reason(code="test_failed", message="boom\n1")}),
            "its test failed for another reason: boom",
        ),
        (
            chat("Q4").model_copy(update={"memory": MemoryRecord(observed_peak_bytes=9 * GB, available_bytes=10 * GB)}),
            "takes most of the memory: 9.0 GB of the 10.0 GB that may be used",
        ),
    ],
)
def test_a_reservation_is_marked_and_told(record: CellRecord, reservation: str) -> None:
    answer = found(record)
    candidate = of(answer, "interactive").ranked[0]
    assert candidate.mark == "⚠"
    assert any(reservation in reason for reason in candidate.reasons)
    assert "with reservations" in answer.headline


def test_a_doubt_that_is_only_of_precision_is_no_reservation() -> None:
    record = chat("Q4").model_copy(update={"flags": ["imprecise", "outliers", "busy_machine"]})
    answer = found(record)
    assert of(answer, "interactive").ranked[0].mark == "✓"
    assert any("close other programs and measure m Q4 again" in step for step in answer.next)


def test_what_gets_more_wrong_than_right_is_recommended_with_reservations_only() -> None:
    advice = of(found(chat("Q4"), exam("Q4", 30)), "interactive")
    assert (advice.ranked[0].mark, advice.ranked[0].usability) == ("⚠", "poor")
    assert "gets more wrong than right: 30.0 % of the questions right" in advice.answer


def test_what_a_use_requires_decides_whatever_the_limits_of_the_profile_are() -> None:
    use = UseCase("fast", "Fast", ("interactive",), {"ttft_seconds": 1}, {"min_decode_tokens_per_second": 15})
    advice = recommend([chat("Q4", 10), chat("Q8", 20)], [use]).advice[0]
    assert places(advice) == [("✓", "m Q8", "excellent"), ("✗", "m Q4", "failed")]
    assert "is wanted (min_decode_tokens_per_second), short by 33 %" in " ".join(advice.ranked[1].reasons)


def test_what_is_too_much_is_not_said_to_be_short_and_what_is_exact_has_no_interval() -> None:
    use = UseCase("small", "Small", ("interactive",), {"ttft_seconds": 1}, {"max_peak_memory_gb": 4})
    record = chat("Q4", peak_memory_gb=5)
    memory = record.metrics["peak_memory_gb"].model_copy(update={"ci_low": 5.0, "ci_high": 5.0})
    record = record.model_copy(update={"metrics": {**record.metrics, "peak_memory_gb": memory}})
    (said,) = recommend([record], [use]).advice[0].ranked[0].reasons[-1:]
    assert said == "5 GB of memory where at most 4 GB is wanted (max_peak_memory_gb), too much by 25 %"


def test_what_a_use_requires_and_nobody_measured_leaves_no_candidate() -> None:
    use = UseCase("right", "Right", ("interactive",), {"ttft_seconds": 1}, {"min_recall_percent": 50})
    advice = recommend([chat("Q4")], [use]).advice[0]
    assert (advice.ranked, advice.answer) == ((), "This run did not measure recall_percent, so it can not say.")


# ---------------------------------------------------------------- order


def test_a_better_model_that_is_fast_enough_comes_before_a_faster_one() -> None:
    records = [
        chat("Q4", 100, model="tiny"),
        exam("Q4", 55, model="tiny"),
        chat("Q4", 8, model="big"),
        exam("Q4", 90, model="big"),
    ]
    assert [one[1] for one in places(of(found(*records), "interactive"))] == ["big Q4", "tiny Q4"]


def test_of_those_that_serve_as_well_the_one_with_less_memory_comes_first_and_it_is_said() -> None:
    large, small = chat("Q8", 31, peak_memory_gb=8), chat("Q4", 30, peak_memory_gb=4)
    advice = of(found(large, small, exam("Q8", 82), exam("Q4", 81)), "interactive")
    assert [one[1] for one in places(advice)] == ["m Q4", "m Q8"]
    assert (
        "m Q4 is put before m Q8 (8 GB of memory): it serves as well within 5 %, and takes 4 GB of memory"
        in advice.remarks
    )


def test_differences_within_the_intervals_are_called_noise() -> None:
    records = [chat("Q4", 20.0), chat("Q5", 20.5), chat("Q8", 10)]
    answer = found(*records)
    advice = of(answer, "interactive")
    assert {one.configuration: one.tied for one in advice.ranked} == {"m Q5": True, "m Q4": True, "m Q8": False}
    assert (
        "m Q5 and Q4 can not be told apart in tokens/s: the intervals overlap, so such differences are noise"
        in advice.remarks
    )
    assert "to tell m Q5 and Q4 apart, measure them with measurement.loads: 3 and min_samples: 10" in answer.next


def test_of_several_only_what_the_first_is_like_is_called_noise() -> None:
    """Q4 and Q8 overlap with the wide interval of the first, and are well apart from each other."""
    wide = chat("Q5", 20.5)
    rate = wide.metrics["decode_tokens_per_second"].model_copy(update={"ci_low": 5, "ci_high": 40})
    wide = wide.model_copy(update={"metrics": {**wide.metrics, "decode_tokens_per_second": rate}})
    use = UseCase("fast", "Fast", ("interactive",), {"decode_tokens_per_second": 1})
    advice = recommend([wide, chat("Q4", 18), chat("Q8", 10)], [use]).advice[0]
    said = (
        "m Q4 and Q8 can not be told apart from m Q5 in tokens/s: the intervals overlap, so such differences are noise"
    )
    assert said in advice.remarks


def test_without_intervals_nothing_is_called_noise() -> None:
    bare = [
        one.model_copy(
            update={
                "metrics": {k: v.model_copy(update={"ci_low": None, "ci_high": None}) for k, v in one.metrics.items()}
            }
        )
        for one in (chat("Q4", 20), chat("Q5", 20.5))
    ]
    advice = of(found(*bare), "interactive")
    assert ([one.tied for one in advice.ranked], advice.remarks) == ([False, False], ())


def test_quality_that_is_known_of_some_counts_as_half_for_the_others_and_it_is_said() -> None:
    advice = of(found(chat("Q4"), exam("Q4", 80), chat("Q8", 22)), "interactive")
    assert [one[1] for one in places(advice)] == ["m Q4", "m Q8"]
    assert (
        "the quality of m Q8 was not measured; it counts as the worst that was, and as 50 % at most" in advice.remarks
    )


def test_overall_rests_on_all_that_was_measured() -> None:
    answer = found(chat("Q4"), exam("Q4", 80), chat("Q8", 30))
    advice = of(answer, "overall")
    assert [one.configuration for one in advice.ranked] == ["m Q4"]
    assert advice.excluded == ("m Q8: not measured: quality",)
    assert of(answer, "accuracy").excluded == advice.excluded


# ---------------------------------------------------------------- what is told


def test_what_does_not_fit_is_told_together_with_the_least_that_is_needed() -> None:
    records = [
        too_large("interactive", "13B", name, 14.8 + i) for i, name in enumerate(("Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"))
    ]
    advice = of(found(chat("Q4"), *records), "interactive")
    assert advice.excluded == (
        "13B, 4 quantizations (Q4_K_M to Q8_0) do not fit: at least 14.8 GB needed, 14.0 GB may be used",
    )
    assert of(found(chat("Q4"), *records[1:3]), "interactive").excluded == (
        "13B Q5_K_M and Q6_K do not fit: at least 15.8 GB needed, 14.0 GB may be used",
    )


def test_figures_are_those_of_the_use_and_memory_is_that_of_its_cells() -> None:
    records = [chat("Q4", peak_memory_gb=4), cell("long_context", "m", "Q4", context_load_seconds=9, peak_memory_gb=9)]
    answer = found(*records)
    figures = {one.metric: one for one in of(answer, "interactive").ranked[0].figures}
    assert (figures["peak_memory_gb"].value, figures["peak_memory_gb"].low) == (4, None)
    assert figures["decode_tokens_per_second"].text == "20.0 tokens/s [19.4, 20.6]"
    assert answer.points[0].memory_gb == 9


def test_configurations_are_told_apart_by_no_more_than_it_takes() -> None:
    first, kv8 = chat("Q4"), chat("Q4").model_copy(update={"backend": "ollama", "variant": "kv8"})
    assert {point.configuration for point in found(first, kv8).points} == {"m Q4", "m Q4 · kv8"}
    ollama = first.model_copy(update={"backend": "ollama"})
    assert {point.configuration for point in found(first, ollama).points} == {"m Q4 (embedded)", "m Q4 (ollama)"}
    elsewhere = first.model_copy(update={"host": "fedcba9876543210"})
    assert {point.configuration for point in found(first, elsewhere).points} == {"m Q4 on 01234567", "m Q4 on fedcba98"}


def test_the_front_leaves_out_what_another_beats_in_all_that_is_known() -> None:
    records = [
        chat("Q4", 20, peak_memory_gb=4),
        exam("Q4", 80),
        chat("Q8", 10, peak_memory_gb=8),
        exam("Q8", 90),
        chat("Q6", 9, peak_memory_gb=9),
        chat("Q5", 30),
    ]
    assert {point.configuration: point.on_front for point in found(*records).points} == {
        "m Q4": True,
        "m Q8": True,
        "m Q6": False,  # slower and larger than Q8; its quality is not known
        "m Q5": True,  # nothing is faster
    }


def test_a_larger_model_is_proposed_where_speed_and_memory_are_left() -> None:
    memory = MemoryRecord(observed_peak_bytes=GB, available_bytes=20 * GB)
    small = chat("Q4", 50, peak_memory_gb=1).model_copy(update={"memory": memory})
    proposal = "try a model larger than 135M: m Q4 has speed to spare and takes 1.0 GB of the 20.0 GB that may be used"
    assert proposal in found(small).next
    large = chat("Q4", 20, model="big").model_copy(update={"model_size": "7B"})
    assert proposal not in found(small, large).next
    broken = unmeasured("interactive", "big", "Q4", "error", "crashed").model_copy(update={"model_size": "7B"})
    assert proposal not in found(small, broken).next
    on_a_gpu = small.model_copy(update={"memory": memory.model_copy(update={"device_bytes": 8 * GB})})
    assert not any("larger" in step for step in found(on_a_gpu).next)


def test_only_what_serves_as_well_is_said_to_be_put_behind_for_its_memory() -> None:
    sizes = {"Q2": (90, 1), "Q3": (90, 1), "Q5": (94, 3), "Q6": (94, 3), "Q8": (96, 5)}
    records = [
        exam(quantization, percent).model_copy(
            update={"metrics": {QUALITY: value(QUALITY, percent), MEMORY: value(MEMORY, memory)}, "rating": "good"}
        )
        for quantization, (percent, memory) in sizes.items()
    ]
    (advice,) = recommend(records, [UseCase("u", "U", ("quality",), {QUALITY: 1})]).advice
    assert advice.ranked[0].configuration == "m Q2"
    (remark,) = (one for one in advice.remarks if "put before" in one)
    assert "m Q5 (3 GB of memory) and m Q6 (3 GB of memory): it serves as well within 5 %" in remark
    assert "Q8" not in remark


def test_names_are_passed_on_as_they_are() -> None:
    name = "<b>\x1b[31m\ud800 'x'"
    answer = found(chat("Q4", model=name), exam("Q4", 80, model=name))
    assert of(answer, "overall").ranked[0].model == name
    assert name in answer.headline


def test_a_users_use_case_is_answered_by_its_own_weights() -> None:
    records = [chat("Q4", 30, ttft_seconds=3), chat("Q8", 10, ttft_seconds=2)]
    uses = use_cases_of(
        {"configuration": {"use_cases": {"snappy": {"profiles": ["interactive"], "weights": {"ttft_seconds": 1}}}}}
    )
    answer = recommend(records, uses)
    assert [one[1] for one in places(of(answer, "snappy"))] == ["m Q8", "m Q4"]
    assert [one[1] for one in places(of(answer, "interactive"))] == ["m Q4", "m Q8"]
    assert named(of(answer, "snappy"), "m Q8").figures[0].metric == "ttft_seconds"


def test_what_became_worse_stands_first() -> None:
    worse = metric_comparison()
    record = chat("Q4").model_copy(update={"comparisons": [worse]})
    assert found(record, chat("Q8")).headline.startswith("1 of 1 cells became worse than the baseline. ")
    assert not found(chat("Q4")).headline.startswith("1 of")


def test_quality_that_nobody_measured_does_not_stand_before_one_that_is_known_to_be_poor() -> None:
    advice = of(found(chat("Q4", 30), exam("Q4", 4), chat("Q8", 20)), "interactive")
    assert [one[1] for one in places(advice)] == ["m Q4", "m Q8"]
