"""``report.json``: the founding structure, a schema that knows it, and nothing that a reader chokes on."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from pytest_llmbench.core.recommendations import Advice, Candidate, Figure, Point, Recommendations
from pytest_llmbench.core.records import (
    CellRecord,
    MemoryRecord,
    MetricValue,
    ModelFile,
    Reason,
    ServerInfo,
)
from pytest_llmbench.reports import json_report
from pytest_llmbench.reports.json_report import MAX_TEXT, schema, write_json
from pytest_llmbench.reports.run_data import RunData
from tests.unit.factories import broken_record, cell_record, metric_comparison
from tests.unit.reports.hostile import HOSTILE
from tests.unit.reports.runs import run_of

RUN = {
    "schema_version": 1,
    "run_id": "20240115T143000Z-1a2b",
    "started_at": "2024-01-15T14:30:00.000+00:00",
    "finished_at": "2024-01-15T16:30:00.000+00:00",
    "configuration": {"backend": "embedded"},
    "host": "0123456789abcdef",
    "hardware": {"cpu": "Intel N100", "memory_bytes": 16_000_000_000, "os": "Ubuntu 22.04", "label": "mini-pc-01"},
    "git_commit": None,
}


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    jsonschema.Draft202012Validator.check_schema(schema())
    return jsonschema.Draft202012Validator(schema())


def written(folder: Path, *records: CellRecord, description: dict[str, Any] | None = None) -> dict[str, Any]:
    """The report of a run, read by a strict reader."""
    if description is not None:
        (folder / "run.json").write_text(json.dumps(description))
    path = write_json(run_of(folder, records))
    assert path == folder / "report.json"
    return strict(path)


def strict(path: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    read: dict[str, Any] = json.loads(path.read_bytes().decode("ascii"), parse_constant=refuse)
    return read


def full_record() -> CellRecord:
    """Everything that a cell can have."""
    comparison = metric_comparison()
    return cell_record(
        status="failed",
        reason=Reason(code="below_threshold", message="no", evidence={"a": 1, "b": None, "c": "x", "d": True}),
        samples={"ttft_seconds": [[0.1, 0.15], [0.125]]},
        comparisons=[comparison],
        details={"questions": [{"id": "q1", "correct": True, "seconds": 0.5, "error": None}]},
        memory=MemoryRecord(method="header", predicted_bytes=10, parts={"weights_bytes": 5}, observed_peak_bytes=11),
        flags=["imprecise"],
        phases_seconds={"measure": 1.0},
    )


def recommended() -> Recommendations:
    candidate = Candidate(
        configuration="tiny Q4_1",
        model="tiny",
        quantization="Q4_1",
        variant=None,
        mark="✓",
        usability="good",
        score=0.5,
        figures=(Figure("ttft_seconds", 0.125, None, None, "0.125 s"),),
        reasons=("fast",),
        tied=False,
        nodeids=("n",),
    )
    advice = Advice("interactive", "Storytelling", "Run tiny.", (candidate,), ("none",), ("noise",))
    return Recommendations("Run tiny.", (advice,), (Point("tiny Q4_1", None, 71.25, 0.1, True),), ("quality",))


def test_the_founding_example(tmp_path: Path) -> None:
    """Each path of the founding document's example leads to what stands there, of records that say the same."""
    metrics = {"ttft_seconds": 2.3, "decode_tokens_per_second": 18.5, "variance_percent": 8.2}
    record = cell_record(
        model="Llama-3.2-7B-Instruct",
        quantization="Q4_K_M",
        model_file=ModelFile(path="x.gguf", size_bytes=4_200_000_000, sha256=None),
        metrics={name: MetricValue(value=value, unit="", n=6) for name, value in metrics.items()},
    )
    report = written(tmp_path, record, description=RUN)
    metadata, (result,) = report["metadata"], report["results"]
    assert metadata["timestamp"] == "2024-01-15T14:30:00.000+00:00"
    assert metadata["hostname"] == "mini-pc-01"
    assert {key: metadata["hardware"][key] for key in ("cpu", "ram_gb", "os")} == {
        "cpu": "Intel N100",
        "ram_gb": 16,
        "os": "Ubuntu 22.04",
    }
    assert metadata["config"] == {"backend": "embedded"}
    assert metadata["test_duration_seconds"] == 7200
    assert (result["model"], result["quantization"], result["model_size_gb"]) == (
        "Llama-3.2-7B-Instruct",
        "Q4_K_M",
        4.2,
    )
    cell = result["profiles"]["interactive"]
    assert (cell["status"], cell["rating"]) == ("passed", "excellent")
    assert {name: cell["metrics"][name] for name in ("ttft_seconds", "tokens_per_second", "variance_percent")} == {
        "ttft_seconds": 2.3,
        "tokens_per_second": 18.5,
        "variance_percent": 8.2,
    }
    assert "recommendations" in report


def test_everything_that_can_be_there_is_known_to_the_schema(
    tmp_path: Path, validator: jsonschema.Draft202012Validator
) -> None:
    run = run_of(tmp_path, [full_record(), broken_record("no", profile="batch"), cell_record(metrics={})])
    vars(run)["recommendations"] = recommended()
    report = strict(write_json(run))
    validator.validate(report)
    (result,) = report["results"]
    assert [cell["nodeid"] for cell in result["other_cells"]] == [cell_record().nodeid]
    assert result["profiles"]["interactive"]["metrics_detail"]["decode_tokens_per_second"]["ci_low"] == 70.5
    assert report["recommendations"]["advice"][0]["ranked"][0]["mark"] == "✓"
    assert list(report["definitions"]["metrics"]) == ["ttft_seconds", "decode_tokens_per_second"]
    assert list(report["definitions"]["flags"]) == ["imprecise"]


def test_no_field_of_a_record_is_lost(tmp_path: Path) -> None:
    (result,) = written(tmp_path, full_record())["results"]
    above = {"schema_version", "run_id", "model", "quantization", "variant", "model_size"}
    assert set(CellRecord.model_fields) - above <= set(result["profiles"]["interactive"])


def leaves(data: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The paths to what is neither an object nor an array."""
    pairs = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else None
    if pairs is None:
        yield path
        return
    for key, value in pairs:
        yield from leaves(value, (*path, key))


def changed(report: dict[str, Any], path: Sequence[str | int], value: Any) -> dict[str, Any]:
    """A copy with another value at a path."""
    copied = place = copy.deepcopy(report)
    for key in path[:-1]:
        place = place[key]  # type: ignore[index]
    place[path[-1]] = value  # type: ignore[index]
    return copied


@pytest.fixture
def full_report(tmp_path: Path) -> dict[str, Any]:
    run = run_of(tmp_path, [full_record()])
    vars(run)["recommendations"] = recommended()
    return strict(write_json(run))


def test_the_schema_refuses_every_wrong_type(
    full_report: dict[str, Any], validator: jsonschema.Draft202012Validator
) -> None:
    assert validator.is_valid(full_report)
    paths = list(leaves(full_report))
    assert len(paths) > 100
    accepted = [path for path in paths if validator.is_valid(changed(full_report, path, {"wrong": []}))]
    assert accepted == [("metadata", "config")]  # whatever was configured


CELL = ("results", 0, "profiles", "interactive")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema_version",), 2),
        (("more",), 1),
        (("metadata", "hardware", "ram_gb"), "16"),
        (("metadata", "cells", "finished"), 1),
        (("results", 0, "more"), 1),
        (("results", 0, "model_size_gb"), "4.2"),
        ((*CELL, "status"), "ok"),
        ((*CELL, "rating"), "superb"),
        ((*CELL, "metrics", "ttft_seconds"), "2.3"),
        ((*CELL, "metrics_detail", "ttft_seconds", "n"), -1),
        ((*CELL, "samples", "ttft_seconds"), [0.1]),
        ((*CELL, "thresholds", 0, "verdict"), "passed"),
        ((*CELL, "comparisons", 0, "p_value"), 2),
        (("recommendations", "advice", 0, "ranked", 0, "mark"), "+"),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else ascii(value),
)
def test_the_schema_refuses_what_is_wrong(
    path: Sequence[str | int],
    value: Any,
    full_report: dict[str, Any],
    validator: jsonschema.Draft202012Validator,
) -> None:
    assert not validator.is_valid(changed(full_report, path, value))


@pytest.mark.parametrize("key", ["metadata", "results", "recommendations", "conclusions", "definitions"])
def test_nothing_may_be_missing(
    key: str, full_report: dict[str, Any], validator: jsonschema.Draft202012Validator
) -> None:
    del full_report[key]
    assert not validator.is_valid(full_report)


@pytest.mark.parametrize("description", [{}, RUN | {"hardware": None, "cells": 3, "configuration": None}])
def test_a_run_that_says_little_of_itself(
    description: dict[str, Any], tmp_path: Path, validator: jsonschema.Draft202012Validator
) -> None:
    report = written(tmp_path, cell_record(), description=description)
    validator.validate(report)
    assert report["metadata"]["cells"] == {"passed": 1}


def test_no_cells(tmp_path: Path, validator: jsonschema.Draft202012Validator) -> None:
    report = written(tmp_path)
    validator.validate(report)
    assert (report["results"], report["metadata"]["timestamp"]) == ([], None)


@pytest.mark.parametrize("changes", [{"resumed": [{"at": "2024-01-16"}]}, {"finished_at": None}, {"started_at": "?"}])
def test_how_long_it_took_where_the_clock_does_not_tell(changes: dict[str, Any], tmp_path: Path) -> None:
    report = written(tmp_path, cell_record(), cell_record(profile="batch"), description=RUN | changes)
    assert report["metadata"]["test_duration_seconds"] == 3.0


def test_a_configuration_has_a_line_of_its_own(tmp_path: Path) -> None:
    written(tmp_path, *(cell_record(quantization=quantization) for quantization in ("Q2_K", "Q8_0")))
    lines = (tmp_path / "report.json").read_text().splitlines()
    assert len([line for line in lines if line.startswith('{"model": "tiny"')]) == 2


def test_hostile_text_comes_back_as_it_was(tmp_path: Path, validator: jsonschema.Draft202012Validator) -> None:
    records = [cell_record(model=text, notes=[text], details={text: [{text: text}]}) for text in HOSTILE]
    report = written(tmp_path, *records)
    validator.validate(report)
    assert [result["model"] for result in report["results"]] == HOSTILE
    assert [result["profiles"]["interactive"]["details"] for result in report["results"]] == [
        {text: [{text: text}]} for text in HOSTILE
    ]


def test_what_json_can_not_hold_becomes_text(tmp_path: Path, validator: jsonschema.Draft202012Validator) -> None:
    details = {"questions": [{"seconds": float("inf"), "other": float("nan")}]}
    report = written(tmp_path, cell_record(details=details), description=RUN | {"clock": float("inf")})
    validator.validate(report)
    (result,) = report["results"]
    assert result["profiles"]["interactive"]["details"] == {"questions": [{"seconds": "inf", "other": "nan"}]}
    assert report["metadata"]["clock"] == "inf"


def test_long_texts_are_cut(tmp_path: Path, validator: jsonschema.Draft202012Validator) -> None:
    text = "x" * 1_000_000
    report = written(tmp_path, cell_record(notes=[text], details={"questions": [{"answer": text}]}))
    validator.validate(report)
    (cell,) = report["results"][0]["profiles"].values()
    assert cell["notes"] == [f"{'x' * MAX_TEXT}… (1000000 characters in all)"]
    assert (tmp_path / "report.json").stat().st_size < 100_000


def test_the_schema_is_beside_the_code_and_has_a_name_of_its_version() -> None:
    assert json_report.SCHEMA_FILE.name == "report.schema.json"
    assert schema()["$id"].endswith(f":{json_report.REPORT_VERSION}")
    assert schema()["properties"]["schema_version"] == {
        "const": json_report.REPORT_VERSION,
        "description": schema()["properties"]["schema_version"]["description"],
    }


def test_reading_the_records_again_gives_the_same_bytes(tmp_path: Path) -> None:
    from pytest_llmbench.core.records import to_line

    (tmp_path / "run.json").write_text(json.dumps(RUN))
    records = [full_record(), broken_record("no \ud800", profile="batch")]
    (tmp_path / "cells.jsonl").write_text("".join(to_line(record) + "\n" for record in records))
    first = write_json(run_of(tmp_path, records)).read_bytes()
    assert write_json(RunData.read(tmp_path)).read_bytes() == first


def test_keys_and_passwords_are_left_out(tmp_path: Path) -> None:
    description = {
        "command_line": ["pytest", "--token", "s3cret", "--api-key=s3cret", "http://me:s3cret@127.0.0.1"],
        "configuration": {"llama_cpp": {"extra_args": ["--api-key", "s3cret", "--mlock"]}},
    }
    (tmp_path / "run.json").write_text(json.dumps(description))
    args = {"extra_args": "--hf-token s3cret --mlock"}
    record = cell_record(settings=args, server=ServerInfo(kind="llama_cpp", args=args))
    text = write_json(run_of(tmp_path, [record])).read_text()
    assert "s3cret" not in text
    assert "--mlock" in text
