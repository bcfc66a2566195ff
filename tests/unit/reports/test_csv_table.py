"""``results.csv``: readable by any CSV reader, and inert in a spreadsheet."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from pytest_llmbench.core.records import CellRecord, MemoryRecord, MetricValue, Reason
from pytest_llmbench.reports.csv_table import FOUNDING_COLUMNS, MAX_TEXT, write_csv
from tests.unit.factories import broken_record, cell_record
from tests.unit.reports.hostile import HOSTILE
from tests.unit.reports.runs import run_of

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
ALWAYS = [*FOUNDING_COLUMNS, "variant", "predicted_memory_gb"]


def table(folder: Path, *records: CellRecord) -> list[list[str]]:
    path = write_csv(run_of(folder, records))
    assert path == folder / "results.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file, strict=True))


def rows(folder: Path, *records: CellRecord) -> list[dict[str, str]]:
    header, *lines = table(folder, *records)
    assert len(set(header)) == len(header)
    return [dict(zip(header, line, strict=True)) for line in lines]


def metrics(**values: float) -> dict[str, MetricValue]:
    return {
        name: MetricValue(value=value, unit="", n=6, ci_low=value - 1, ci_high=value + 1)
        for name, value in values.items()
    }


def test_a_row(tmp_path: Path) -> None:
    (row,) = rows(tmp_path, cell_record())
    assert row == dict.fromkeys(ALWAYS, "") | {
        "model": "tiny",
        "quant": "Q4_1",
        "size_gb": "0.098",
        "interactive_ttft": "0.125",
        "interactive_tps": "71.25",
        "interactive_rating": "excellent",
        "interactive_status": "passed",
        "interactive_reason": "",
        "interactive_failed_thresholds": "",
        "interactive_inconclusive_thresholds": "",
        "interactive_flags": "",
        "interactive_ttft_low": "",
        "interactive_ttft_high": "",
        "interactive_tps_low": "70.5",
        "interactive_tps_high": "72",
        "cost_benefit_score": "",
    }


def test_the_founding_example(tmp_path: Path) -> None:
    """Header and row as the founding document shows them, of records that say what it says."""
    name = {"model": "Llama-3.2-7B", "quantization": "Q4_K_M"}
    memory = MemoryRecord(observed_peak_bytes=5_800_000_000)
    loads = {
        "profile": "long_context",
        "metrics": metrics(context_load_seconds=25.0, largest_usable_context_tokens=32768),
    }
    header, row = table(
        tmp_path,
        cell_record(**name, memory=memory, metrics=metrics(ttft_seconds=2.3, decode_tokens_per_second=18.5)),
        cell_record(**name, **loads),
        cell_record(**name, profile="batch", metrics=metrics(documents_per_hour=28.5)),
    )
    assert ",".join(header).startswith(
        "model,quant,size_gb,memory_gb,interactive_ttft,interactive_tps,interactive_rating,"
        "long_context_load,long_context_max,batch_throughput,"
    )
    row[2] = "4.2"  # of the file that the factory makes up
    assert ",".join(row).startswith("Llama-3.2-7B,Q4_K_M,4.2,5.8,2.3,18.5,excellent,25,32768,28.5,")


def test_columns_keep_their_order_whatever_ran_first(tmp_path: Path) -> None:
    records = [cell_record(profile=profile) for profile in ("own", "batch", "interactive")]
    first, *_ = table(tmp_path, *records)
    again, *_ = table(tmp_path, *reversed(records))
    assert first == again
    assert [name for name in first if name.endswith("_status")] == ["interactive_status", "batch_status", "own_status"]


def test_only_what_a_use_is_about_has_an_interval(tmp_path: Path) -> None:
    (row,) = rows(tmp_path, cell_record(metrics=metrics(decode_tokens_per_second=70, steady_tokens_per_second=71)))
    assert {name for name in row if name.endswith(("_low", "_high"))} == {"interactive_tps_low", "interactive_tps_high"}


def test_a_profile_is_not_named_twice(tmp_path: Path) -> None:
    (row,) = rows(tmp_path, cell_record(profile="quality", metrics=metrics(quality_score_percent=50)))
    assert (row["quality_score_percent"], row["quality_score_percent_low"]) == ("50", "49")


def test_what_puts_a_number_in_doubt(tmp_path: Path) -> None:
    (first,) = cell_record().thresholds
    missed = [
        first.model_copy(update={"key": key, "verdict": verdict})
        for key, verdict in [("a", "fail"), ("b", "inconclusive"), ("c", "fail"), ("d", "pass")]
    ]
    (row,) = rows(tmp_path, cell_record(status="failed", thresholds=missed, flags=["imprecise", "drift"]))
    assert (row["interactive_failed_thresholds"], row["interactive_inconclusive_thresholds"]) == ("a c", "b")
    assert row["interactive_flags"] == "imprecise drift"


def test_profiles_stand_side_by_side(tmp_path: Path) -> None:
    first, second = rows(
        tmp_path,
        cell_record(),
        broken_record("no", profile="batch"),
        cell_record(variant="t1"),
    )
    assert (first["interactive_status"], first["batch_status"]) == ("passed", "error")
    assert first["batch_reason"] == "server_start_failed"
    assert (second["variant"], second["interactive_status"], second["batch_status"]) == ("t1", "passed", "")


@pytest.mark.parametrize("own_first", [False, True])
def test_an_own_test_does_not_hide_the_measurement(tmp_path: Path, own_first: bool) -> None:
    records = [cell_record(status="failed"), cell_record(metrics={}, nodeid="suites/test_own.py::test_it")]
    (row,) = rows(tmp_path, *(reversed(records) if own_first else records))
    assert (row["interactive_status"], row["interactive_tps"]) == ("failed", "71.25")


def test_memory_of_the_profile_that_took_most(tmp_path: Path) -> None:
    memories = [MemoryRecord(predicted_bytes=2_000_000_000, observed_peak_bytes=peak) for peak in (10**9, 3 * 10**9)]
    more = {"profile": "batch", "memory": memories[1]}
    (row,) = rows(tmp_path, cell_record(memory=memories[0]), cell_record(**more), cell_record(profile="quality"))
    assert (row["memory_gb"], row["predicted_memory_gb"]) == ("3", "2")


def test_no_cells(tmp_path: Path) -> None:
    assert table(tmp_path) == [[*ALWAYS, "cost_benefit_score"]]


@pytest.mark.parametrize(
    "text", [*HOSTILE, "x;=1+1", "＝1", " =1", "x" * MAX_TEXT + "y"], ids=lambda text: ascii(text[:20])
)
def test_hostile_text_stays_text(tmp_path: Path, text: str) -> None:
    reason = Reason(code=text, message=text)
    lines = table(
        tmp_path,
        cell_record(model=text, variant=text, profile=text, flags=[text], reason=reason),
        broken_record(text, quantization=text),
    )
    texts = [cell for line in lines for cell in line]
    assert len(lines) == 3
    assert {len(line) for line in lines} == {len(lines[0])}
    assert not [cell for cell in texts for part in cell.split(";") if part.lstrip().startswith(FORMULA)]
    assert all(cell.isprintable() for cell in texts)
    assert max(map(len, texts)) < 2 * MAX_TEXT


def test_a_negative_number_stays_a_number(tmp_path: Path) -> None:
    metric = MetricValue(value=-1.5, unit="%", n=6)
    (row,) = rows(tmp_path, cell_record(metrics={"variance_percent": metric}))
    assert row["interactive_variance_percent"] == "-1.5"
