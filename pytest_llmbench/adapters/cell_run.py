"""What becomes known about a cell while its test runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from pytest_llmbench.backends.base import RunningServer
from pytest_llmbench.core.cell import Cell
from pytest_llmbench.core.records import MemoryRecord, ModelFile, Rating, Reason
from pytest_llmbench.core.thresholds import Verdict
from pytest_llmbench.profiles.base import Measurement
from pytest_llmbench.telemetry.process import MemoryWatch


@dataclass
class CellRun:
    """The record is made of it."""

    cell: Cell
    nodeid: str
    started_at: str
    started_monotonic: float
    server: RunningServer | None = None
    device: str | None = None
    waited_seconds: float = 0.0
    model_file: ModelFile | None = None
    measuring: bool = False
    measurement: Measurement | None = None
    verdict: Verdict | None = None
    rating: Rating | None = None
    interpretation: str | None = None
    skip_reason: Reason | None = None
    blocked: bool = False
    is_watched: bool = False
    has_swapped: bool = False
    disturbances: list[str] = field(default_factory=list)
    stopped: Reason | None = None
    memory: MemoryRecord | None = None
    memory_watch: MemoryWatch | None = None
    sent_requests: int = 0
    answered_requests: int = 0
