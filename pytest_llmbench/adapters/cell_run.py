"""What becomes known about a cell while its test runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from pytest_llmbench.backends.base import RunningServer
from pytest_llmbench.core.cell import Cell, ServerSpec
from pytest_llmbench.core.records import MemoryRecord, ModelFile, Rating, Reason
from pytest_llmbench.core.thresholds import Verdict
from pytest_llmbench.profiles.base import Measurement
from pytest_llmbench.telemetry.process import MemoryWatch


@dataclass
class CellRun:
    """The record is made of it.

    Attributes:
        spec: the server it was given, where that is not the one it would like to have.
        refused_sizes: contexts it would have liked, and why its server has none so large.
        load_read_bytes: what the server read from the disk while it loaded.
        phases_seconds: where its time went, by phase.
        answered_tokens: that all its requests were answered with; None where one was whose tokens nobody counted.
        reload: starts its server anew; None where that is not ours to do.
    """

    cell: Cell
    nodeid: str
    started_at: str
    started_monotonic: float
    server: RunningServer | None = None
    spec: ServerSpec | None = None
    refused_sizes: dict[int, str] = field(default_factory=dict)
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
    answered_tokens: int | None = 0
    load_read_bytes: int | None = None
    phases_seconds: dict[str, float] = field(default_factory=dict)
    reload: Callable[[], RunningServer] | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time of a block towards a phase."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.phases_seconds[name] = self.phases_seconds.get(name, 0.0) + time.monotonic() - began
