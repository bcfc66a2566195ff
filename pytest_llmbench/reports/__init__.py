"""One file per format; each is derived from the records alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from pytest_llmbench.reports.csv_table import write_csv
from pytest_llmbench.reports.markdown import write_markdown
from pytest_llmbench.reports.run_data import RunData

WRITERS: dict[str, Callable[[RunData], Path]] = {"csv": write_csv, "markdown": write_markdown}


def write_reports(folder: Path, formats: Iterable[str]) -> list[Path]:
    """Write the derived reports that exist among ``formats``, from a run's folder; returns their paths.

    The same bytes whenever it is called: nothing but the folder's records is looked at, and no clock.

    Raises:
        OSError: the disk refuses.
        RecordError: as :meth:`RunData.read`.
    """
    run = RunData.read(folder)
    return [WRITERS[name](run) for name in formats if name in WRITERS]
