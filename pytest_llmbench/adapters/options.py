"""Command line options, each also an ini key.

Imported in every pytest run of the environment, so it imports nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

_OPTIONS: tuple[tuple[str, str, str], ...] = (
    ("config", "PATH", "configuration file (default: configs/config.yaml below the rootdir)"),
    ("models", "PATH", "models file (default: configs/models.yaml below the rootdir)"),
    ("output", "DIR", "folder for results; a run writes DIR/<run id>/ (default: results)"),
)
MODES = ("quick", "full")


def add_options(parser: pytest.Parser) -> None:
    """Register the options and their ini keys."""
    from argparse import SUPPRESS  # pytest has it loaded

    group = parser.getgroup("llmbench", "benchmarks of language models (pytest-llmbench)")
    for name, metavar, text in _OPTIONS:
        group.addoption(f"--llmbench-{name}", metavar=metavar, default=None, help=text)
        parser.addini(f"llmbench_{name}", text, default=None)
    text = "which quantizations, and how long: quick stops at min_samples (default: test_mode of the configuration)"
    group.addoption("--llmbench-mode", choices=MODES, default=None, help=text)
    parser.addini("llmbench_mode", text, default=None)
    text = "never download; a missing model is skipped"
    group.addoption("--llmbench-no-download", action="store_true", default=None, help=text)
    parser.addini("llmbench_no_download", text, type="bool", default=False)
    text = "print the plan (order, predicted memory, downloads, expected skips and duration), and start nothing"
    group.addoption("--llmbench-dry-run", action="store_true", default=None, help=text)
    parser.addini("llmbench_dry_run", text, type="bool", default=False)
    # How `llmbench plan --json` learns the plan.
    group.addoption("--llmbench-plan-file", metavar="PATH", default=None, help=SUPPRESS)
