"""``llmbench export``: pytest-benchmark's own commands read it, and say what the records say."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_llmbench.cli import main
from pytest_llmbench.commands.export import MAX_TEXT
from pytest_llmbench.core.records import CellRecord
from pytest_llmbench.runtime.run_folder import RunFolder
from tests.unit.factories import broken_record, cell_record
from tests.unit.reports.hostile import HOSTILE

Output = pytest.CaptureFixture[str]
TIMES = [0.1, 0.2, 0.3, 0.4, 0.6, 1.4]
SAMPLES = {
    "ttft_seconds": [TIMES[:3], TIMES[3:]],
    "decode_tokens_per_second": [[50.0, 100.0, 0.0]],
    "variance_percent": [[5.0, 6.0]],
}
RUN = {
    "started_at": "2026-01-31T23:59:59+00:00",
    "host": "0123456789abcdef",
    "hardware": {"cpu": "Intel N100", "machine": "x86_64", "logical_cores": 4, "os": "Linux-6.1-x86_64"},
    "software": {"python": "3.11.7"},
    "git_commit": "abc",
}


def saved(here: Path, name: str, *records: CellRecord, run: dict[str, Any] | None = None) -> Path:
    """The file that a run with these cells is exported to."""
    folder = RunFolder(here / "results", f"run-{name}")
    folder.create(RUN if run is None else run)
    for record in records:
        folder.append_cell(record)
    folder.close()
    file = here / f"{name}.json"
    assert main(["export", f"run-{name}", str(file)]) == 0
    return file


def benchmarks(file: Path) -> dict[str, Any]:
    return {found["name"]: found for found in json.loads(file.read_text("ascii"))["benchmarks"]}


def compare(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    """``pytest-benchmark compare``, in this process."""
    from pytest_benchmark import cli

    run_it: Callable[[], object] = cli.main  # it is not annotated
    monkeypatch.setattr(sys, "argv", ["pytest-benchmark", "compare", *map(str, arguments)])
    run_it()


def test_what_is_written(here: Path, capsys: Output) -> None:
    file = saved(here, "0001_a", cell_record(samples=SAMPLES, flags=["drift"]))
    assert capsys.readouterr().out.startswith(f"{file}: 2 benchmarks")
    found = benchmarks(file)
    assert list(found) == [
        "test_interactive[tiny-Q4_1]:ttft_seconds",
        "test_interactive[tiny-Q4_1]:time_per_output_token",
    ]
    ttft, per_token = found.values()
    assert ttft["fullname"] == f"suites/test_interactive.py::{ttft['name']}"
    assert ttft["group"] == "interactive ttft_seconds"
    assert (ttft["param"], ttft["params"]) == ("tiny-Q4_1", {"model": "tiny", "quantization": "Q4_1", "variant": ""})
    assert (ttft["extra_info"]["loads"], ttft["extra_info"]["flags"]) == (2, ["drift"])
    assert ttft["stats"]["data"] == TIMES
    assert per_token["stats"]["data"] == [1 / 50, 1 / 100]  # nothing is to be said of a rate of 0


def test_statistics_are_those_of_the_samples(here: Path) -> None:
    stats = benchmarks(saved(here, "a", cell_record(samples=SAMPLES)))["test_interactive[tiny-Q4_1]:ttft_seconds"][
        "stats"
    ]
    assert (stats["min"], stats["max"], stats["rounds"], stats["iterations"]) == (0.1, 1.4, 6, 1)
    assert stats["mean"] == pytest.approx(0.5)
    assert stats["median"] == pytest.approx(0.35)
    assert stats["total"] == pytest.approx(3.0)
    assert stats["ops"] == pytest.approx(2.0)
    assert stats["stddev"] == pytest.approx(0.473286, abs=1e-6)
    assert (stats["q1"], stats["q3"]) == (pytest.approx(0.2), pytest.approx(0.6))
    assert (stats["ld15iqr"], stats["outliers"]) == (0.1, "1;1")


def test_the_machine_and_the_commit(here: Path) -> None:
    exported = json.loads(saved(here, "a", cell_record(samples=SAMPLES)).read_text())
    machine = exported["machine_info"]
    assert (machine["node"], machine["system"], machine["release"]) == ("0123456789abcdef", "Linux", "6.1-x86_64")
    assert machine["cpu"] == {"brand_raw": "Intel N100", "count": 4}
    assert (exported["commit_info"]["id"], exported["datetime"]) == ("abc", RUN["started_at"])


def test_pytest_benchmark_compares_two_runs(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    slower = {name: [[2 * value for value in load] for load in loads] for name, loads in SAMPLES.items()}
    files = [
        saved(here, name, cell_record(samples=samples))
        for name, samples in [("0001_before", SAMPLES), ("0002_after", slower)]
    ]
    capsys.readouterr()
    compare(monkeypatch, "--columns", "median,ops,rounds", *files)
    printed = capsys.readouterr().out
    assert "benchmark 'interactive ttft_seconds': 2 tests" in printed
    assert "350.0000 (1.0)" in printed
    assert "700.0000 (2.00)" in printed
    assert "benchmark 'interactive time_per_output_token': 2 tests" in printed


def test_pytest_benchmark_reads_one_with_all_its_columns_and_as_csv(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    file = saved(here, "0001_a", cell_record(samples=SAMPLES), cell_record(variant="t1", samples=SAMPLES))
    compare(monkeypatch, file, "--group-by", "param:model,func", "--csv", "table.csv")
    assert "benchmark 'model=tiny test_interactive': 4 tests" in capsys.readouterr().out
    assert "t1" in (here / "table.csv").read_text()


def test_what_must_not_be_believed_is_left_out(here: Path) -> None:
    records = [
        cell_record(samples=SAMPLES, status="failed"),
        cell_record(samples=SAMPLES, status="invalid", nodeid="x::test_interactive[tiny-Q5_1]"),
        broken_record("no"),
    ]
    assert {name.partition(":")[0] for name in benchmarks(saved(here, "a", *records))} == {
        "test_interactive[tiny-Q4_1]"
    }


def test_a_run_of_which_nothing_can_be_told(here: Path, capsys: Output) -> None:
    folder = RunFolder(here / "results", "run-1")
    folder.create({})
    folder.append_cell(cell_record())
    folder.close()
    assert main(["export", "latest", "a.json"]) == 1
    assert "nothing to export" in capsys.readouterr().err
    assert not (here / "a.json").exists()


def test_a_file_that_can_not_be_written(here: Path, capsys: Output) -> None:
    saved(here, "a", cell_record(samples=SAMPLES))
    assert main(["export", "latest", "nowhere/a.json"]) == 1
    assert "nowhere/a.json can not be written" in capsys.readouterr().err


def test_no_such_run(here: Path, capsys: Output) -> None:
    assert main(["export", "run-9", "a.json"]) == 1
    assert "'run-9' is no run" in capsys.readouterr().err


def test_hostile_names_are_printed_as_text(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    texts = [*HOSTILE, "x" * 10_000]
    records = [
        cell_record(
            samples=SAMPLES, nodeid=f"s.py::test_it[{text}]", model=text, variant=text, flags=[text], profile=text
        )
        for text in texts
    ]
    file = saved(here, "0001_a", *records, run={"hardware": {"os": None}})
    assert len(json.loads(file.read_text("ascii"))["benchmarks"]) == 2 * len(texts)
    capsys.readouterr()
    compare(monkeypatch, file, "--columns", "median", "--name", "long")
    printed = capsys.readouterr().out
    assert not [character for character in printed if not character.isprintable() and character != "\n"]
    assert max(map(len, printed.splitlines())) < 3 * MAX_TEXT
