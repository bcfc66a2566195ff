"""A finished run as tables, for pandas or any other tool that takes a list of rows: :func:`load_run`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from pytest_llmbench.core.recommendations import Recommendations
from pytest_llmbench.core.records import CellRecord
from pytest_llmbench.errors import Primitive, RecordError
from pytest_llmbench.reports.run_data import RunData
from pytest_llmbench.runtime.run_folder import find_run

Row = dict[str, Primitive]


def load_run(run: str | Path = "latest", output: str | Path = "results") -> Run:
    """Read a run.

    Args:
        run: its folder, its id, or ``latest``.
        output: the folder of results, below which ids are looked for.

    Raises:
        RecordError: there is no such run, or a record of it can not be read.
    """
    return Run(RunData.read(find_run(Path(output), str(run))))


class Run:
    """A run's tables: lists of flat rows, primitives only, units in the names of columns.

    Every row begins with the cell that it is of: ``nodeid``, ``model``, ``quantization``, ``variant``, ``profile``.
    What a model wrote that no file can hold (lone surrogates) is a question mark.
    """

    def __init__(self, data: RunData) -> None:
        self._data = data

    def __repr__(self) -> str:
        counts = Counter(record.status for record in self._data.records)
        cells = ", ".join(f"{count} {status}" for status, count in counts.items()) or "no cells"
        return f"<Run {self.run_id}: {cells}>"

    @property
    def run_id(self) -> str:
        return self._data.run_id

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self._data.folder

    @property
    def description(self) -> Mapping[str, Any]:
        """``run.json``: configuration, hardware, versions, commit."""
        return self._data.description

    @property
    def recommendations(self) -> Recommendations:
        """What to run for which use, and why."""
        return self._data.recommendations

    @cached_property
    def cells(self) -> list[Row]:
        """One row per cell; flags and thresholds that were missed are parted by spaces."""
        return _rows(_cell(record) for record in self._data.records)

    @cached_property
    def metrics(self) -> list[Row]:
        """One row per cell and metric: ``value``, ``unit``, ``n``, and the 95 % interval, None where there is none."""
        return _rows(
            {**_key(record), "metric": name, **metric.model_dump()}
            for record in self._data.records
            for name, metric in record.metrics.items()
        )

    @cached_property
    def samples(self) -> list[Row]:
        """One row per sample of the metrics that are medians: ``load`` of the model and ``index`` in it, from 0."""
        return _rows(
            {**_key(record), "metric": name, "load": load, "index": index, "value": value}
            for record in self._data.records
            for name, loads in record.samples.items()
            for load, values in enumerate(loads)
            for index, value in enumerate(values)
        )

    @cached_property
    def thresholds(self) -> list[Row]:
        """One row per cell and threshold, with its ``verdict``."""
        return _rows(
            {**_key(record), "threshold": result.key, **result.model_dump(exclude={"key"})}
            for record in self._data.records
            for result in record.thresholds
        )

    @cached_property
    def comparisons(self) -> list[Row]:
        """One row per cell and metric that was compared with a baseline."""
        return _rows(
            {**_key(record), **comparison.model_dump()}
            for record in self._data.records
            for comparison in record.comparisons
        )

    @property
    def detail_tables(self) -> list[str]:
        """Which tables :meth:`details` knows: ``questions``, ``documents``, …, as the profiles wrote them."""
        return list(dict.fromkeys(table for record in self._data.records for table in record.details))

    def details(self, table: str) -> list[Row]:
        """The rows of which metrics are the summary: questions, documents, sizes of a context.

        Raises:
            RecordError: no cell has such a table.
        """
        known = self.detail_tables
        if table not in known:
            msg = f"run {self.run_id} has no table {table!r}; it has {', '.join(known) or 'none'} (see detail_tables)"
            raise RecordError(msg)
        return _rows(
            _key(record) | {name: value for name, value in row.items() if name not in _KEY}
            for record in self._data.records
            for row in record.details.get(table, ())
        )

    def requests(self) -> Iterator[dict[str, Any]]:
        """Every request as it was recorded, one at a time: some columns hold lists and objects."""
        return map(_encodable, self._data.lines("requests"))

    def telemetry(self) -> Iterator[Row]:
        """Every reading of the sensors, one at a time: ``cell``, ``t_ns`` and what there was to read."""
        for line in self._data.lines("telemetry"):
            values = line.pop("values", None)
            line.pop("schema_version", None)
            yield _encodable(line | (values if isinstance(values, dict) else {}))


_KEY = ("nodeid", "model", "quantization", "variant", "profile")


def _rows(rows: Iterable[Row]) -> list[Row]:
    return list(map(_encodable, rows))


def _encodable(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose texts can be written as UTF-8, so that saving a table does not fail."""
    return {
        name: value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else value
        for name, value in row.items()
    }


def _key(record: CellRecord) -> Row:
    return {
        "nodeid": record.nodeid,
        "model": record.model,
        "quantization": record.quantization,
        "variant": record.variant,
        "profile": record.profile,
    }


def _cell(record: CellRecord) -> Row:
    file, memory, reason, server = record.model_file, record.memory, record.reason, record.server
    missed = {
        verdict: " ".join(result.key for result in record.thresholds if result.verdict == verdict)
        for verdict in ("fail", "inconclusive")
    }
    return {
        **_key(record),
        "status": record.status,
        "rating": record.rating,
        "interpretation": record.interpretation,
        "reason": reason.code if reason else None,
        "message": reason.message if reason else None,
        "failed_thresholds": missed["fail"],
        "inconclusive_thresholds": missed["inconclusive"],
        "flags": " ".join(record.flags),
        "model_size": record.model_size,
        "model_size_bytes": file.size_bytes if file else None,
        "memory_bytes": memory.observed_peak_bytes if memory else None,
        "predicted_memory_bytes": memory.predicted_bytes if memory else None,
        "backend": record.backend,
        "device": record.device,
        "server": server.kind,
        "server_version": server.version,
        "context_size": server.context_size,
        "host": record.host,
        "started_at": record.started_at,
        "duration_seconds": record.duration_seconds,
    }
