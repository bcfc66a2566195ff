"""The batch profile on a server in which faults are planted: what comes out, what is counted, what ends it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_llmbench.core.records import FLAGS, RequestRecord
from pytest_llmbench.core.settings import BatchSettings
from pytest_llmbench.errors import CellError, MeasurementInvalid, RequestError, ServerError
from pytest_llmbench.profiles.base import STOOD_STILL, Measurement
from pytest_llmbench.profiles.batch import BatchProfile
from tests.servers.drifting import DriftingServer, Faults
from tests.servers.drifting_machine import measure_batch

FAST = Faults(token_seconds=0.0003)


def measured(faults: Faults, filed: list[RequestRecord] | None = None, **how: Any) -> Measurement:
    with DriftingServer(faults) as server:
        return measure_batch(server, filed, **{"documents": 12, **how})


def rows(measurement: Measurement) -> list[dict[str, Any]]:
    return [dict(row) for row in measurement.details["documents"]]


def test_a_batch_yields_every_metric_and_a_row_for_each_document() -> None:
    filed: list[RequestRecord] = []
    measurement = measured(FAST, filed)
    assert set(measurement.metrics) == set(BatchProfile.emits)
    assert [record.phase for record in filed[:13]] == ["warmup"] + ["sample"] * 12
    table = [row for row in rows(measurement) if not row["again"]]
    assert [row["id"] for row in table[:3]] == ["field-report", "neighbour-letter", "garden-minutes"]
    assert len(table) == 12
    assert all(row["output_tokens"] == 16 and row["prompt_tokens"] > 200 and not row["error"] for row in table)
    assert all(row["memory_mb"] > 1 and row["decode_tokens_per_second"] > 1 for row in table)
    times = sorted(row["seconds"] for row in table)
    metric = measurement.metrics["document_seconds"]
    assert metric.value == pytest.approx((times[5] + times[6]) / 2)
    assert (metric.ci_low, metric.ci_high, metric.n) == (times[2], times[9], 12)
    assert measurement.metrics["documents_per_hour"].value == pytest.approx(3600 * 12 / sum(times))
    assert measurement.metrics["failed_documents_percent"].value == 0
    assert set(measurement.flags) <= set(FLAGS)


def test_every_prompt_is_new_and_demands_the_length() -> None:
    filed: list[RequestRecord] = []
    measured(FAST, filed, documents=6)
    prompts = [record.params["prompt"] for record in filed]
    assert len({prompt[:10] for prompt in prompts}) == len(prompts)
    assert all(prompt[11:].startswith("Summarise the following") for prompt in prompts)
    assert all(record.params["ignore_eos"] and record.params["n_predict"] == 16 for record in filed)


def test_a_planted_leak_is_found() -> None:
    measurement = measured(replace(FAST, leak_mb=1, settling_mb=20), documents=30)
    assert "leaking" in measurement.flags
    slope = measurement.metrics["memory_slope_mb_per_document"]
    assert slope.value == pytest.approx(1, abs=0.2)
    assert slope.ci_low is not None
    assert slope.ci_low > 0


def test_memory_that_settles_is_no_leak() -> None:
    measurement = measured(replace(FAST, settling_mb=40), documents=30)
    assert "leaking" not in measurement.flags


def test_a_planted_slow_down_is_found() -> None:
    measurement = measured(Faults(slower_percent=2), documents=30)
    assert "degrading" in measurement.flags
    degradation = measurement.metrics["degradation_percent"]
    assert degradation.n == 20
    assert degradation.value > 15
    assert float(measurement.sampling["degradation_p_value"] or 0) < 0.001
    assert float(measurement.sampling["degradation_cliffs_delta"] or 0) > 0.8


def test_a_planted_stall_is_found_asked_again_and_kept() -> None:
    measurement = measured(replace(FAST, stalls={5: 1.1}))
    assert "outliers" in measurement.flags
    table = rows(measurement)
    stalled = table[4]  # the warm-up is request 0
    assert stalled["stall_seconds"] > 1
    assert measurement.sampling["stalls"] == 1
    assert any(row["again"] and row["id"] == stalled["id"] and row["stall_seconds"] is None for row in table[12:])
    assert max(measurement.samples["document_seconds"]) > 1
    assert any(note.startswith(f"the time of {stalled['id']} lies far off") for note in measurement.notes)
    interval = measurement.metrics["variance_percent"]
    assert interval.ci_high is not None
    assert interval.ci_high < 400


def test_a_failed_document_is_counted_and_the_batch_goes_on() -> None:
    filed: list[RequestRecord] = []
    measurement = measured(replace(FAST, failing=(2, 3, 6)), filed)
    failed = measurement.metrics["failed_documents_percent"]
    assert (failed.value, failed.n) == (25.0, 12)
    assert failed.ci_low is not None
    assert failed.ci_low == pytest.approx(8.9, abs=0.1)
    assert measurement.metrics["document_seconds"].n == 9
    errors = [row["error"] for row in rows(measurement) if not row["again"]]
    assert [index for index, error in enumerate(errors) if error] == [1, 2, 5]
    assert "out of luck" in errors[1]
    assert [record.usable for record in filed[:8]] == [True, True, False, False, True, True, False, True]


def test_three_failures_in_a_row_end_the_batch() -> None:
    filed: list[RequestRecord] = []
    with pytest.raises(RequestError, match=r"3 documents in a row got no summary, after 4 that did.*out of luck"):
        measured(replace(FAST, failing=(5, 6, 7)), filed)
    assert len(filed) == 8


def test_nothing_but_failures_of_a_short_batch() -> None:
    with pytest.raises(RequestError, match=r"no document got a summary; the last:.*out of luck"):
        measured(replace(FAST, failing=(1, 2)), documents=2)


def test_a_dead_server_ends_the_batch() -> None:
    with pytest.raises(ServerError, match="it died"):
        measured(replace(FAST, dies_at=4))


def test_answers_that_end_by_themselves_are_compared_at_their_own_rate() -> None:
    short = dict.fromkeys(range(1, 13, 2), 10)
    measurement = measured(Faults(short=short), chat=True, tokens=20)
    assert "short_answer" not in measurement.flags
    table = [row for row in rows(measurement) if not row["again"]]
    assert {row["output_tokens"] for row in table} == {10, 20}
    for row, seconds in zip(table, measurement.samples["document_seconds"], strict=True):
        missing = 20 - row["output_tokens"]
        assert seconds == pytest.approx(row["seconds"] + missing / row["decode_tokens_per_second"])
    assert any("after 10 to 20 tokens" in note for note in measurement.notes)


def test_an_answer_of_a_few_tokens_tells_no_rate() -> None:
    measurement = measured(replace(FAST, short={1: 3, 4: 3}), chat=True)
    assert "short_answer" in measurement.flags
    assert measurement.metrics["document_seconds"].n == 10
    assert measurement.metrics["failed_documents_percent"].value == 0


def test_short_answers_of_a_server_that_was_told_not_to_are_no_samples() -> None:
    short = dict.fromkeys(range(1, 13), 10)
    with pytest.raises(MeasurementInvalid, match=r"ask for fewer \(settings\.batch\.output_tokens\)") as raised:
        measured(replace(FAST, short=short))
    assert raised.value.code == "short_answer"


def test_cached_prompts_are_no_samples() -> None:
    with pytest.raises(MeasurementInvalid) as raised:
        measured(replace(FAST, cached=5))
    assert raised.value.code == "prompt_cache_hit"


def test_documents_come_again_when_there_are_too_few(tmp_path: Path) -> None:
    data = write(tmp_path, {"documents": [{"id": name, "text": f"About {name}. " * 40} for name in "abcd"]})
    measurement = measured(FAST, documents=10, data=[data])
    assert [row["id"] for row in rows(measurement)[:10]] == list("abcdabcdab")
    assert any("there are 4 documents" in note for note in measurement.notes)
    assert any("fewer than 12" in note for note in measurement.notes)


def test_a_single_document_has_a_time_and_no_spread() -> None:
    measurement = measured(FAST, documents=1)
    assert set(measurement.metrics) == {"document_seconds", "documents_per_hour", "failed_documents_percent"}
    assert measurement.metrics["documents_per_hour"].ci_low is None


def test_memory_that_can_not_be_read_is_absent_and_said_so() -> None:
    measurement = measured(FAST, blind=True)
    assert "memory_slope_mb_per_document" not in measurement.metrics
    assert any("no leak could be found: it is blind" in note for note in measurement.notes)


def test_what_stood_still_is_neither_a_sample_nor_a_failure() -> None:
    filed: list[RequestRecord] = []
    measurement = measured(replace(FAST, failing=(4,)), filed, still={3, 4})
    assert STOOD_STILL in measurement.flags
    assert [record.index for record in filed if STOOD_STILL in record.flags] == [3, 4]
    assert measurement.metrics["document_seconds"].n == 10
    failed = measurement.metrics["failed_documents_percent"]
    assert (failed.value, failed.n) == (0, 11)


def test_a_batch_that_stands_still_again_and_again_is_invalid() -> None:
    with pytest.raises(MeasurementInvalid, match="stopped again and again"):
        measured(FAST, still=range(1, 13))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "Expecting"),
        ("[]", "a list of one or more"),
        ('{"documents": []}', "a list of one or more"),
        ('{"documents": [{"id": "a"}]}', 'document 1 needs an "id" and a "text"'),
        ('{"documents": [{"id": "a", "text": " "}]}', "document 1 needs"),
        ('{"documents": ["a"]}', "document 1 needs"),
        ('{"documents": [{"id": "a", "text": "b"}, {"id": "a", "text": "c"}]}', "document 2 has the id 'a'"),
    ],
)
def test_documents_that_can_not_be_used_are_named(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "documents.json").write_text(text, encoding="utf-8")
    with pytest.raises(CellError, match=f"data/documents/documents.json can not be used: .*{why}") as raised:
        measured(FAST, data=[tmp_path])
    assert raised.value.code == "documents_unusable"


def test_missing_documents_are_named(tmp_path: Path) -> None:
    with pytest.raises(CellError, match="none of the data folders"):
        measured(FAST, data=[tmp_path])


def test_the_context_holds_a_document_and_its_summary() -> None:
    assert BatchProfile().needed_context(BatchSettings(output_tokens=150)) == 918


def write(folder: Path, content: dict[str, Any]) -> Path:
    (folder / "documents").mkdir()
    (folder / "documents" / "documents.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
