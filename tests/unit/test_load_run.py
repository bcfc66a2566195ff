"""``pytest_llmbench.load_run``: a run's files as tables, and the examples of ``docs/report-json.md`` as they stand."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pytest_llmbench
from pytest_llmbench import Run, load_run
from pytest_llmbench.core.records import CellRecord, MetricComparison, RequestRecord, TelemetryRecord
from pytest_llmbench.errors import RecordError
from pytest_llmbench.reports.json_report import write_json
from pytest_llmbench.reports.run_data import RunData
from pytest_llmbench.runtime.run_folder import RunFolder
from tests.unit.factories import broken_record, cell_record

DOC = Path(__file__).parents[2] / "docs" / "report-json.md"
KEY = ["nodeid", "model", "quantization", "variant", "profile"]
SAMPLES = {"decode_tokens_per_second": [[70.0, 71.0], [72.0]], "ttft_seconds": [[0.1, 0.125], [0.2]]}


def comparison() -> MetricComparison:
    return MetricComparison(
        metric="ttft_seconds",
        old=0.1,
        new=0.125,
        ratio=1.25,
        ci_low=None,
        ci_high=None,
        p_value=None,
        limit_percent=5,
        verdict="inconclusive",
        message="too few",
    )


def questions() -> CellRecord:
    rows = [{"id": "q1", "correct": True, "model": "another"}, {"id": "q2", "correct": False, "answer": "lone \ud800"}]
    return cell_record(profile="quality", nodeid="quality", metrics={}, thresholds=[], details={"questions": rows})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = RunFolder(tmp_path / "results", "run-1")
    run.create({"started_at": "2026-01-31T23:59:59+00:00"})
    run.append_cell(cell_record(samples=SAMPLES, comparisons=[comparison()], flags=["drift", "imprecise"]))
    run.append_cell(questions())
    run.append_cell(broken_record("no", variant="t1"))
    request = RequestRecord(cell="n", index=0, phase="sample", ok=True, protocol="x", t_send_ns=0, t_end_ns=1)
    run.append_to("requests", request)
    run.append_to("telemetry", TelemetryRecord(cell="n", t_ns=5, values={"cpu_temperature_celsius": 50.5}))
    run.close()
    return run.path


@pytest.fixture
def run(folder: Path) -> Run:
    return load_run(folder)


def test_cells(run: Run) -> None:
    first, _, last = run.cells
    assert list(first)[:5] == KEY
    assert (first["status"], first["flags"], first["reason"]) == ("passed", "drift imprecise", None)
    assert (first["model_size_bytes"], first["duration_seconds"]) == (98_362_432, 1.5)
    assert (last["status"], last["reason"], last["message"]) == ("error", "server_start_failed", "no")
    assert (last["variant"], last["rating"]) == ("t1", None)


def test_metrics(run: Run) -> None:
    assert [row["metric"] for row in run.metrics] == ["decode_tokens_per_second", "ttft_seconds"]
    assert list(run.metrics[0]) == [*KEY, "metric", "value", "unit", "n", "ci_low", "ci_high"]
    assert (run.metrics[0]["value"], run.metrics[0]["ci_low"], run.metrics[1]["ci_low"]) == (71.25, 70.5, None)


def test_samples_know_their_load(run: Run) -> None:
    rates = [row for row in run.samples if row["metric"] == "decode_tokens_per_second"]
    assert [(row["load"], row["index"], row["value"]) for row in rates] == [(0, 0, 70.0), (0, 1, 71.0), (1, 0, 72.0)]
    assert len(run.samples) == 6


def test_thresholds_and_comparisons(run: Run) -> None:
    (threshold,) = run.thresholds
    assert (threshold["threshold"], threshold["limit"], threshold["verdict"]) == ("min_tokens_per_sec", 2, "pass")
    (compared,) = run.comparisons
    assert (compared["metric"], compared["ratio"], compared["verdict"]) == ("ttft_seconds", 1.25, "inconclusive")


def test_details(run: Run) -> None:
    assert run.detail_tables == ["questions"]
    first, second = run.details("questions")
    assert (first["id"], first["correct"], first["profile"]) == ("q1", True, "quality")
    assert first["model"] == "tiny"  # the cell's, whatever a row calls its own
    assert second["answer"] == "lone ?"
    with pytest.raises(RecordError, match="no table 'qestions'; it has questions"):
        run.details("qestions")


def test_every_table_is_flat(run: Run) -> None:
    for rows in (run.cells, run.metrics, run.samples, run.thresholds, run.comparisons, list(run.telemetry())):
        assert rows
        assert {key for row in rows for key in row} == set(rows[0])
        assert all(isinstance(value, str | int | float | None) for row in rows for value in row.values())


def test_files_that_may_be_long(run: Run) -> None:
    (request,) = run.requests()
    assert (request["cell"], request["t_end_ns"]) == ("n", 1)
    assert list(run.telemetry()) == [{"cell": "n", "t_ns": 5, "cpu_temperature_celsius": 50.5}]


def test_what_the_run_says_of_itself(run: Run, folder: Path) -> None:
    assert (run.run_id, run.folder) == ("run-1", folder)
    assert run.description["started_at"] == "2026-01-31T23:59:59+00:00"
    assert repr(run) == "<Run run-1: 2 passed, 1 error>"
    assert run.recommendations is run.recommendations


@pytest.mark.parametrize("name", ["run-1", "latest"])
def test_by_name(name: str, folder: Path) -> None:
    assert load_run(name, folder.parent).run_id == "run-1"


def test_no_such_run(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="'run-9' is no run"):
        load_run("run-9", tmp_path)


def test_a_run_without_cells(tmp_path: Path) -> None:
    RunFolder(tmp_path, "run-1").create({})
    run = load_run("run-1", tmp_path)
    assert (run.cells, run.metrics, run.detail_tables, list(run.requests())) == ([], [], [], [])
    assert repr(run) == "<Run run-1: no cells>"


def test_pandas_takes_the_tables(run: Run, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    metrics = pandas.DataFrame(run.metrics)
    assert metrics.set_index("metric").loc["ttft_seconds", "value"] == 0.125
    details = pandas.DataFrame(run.details("questions"))
    assert details["correct"].mean() == 0.5
    details.to_csv(tmp_path / "questions.csv")


def test_the_documents_examples_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pandas")
    write_json(RunData.read(folder))
    monkeypatch.chdir(folder.parent.parent)
    blocks = re.findall(r"^```python\n(.*?)^```$", DOC.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, DOC.name, "exec"), names)
    printed = capsys.readouterr().out
    assert len(blocks) == 3
    assert "tiny Q4_1 interactive passed 71.25" in printed
    assert "50.5" in printed


def test_the_document_names_every_table_and_column() -> None:
    text = DOC.read_text("utf-8")
    public = {name for name in vars(Run) if not name.startswith("_")} - {"run_id", "folder"}
    assert {name for name in public if f"`{name}" not in text} == set()


def test_importing_the_package_stays_light() -> None:
    script = (
        "import sys, pytest_llmbench; before = set(sys.modules); pytest_llmbench.load_run; "
        "import json; print(json.dumps([sorted(before), sorted(sys.modules)]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    before, after = json.loads(done.stdout)
    assert [name for name in before if name.startswith("pytest")] == ["pytest_llmbench"]
    assert not {"pytest", "numpy", "scipy", "pandas", "rich", "jinja2", "matplotlib"} & set(after)


def test_there_is_no_other_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'load_runs'"):
        _ = pytest_llmbench.load_runs
