"""The controller's side: every record as it arrives; at the end the reports, the table and the exit status."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Generator, Sequence
from typing import Any

import pytest

from pytest_llmbench.adapters import baseline, early, plan, resume
from pytest_llmbench.adapters.ci import append_job_summary
from pytest_llmbench.adapters.collection import cell_of
from pytest_llmbench.adapters.junit import add_suite_properties
from pytest_llmbench.adapters.progress import tell
from pytest_llmbench.adapters.results import DISK_FULL, RECORD_ATTRIBUTE, STATUS_ATTRIBUTE, crash_record, reports_of
from pytest_llmbench.adapters.scheduler import FREE
from pytest_llmbench.adapters.signals import ENDED_BY_SIGNAL
from pytest_llmbench.adapters.state import Suite
from pytest_llmbench.core.cell import Cell
from pytest_llmbench.core.records import CellRecord
from pytest_llmbench.errors import LlmbenchError, RecordError
from pytest_llmbench.reports import write_reports
from pytest_llmbench.reports.plain import plain
from pytest_llmbench.reports.remarks import remarks
from pytest_llmbench.reports.run_data import RunData
from pytest_llmbench.runtime import host
from pytest_llmbench.runtime.mending import set_aside_cells
from pytest_llmbench.runtime.run_folder import utc_now

logger = logging.getLogger(__name__)
NO_CELLS = (
    "llmbench: the matrix is empty: no model has a quantization of {mode}_mode_quants that its backend can run "
    "(`files` for a server we start, `served` for one that runs already)"
)
NOTHING_MEASURED = "llmbench: cells were selected, but none was measured; the reasons stand above and in the records"


class Recorder:
    """A plugin of its own, because the hooks that see reports are not told which configuration they belong to."""

    def __init__(self, config: pytest.Config, suite: Suite) -> None:
        self._config = config
        self._suite = suite
        self._opened = False
        self._records: dict[str, CellRecord] = dict(suite.earlier.records) if suite.earlier is not None else {}
        self._of_this_session: set[str] = set()
        self._told_again: list[CellRecord] = []
        self._running: set[str] = set()
        self._selected_cells = 0
        self._of_this_selection: set[str] = set()
        self._other_failures = 0
        self._warned = False
        self._description: dict[str, Any] = {}

    @property
    def _nothing_measured(self) -> bool:
        """Cells were selected, and none was measured; a user's own test counts when the model answered it."""
        selected = self._of_this_session or self._told_again
        return bool(selected) and not any(
            r.metrics or r.status in {"invalid", "failed"} or (r.status == "passed" and r.answered_requests)
            for r in self._records.values()
        )

    def pytest_report_header(self) -> list[str]:
        """What will be measured; a file that was not found, and a matrix without cells, show here."""
        suite = self._suite
        count = len(suite.matrix.combinations)
        profiles = ", ".join(sorted(suite.enabled_profiles)) or "none"
        return [f"llmbench: {' and '.join(suite.sources)}: {count} combinations, profiles: {profiles}"]

    def pytest_sessionstart(self) -> None:
        for line in self._suite.announcements if not self._config.option.collectonly else ():
            tell(self._config, line)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Take out what an earlier part of the run finished; warn of servers that are not there."""
        if self._config.option.collectonly:
            return
        self._selected_cells = sum(cell_of(item) is not None for item in session.items)
        self._resume([item.nodeid for item in session.items])
        finished = {record.nodeid for record in self._told_again}
        session.items[:] = [item for item in session.items if item.nodeid not in finished]
        self._warn_early([cell for cell in map(cell_of, session.items) if cell is not None])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        """The same under xdist, where this process collects nothing: for all cells, the first time."""
        suite = self._suite
        if not self._warned:
            self._selected_cells = sum(group != FREE for group in suite.groups or ())
            self._resume(ids)
            self._warn_early([cell for name in sorted(suite.enabled_profiles) for cell in suite.matrix.cells(name)])

    def _resume(self, selected: Sequence[str]) -> None:
        """Make an earlier run's folder ready for what is left of it, and say how much that is."""
        earlier = self._suite.earlier
        if earlier is None or plan.wanted(self._config):
            return
        finished = earlier.finished
        self._of_this_selection = set(selected)
        self._told_again = [finished[nodeid] for nodeid in selected if nodeid in finished]
        left = len(selected) - len(self._told_again)
        tell(self._config, f"resuming run {earlier.path.name}: {len(self._told_again)} finished, {left} to go")
        if not left:
            tell(self._config, "nothing is left to measure; a run without --llmbench-resume (resume_from) is a new one")
        for line in earlier.differences:
            tell(self._config, f"made otherwise: {line}")
        for nodeid in selected:
            if nodeid not in finished:
                self._records.pop(nodeid, None)
        try:
            resume.prepare(earlier, self._suite.folder, selected)
        except RecordError as exc:
            self._give_up(exc)
        self._open()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        """After the tests, report again what was finished before: not earlier, because ``-x`` would stop there."""
        if not hasattr(self._config.option, "dist") or self._config.option.dist == "no":
            session.testscollected += len(self._told_again)
        try:
            return (yield)
        finally:
            for record in self._told_again:
                for report in reports_of(record):
                    self._config.hook.pytest_runtest_logreport(report=report)

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(
        self, report: pytest.TestReport
    ) -> tuple[str, str, tuple[str, dict[str, bool]]] | None:
        """A cell that was blocked has a letter and a word of its own."""
        if getattr(report, STATUS_ATTRIBUTE, None) != "blocked" or report.when != "setup":
            return None
        return "blocked", "B", ("BLOCKED", {"yellow": True})

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Remember what runs; where workers run it, create the run's folder before they have something to write."""
        self._running.add(nodeid)
        groups = self._suite.groups
        if not self._opened and groups is not None and any(group != FREE for group in groups):
            self._open()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """It does no longer."""
        self._running.discard(nodeid)

    def _warn_early(self, cells: list[Cell]) -> None:
        self._warned = True
        for line in early.warnings_of(self._suite, cells):
            tell(self._config, line)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Without xdist: create the run's folder when the first cell starts."""
        if cell_of(item) is not None:
            self._open()

    def _open(self) -> None:
        """Create the run's folder, not before there is something to record."""
        if self._opened:
            return
        self._opened, suite = True, self._suite
        command_line = ["pytest", *map(str, self._config.invocation_params.args)]
        self._description = {
            "command_line": command_line,
            "started_at": utc_now(),
            "selected_cells": self._selected_cells,
            **suite.description,
            "hardware": suite.hardware,
            "software": host.describe_software(),
            "git_commit": host.git_commit(suite.rootdir),
            "clock": host.describe_clock(),
        }
        if suite.earlier is not None:
            before = suite.earlier.description
            again = {"command_line": command_line, "at": utc_now(), "differences": suite.earlier.differences}
            self._description["resumed"] = [*(before.get("resumed") or []), again]
            others = set(suite.earlier.records) - self._of_this_selection
            self._description["selected_cells"] = max(
                self._selected_cells + len(others), int(before.get("selected_cells") or 0)
            )
            kept = ["started_at", "command_line", "calibration", "sensors"]
            kept += ["baseline"] if suite.baseline is None else []  # that of the cells that were compared before
            self._description |= {key: before[key] for key in kept if key in before}
        try:
            suite.folder.create(self._description)
        except RecordError as exc:
            self._give_up(exc)

    @pytest.hookimpl(trylast=True)  # it may end the run, and others have to have seen the report before
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write the record a report brings; make one for a cell whose worker crashed."""
        trouble, self._suite.trouble = self._suite.trouble, None
        if trouble is not None:
            self._give_up(trouble)
        record = self._record_of(report)
        if record is None:
            self._other_failures += report.failed
            return
        self._open()
        logger.info("%s: %s%s", record.nodeid, record.status, f" ({record.reason.code})" if record.reason else "")
        try:
            self._keep(record, superseded=str(report.outcome) == "rerun")
        except RecordError as exc:
            self._give_up(exc)
        if record.reason is not None and record.reason.code in {DISK_FULL, "device_busy"}:  # as it would be for all
            self._give_up(LlmbenchError(record.reason.message))

    def _keep(self, record: CellRecord, *, superseded: bool) -> None:
        """Write a record; a cell has only one, so an attempt that another plugin repeats goes to a file of its own."""
        folder = self._suite.folder
        if superseded:
            folder.append_superseded(record)
            return
        earlier = self._suite.earlier
        if earlier is not None and earlier.differences:
            note = f"measured after a change of configuration: {'; '.join(earlier.differences)}"
            record = record.model_copy(update={"notes": [*record.notes, note]})
        if record.nodeid in self._of_this_session:
            set_aside_cells(folder.path, {record.nodeid})
        self._of_this_session.add(record.nodeid)
        self._records[record.nodeid] = record
        folder.append_cell(record)

    def _record_of(self, report: pytest.TestReport) -> CellRecord | None:
        line: str | None = getattr(report, RECORD_ATTRIBUTE, None)
        if line is not None:
            return CellRecord.model_validate(json.loads(line))
        crashed = str(report.when) == "???"  # what xdist writes when a worker died
        known = report.nodeid in self._of_this_session  # it died between its last report and its last word
        return crash_record(self._suite, report) if crashed and not known else None

    def _give_up(self, exc: LlmbenchError) -> None:
        """Measuring on would only lose what is measured."""
        pytest.exit(f"llmbench: {exc}", returncode=pytest.ExitCode.TESTS_FAILED)

    @pytest.hookimpl(wrapper=True, trylast=True)  # inside the terminal's wrapper, after xdist has ended its workers
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, None, None]:
        """Join what workers left, write the reports, settle the exit status."""
        told = {**self._description, "sensors": self._suite.sensors}  # pytest writes the XML before us
        add_suite_properties(self._config, told, self._records.values())
        try:
            return (yield)
        finally:
            self._keep_for_last_failed()
            looks_only = self._config.option.collectonly or plan.wanted(self._config)
            # Parts without a run that was opened are of workers that were cut short in their first cells.
            if self._opened or (self._suite.folder.has_parts and not looks_only):
                self._open()
                self._finish(session)

    def _keep_for_last_failed(self) -> None:
        """Have ``--lf`` run what was blocked or cut short, too: a skip is taken off pytest's list, and so forgotten."""
        cache = getattr(self._config, "cache", None)
        blocked = {nodeid for nodeid in self._of_this_session if self._records[nodeid].status == "blocked"}
        if cache is not None and (again := blocked | self._running):
            cache.set("cache/lastfailed", cache.get("cache/lastfailed", {}) | dict.fromkeys(sorted(again), True))

    def _finish(self, session: pytest.Session) -> None:
        suite = self._suite
        ours_alone = session.exitstatus == pytest.ExitCode.OK or (
            session.exitstatus == pytest.ExitCode.TESTS_FAILED and not self._other_failures
        )
        if self._nothing_measured and ours_alone:
            session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
        try:
            suite.folder.join_parts()
            records = list(self._records.values())
            servers = {f"{r.server.kind} {r.server.version}" for r in records if r.server.version}
            ending = {
                "finished_at": utc_now(),
                "exit_status": int(session.exitstatus),
                "servers": sorted(servers),
                "sensors": self._description.get("sensors", {}) | suite.sensors,
                "calibration": suite.folder.take_calibration() or self._description.get("calibration"),
            }
            self._description |= ending
            if (compared_with := baseline.about(suite, self._description)) is not None:
                self._description["baseline"] = compared_with
            suite.folder.describe(self._description)
            if not suite.config.output.include_logs:  # before the reports, which show them
                shutil.rmtree(suite.folder.logs, ignore_errors=True)
            try:
                write_reports(suite.folder.path, suite.config.output.formats)
            finally:
                if "markdown" in suite.config.output.formats:
                    append_job_summary(suite.folder.path)
        except (OSError, RecordError) as exc:
            tell(self._config, f"{exc}; the records are kept")
        reporter: pytest.TerminalReporter | None = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None and session.exitstatus in ENDED_BY_SIGNAL:  # a status pytest prints no summary for
            self.pytest_terminal_summary(reporter, int(session.exitstatus))

    def _run_data(self) -> RunData:
        """What reports show, also where the disk did not take it."""
        return RunData(self._suite.folder.path, self._description, tuple(self._records.values()))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter, exitstatus: int) -> None:
        """The table: one row per cell, then where everything is."""
        if not self._suite.matrix.combinations and not self._opened:
            terminalreporter.line(NO_CELLS.format(mode=self._suite.mode))
        if not self._opened:
            return
        from pytest_llmbench.reports.terminal import render

        suite, writer, verbosity = self._suite, terminalreporter._tw, self._config.option.verbose
        path, run, is_tty = suite.folder.path, self._run_data(), bool(terminalreporter.isatty)
        lines = render(run, width=writer.fullwidth, colour=writer.hasmarkup, verbosity=verbosity, wrapped=is_tty)
        if lines or verbosity >= -1:
            terminalreporter.section("llmbench", sep="=")
        for line in lines:
            terminalreporter.line(line)
        shown = path.relative_to(suite.rootdir) if path.is_relative_to(suite.rootdir) else path
        names = (entry.name for entry in path.iterdir()) if path.is_dir() else ()
        files = sorted(name for name in names if not name.startswith("."))
        if verbosity >= -1:
            terminalreporter.line(f"results in {shown}: {', '.join(files)}")
        if self._nothing_measured:
            terminalreporter.line(NOTHING_MEASURED)
        for line in remarks(run):
            terminalreporter.line(f"llmbench: {plain(line)}")
