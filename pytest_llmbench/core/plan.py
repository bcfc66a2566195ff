"""What a run would do, cell by cell, as ``--llmbench-dry-run`` tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pytest_llmbench.core.records import MemoryRecord, Reason

PLAN_VERSION = 1
Expected = Literal["run", "skip", "error"]


@dataclass(frozen=True, slots=True)
class PlannedMemory:
    """A server's prediction beside what there is.

    Attributes:
        record: as a measured cell's record would hold it.
        fits: None where the room lies between the prediction's bounds.
    """

    record: MemoryRecord
    fits: bool | None

    @property
    def exact(self) -> bool:
        """Whether it is a point, not bounds."""
        return self.record.predicted_low_bytes == self.record.predicted_high_bytes


@dataclass(frozen=True, slots=True)
class PlannedCell:
    """One cell, in its place in the order of execution.

    Attributes:
        starts_server: whether it would be the first on a server, and not find the previous cell's.
        memory: None where the server brings its model, or neither header nor size of the file is known.
        size_rule_bytes: size of the file × 1.2, the founding design's rule, for comparison; None where it is unknown.
        needs_file: whether the server runs a model's file of ours.
        file: the (first) one, below ``model_dir``; several cells may share one.
        download_bytes: what is still to be fetched, 0 where the file is here, None where nobody tells or there is none.
        source: where it would come from, for people; None where nothing is to be fetched.
        expected: ``error`` where the run could not even try, and would say so in a record.
        reason: why it would not run.
        expected_seconds: what earlier runs took; None where they do not tell, or it would not run.
    """

    nodeid: str
    model: str
    quantization: str
    profile: str
    variant: str | None
    backend: str
    starts_server: bool = False
    memory: PlannedMemory | None = None
    size_rule_bytes: int | None = None
    file: str | None = None
    download_bytes: int | None = None
    source: str | None = None
    expected: Expected = "run"
    reason: Reason | None = None
    expected_seconds: float | None = None

    @property
    def id(self) -> str:
        """The part of the node id between brackets."""
        return self.nodeid.rpartition("::")[2].partition("[")[2].removesuffix("]")

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        record = self.memory.record if self.memory is not None else MemoryRecord()
        return {
            "nodeid": self.nodeid,
            "model": self.model,
            "quantization": self.quantization,
            "profile": self.profile,
            "variant": self.variant,
            "backend": self.backend,
            "starts_server": self.starts_server,
            "predicted_bytes": record.predicted_bytes,
            "required_bytes": record.required_bytes,
            "available_bytes": record.available_bytes,
            "device_bytes": record.device_bytes,
            "method": record.method,
            "fits": self.memory.fits if self.memory is not None else None,
            "parts": dict(record.parts),
            "download_bytes": self.download_bytes,
            "source": self.source,
            "expected": self.expected,
            "reason": self.reason.model_dump(mode="json") if self.reason is not None else None,
            "expected_seconds": self.expected_seconds,
            "size_rule_bytes": self.size_rule_bytes,
        }


@dataclass(frozen=True, slots=True)
class Room:
    """What the plan is held against.

    Attributes:
        available_bytes, bound_by: memory that may be used now, and what limits it.
        model_dir: for people.
        free_bytes: of the disk that holds ``model_dir``.
        disk_warning: why the downloads do not fit on it; None where they do.
    """

    available_bytes: int
    bound_by: str
    model_dir: str
    free_bytes: int
    disk_warning: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """All cells in order.

    Attributes:
        other_tests: how many tests are selected beside them; they are not planned.
    """

    cells: tuple[PlannedCell, ...]
    room: Room
    other_tests: int = 0

    def count(self, expected: Expected) -> int:
        """Number of cells with an outcome."""
        return sum(cell.expected == expected for cell in self.cells)

    @property
    def server_starts(self) -> int:
        """Servers to be started, or, where they run already, to be checked anew."""
        return sum(cell.starts_server for cell in self.cells)

    @property
    def downloads(self) -> dict[str, int | None]:
        """File → bytes to fetch, each once; None where nobody tells."""
        return downloads_of(self.cells)

    @property
    def expected_seconds(self) -> tuple[float, int]:
        """Sum of the durations that earlier runs tell, and of how many cells."""
        known = [cell.expected_seconds for cell in self.cells if cell.expected_seconds is not None]
        return sum(known), len(known)

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        sizes = self.downloads.values()
        seconds, known = self.expected_seconds
        totals = {
            "cells": len(self.cells),
            "to_run": self.count("run"),
            "to_skip": self.count("skip"),
            "in_error": self.count("error"),
            "other_tests": self.other_tests,
            "server_starts": self.server_starts,
            "download_bytes": total_bytes(self.downloads),
            "downloads_of_unknown_size": sum(size is None for size in sizes),
            "model_dir": self.room.model_dir,
            "free_disk_bytes": self.room.free_bytes,
            "disk_suffices": self.room.disk_warning is None,
            "expected_seconds": seconds if known else None,
            "cells_of_known_duration": known,
            "available_bytes": self.room.available_bytes,
            "bound_by": self.room.bound_by,
        }
        return {
            "schema_version": PLAN_VERSION,
            "cells": [cell.as_json() for cell in self.cells],
            "totals": totals,
        }


def downloads_of(cells: tuple[PlannedCell, ...]) -> dict[str, int | None]:
    """File → bytes to fetch for the cells that would run, each file once; None where nobody tells."""
    return {
        cell.file: cell.download_bytes
        for cell in cells
        if cell.expected == "run" and cell.file is not None and cell.source is not None
    }


def total_bytes(downloads: Mapping[str, int | None]) -> int:
    """Of all whose size is known."""
    return sum(size or 0 for size in downloads.values())
