"""Writes ``docs/reference/`` from the registries, the configuration's models, the hooks and the options.

``python -m scripts.reference`` in the checkout writes the pages; a test fails where they are not what it would write.
"""

from __future__ import annotations

from pathlib import Path

from scripts.reference.commands import command_line_page
from scripts.reference.configuration import configuration_page
from scripts.reference.hooks import hooks_page
from scripts.reference.metrics import metrics_page

FOLDER = Path("docs", "reference")


def pages() -> dict[str, str]:
    """Every page of the reference by its file name; the same on every machine."""
    return {
        "metrics.md": metrics_page(),
        "configuration.md": configuration_page(),
        "hooks.md": hooks_page(),
        "command-line.md": command_line_page(),
    }
