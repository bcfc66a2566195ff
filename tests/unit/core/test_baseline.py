"""A baseline's file: small, the same bytes each time, read back, and refused in words."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from pytest_llmbench.core.baseline import (
    BASELINE_VERSION,
    KIND,
    baseline_from,
    baseline_of,
    baseline_text,
    compared_metrics,
)
from pytest_llmbench.core.records import MetricValue
from pytest_llmbench.core.statistics import median
from pytest_llmbench.errors import RecordError
from tests.unit.core.baselines import answered, loads, measured, run
from tests.unit.factories import broken_record, cell_record
from tests.unit.reports.hostile import HOSTILE


def test_is_read_back_as_it_was_whatever_names_hold() -> None:
    records = [
        measured(name or "empty", model=name, nodeid=f"suites/test_x.py::test_x[{number}]")
        for number, name in enumerate(HOSTILE)
    ]
    baseline = run("a", *records, broken_record("died\n\x1b[31m \ud800", nodeid="suites/test_x.py::test_x[broken]"))
    text = baseline_text(baseline)
    assert text.isascii()
    assert baseline_from(text, "here") == baseline
    assert len(baseline.cells) == len(HOSTILE) + 1


def test_the_order_in_which_cells_ran_does_not_matter_and_each_has_its_line() -> None:
    records = [measured(name, seed=number) for number, name in enumerate(("Q8_0", "Q2_K", "Q4_K_M"))]
    text = baseline_text(run("a", *records))
    assert text == baseline_text(run("a", *reversed(records)))
    lines = [json.loads(line.rstrip(",")) for line in text.splitlines() if line.startswith('{"')]
    assert [line["quantization"] for line in lines] == ["Q2_K", "Q4_K_M", "Q8_0"]


def test_a_run_of_60_cells_stays_below_200_kb() -> None:
    chance, quantizations = random.Random(0), [f"Q{number}_K_M" for number in range(12)]
    records = []
    for name in quantizations:
        correct = "".join(chance.choice("01") for _ in range(128))
        records.append(answered(correct, quantization=name, nodeid=f"suites/test_quality.py::test_quality[{name}]"))
        samples = {"decode_tokens_per_second": loads(70, samples=20), "ttft_seconds": loads(0.1, samples=20)}
        records += [
            measured(name, samples=samples, nodeid=f"suites/test_interactive.py::test_interactive[{model}-{name}]")
            for model in "abcd"
        ]
    assert len(records) == 60
    assert 50_000 < len(baseline_text(run("a", *records))) < 200_000


def test_many_samples_are_thinned_around_the_same_median() -> None:
    samples = loads(30, count=1, samples=600, spread=0.1)
    record = measured(
        profile="stress",
        metrics={"sustained_tokens_per_second": MetricValue(value=30, unit="tokens/s", n=600)},
        samples={"sustained_tokens_per_second": samples},
    )
    (kept,) = run("a", record).cells[0].metrics["sustained_tokens_per_second"].samples
    assert len(kept) == 50
    assert median(kept) == pytest.approx(median(samples[0]), rel=0.01)
    assert max(kept) - min(kept) > 0.7 * (max(samples[0]) - min(samples[0]))


def test_what_was_asked_is_known_of_several_loads_and_of_the_context_that_was_filled() -> None:
    sizes = [
        {"context_tokens": 1024, "load_seconds": 1.0},
        {"context_tokens": 2048, "load_seconds": 2.5},
        {"context_tokens": 4096, "load_seconds": None},
    ]
    long = measured(profile="long_context", details={"sizes": sizes}, nodeid="suites/test_long.py::test_long[x]")
    interactive, filled = run("a", measured(), long).cells
    assert interactive.work == {"output_tokens": 500}
    assert filled.work == {"output_tokens": 500, "filled_tokens": 2048, "test_sizes": "1024, 2048, 4096"}


def test_of_a_users_profile_what_has_samples_and_a_direction_is_compared() -> None:
    sampled = ["ttft_seconds", "time_per_output_token_ms", "variance_within_percent", "nobody_knows_this"]
    assert compared_metrics("my_own", sampled) == ("ttft_seconds", "peak_memory_gb")
    assert compared_metrics("batch", sampled) == ("document_seconds", "peak_memory_gb")


def _file(**changes: Any) -> str:
    return json.dumps({"kind": KIND, "schema_version": BASELINE_VERSION, "run_id": "a", **changes})


_CELL = json.loads(baseline_text(run("a", measured())))["cells"][0]
_METRIC = {"value": 1.0, "n": 1}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "no baseline"),
        ('{"kind": "other"}', "no baseline"),
        (_file(schema_version=BASELINE_VERSION + 1), "upgrade"),
        (_file(run_id=None), "run_id"),
        (_file(cells=[{**_CELL, "status": "perhaps"}]), "status"),
        (_file(cells=[{**_CELL, "metrics": {"ttft_seconds": {**_METRIC, "value": float("nan")}}}]), "ttft_seconds"),
        (_file(cells=[{**_CELL, "metrics": {"ttft_seconds": {**_METRIC, "samples": [[1e200]]}}}]), "samples"),
        (_file(environment={"hardware.cpu": ["a", "list"]}), "environment"),
        (
            _file(spreads=[{"profile": "a", "metric": "b", "host": "c", "log_sd": 1, "degrees": 0, "source": ""}]),
            "degrees",
        ),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else None,
)
def test_what_is_no_baseline_is_refused_with_its_place(text: str, said: str) -> None:
    with pytest.raises(RecordError, match=said) as caught:
        baseline_from(text, "baseline.json")
    assert str(caught.value).startswith("baseline.json: ")


def test_of_a_cell_that_ran_twice_the_later_record_counts_and_another_path_is_the_same_cell() -> None:
    baseline = run("a", broken_record("died", nodeid=measured().nodeid), measured(nodeid=measured().nodeid))
    assert [cell.status for cell in baseline.cells] == ["passed"]
    moved = run("b", measured(nodeid="test_interactive.py::test_interactive[tiny-Q4_1]")).cells[0]
    assert baseline.counterpart(moved) == baseline.cells[0]
    assert baseline.counterpart(run("b", measured("Q8_0")).cells[0]) is None
    assert baseline.counterpart(moved, {measured().nodeid}) is None  # it is still there: the other is a new one


def test_a_baseline_is_made_to_be_committed_and_holds_no_key() -> None:
    description = {"configuration": {"llama_cpp": {"extra_args": ["--api-key", "s3cret", "--jinja"]}}}
    record = cell_record(settings={"extra_args": "--api-key=s3cret --jinja", "base_url": "http://me:s3cret@host"})
    text = baseline_text(baseline_of(description, [record], "r"))
    assert "--jinja" in text
    assert "s3cret" not in text
