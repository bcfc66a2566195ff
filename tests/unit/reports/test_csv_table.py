"""``results.csv``: readable by any CSV reader, and inert in a spreadsheet."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from pytest_llmbench.core.records import CellRecord, MemoryRecord, MetricValue
from pytest_llmbench.reports.csv_table import write_csv
from tests.unit.factories import broken_record, cell_record
from tests.unit.reports.hostile import HOSTILE
from tests.unit.reports.runs import run_of

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def table(folder: Path, *records: CellRecord) -> list[list[str]]:
    path = write_csv(run_of(folder, records))
    assert path == folder / "results.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file, strict=True))


def rows(folder: Path, *records: CellRecord) -> list[dict[str, str]]:
    header, *lines = table(folder, *records)
    assert len(set(header)) == len(header)
    return [dict(zip(header, line, strict=True)) for line in lines]


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def test_a_row(tmp_path: Path) -> None:
    (row,) = rows(tmp_path, cell_record())
    assert row == {
        "model": "tiny",
        "quant": "Q4_1",
        "variant": "",
        "size_gb": "0.098",
        "memory_gb": "",
        "predicted_memory_gb": "",
        "interactive_tps": "71.25",
        "interactive_ttft": "0.125",
        "interactive_rating": "excellent",
        "interactive_status": "passed",
        "interactive_reason": "",
    }


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


def test_memory_of_the_profile_that_took_most(tmp_path: Path) -> None:
    memories = [MemoryRecord(predicted_bytes=2_000_000_000, observed_peak_bytes=peak) for peak in (10**9, 3 * 10**9)]
    more = {"profile": "batch", "memory": memories[1]}
    (row,) = rows(tmp_path, cell_record(memory=memories[0]), cell_record(**more), cell_record(profile="quality"))
    assert (row["memory_gb"], row["predicted_memory_gb"]) == ("3.000", "2.000")


def test_no_cells(tmp_path: Path) -> None:
    assert table(tmp_path) == [["model", "quant", "variant", "size_gb", "memory_gb", "predicted_memory_gb"]]


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_hostile_text_stays_text(tmp_path: Path, text: str) -> None:
    lines = table(
        tmp_path,
        cell_record(model=text, variant=text, profile=text),
        broken_record(text, quantization=text),
    )
    assert len(lines) == 3
    assert {len(line) for line in lines} == {len(lines[0])}
    assert not [cell for line in lines for cell in line if cell.startswith(FORMULA) and not is_number(cell)]
    assert lines[1][0] in {text.replace("\ud800", "?"), "'" + text}


def test_a_negative_number_stays_a_number(tmp_path: Path) -> None:
    metric = MetricValue(value=-1.5, unit="%", n=6)
    (row,) = rows(tmp_path, cell_record(metrics={"variance_percent": metric}))
    assert row["interactive_variance"] == "-1.5"
