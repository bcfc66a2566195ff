"""One file per format; each is derived from the records alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from pytest_llmbench.core.records import CellRecord
from pytest_llmbench.reports.csv_table import write_csv
from pytest_llmbench.reports.markdown import write_markdown

WRITERS: dict[str, Callable[[Path, Sequence[CellRecord]], Path]] = {"csv": write_csv, "markdown": write_markdown}


def write_reports(folder: Path, records: Sequence[CellRecord], formats: Iterable[str]) -> list[Path]:
    """Write the derived reports that exist among ``formats``; returns their paths. Raises OSError."""
    return [WRITERS[name](folder, records) for name in formats if name in WRITERS]
