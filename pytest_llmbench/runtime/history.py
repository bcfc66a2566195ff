"""What earlier runs on this host left: memory they were observed to need, and how long their cells took."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import ValidationError

from pytest_llmbench.core.correction import Observation
from pytest_llmbench.core.records import CellRecord, MemoryRecord

_RUNS = 30
_MAX_BYTES = 64 * 1024 * 1024  # of one run's records; an output folder may hold anything
_MEASURED = {"passed", "failed"}


class History:
    """Read at first need, and once. What can not be read, or is of another host, teaches nothing.

    Args:
        output_dir: the folder that holds a folder per run.
        host: this machine's fingerprint.
        without: id of the run that is being made.
    """

    def __init__(self, output_dir: Path, host: str, without: str | None = None) -> None:
        self._output_dir = output_dir
        self._host = host
        self._without = without

    @cached_property
    def observations(self) -> tuple[Observation, ...]:
        """Predicted against observed memory, newest first."""
        found = map(observation_of, self._records)
        return tuple(observation for observation in found if observation is not None)

    def duration_seconds(self, nodeid: str, backend: str) -> float | None:
        """What a cell usually took on a kind of server, from its start to its record; None where it never ran here."""
        return self._durations.get((nodeid, backend))

    @cached_property
    def _durations(self) -> dict[tuple[str, str], float]:
        by_cell: dict[tuple[str, str], list[float]] = defaultdict(list)
        for record in self._records:
            if record.status in _MEASURED:
                by_cell[record.nodeid, record.backend].append(record.duration_seconds)
        return {cell: median(seconds) for cell, seconds in by_cell.items()}

    @cached_property
    def _records(self) -> tuple[CellRecord, ...]:
        return tuple(record for folder in self._runs() for record in _records_of(folder) if record.host == self._host)

    def _runs(self) -> list[Path]:
        """The newest runs' folders; their names sort by time."""
        try:
            names = sorted((entry.name for entry in self._output_dir.iterdir() if not entry.is_symlink()), reverse=True)
        except OSError:
            return []
        folders = (self._output_dir / name for name in names if name != self._without)
        return [folder for folder in folders if (folder / "cells.jsonl").is_file()][:_RUNS]


def observation_of(record: CellRecord) -> Observation | None:
    """What a cell taught about predictions of memory; None where it taught nothing."""
    memory = record.memory
    if record.status not in _MEASURED:  # it did not come to its peak
        return None
    if memory is None or not memory.predicted_bytes or not memory.observed_peak_bytes or not _is_comparable(memory):
        return None
    observed_bytes = memory.observed_peak_bytes + (memory.observed_swap_bytes or 0)
    return Observation(record.backend, record.model, record.quantization, memory.predicted_bytes, observed_bytes)


def _is_comparable(memory: MemoryRecord) -> bool:
    """Whether a prediction was a point, and all of it main memory, as what is observed is."""
    is_point = memory.predicted_low_bytes == memory.predicted_high_bytes
    return memory.method == "header" and is_point and not memory.device_bytes


def _records_of(folder: Path) -> Iterator[CellRecord]:
    """A run's readable records, the last first: a line that is torn or of another version is passed over."""
    try:
        with (folder / "cells.jsonl").open(encoding="utf-8", errors="replace") as file:
            lines = file.read(_MAX_BYTES).splitlines()
    except OSError:
        return
    for line in reversed(lines):
        try:
            data: Any = json.loads(line)
            yield CellRecord.model_validate(data)
        except (ValueError, ValidationError, RecursionError):
            continue
