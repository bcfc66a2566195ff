"""One file per format; each is derived from the records alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from pytest_llmbench.reports.csv_table import write_csv
from pytest_llmbench.reports.html_report import write_html
from pytest_llmbench.reports.json_report import write_json
from pytest_llmbench.reports.markdown import write_markdown
from pytest_llmbench.reports.run_data import RunData

WRITERS: dict[str, Callable[[RunData], Path]] = {
    "json": write_json,
    "csv": write_csv,
    "markdown": write_markdown,
    "html": write_html,
}


def write_reports(folder: Path, formats: Iterable[str]) -> list[Path]:
    """Write the derived reports of these formats, from a run's folder; returns their paths.

    The same bytes whenever it is called: nothing but the run's files is looked at, and no clock.

    Raises:
        OSError: the disk refuses.
        RecordError: as :meth:`RunData.read`.
    """
    run = RunData.read(folder)
    return [WRITERS[name](run) for name in dict.fromkeys(formats)]
