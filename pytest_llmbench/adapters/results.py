"""From a test's report to its cell's record; runs where the test runs, and sends the record along with the report."""

from __future__ import annotations

import dataclasses
import os
import time

import pytest

from pytest_llmbench.adapters.blank import blank_record
from pytest_llmbench.adapters.cell_run import CellRun
from pytest_llmbench.adapters.collection import cell_of
from pytest_llmbench.adapters.fixtures import RUN_KEY
from pytest_llmbench.adapters.memory import is_here, note_tested, observe
from pytest_llmbench.adapters.neighbours import attempt_note, timed_out
from pytest_llmbench.adapters.state import Suite
from pytest_llmbench.core.cell import Cell
from pytest_llmbench.core.records import CellRecord, Reason, Status, to_line
from pytest_llmbench.errors import CellError, DiskFull, LlmbenchError, RecordError, RegressionFailure, ThresholdFailure
from pytest_llmbench.profiles.base import STOOD_STILL
from pytest_llmbench.runtime.run_folder import utc_now

# Report attributes survive xdist's serialisation as long as they are primitives, and stay out of JUnit. A record goes
# as one line of ASCII, because execnet can not send every string that a model can produce.
RECORD_ATTRIBUTE = "llmbench_record"
STATUS_ATTRIBUTE = "llmbench_status"
DISK_FULL = "disk_full"


def begin(item: pytest.Item, suite: Suite) -> None:
    """A cell's test begins: start its clock, and leave word of it in case this worker crashes."""
    cell = cell_of(item)
    if cell is None:
        return
    run = item.stash[RUN_KEY] = CellRun(cell, item.nodeid, utc_now(), time.monotonic())
    run.skip_reason = _why_pointless(suite, cell, item.nodeid)
    if run.skip_reason is not None:
        run.blocked = True
        item.add_marker(pytest.mark.skip(reason=run.skip_reason.message))
    if suite.controller is not None:
        known = {"nodeid": run.nodeid, "started_at": run.started_at, "host": suite.host}
        suite.controller.tell("began", cell=dataclasses.asdict(cell), **known)


def _why_pointless(suite: Suite, cell: Cell, nodeid: str) -> Reason | None:
    """Why blocking would spare a cell. Memory is looked at where no header will tell what the server needs."""
    spec = suite.spec(cell)
    without_header = spec.model_file is None and is_here(spec)
    available_bytes = suite.memory_check.available().bytes if without_header else None
    return suite.decisions.why(cell, nodeid, suite.host, available_bytes)


def annotate(item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport, suite: Suite) -> None:
    """Tell whose fault a failure is, and attach the cell's record to the report that ends it."""
    cell = cell_of(item)
    if cell is None or report.when == "teardown":
        return
    if RUN_KEY not in item.stash:  # another plugin's setup came first, and skipped it
        item.stash[RUN_KEY] = CellRun(cell, item.nodeid, utc_now(), time.monotonic())
    run = item.stash[RUN_KEY]
    error = call.excinfo.value if call.excinfo is not None else None
    if isinstance(error, LlmbenchError | ThresholdFailure):
        # What happened is in the message; our own stack would only bury it.
        report.longrepr = call.excinfo.getrepr(style="value", chain=False) if call.excinfo is not None else None
    could_not_measure = isinstance(error, LlmbenchError) or run.measuring or timed_out(item) is not None
    if could_not_measure and report.when == "call" and report.failed:
        report.when = "setup"  # JUnit: an error of the infrastructure, not a failure of the model
    elif report.when == "setup" and report.passed:
        return
    record = _record(item, run, report, error, suite)
    if report.skipped and hasattr(report, "wasxfail"):
        record = record.model_copy(update={"expected_failure": str(report.wasxfail)})
    suite.learn(record)
    setattr(report, RECORD_ATTRIBUTE, to_line(record))
    setattr(report, STATUS_ATTRIBUTE, record.status)
    item.user_properties.extend(junit_properties(record))
    report.user_properties = list(item.user_properties)
    if run.measurement is not None and run.model_file is not None:
        note_tested(suite, run)


def _record(
    item: pytest.Item, run: CellRun, report: pytest.TestReport, error: BaseException | None, suite: Suite
) -> CellRecord:
    observe(run)
    suite.watches.end_cell(run)
    suite.end_samples()
    expired = timed_out(item) if report.failed else None
    status, reason = ("error", expired) if expired is not None else _status(run, report, error)
    status, reason = ("error", run.stopped) if status == "error" and run.stopped is not None else (status, reason)
    measurement, verdict, again = run.measurement, run.verdict, attempt_note(item)
    for code, is_so in (("swapped", run.has_swapped), (STOOD_STILL, run.disturbances)):
        if is_so and measurement is not None:
            measurement.flag(code)
    record = blank_record(suite, run.cell, item.nodeid, status, reason, spec=run.spec)
    return record.model_copy(
        update={
            "metrics": measurement.metrics if measurement else {},
            "samples": measurement.samples_by_load if measurement else {},
            "thresholds": list(verdict.results) if verdict else [],
            "comparisons": list(verdict.comparisons) if verdict else [],
            "rating": run.rating,
            "interpretation": run.interpretation,
            "flags": measurement.flags if measurement else [reason.code] if reason and status == "invalid" else [],
            "notes": [
                *(measurement.notes if measurement else []),
                *run.disturbances,
                *([again] if again is not None else []),
            ],
            "sampling": measurement.sampling if measurement else {},
            "details": measurement.details if measurement else {},
            "phases_seconds": run.phases_seconds,
            "answered_requests": run.answered_requests,
            "server": run.server.info if run.server else record.server,
            "device": run.device,
            "model_file": run.model_file,
            "memory": run.memory,
            "started_at": run.started_at,
            "duration_seconds": time.monotonic() - run.started_monotonic - run.waited_seconds,
        }
    )


def _status(run: CellRun, report: pytest.TestReport, error: BaseException | None) -> tuple[Status, Reason | None]:
    status: Status
    if isinstance(error, CellError) and run.skip_reason is None:
        status = "invalid" if error.status == "invalid" else "error"
        return status, Reason(code=error.code, message=error.message, evidence=error.evidence)
    if isinstance(error, RecordError):
        return "error", Reason(code=DISK_FULL if isinstance(error, DiskFull) else "not_recorded", message=str(error))
    if isinstance(error, ThresholdFailure):  # also where pytest expected it to fail
        code = "regressed" if isinstance(error, RegressionFailure) else "below_threshold"
        return "failed", Reason(code=code, message=str(error))
    if report.passed:
        return "passed", None
    if report.skipped:
        message = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        status = "blocked" if run.blocked else "skipped"
        return status, run.skip_reason or Reason(code="test_skipped", message=message)
    message = f"{type(error).__name__}: {error}" if error is not None else report.longreprtext
    if report.when == "setup":
        return "error", Reason(code="unexpected_error", message=message)
    return "failed", Reason(code="test_failed", message=message)


def junit_properties(record: CellRecord) -> list[tuple[str, object]]:
    """A cell's properties for JUnit: primitives only, one per metric."""
    properties: list[tuple[str, object]] = [
        ("llmbench_status", record.status),
        ("model", record.model),
        ("quantization", record.quantization),
        ("profile", record.profile),
        ("backend", record.backend),
        ("run_id", record.run_id),
    ]
    optional = {"variant": record.variant, "rating": record.rating, "reason": record.reason and record.reason.code}
    properties += [(name, value) for name, value in optional.items() if value is not None]
    if record.flags:
        properties.append(("flags", ",".join(record.flags)))
    for name, metric in record.metrics.items():
        properties.append((name, metric.value))
        if metric.ci_low is not None and metric.ci_high is not None:
            properties += [(f"{name}_ci_low", metric.ci_low), (f"{name}_ci_high", metric.ci_high)]
    return properties


def crash_record(suite: Suite, report: pytest.TestReport) -> CellRecord | None:
    """The record of a cell whose worker died with it, from what it told when it began; None for other tests."""
    note = suite.began.get(report.nodeid)
    if note is None:
        return None
    message = f"{report.longrepr}; the cell was not measured, run it again (--lf)"
    reason = Reason(code="worker_crashed", message=message)
    record = blank_record(suite, Cell(**note["cell"]), report.nodeid, "error", reason)
    return record.model_copy(update={"started_at": note["started_at"], "host": note["host"]})


def reports_of(record: CellRecord) -> list[pytest.TestReport]:
    """A record as reports: what an earlier part of the run found, for JUnit, ``--lf`` and the exit status."""
    path = record.nodeid.partition("::")[0]
    name = record.nodeid.partition("::")[2]
    message = record.reason.message if record.reason is not None else "failed in an earlier part of this run"
    properties = [*junit_properties(record), ("resumed_from_record", True)]
    reports = [
        pytest.TestReport(
            nodeid=record.nodeid,
            location=(path.replace("/", os.sep), None, name.replace("::", ".")),
            keywords={},
            outcome="failed" if when == "call" and record.status == "failed" else "passed",
            longrepr=message if when == "call" and record.status == "failed" else None,
            when=when,
            user_properties=properties,
            duration=record.duration_seconds if when == "call" else 0.0,
        )
        for when in ("setup", "call", "teardown")
    ]
    if record.expected_failure is not None:
        reports[1].outcome, reports[1].longrepr = "skipped", (path, 0, record.expected_failure)
        reports[1].wasxfail = record.expected_failure
    return reports
