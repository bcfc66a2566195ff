"""While cells run: a status line that leaves a terminal's screen as pytest would have left it, or plain lines."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys

import pytest

from tests.plugin.bench import Bench

WIDTH = 100
_TOKEN = re.compile(r"\x1b\[([0-9;]*)([A-Za-z])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|(.)", re.DOTALL)


class Screen:
    """What a terminal shows: cursor movements and erasures of those that are used here, colours passed over."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.rows = [""]
        self.row = self.column = 0

    def write(self, text: str) -> None:
        for parameters, command, character in _TOKEN.findall(text):
            if command:
                self._obey(command, int(parameters) if parameters.isdigit() else None)
            elif character == "\r":
                self.column = 0
            elif character == "\n":
                self._next_row()
            elif character:
                self._put(character)

    def _obey(self, command: str, parameter: int | None) -> None:
        if command == "A":
            self.row -= parameter or 1
        elif command == "G":
            self.column = (parameter or 1) - 1
        elif command in {"J", "K"}:
            self.rows[self.row] = self.rows[self.row][: self.column]
            del self.rows[self.row + 1 if command == "J" else len(self.rows) :]
        elif command != "m":
            raise AssertionError(f"an escape sequence that is not known here: {command!r}")

    def _next_row(self) -> None:
        self.row += 1
        if self.row == len(self.rows):
            self.rows.append("")

    def _put(self, character: str) -> None:
        if self.column == self.width:
            self.column = 0
            self._next_row()
        row = self.rows[self.row].ljust(self.column)
        self.rows[self.row] = row[: self.column] + character + row[self.column + 1 :]
        self.column += 1


def run_on_a_terminal(bench: Bench, *arguments: str) -> str:
    """Everything that pytest writes to a terminal of 100 columns."""
    bench.write_configuration()
    controller, terminal = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(WIDTH), "TERM": "xterm", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    with subprocess.Popen(
        command, cwd=bench.path, env=environment, stdin=terminal, stdout=terminal, stderr=terminal
    ) as process:
        os.close(terminal)
        written = b""
        try:
            while chunk := _read(controller):
                written += chunk
        except BaseException:
            process.kill()
            raise
        finally:
            os.close(controller)
    return written.decode()


def _read(controller: int) -> bytes:
    """What comes next; nothing at the end, which Linux tells as an error."""
    if not select.select([controller], [], [], 100)[0]:
        raise TimeoutError("pytest writes nothing more and does not end")
    try:
        return os.read(controller, 65536)
    except OSError:
        return b""


@pytest.mark.parametrize("verbosity", ["--verbosity=0", pytest.param("-v", marks=pytest.mark.slow)])
def test_a_terminal_shows_what_runs_and_then_what_pytest_wrote(bench: Bench, verbosity: str) -> None:
    bench.fake.models = ("a", "b")
    bench.models["models"] = [{"name": name, "size": "1B", "served": {"Q4_K_M": name}} for name in "ab"]
    bench.config["measurement"]["telemetry"] = False  # or what is said of a machine's sensors would split the line
    bench.write("suites/test_own.py", "def test_own(capfd):\n    print('captured')\n")
    written = run_on_a_terminal(bench, "suites/", verbosity)
    assert re.search(r"\r\n1/2 test_interactive\[a-Q4_K_M\], starting\x1b\[K\x1b\[A\x1b\[\d+G", written)
    assert "2/2 test_interactive[b-Q4_K_M]" in written
    statuses = re.sub(r"\r\n[^\r\n\x1b]*\x1b\[K\x1b\[A\x1b\[\d+G", "\0", written)
    assert not re.search(r"\0(?!\0|\x1b\[J)", statuses)  # nothing is written before the line is taken away
    screen = Screen(WIDTH)
    screen.write(written)
    rows = [row.rstrip() for row in screen.rows]
    assert not [row for row in rows if "starting" in row or ", request " in row]
    if verbosity == "-v":
        outcomes = [row for row in rows if row.startswith("suites/test_interactive.py::")]
        assert [re.sub(r"\s+\[ *\d+%\]$", "", row) for row in outcomes] == [
            f"suites/test_interactive.py::test_interactive[{name}-Q4_K_M] PASSED" for name in "ab"
        ]
    else:
        (line,) = [row for row in rows if row.startswith("suites/test_interactive.py ")]
        assert line.split()[1] == ".."
    assert any("3 passed" in row for row in rows)


def test_without_a_terminal_a_line_tells_what_took_long_before(bench: Bench) -> None:
    bench.run("suites/", "-q")
    records = bench.latest / "cells.jsonl"
    made_long = re.sub(r'"duration_seconds": ?[0-9.e-]+', '"duration_seconds":90.0', records.read_text("ascii"))
    records.write_text(made_long, encoding="ascii")
    result = bench.run("suites/")
    expected = "llmbench: 1/1 test_interactive?tiny-Q4_K_M? took 1 min 30 s before; about 1 min 30 s left, until ??:??"
    result.stdout.fnmatch_lines([expected])
    assert "\x1b" not in result.stdout.str()
    quiet = bench.run("suites/", "-q")
    quiet.stdout.no_fnmatch_line("*took*before*")
