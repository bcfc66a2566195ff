"""``llmbench compare``: what became worse from one run to another."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from pytest_llmbench.core.baseline import Baseline
from pytest_llmbench.core.run_comparison import RunComparison, compare
from pytest_llmbench.errors import ConfigError, RecordError
from pytest_llmbench.reports.comparison import markdown, render
from pytest_llmbench.runtime.baselines import read_baseline, stored_baselines

COMPARISON_VERSION = 1
_WIDTH_OF_A_FILE = 120


def run(options: argparse.Namespace) -> int:
    """Run the command. Returns 0 where nothing is known to be worse, else 1.

    Raises:
        ConfigError: options that exclude each other, or no run and no baseline of that name.
    """
    if options.json and options.markdown:
        raise ConfigError("--json and --markdown exclude each other; choose one")
    try:
        old, new = (read_baseline(options.output, name) for name in (options.old, options.new))
    except RecordError as exc:
        raise ConfigError(str(exc)) from exc  # no answer, which is not the answer "worse"
    found = compare(old, new, options.max_regression, _stored(options.output, old, new))
    if options.json:
        facts = {"schema_version": COMPARISON_VERSION, **found.model_dump(mode="json")}
        sys.stdout.write(json.dumps(facts, indent=2) + "\n")
    elif options.markdown:
        sys.stdout.write(markdown(found))
    else:
        _print(found)
    return found.exit_status


def _stored(output: Path, old: Baseline, new: Baseline) -> list[Baseline]:
    """Earlier runs on the machine of the newer one."""
    host = new.environment.get("host")
    return stored_baselines(output, host if isinstance(host, str) else None, {old.run_id, new.run_id})


def _print(found: RunComparison) -> None:
    from rich.console import Console

    is_terminal = sys.stdout.isatty()
    width = Console().width if is_terminal else _WIDTH_OF_A_FILE
    colour = is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    sys.stdout.write("\n".join(render(found, width=width, colour=colour)) + "\n")
