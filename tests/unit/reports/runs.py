"""A run as reports see it, of records made up by a test."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pytest_llmbench.core.records import CellRecord
from pytest_llmbench.reports.run_data import RunData, description_of


def run_of(folder: Path, records: Iterable[CellRecord] = ()) -> RunData:
    """What ``run.json`` in the folder says, with these records."""
    return RunData(folder, description_of(folder), tuple(records))
