"""The status line and what it says: of a cell, of its rate, and of the time that is left by earlier runs."""

from __future__ import annotations

import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pytest_llmbench.adapters import live
from pytest_llmbench.adapters.ci import MAX_BYTES, append_job_summary
from pytest_llmbench.adapters.live import Live
from pytest_llmbench.adapters.progress import STATUS_LINE_KEY, StatusLine, erase_status
from pytest_llmbench.core.cell import Cell
from pytest_llmbench.core.records import RequestRecord

CELLS = tuple(f"suites/test_interactive.py::test_interactive[{name}-Q4_1]" for name in "abc")


class Terminal:
    """What is asked of pytest's configuration and of its terminal."""

    def __init__(self, line: str = "", width: int = 80, verbosity: int = 0) -> None:
        self.file = io.StringIO()
        self.stash: dict[Any, Any] = {}
        self.option = SimpleNamespace(verbose=verbosity, tx=["popen", "popen"])
        self.pluginmanager = SimpleNamespace(get_plugin={"terminalreporter": self}.get)
        self.width_of_current_line, self.fullwidth = len(line), width

    def get_terminal_writer(self) -> Terminal:
        return self

    def write_raw(self, text: str, *, flush: bool = False) -> None:
        self.file.write(text)

    def ensure_newline(self) -> None: ...

    def write_line(self, line: str) -> None:
        self.file.write(f"{line}\n")
        self.width_of_current_line = 0

    @property
    def written(self) -> str:
        """Since it was last asked."""
        text = self.file.getvalue()
        self.file.seek(0)
        self.file.truncate()
        return text


class Clock:
    """Time stands still until it is told to go on."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    def localtime(self, seconds: float) -> float:
        return seconds

    def strftime(self, pattern: str, seconds: float) -> str:
        return f"t+{seconds - 1000:.0f}"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(live, "time", clock)
    return clock


def suite_of(usual_seconds: dict[str, float]) -> Any:
    """A suite of three cells, of which these took so long in earlier runs."""
    cells = [Cell(name, "Q4_1", "interactive") for name in "abc"]
    return SimpleNamespace(
        earlier=None,
        enabled_profiles={"interactive"},
        matrix=SimpleNamespace(cells=lambda profile: cells),
        spec=lambda cell: SimpleNamespace(kind="embedded"),
        history=SimpleNamespace(duration_seconds=lambda nodeid, kind: usual_seconds.get(nodeid)),
    )


def live_of(terminal: Terminal, usual_seconds: dict[str, float], is_a_terminal: bool = True) -> Live:
    """Three cells that are about to run in this process."""
    config = cast(pytest.Config, terminal)
    shown = Live(config, suite_of(usual_seconds))
    shown._expect(dict.fromkeys(CELLS, "embedded"))
    if is_a_terminal:
        shown._line = terminal.stash[STATUS_LINE_KEY] = StatusLine(config)
    return shown


def request(nodeid: str, rate: float | None) -> RequestRecord:
    return RequestRecord(
        cell=nodeid,
        index=0,
        phase="sample",
        ok=True,
        protocol="llama_cpp",
        t_send_ns=0,
        t_end_ns=1,
        decode_tokens_per_second=rate,
    )


def text_of(written: str) -> str:
    """What stands on the status line."""
    found = re.fullmatch(r"\r\n([^\x1b]*)\x1b\[K\x1b\[A\x1b\[(\d+)G", written)
    assert found, written
    return found.group(1)


def test_it_stands_below_the_line_of_pytest_and_gives_the_cursor_back() -> None:
    terminal = Terminal(line="suites/test_interactive.py .")
    line = StatusLine(cast(pytest.Config, terminal))
    line.show("running")
    assert terminal.written == "\r\nrunning\x1b[K\x1b[A\x1b[29G"
    line.erase()
    assert terminal.written == "\x1b[J"
    line.erase()
    assert terminal.written == ""


@pytest.mark.parametrize("width", [20, 80])
def test_it_never_wraps(width: int) -> None:
    terminal = Terminal(width=width)
    StatusLine(cast(pytest.Config, terminal)).show("é" * 100)
    assert text_of(terminal.written) == "?" * (width - 1)


@pytest.mark.parametrize("line", ["x" * 80, "x" * 160])
def test_where_the_cursor_is_not_known_nothing_is_written(line: str) -> None:
    terminal = Terminal(line=line)
    StatusLine(cast(pytest.Config, terminal)).show("running")
    assert terminal.written == ""


def test_of_a_line_that_has_wrapped_the_cursor_goes_back_to_the_last_part() -> None:
    terminal = Terminal(line="x" * 85)
    StatusLine(cast(pytest.Config, terminal)).show("running")
    assert terminal.written.endswith("\x1b[A\x1b[6G")


def test_the_status_follows_a_cell(clock: Clock) -> None:
    terminal = Terminal(width=120)
    shown = live_of(terminal, {CELLS[0]: 60.0, CELLS[1]: 90.0, CELLS[2]: 30.0})
    shown.pytest_runtest_logstart(CELLS[0])
    assert text_of(terminal.written) == "1/3 test_interactive[a-Q4_1], starting; about 3 min 0 s left, until t+180"
    clock.now += 20
    shown.requested(request(CELLS[0], 71.25))
    assert text_of(terminal.written) == (
        "1/3 test_interactive[a-Q4_1], 71.2 tokens/s, request 1; about 2 min 40 s left, until t+180"
    )
    shown.requested(request(CELLS[0], 99.0))
    assert terminal.written == ""  # so soon after the last time
    clock.now += 1
    shown.requested(request(CELLS[0], None))
    assert ", 99.0 tokens/s, request 3;" in terminal.written
    shown.pytest_runtest_logreport()
    assert terminal.written == "\x1b[J"
    shown.pytest_runtest_logfinish(CELLS[0])
    shown.pytest_runtest_logstart(CELLS[1])
    assert text_of(terminal.written) == "2/3 test_interactive[b-Q4_1], starting; about 2 min 0 s left, until t+141"


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (80, "1/3 test_interactive[a-Q4_1], 71.2 tokens/s, request 1; about 3 min 0 s left"),
        (60, "1/3 test_interactive[a-Q4_1]; about 3 min 0 s left"),
        (30, "1/3 test_interactive[a-Q4_1];"),
    ],
)
def test_where_it_is_narrow_the_least_is_left_out(clock: Clock, width: int, expected: str) -> None:
    terminal = Terminal(width=width)
    shown = live_of(terminal, dict.fromkeys(CELLS, 60.0))
    shown.pytest_runtest_logstart(CELLS[0])
    assert terminal.written
    shown._shown_at = 0.0
    shown.requested(request(CELLS[0], 71.25))
    assert text_of(terminal.written) == expected


def test_time_is_not_made_up(clock: Clock) -> None:
    terminal = Terminal()
    live_of(terminal, {}).pytest_runtest_logstart(CELLS[0])
    assert text_of(terminal.written) == "1/3 test_interactive[a-Q4_1], starting"
    live_of(terminal, {CELLS[2]: 30.0}).pytest_runtest_logstart(CELLS[0])
    assert "; at least 30 s left" in terminal.written


def test_what_takes_longer_than_ever_leaves_no_negative_time(clock: Clock) -> None:
    terminal = Terminal()
    shown = live_of(terminal, {CELLS[0]: 60.0, CELLS[1]: 1.0, CELLS[2]: 1.0})
    shown.pytest_runtest_logstart(CELLS[0])
    clock.now += 600
    shown.requested(request(CELLS[0], 1.0))
    assert terminal.written.count("; about 2 s left") == 1


def test_without_a_terminal_only_what_takes_long_gets_a_line(clock: Clock) -> None:
    terminal = Terminal()
    shown = live_of(terminal, {CELLS[0]: 60.0, CELLS[1]: 2.0}, is_a_terminal=False)
    shown.pytest_runtest_logstart(CELLS[0])
    expected = "llmbench: 1/3 test_interactive[a-Q4_1] took 1 min 0 s before; at least 1 min 2 s left, until t+62\n"
    assert terminal.written == expected
    clock.now += 20
    shown.requested(request(CELLS[0], 50.0))
    shown.pytest_runtest_logfinish(CELLS[0])
    shown.pytest_runtest_logstart(CELLS[1])
    assert terminal.written == ""
    clock.now += 11
    shown.requested(request(CELLS[1], 50.0))
    shown.requested(request(CELLS[1], 50.0))
    expected = "llmbench: 2/3 test_interactive[b-Q4_1] goes on, 50.0 tokens/s, request 1\n"
    assert terminal.written == expected


def test_several_workers_share_the_time(clock: Clock) -> None:
    terminal = Terminal()
    shown = Live(cast(pytest.Config, terminal), suite_of(dict.fromkeys(CELLS, 60.0)))
    shown.pytest_xdist_node_collection_finished([*CELLS, "tests/test_other.py::test_it[x]"])
    shown.pytest_xdist_node_collection_finished([*CELLS, "tests/test_other.py::test_it[x]"])  # of the other worker
    shown.pytest_runtest_logstart(CELLS[0])
    shown.pytest_runtest_logstart(CELLS[1])
    shown.pytest_runtest_logstart("tests/test_other.py::test_it[x]")
    assert terminal.written.splitlines() == [
        "llmbench: 1/3 test_interactive[a-Q4_1] took 1 min 0 s before; at least 1 min 30 s left, until t+90",
        "llmbench: 2/3 test_interactive[b-Q4_1] took 1 min 0 s before; at least 1 min 30 s left, until t+90",
    ]


def test_a_line_begins_a_line_of_its_own(clock: Clock) -> None:
    terminal = Terminal(line=".F")  # of workers' tests; pytest does not know that it has to end such a line
    live_of(terminal, {CELLS[0]: 60.0}, is_a_terminal=False).pytest_runtest_logstart(CELLS[0])
    assert terminal.written.startswith("\nllmbench: ")


def test_quiet_is_quiet(clock: Clock) -> None:
    terminal = Terminal(verbosity=-1)
    shown = live_of(terminal, {CELLS[0]: 60.0}, is_a_terminal=False)
    shown.pytest_runtest_logstart(CELLS[0])
    shown.requested(request(CELLS[0], 50.0))
    erase_status(cast(pytest.Config, terminal))
    assert terminal.written == ""
    assert not hasattr(shown._suite, "on_request")


class TestJobSummary:
    """What GitHub shows on a job's page."""

    @pytest.fixture
    def page(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        page = tmp_path / "page.md"
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
        return page

    def test_it_is_appended(self, tmp_path: Path, page: Path) -> None:
        page.write_text("before\n")
        (tmp_path / "summary.md").write_text("# Run ✓\n", encoding="utf-8")
        append_job_summary(tmp_path)
        assert page.read_text("utf-8") == "before\n# Run ✓\n"

    def test_what_is_too_long_is_cut_after_a_line(self, tmp_path: Path, page: Path) -> None:
        (tmp_path / "summary.md").write_text("ü line\n" * (MAX_BYTES // 8 + 1), encoding="utf-8")
        append_job_summary(tmp_path)
        assert page.stat().st_size <= MAX_BYTES
        lines = page.read_text("utf-8").splitlines()
        assert set(lines[:-2]) == {"ü line"}
        assert lines[-1].startswith("… the rest is left out")
        append_job_summary(tmp_path)  # by then there is no room for anything
        assert page.stat().st_size <= MAX_BYTES

    def test_what_can_not_be_written_is_no_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
        append_job_summary(tmp_path)
        (tmp_path / "summary.md").write_text("# Run\n")
        append_job_summary(tmp_path)
        assert len(caplog.records) == 2

    def test_elsewhere_nothing_happens(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
        append_job_summary(tmp_path / "nowhere")
        assert not list(tmp_path.iterdir())
