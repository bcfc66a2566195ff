"""Two runs compared: the same cells, what became worse, what can not be told, and what that means for a script."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_llmbench.core.baseline import Baseline, BaselineCell
from pytest_llmbench.core.cell_comparison import comparable_count, contrasts_of, judged_cell, why_not_comparable
from pytest_llmbench.core.comparison import holm
from pytest_llmbench.core.records import CellRecord, MetricValue, ModelFile, Reason, ServerInfo
from pytest_llmbench.core.regression import between_loads
from pytest_llmbench.core.run_comparison import RunComparison, compare
from pytest_llmbench.core.spreads import Spreads
from tests.unit.core.baselines import DESCRIPTION, answered, loads, measured, run
from tests.unit.factories import broken_record, cell_record

QUANTIZATIONS = ("Q2_K", "Q4_K_M", "Q8_0")


def _old(**changes: Any) -> Baseline:
    return run("old", *(measured(name, seed=seed, **changes) for seed, name in enumerate(QUANTIZATIONS)))


def _new(rates: dict[str, float] | None = None, **changes: Any) -> Baseline:
    found = (
        measured(name, rate=(rates or {}).get(name, 70), seed=100 + seed, **changes)
        for seed, name in enumerate(QUANTIZATIONS)
    )
    return run("new", *found)


def _verdicts(found: RunComparison) -> dict[str, dict[str, str]]:
    return {cell.quantization: {one.metric: one.verdict for one in cell.metrics} for cell in found.cells}


def _cell(record: CellRecord) -> BaselineCell:
    return run("a", record).cells[0]


def test_a_cell_that_became_slower_is_named_and_the_others_are_not() -> None:
    found = compare(_old(), _new({"Q4_K_M": 60}), 5)
    assert [name for name, verdicts in _verdicts(found).items() if "regressed" in verdicts.values()] == ["Q4_K_M"]
    assert found.sentence.startswith("1 of 3 cells became worse by more than 5 %: tiny Q4_K_M interactive (decode_tok")
    assert found.exit_status == 1


def test_without_a_change_nothing_is_worse_and_with_one_load_it_is_said_that_little_can_be_told() -> None:
    assert compare(_old(), _new(), 10).sentence == "None of 3 cells became worse by more than 10 %"
    one_load = {"decode_tokens_per_second": loads(70, count=1), "ttft_seconds": loads(0.1, count=1)}
    found = compare(_old(samples=one_load), _new(samples=one_load), 5)
    assert found.exit_status == 0
    assert "in 3 of them that can not be told" in found.sentence


def test_p_values_are_adjusted_over_all_that_is_tested_and_by_bonferroni_one_cell_at_a_time() -> None:
    old, new = _old(), _new({"Q4_K_M": 66})
    spreads = Spreads((old, new))
    raw = [
        one.p_value
        for then, now in zip(old.cells, new.cells, strict=True)
        for one in contrasts_of(then, now, spreads)
        if one.p_value is not None
    ]
    assert len(raw) == 6
    told = [one.p_value for cell in compare(old, new, 5).cells for one in cell.metrics if one.p_value is not None]
    assert told == pytest.approx(holm(raw))
    alone = judged_cell(old.cells[1], new.cells[1], spreads, 5, comparable_count(old, [c.nodeid for c in old.cells]))
    tested = [one.p_value for one in alone.metrics if one.p_value is not None]
    assert tested == pytest.approx([min(1, 6 * p) for p in raw[2:4]])


def test_cells_whose_file_was_moved_make_tests_too() -> None:
    old = _old()
    moved = [cell.nodeid.replace("suites/", "suites/chat/") for cell in old.cells]
    assert comparable_count(old, moved) == comparable_count(old, [cell.nodeid for cell in old.cells]) == 6
    assert comparable_count(old, [old.cells[0].nodeid, moved[0]]) == 2


def test_a_run_beside_itself_says_so() -> None:
    found = compare(_old(), _old(), 5)
    assert found.sentence.startswith("Both are run old, which tells nothing of a change. None of 3 cells ")
    assert found.exit_status == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"host": "fedcba9876543210"}, "other hardware"),
        ({"model_file": ModelFile(path="x", size_bytes=1000, sha256="b" * 64)}, "sha256 aaaaaaaaaaaa → bbbbbbbbbbbb"),
        ({"model_file": ModelFile(path="x", size_bytes=999, sha256=None)}, "1000 → 999 bytes"),
        ({"sampling": {"output_tokens": 128}}, "length of an answer (500 → 128)"),
    ],
    ids=["host", "file", "size", "work"],
)
def test_what_can_not_be_compared_says_why_and_is_no_success(changes: dict[str, Any], said: str) -> None:
    found = compare(_old(), _new({"Q4_K_M": 30}, **changes), 5)
    assert {verdict for cell in _verdicts(found).values() for verdict in cell.values()} == {"not_comparable"}
    assert all(said in (cell.refusal or "") for cell in found.cells)
    assert (found.exit_status, found.sentence) == (1, "Nothing could be compared: see the reasons")


def test_other_gpus_of_a_machine_that_is_otherwise_the_same_can_not_be_compared() -> None:
    def on(gpus: str) -> BaselineCell:
        sensors = {DESCRIPTION["host"]: {"facts": {"gpu_names": gpus}}}
        return run("a", measured(device="0"), sensors=sensors).cells[0]

    assert why_not_comparable(on("H100"), on("H100")) is None
    assert "H100 → H200" in (why_not_comparable(on("H100"), on("H200")) or "")


def test_what_else_changed_stands_beside_the_verdict() -> None:
    server = ServerInfo(kind="embedded", version="xllamacpp 1.1", args={"threads": 2}, context_size=8192)
    new = _new({"Q4_K_M": 40}, server=server, flags=["throttled"], status="failed")
    notes = compare(_old(flags=["busy_machine"]), new, 5).cells[0].notes
    assert notes[:2] == ["server: xllamacpp 1.0 → xllamacpp 1.1", "threads: 4 → 2"]
    assert [note.partition(":")[0] for note in notes[2:]] == ["only then", "only now", "its thresholds"]
    assert "heat" in notes[3]


def test_cells_of_one_run_only_are_told_apart_by_what_that_means() -> None:
    died = broken_record("signal 11", nodeid=measured("Q2_K").nodeid, quantization="Q2_K")
    no_room = Reason(code="does_not_fit", message="needs 9 GB")
    skipped = measured("Q8_0", status="skipped", reason=no_room, metrics={}, samples={})
    found = compare(_old(), run("new", died, skipped, measured("Q4_K_M", seed=9), measured("Q6_K")), 5)
    assert [cell.quantization for cell in found.cells] == ["Q4_K_M"]
    assert [one.reason for one in found.broken] == ["error (server_start_failed: signal 11)"]
    assert [one.reason for one in found.missing] == ["skipped now (does_not_fit: needs 9 GB)"]
    assert [one.name for one in found.added] == ["tiny Q6_K interactive"]
    assert found.exit_status == 1
    assert found.sentence.endswith("1 cell broke: tiny Q2_K interactive")
    gone = compare(_old(), run("new", measured("Q4_K_M", seed=9)), 10)
    assert [(one.name, gone.exit_status) for one in gone.missing] == [
        ("tiny Q2_K interactive", 0),
        ("tiny Q8_0 interactive", 0),
    ]


def test_less_of_the_same_contexts_that_can_be_filled_is_broken_and_other_contexts_are_not() -> None:
    def filled(*seconds: float | None) -> Baseline:
        sizes = [{"context_tokens": 1024 * (number + 1), "load_seconds": value} for number, value in enumerate(seconds)]
        return run("a", measured(profile="long_context", details={"sizes": sizes}))

    less = compare(filled(1.0, 2.0), filled(1.0, None), 5)
    assert [one.reason for one in less.broken] == ["the largest context that could be filled: 2048 → 1024 tokens"]
    others = compare(filled(1.0, 2.0), filled(1.0), 5)
    assert not others.broken
    assert "largest context that was filled (2048 → 1024)" in (others.cells[0].refusal or "")


def test_files_of_tests_may_move() -> None:
    moved = run("new", measured("Q2_K", nodeid="test_interactive.py::test_interactive[tiny-Q2_K]"))
    assert [cell.quantization for cell in compare(_old(), moved, 10).cells] == ["Q2_K"]


def test_scores_are_compared_by_the_questions_that_both_were_asked() -> None:
    found = compare(run("old", answered("1" * 60 + "0" * 40)), run("new", answered("1" * 45 + "0" * 55)), 5)
    (score,) = found.cells[0].metrics
    assert (score.verdict, score.old, score.new) == ("regressed", 60, 45)
    asked_otherwise = answered("1" * 45 + "0" * 55, sampling={"bank_version": "2.0"})
    assert compare(run("old", answered("1" * 60 + "0" * 40)), run("new", asked_otherwise), 5).exit_status == 1


def test_memory_alone_is_no_comparison_of_a_cell_that_has_more() -> None:
    found = compare(_old(samples={}), _new(samples={}), 5)
    assert "peak_memory_gb" in _verdicts(found)["Q2_K"]
    assert found.exit_status == 1
    assert found.sentence == "Nothing could be compared: see the reasons"
    larger = {**measured().metrics, "peak_memory_gb": MetricValue(value=0.6, unit="GB", n=1)}
    assert "3 of 3 cells became worse" in compare(_old(samples={}), _new(samples={}, metrics=larger), 5).sentence


@pytest.mark.parametrize("value", [0.0, -1.0, 1e-320, 1e149])
def test_numbers_that_have_no_ratio_are_no_traceback(value: float) -> None:
    metrics = {"ttft_seconds": MetricValue(value=value, unit="s", n=3)}
    odd = run("odd", measured("Q2_K", metrics=metrics, samples={"ttft_seconds": [[value] * 3] * 3}))
    for pair in ((_old(), odd), (odd, _old()), (odd, odd)):
        assert compare(*pair, 5).exit_status in {0, 1}


def test_runs_without_anything_in_common_and_empty_ones() -> None:
    found = compare(_old(), run("new", cell_record(profile="batch", nodeid="suites/test_batch.py::test_batch[x]")), 5)
    assert "no cell that both measured" in found.sentence
    assert (len(found.missing), len(found.added), found.exit_status) == (3, 1, 1)
    assert compare(run("a"), run("b"), 5).exit_status == 1


class TestSpreads:
    NAME = "decode_tokens_per_second"

    def test_are_pooled_over_the_other_cells_of_both_runs(self) -> None:
        old, new = _old(), _new()
        found = Spreads((old, new)).of(self.NAME, (old.cells[0], new.cells[0]))
        others = between_loads(cell.metrics[self.NAME].samples for one in (old, new) for cell in one.cells[1:])
        assert found is not None
        assert others is not None
        assert (found.log_sd, found.degrees) == pytest.approx((others.log_sd, others.degrees))

    def test_know_from_stored_runs_how_sessions_differ(self) -> None:
        def stored(number: int, rate: float, **changes: Any) -> Baseline:
            samples = {self.NAME: loads(rate, count=1, seed=number)}
            return run(f"stored{number}", measured("Q2_K", samples=samples, **changes))

        cell = _cell(measured("Q4_K_M", samples={self.NAME: loads(70, count=1)}))
        runs = [stored(number, rate) for number, rate in enumerate((60, 70, 66, 74))]
        found = Spreads((), runs).of(self.NAME, (cell, cell))
        assert found is not None
        assert found.degrees == 3
        assert 0.05 < found.log_sd < 0.15
        assert Spreads((), [stored(1, 60), stored(2, 70, host="other")]).of(self.NAME, (cell, cell)) is None
        newer = measured().server.model_copy(update={"version": "xllamacpp 2.0"})
        assert Spreads((), [stored(1, 60), stored(2, 90, server=newer)]).of(self.NAME, (cell, cell)) is None

    def test_that_a_baseline_was_saved_with_count_where_no_runs_are_stored(self) -> None:
        runs = [
            run(f"s{number}", measured("Q2_K", samples={self.NAME: loads(rate, count=1)}))
            for number, rate in enumerate((60, 70, 66))
        ]
        (saved,) = Spreads((), runs).saved(DESCRIPTION["host"])
        cell = _cell(measured("Q4_K_M", samples={self.NAME: loads(70, count=1)}))
        baseline = run("a").model_copy(update={"spreads": [saved]})
        found = Spreads((baseline,)).of(self.NAME, (cell, cell))
        assert found is not None
        assert (found.degrees, found.log_sd) == (2, saved.log_sd)
        assert Spreads((), runs).saved("another host") == []
