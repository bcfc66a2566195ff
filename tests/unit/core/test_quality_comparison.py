"""What a quantization costs: the same questions, answered by several quantizations."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_llmbench.core.comparison import holm
from pytest_llmbench.core.proportions import mcnemar_p
from pytest_llmbench.core.quality_comparison import QuantizationComparison, compare_quantizations
from pytest_llmbench.core.records import CellRecord
from tests.unit.factories import cell_record

SAMPLING = {"bank_version": "1.0", "bank_fingerprint": "0123456789ab", "output_tokens": 256}
CATEGORIES = ("math", "comprehension", "reasoning", "format")


def cell(quantization: str, wrong: set[int] | None = None, *, n: int = 120, **changes: Any) -> CellRecord:
    """A quality cell: question ``i`` is of category ``i % 4``; those in ``wrong`` were answered wrongly."""
    rows = [
        {"id": f"q{i}", "category": CATEGORIES[i % 4], "correct": i not in (wrong or set()), "why": ""}
        for i in range(n)
    ]
    fields: dict[str, Any] = {
        "nodeid": f"suites/test_quality.py::test_quality[tiny-{quantization}]",
        "profile": "quality",
        "quantization": quantization,
        "details": {"questions": rows},
        "sampling": SAMPLING,
    }
    return cell_record(**{**fields, **changes})


def compare(*records: CellRecord, baseline: str | None = None) -> QuantizationComparison:
    (found,) = compare_quantizations(records, baseline)
    return found


class TestSentences:
    def test_little_lost_is_no_evidence_of_difference(self) -> None:
        found = compare(cell("Q8_0", set(range(20))), cell("Q4_K_M", set(range(23))))
        assert found.sentence == "Q4_K_M retains 97 % of Q8_0's score (no evidence of difference, n = 120)"

    def test_a_category_that_is_lost_is_named_with_what_to_avoid(self) -> None:
        lost = {4 * i for i in range(10)}
        found = compare(cell("Q8_0", {1, 2, 3}), cell("Q2_K", {1, 2, 3} | lost))
        p = 4 * 2 * 0.5**10
        assert (
            f"Q2_K loses 33 points on math (p = {p:.3f} after Holm, n = 30): avoid it for calculation" in found.sentence
        )
        assert "; retains 91 % of Q8_0's score (p = 0.002 after Holm, n = 120)" in found.sentence

    def test_a_category_can_be_lost_where_the_whole_is_not(self) -> None:
        lost = {4 * i for i in range(10)}
        found = compare(cell("Q8_0", {4 * i + 1 for i in range(5)}), cell("Q2_K", lost))
        assert found.whole is not None
        assert not found.whole.is_significant
        assert found.sentence == "Q2_K loses 33 points on math (p = 0.008 after Holm, n = 30): avoid it for calculation"

    def test_a_users_category_has_no_advice(self) -> None:
        rows = [{"id": f"q{i}", "category": "cooking", "correct": True} for i in range(30)]
        worse = [{**row, "correct": False} for row in rows]
        found = compare(cell("Q8_0", details={"questions": rows}), cell("Q2_K", details={"questions": worse}))
        assert found.sentence.startswith("Q2_K loses 100 points on cooking (p < 0.001 after Holm, n = 30); retains 0 %")

    def test_a_better_score_is_told_as_such(self) -> None:
        found = compare(cell("Q8_0", set(range(40))), cell("Q4_K_M", set()))
        assert found.sentence == "Q4_K_M retains 150 % of Q8_0's score (p < 0.001 after Holm, n = 120)"

    def test_a_baseline_without_a_correct_answer_has_no_share(self) -> None:
        found = compare(cell("Q8_0", set(range(8)), n=8), cell("Q4_K_M", set(range(7)), n=8))
        assert found.retained_percent is None
        assert (
            found.sentence == "Q4_K_M answers 1 of 8 questions correctly, Q8_0 none (no evidence of difference, n = 8)"
        )


class TestNumbers:
    def test_are_of_the_discordant_questions(self) -> None:
        found = compare(cell("Q8_0", {1, 2, 3}), cell("Q4_0", {3, 4, 5, 6, 7}))
        whole = found.whole
        assert whole is not None
        assert (whole.asked, whole.baseline_correct, whole.other_correct) == (120, 117, 115)
        assert (whole.only_baseline, whole.only_other) == (4, 2)
        assert whole.p_value == mcnemar_p(4, 2)
        assert whole.lost_points == pytest.approx(100 * 2 / 120)
        assert found.retained_percent == pytest.approx(100 * 115 / 117)
        assert list(found.categories) == list(CATEGORIES)
        assert sum(part.asked for part in found.categories.values()) == 120
        assert found.categories["math"].only_baseline == 1

    def test_are_adjusted_over_the_comparisons_of_the_run(self) -> None:
        wrongs = {"Q6_K": 1, "Q4_K_M": 6, "Q2_K": 9}
        records = [cell("Q8_0"), *(cell(name, set(range(count))) for name, count in wrongs.items())]
        found = compare_quantizations(records, None)
        p_values = [mcnemar_p(count, 0) for count in wrongs.values()]
        assert [one.whole.p_value for one in found if one.whole] == p_values
        assert [one.whole.adjusted_p_value for one in found if one.whole] == holm(p_values)
        parts = [part for one in found for part in one.categories.values()]
        assert [part.adjusted_p_value for part in parts] == holm([part.p_value for part in parts])

    def test_thirteen_questions_tell_little_apart(self) -> None:
        found = compare(cell("Q8_0", n=13), cell("Q4_0", set(range(5)), n=13))
        assert "no evidence of difference, n = 13" in found.sentence
        assert found.retained_percent == pytest.approx(100 * 8 / 13)

    def test_are_of_questions_that_both_were_asked(self) -> None:
        found = compare(cell("Q8_0", n=120), cell("Q4_0", {0}, n=13))
        assert found.whole is not None
        assert (found.whole.asked, found.whole.baseline_correct, found.whole.other_correct) == (13, 13, 12)


class TestWhatIsCompared:
    def test_with_the_most_bits_by_default_and_in_their_order(self) -> None:
        found = compare_quantizations([cell("Q2_K"), cell("Q8_0"), cell("F16"), cell("Q4_K_M")], None)
        assert {one.baseline for one in found} == {"F16"}
        assert [one.quantization for one in found] == ["Q8_0", "Q4_K_M", "Q2_K"]

    def test_with_the_baseline_that_is_asked_for(self) -> None:
        found = compare_quantizations([cell("Q2_K"), cell("Q8_0"), cell("Q4_K_M")], "q4_k_m")
        assert {one.baseline for one in found} == {"Q4_K_M"}
        assert [one.quantization for one in found] == ["Q8_0", "Q2_K"]

    def test_nothing_without_the_baseline_or_another(self) -> None:
        assert compare_quantizations([cell("Q2_K"), cell("Q8_0")], "F16") == []
        assert compare_quantizations([cell("Q8_0")], None) == []
        assert compare_quantizations([], None) == []

    @pytest.mark.parametrize("key", ["model", "variant", "backend", "host"])
    def test_only_within_one_model_variant_backend_and_host(self, key: str) -> None:
        other: dict[str, Any] = {key: "other"}
        records = [cell("Q8_0"), cell("Q4_0"), cell("F16", **other), cell("Q2_K", **other)]
        found = compare_quantizations(records, None)
        assert [(one.quantization, one.baseline) for one in found] == [("Q4_0", "Q8_0"), ("Q2_K", "F16")]
        assert {getattr(one, key) for one in found if key != "host"} <= {getattr(records[0], key), "other"}

    def test_only_within_one_test(self) -> None:
        other = cell("Q4_0", nodeid="suites/test_mine.py::test_mine[tiny-Q4_0]")
        assert compare_quantizations([cell("Q8_0"), other], None) == []

    def test_only_cells_of_the_profile_that_have_answers(self) -> None:
        broken, speed = cell("Q4_0", details={}, status="error"), cell("Q2_K", profile="interactive")
        assert compare_quantizations([cell("Q8_0"), broken, speed], None) == []

    def test_the_later_of_two_records_of_a_cell(self) -> None:
        found = compare(cell("Q8_0"), cell("Q4_0", set(range(60))), cell("Q4_0"))
        assert found.retained_percent == 100.0


class TestRefusals:
    @pytest.mark.parametrize(
        ("key", "value", "what"),
        [
            ("bank_version", "1.1", "version of the questions (1.1 and 1.0)"),
            ("bank_fingerprint", "ffff", "content of the questions"),
            ("output_tokens", 128, "greatest length of an answer (128 and 256)"),
        ],
    )
    def test_what_was_asked_differently_is_not_compared(self, key: str, value: Any, what: str) -> None:
        found = compare(cell("Q8_0"), cell("Q4_0", sampling={**SAMPLING, key: value}))
        assert found.whole is None
        assert found.retained_percent is None
        assert found.sentence.startswith(f"Q4_0 can not be compared with Q8_0: they differ in the {what}")

    def test_no_common_question_is_nothing_to_compare(self) -> None:
        rows = [{"id": "mine", "category": "math", "correct": True}]
        found = compare(cell("Q8_0"), cell("Q4_0", details={"questions": rows}))
        assert found.sentence == (
            "Q4_0 can not be compared with Q8_0: no question was asked of both; measure them with the same set"
        )

    def test_a_refusal_costs_the_others_no_evidence(self) -> None:
        odd = cell("Q6_K", sampling={**SAMPLING, "bank_version": "2"})
        found = compare_quantizations([cell("Q8_0"), odd, cell("Q4_0", set(range(6)))], None)
        assert found[0].refusal is not None
        assert found[1].whole is not None
        assert found[1].whole.adjusted_p_value == mcnemar_p(6, 0)
