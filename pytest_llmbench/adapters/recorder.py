"""The controller's side: every record as it arrives; at the end the reports, the table and the exit status."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Generator
from typing import Any

import pytest

from pytest_llmbench.adapters import early
from pytest_llmbench.adapters.collection import cell_of
from pytest_llmbench.adapters.progress import tell
from pytest_llmbench.adapters.results import RECORD_ATTRIBUTE, crash_record
from pytest_llmbench.adapters.setup import Suite
from pytest_llmbench.adapters.signals import TERMINATED
from pytest_llmbench.core.cell import Cell
from pytest_llmbench.core.records import CellRecord
from pytest_llmbench.errors import RecordError
from pytest_llmbench.reports import write_reports
from pytest_llmbench.runtime import host
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
        self._records: list[CellRecord] = []
        self._other_failures = 0
        self._gave_up = False
        self._warned = False
        self._description: dict[str, Any] = {}

    @property
    def _nothing_measured(self) -> bool:
        """Cells were selected, and none was measured; a user's own test counts when the model answered it."""
        return bool(self._records) and not any(
            r.metrics or r.status in {"invalid", "failed"} or (r.status == "passed" and r.answered_requests)
            for r in self._records
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

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Warn of servers that are not there."""
        if not self._config.option.collectonly:
            self._warn_early([cell for cell in map(cell_of, session.items) if cell is not None])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self) -> None:
        """The same under xdist, where this process collects nothing: for all cells, the first time."""
        suite = self._suite
        if not self._warned:
            self._warn_early([cell for name in sorted(suite.enabled_profiles) for cell in suite.matrix.cells(name)])

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
        self._description = {
            "command_line": ["pytest", *map(str, self._config.invocation_params.args)],
            "started_at": utc_now(),
            "mode": suite.mode,
            "configuration": suite.config.model_dump(mode="json"),
            "models": suite.models.model_dump(mode="json", exclude_defaults=True),
            "hardware": suite.hardware,
            "host": suite.host,
            "software": host.describe_software(),
            "git_commit": host.git_commit(suite.rootdir),
            "clock": host.describe_clock(),
        }
        try:
            suite.folder.create(self._description)
        except RecordError as exc:
            self._give_up(exc)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write the record a report brings; make one for a cell whose worker crashed."""
        record = self._record_of(report)
        if record is None:
            self._other_failures += report.failed
            return
        self._open()
        self._records.append(record)
        logger.info("%s: %s%s", record.nodeid, record.status, f" ({record.reason.code})" if record.reason else "")
        try:
            self._suite.folder.append_cell(record)
        except RecordError as exc:
            self._give_up(exc)

    def _record_of(self, report: pytest.TestReport) -> CellRecord | None:
        line: str | None = getattr(report, RECORD_ATTRIBUTE, None)
        if line is not None:
            return CellRecord.model_validate(json.loads(line))
        crashed = str(report.when) == "???"  # what xdist writes when a worker died
        return crash_record(self._suite, report) if crashed else None

    def _give_up(self, exc: RecordError) -> None:
        """Measuring on would only lose what is measured."""
        self._gave_up = True
        pytest.exit(f"llmbench: {exc}", returncode=pytest.ExitCode.TESTS_FAILED)

    @pytest.hookimpl(wrapper=True, trylast=True)  # inside the terminal's wrapper, after xdist has ended its workers
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, None, None]:
        """Join what workers left, write the reports, settle the exit status."""
        try:
            return (yield)
        finally:
            if self._suite.folder.path.is_dir():  # also where only a worker had begun to write
                self._open()
                self._finish(session)

    def _finish(self, session: pytest.Session) -> None:
        suite = self._suite
        ours_alone = session.exitstatus == pytest.ExitCode.OK or (
            session.exitstatus == pytest.ExitCode.TESTS_FAILED and not self._other_failures
        )
        if self._nothing_measured and ours_alone and not self._gave_up:
            session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
        try:
            suite.folder.join_parts()
            servers = {f"{r.server.kind} {r.server.version}" for r in self._records if r.server.version}
            ending = {
                "finished_at": utc_now(),
                "exit_status": int(session.exitstatus),
                "servers": sorted(servers),
                "calibration": suite.folder.take_calibration(),
            }
            suite.folder.describe({**self._description, **ending})
            write_reports(suite.folder.path, self._records, suite.config.output.formats)
        except (OSError, RecordError) as exc:
            tell(self._config, f"reports can not be written: {exc}; the records are kept")
        if not suite.config.output.include_logs:
            shutil.rmtree(suite.folder.logs, ignore_errors=True)
        reporter: pytest.TerminalReporter | None = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None and session.exitstatus == TERMINATED:  # a status pytest prints no summary for
            self.pytest_terminal_summary(reporter, int(session.exitstatus))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter, exitstatus: int) -> None:
        """The table: one row per cell, then where everything is."""
        if not self._suite.matrix.combinations and not self._opened:
            terminalreporter.line(NO_CELLS.format(mode=self._suite.mode))
        if not self._opened:
            return
        from pytest_llmbench.reports.terminal import render

        suite = self._suite
        terminalreporter.section("llmbench", sep="=")
        writer = terminalreporter._tw
        if self._records:
            for line in render(self._records, width=writer.fullwidth, colour=writer.hasmarkup):
                terminalreporter.line(line)
        path = suite.folder.path
        shown = path.relative_to(suite.rootdir) if path.is_relative_to(suite.rootdir) else path
        files = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
        terminalreporter.line(f"results in {shown}: {', '.join(files)}")
        if self._nothing_measured:
            terminalreporter.line(NOTHING_MEASURED)
        if exitstatus not in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED}:
            terminalreporter.line("llmbench: the run was cut short; a cell without a record was not measured")
