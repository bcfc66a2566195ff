"""Records: one line of ASCII JSON each, read back as they were."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmbench.core.records import (
    FLAGS,
    SCHEMA_VERSION,
    CellRecord,
    MetricValue,
    ModelFile,
    Reason,
    RequestRecord,
    ServerInfo,
    ThresholdResult,
    cell_from,
    to_line,
)
from pytest_llmbench.errors import RecordError

# What a model may put out: anything, lone surrogates, line breaks of every kind and control characters included.
wild_text = st.text(st.characters(exclude_categories=())) | st.sampled_from(
    ["\ud800", "\udfff\ud800", "\r\n", "a\nb", "\u2028\u2029\x85\x0b\x0c", "\x00\x1b[31m\x7f", '"\\', "😀", "{}\n{}"]
)
finite = st.floats(allow_nan=False, allow_infinity=False)
counts = st.integers(0, 2**63)
primitives = st.none() | st.booleans() | st.integers() | finite | wild_text
json_values = st.recursive(
    primitives, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(wild_text, inner, max_size=3), max_leaves=8
)
json_objects = st.dictionaries(wild_text, json_values, max_size=3)
evidence = st.dictionaries(wild_text, primitives, max_size=3)

metric_values = st.builds(
    MetricValue, value=finite, unit=wild_text, n=counts, ci_low=st.none() | finite, ci_high=st.none() | finite
)
threshold_results = st.builds(
    ThresholdResult,
    key=wild_text,
    metric=wild_text,
    side=st.sampled_from(["min", "max"]),
    limit=finite,
    critical=st.booleans(),
    observed=st.none() | finite,
    ci_low=st.none() | finite,
    ci_high=st.none() | finite,
    n=counts,
    verdict=st.sampled_from(["pass", "fail", "inconclusive"]),
    margin_percent=st.none() | finite,
)
cell_records = st.builds(
    CellRecord,
    run_id=wild_text,
    nodeid=wild_text,
    backend=wild_text,
    model=wild_text,
    quantization=wild_text,
    model_size=wild_text,
    profile=wild_text,
    variant=st.none() | wild_text,
    status=st.sampled_from(["passed", "failed", "error", "skipped", "blocked", "invalid"]),
    reason=st.none() | st.builds(Reason, code=wild_text, message=wild_text, evidence=evidence),
    metrics=st.dictionaries(wild_text, metric_values, max_size=2),
    thresholds=st.lists(threshold_results, max_size=2),
    rating=st.sampled_from([None, "excellent", "good", "acceptable", "poor", "failed"]),
    interpretation=st.none() | wild_text,
    flags=st.lists(st.sampled_from(sorted(FLAGS)), max_size=2),
    notes=st.lists(wild_text, max_size=2),
    sampling=evidence,
    server=st.builds(ServerInfo, kind=wild_text, version=st.none() | wild_text, args=evidence),
    model_file=st.none() | st.builds(ModelFile, path=wild_text, size_bytes=counts, sha256=st.none() | wild_text),
    host=wild_text,
    started_at=wild_text,
    duration_seconds=finite,
)
request_records = st.builds(
    RequestRecord,
    cell=st.none() | wild_text,
    index=counts,
    phase=st.sampled_from(["warmup", "sample"]),
    ok=st.booleans(),
    error=st.none() | wild_text,
    error_message=st.none() | wild_text,
    usable=st.booleans(),
    protocol=wild_text,
    t_send_ns=counts,
    t_first_token_ns=st.none() | counts,
    t_end_ns=counts,
    ttft_seconds=st.none() | finite,
    decode_tokens_per_second=st.none() | finite,
    output_tokens=st.none() | counts,
    token_offsets_us=st.lists(counts, max_size=3),
    finish_reason=st.none() | wild_text,
    server_timings=st.none() | json_objects,
    params=json_objects,
    output=wild_text,
    reasoning=wild_text,
)


def _request(**more: Any) -> RequestRecord:
    return RequestRecord(
        cell=None, index=0, phase="sample", ok=True, protocol="openai", t_send_ns=1, t_end_ns=2, **more
    )


def _cell(**more: Any) -> dict[str, Any]:
    record = CellRecord(
        run_id="r",
        nodeid="suites/test_interactive.py::test_interactive[m-Q4_1]",
        backend="embedded",
        model="m",
        quantization="Q4_1",
        model_size="1B",
        profile="interactive",
        variant=None,
        status="passed",
        server=ServerInfo(kind="embedded"),
        host="h",
        started_at="2026-01-01T00:00:00Z",
        duration_seconds=1.5,
    )
    data: dict[str, Any] = json.loads(to_line(record))
    return {**data, **more}


def _assert_one_ascii_line(line: str) -> None:
    assert line.isascii()
    assert line.isprintable()  # so there is no line break of any kind in it
    assert line.startswith("{")


@given(cell_records)
def test_a_cell_is_one_ascii_line_and_comes_back_as_it_was(record: CellRecord) -> None:
    line = to_line(record)
    _assert_one_ascii_line(line)
    assert CellRecord.model_validate(json.loads(line)) == record
    assert to_line(cell_from(json.loads(line), "cells.jsonl:1")) == line


@given(request_records)
def test_a_request_is_one_ascii_line_and_comes_back_as_it_was(record: RequestRecord) -> None:
    line = to_line(record)
    _assert_one_ascii_line(line)
    read = RequestRecord.model_validate(json.loads(line))
    assert read == record
    assert to_line(read) == line


def test_evidence_keeps_the_kind_of_its_values() -> None:
    reason = Reason(code="c", message="m", evidence={"flag": True, "count": 1, "share": 1.0, "word": "1", "none": None})
    read = Reason.model_validate(json.loads(to_line(reason)))
    assert {key: type(value).__name__ for key, value in read.evidence.items()} == {
        "flag": "bool",
        "count": "int",
        "share": "float",
        "word": "str",
        "none": "NoneType",
    }


def test_what_a_server_says_beyond_the_numbers_of_json_is_kept_as_text() -> None:
    timings = json.loads('{"predicted_ms": 1e999, "slots": [{"speed": -1e999}, 2.5], "n": 3}')
    assert math.isinf(timings["predicted_ms"])
    line = to_line(_request(server_timings=timings, params={"temperature": math.nan}))
    read = RequestRecord.model_validate(json.loads(line))
    assert read.server_timings == {"predicted_ms": "inf", "slots": [{"speed": "-inf"}, 2.5], "n": 3}
    assert read.params == {"temperature": "nan"}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_metric_is_never_infinite_or_no_number(value: float) -> None:
    with pytest.raises(ValueError, match="finite number"):
        MetricValue(value=value, unit="s", n=1)
    with pytest.raises(ValueError, match="finite number"):
        _request(ttft_seconds=value)


def test_a_record_does_not_change_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        setattr(_request(), "output", "other")  # noqa: B010 -- a type checker refuses the plain assignment


def test_records_of_a_later_minor_version_may_hold_more_keys() -> None:
    assert cell_from(_cell(added_later=1), "cells.jsonl:1").model == "m"


def test_a_record_of_a_later_schema_is_refused_with_what_to_do() -> None:
    with pytest.raises(RecordError) as caught:
        cell_from(_cell(schema_version=SCHEMA_VERSION + 1), "cells.jsonl:7")
    assert str(caught.value) == "cells.jsonl:7: written with schema 2, this version reads up to 1; upgrade"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (_cell(status="great"), "cells.jsonl:3: not a cell record: status: Input should be 'passed', "),
        (_cell(server=None), "cells.jsonl:3: not a cell record: server: "),
        (_cell(schema_version="new"), "cells.jsonl:3: not a cell record: schema_version: "),
        (_cell(metrics={"m": {"value": 1, "unit": "s"}}), "cells.jsonl:3: not a cell record: metrics.m.n: Field req"),
        ([], "cells.jsonl:3: not a cell record: : "),
        (None, "cells.jsonl:3: not a cell record: : "),
    ],
)
def test_what_is_no_cell_record_is_refused_with_its_place(data: Any, words: str) -> None:
    with pytest.raises(RecordError) as caught:
        cell_from(data, "cells.jsonl:3")
    assert str(caught.value).startswith(words)


@given(json_values | st.dictionaries(st.sampled_from(sorted(CellRecord.model_fields)), json_values))
def test_any_json_is_a_cell_record_or_refused(data: Any) -> None:
    try:
        record = cell_from(data, "cells.jsonl:1")
    except RecordError as exc:
        refusal = str(exc)
    else:
        assert isinstance(record, CellRecord)
        return
    assert refusal.startswith("cells.jsonl:1: not a cell record: ") or "upgrade" in refusal
