"""What several cells come to together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pytest_llmbench.core.records import CellRecord, MetricValue
from pytest_llmbench.reports.conclusions import comparisons, conclusions, scores, where_the_time_went
from tests.unit.factories import cell_record
from tests.unit.reports.runs import run_of


def scored(quantization: str, speed: float, quality: float, memory: float, **changes: Any) -> CellRecord:
    known = {"decode_tokens_per_second": speed, "quality_score_percent": quality, "peak_memory_gb": memory}
    metrics = {name: MetricValue(value=value, unit="", n=6) for name, value in known.items()}
    return cell_record(quantization=quantization, metrics=metrics, **changes)


def test_scores_are_listed_best_first() -> None:
    assert scores([scored("Q8_0", 10, 90, 8), scored("Q4_1", 20, 80, 4, variant="t1")]) == [
        "cost-benefit (quality · speed / memory, the best has 100): tiny Q4_1 t1 100, tiny Q8_0 28"
    ]


def test_one_configuration_alone_has_nothing_to_be_compared_with() -> None:
    assert scores([scored("Q8_0", 10, 90, 8), cell_record()]) == []


def test_time_is_told_by_profile_and_by_phase_and_what_is_left_is_said() -> None:
    cells = [
        cell_record(duration_seconds=20, phases_seconds={"load": 5, "measure": 12}),
        cell_record(profile="batch", duration_seconds=40, phases_seconds={"measure": 40}),
        cell_record(profile="quality", status="blocked", duration_seconds=0.1),
    ]
    assert where_the_time_went(cells) == [
        "the cells took 60 s, by profile: batch 40 s, interactive 20 s",
        "by phase: measuring 52 s, starting servers 5 s, all else 3 s",
    ]


def test_records_of_an_earlier_version_have_no_phases() -> None:
    assert where_the_time_went([cell_record(duration_seconds=20)]) == []


@pytest.mark.parametrize("text", ["", "[]", '{"configuration": 3}', '{"configuration": {"settings": {"quality": []}}}'])
def test_a_description_that_is_none_does_no_harm(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    assert conclusions(run_of(tmp_path, [cell_record(profile="quality"), cell_record()])) is not None


def test_without_questions_nothing_is_compared(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"configuration": {"settings": {"quality": {"baseline": "Q4"}}}}))
    assert conclusions(run_of(tmp_path, [cell_record(), cell_record(profile="quality", metrics={})])) == []


def answered(model: str, quantization: str, correct: int) -> CellRecord:
    rows: list[dict[str, Any]] = [{"id": str(n), "category": "math", "correct": n < correct} for n in range(10)]
    score = MetricValue(value=10 * correct, unit="%", n=10)
    return cell_record(
        nodeid=f"suites/test_quality.py::test_quality[{model}-{quantization}]",
        profile="quality",
        model=model,
        quantization=quantization,
        metrics={"quality_score_percent": score},
        details={"questions": rows},
    )


def test_comparisons_of_several_models_tell_which(tmp_path: Path) -> None:
    cells = [answered(model, name, 8) for model in ("one", "other") for name in ("Q8_0", "Q4_K_M")]
    told = comparisons(run_of(tmp_path, cells))
    assert [line.partition(" retains")[0] for line in told] == ["one Q4_K_M", "other Q4_K_M"]


def test_a_baseline_that_is_written_in_small_letters_was_measured_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"configuration": {"settings": {"quality": {"baseline": "q8_0"}}}}))
    (told,) = comparisons(run_of(tmp_path, [answered("one", name, 8) for name in ("Q8_0", "Q4_K_M")]))
    assert "retains 100 %" in told
