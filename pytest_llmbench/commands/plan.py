"""``llmbench plan``: pytest's dry run, as a command."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

_COLLECTED = {0, 5}  # 5: nothing was selected, which is a plan too
_USAGE_ERROR = 4


def run(options: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        0; 1 where pytest selected nothing or could not collect; 2 for a mistake in the configuration.
    """
    arguments: list[str] = options.pytest_arguments
    if not any(Path(argument.partition("::")[0]).exists() for argument in arguments):  # only options, if any
        arguments = [*arguments, "suites/"]
    return _as_json(arguments) if options.json else _status(_pytest(arguments).returncode)


def _as_json(arguments: Sequence[str]) -> int:
    """Print the plan alone; what pytest said is only for when there is none."""
    with tempfile.TemporaryDirectory(prefix="llmbench-") as folder:
        path = Path(folder, "plan.json")
        ended = _pytest([f"--llmbench-plan-file={path}", *arguments], capture=True)
        if ended.returncode in _COLLECTED and path.is_file():
            sys.stdout.write(path.read_text(encoding="utf-8"))
            return _status(ended.returncode)
    sys.stderr.write(ended.stdout + ended.stderr)
    return _status(ended.returncode)


def _pytest(arguments: Sequence[str], *, capture: bool = False) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "--llmbench-dry-run", *arguments]
    return subprocess.run(command, check=False, capture_output=capture, encoding="utf-8", errors="replace")


def _status(returncode: int) -> int:
    """Our exit status for pytest's."""
    if returncode == _USAGE_ERROR:
        return 2
    return 0 if returncode == 0 else 1
