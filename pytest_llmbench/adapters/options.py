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
    (
        "baseline",
        "RUN",
        "fail cells that are worse than those of this run: latest, a run id, a folder, or a baseline file",
    ),
    ("max-regression", "PERCENT", "with --llmbench-baseline: how much worse counts (default: 5)"),
    ("resume", "RUN", "finish an earlier run in its own folder: latest, a run id, or a folder"),
)
_CHOICES: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("mode", ("quick", "full"), "which quantizations, and how long: quick stops at min_samples (default: test_mode)"),
    ("when-busy", ("wait", "fail"), "what to do while another benchmark measures on this machine (default: wait)"),
)
_SWITCHES: tuple[tuple[str, str], ...] = (
    ("no-download", "never download; a missing model is skipped"),
    ("no-blocking", "run what an earlier cell's outcome makes pointless"),
    ("resume-anyway", "with --llmbench-resume: go on although the configuration is another now"),
    ("dry-run", "print the plan (order, predicted memory, downloads, expected skips and duration), and start nothing"),
)


def add_options(parser: pytest.Parser) -> None:
    """Register the options and their ini keys."""
    from argparse import SUPPRESS  # pytest has it loaded

    group = parser.getgroup("llmbench", "benchmarks of language models (pytest-llmbench)")
    for name, metavar, text in _OPTIONS:
        group.addoption(f"--llmbench-{name}", metavar=metavar, default=None, help=text)
        parser.addini(f"llmbench_{_key(name)}", text, default=None)
    for name, choices, text in _CHOICES:
        group.addoption(f"--llmbench-{name}", choices=choices, default=None, help=text)
        parser.addini(f"llmbench_{_key(name)}", text, default=None)
    for name, text in _SWITCHES:
        group.addoption(f"--llmbench-{name}", action="store_true", default=None, help=text)
        parser.addini(f"llmbench_{_key(name)}", text, type="bool", default=False)
    # How `llmbench plan --json` learns the plan.
    group.addoption("--llmbench-plan-file", metavar="PATH", default=None, help=SUPPRESS)


def switched(config: pytest.Config, name: str) -> bool:
    """Whether a switch, ``no-download`` for example, is on: by the command line or the ini file."""
    return bool(config.getoption(f"llmbench_{_key(name)}", None) or config.getini(f"llmbench_{_key(name)}"))


def chosen(config: pytest.Config, name: str) -> str | None:
    """What was chosen for an option with choices, None where nothing was.

    Raises:
        ValueError: the ini file has a value that is not among them.
    """
    given: str | None = config.getoption(f"llmbench_{_key(name)}", None)
    configured: str | None = config.getini(f"llmbench_{_key(name)}") or None
    choices = next(choices for option, choices, _ in _CHOICES if option == name)
    if given is None and configured is not None and configured not in choices:
        msg = f"llmbench_{_key(name)}: {configured!r} is not allowed; allowed: {', '.join(choices)}"
        raise ValueError(msg)
    return given or configured


def _key(name: str) -> str:
    return name.replace("-", "_")
