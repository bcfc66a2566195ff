"""What a process knows of its run: the ``Suite``, kept in pytest's stash."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llmbench.adapters import resume
from pytest_llmbench.adapters.blocking import Decisions, NoDecisions
from pytest_llmbench.adapters.channel import Controller
from pytest_llmbench.adapters.device import HeldDevice
from pytest_llmbench.adapters.registry import BackendRegistry, ProfileRegistry
from pytest_llmbench.adapters.sensing import Sensing
from pytest_llmbench.adapters.watching import Watches
from pytest_llmbench.backends.base import RunningServer
from pytest_llmbench.core.blocking import Candidate
from pytest_llmbench.core.cell import Cell, ServerSpec
from pytest_llmbench.core.config import Config, Models
from pytest_llmbench.core.correction import Observation
from pytest_llmbench.core.matrix import (
    Matrix,
    server_spec,
)
from pytest_llmbench.core.records import CellRecord, Record, RequestRecord, TelemetryRecord, to_line
from pytest_llmbench.core.statistics import StoppingRule
from pytest_llmbench.core.thresholds import Limit, limits_in_force
from pytest_llmbench.errors import RecordError
from pytest_llmbench.runtime import host
from pytest_llmbench.runtime.history import History, observation_of
from pytest_llmbench.runtime.memory_check import MemoryCheck
from pytest_llmbench.runtime.modelstore.store import ModelStore
from pytest_llmbench.runtime.pool import ServerPool
from pytest_llmbench.runtime.run_folder import RunFolder, Table
from pytest_llmbench.runtime.share import share_dir

if TYPE_CHECKING:
    from pytest_llmbench.adapters.baseline import BaselineCheck


@dataclass
class Suite:
    """Everything a run knows, built once per process and kept in pytest's stash.

    Attributes:
        baseline: what cells are compared with, where that is asked for.
        earlier: the run that is gone on with; None in a new run, and on a worker.
        decisions: what earlier cells taught.
        controller: on a worker, who started it.
        sends_lines: whether records of requests and samples go there, because this disk may not be the controller's.
        began: cells that workers have begun, by node id, for the record of one that dies.
        groups: under xdist, for each test which of them share a server; None before the first worker has told.
        measured: what this process has begun to measure, cut to what the model has: the cell, and the layers it asked.
        sensors: of each host, what its sensors tell and what not.
        trouble: why records could not be written that came from another thread.
        on_request: told of each request that is over, between it and the next.
        observed: predicted against observed memory of this process's cells, newest first.
    """

    config: Config
    models: Models
    matrix: Matrix
    backends: BackendRegistry
    profiles: ProfileRegistry
    settings: dict[str, Any]
    mode: str
    rootdir: Path
    store: ModelStore
    folder: RunFolder
    pool: ServerPool[RunningServer]
    device: HeldDevice
    watches: Watches
    sensing: Sensing
    log_file: Path | None
    sources: tuple[str, str]
    announcements: list[str]
    earlier: resume.EarlierRun | None = None
    baseline: BaselineCheck | None = None
    decisions: Decisions = field(default_factory=NoDecisions)
    controller: Controller | None = None
    sends_lines: bool = False
    groups: list[int] | None = None
    began: dict[str, dict[str, Any]] = field(default_factory=dict)
    measured: dict[Any, tuple[Cell, int]] = field(default_factory=dict)
    sensors: dict[str, dict[str, Any]] = field(default_factory=dict)
    trouble: RecordError | None = None
    unsent_samples: deque[TelemetryRecord] = field(default_factory=deque)
    on_request: Callable[[RequestRecord], None] = field(default=lambda _record: None)
    observed: list[Observation] = field(default_factory=list)

    @functools.cached_property
    def hardware(self) -> dict[str, Any]:
        """This machine, see :func:`host.describe_hardware`."""
        return host.describe_hardware()

    @functools.cached_property
    def host(self) -> str:
        """This machine's fingerprint."""
        return host.fingerprint(self.hardware)

    @functools.cached_property
    def history(self) -> History:
        """What earlier runs on this host left in the same output folder."""
        return History(self.folder.output_dir, self.host, without=self.folder.run_id if self.earlier is None else None)

    @functools.cached_property
    def memory_check(self) -> MemoryCheck:
        """Whether a server would fit."""
        limit_gb = self.config.limits.max_memory_gb
        limit_bytes = int(limit_gb * 1e9) if limit_gb is not None else None
        return MemoryCheck(limit_bytes, lambda: (*self.observed, *self.history.observations))

    def file_line(self, table: Table, record: Record) -> None:
        """Write a record of a request or of a sample. Raises RecordError when the disk refuses."""
        if self.sends_lines and self.controller is not None:
            self.controller.tell("line", table=table, line=to_line(record))
        else:
            self.folder.append_to(table, record)

    def file_sample(self, record: TelemetryRecord) -> None:
        """Write a sample of the sensors. Called by another thread. Raises RecordError when the disk refuses."""
        if self.sends_lines:
            self.unsent_samples.append(record)  # the channel to the controller is for one thread
        else:
            self.folder.append_to("telemetry", record)

    def end_samples(self) -> None:
        """A cell is over: no more samples of it; those of a worker whose disk is not the controller's are sent.

        Samples that could not be written are no reason to lose the cell: the log has it.
        """
        self.sensing.end_cell()
        while self.unsent_samples:
            self.file_line("telemetry", self.unsent_samples.popleft())

    def note_sensors(self, host: str, sensors: dict[str, Any]) -> list[str]:
        """Keep what a machine's sensors tell, for ``run.json``.

        Args:
            sensors: ``not_available``: name → why; ``facts``: governor, power source, …

        Returns:
            What is not available there, in a sentence, where that was not known yet.
        """
        missing = sensors.get("not_available", {})
        known = self.sensors.get(host, {}).get("not_available", {})
        self.sensors[host] = sensors
        names = [name for name in missing if name not in known]
        return [f"no sensor here for {', '.join(names)} (why: `sensors` in run.json)"] if names else []

    def let_go(self) -> None:
        """Stop the running server, if any, and then give its device back."""
        self.pool.release()
        self.device.release()

    def learn(self, record: CellRecord) -> None:
        """Take to heart what a cell of this process taught: for blocking, and for the next predictions of memory."""
        self.decisions.learn(record)
        if (observation := observation_of(record)) is not None:
            self.observed.insert(0, observation)

    def spec(self, cell: Cell, context_size: int | None = None) -> ServerSpec:
        """The server a cell needs, with a context for what the profile does.

        Args:
            context_size: instead of what the profile would like to have.
        """
        needed = self.needed_context(cell.profile) if context_size is None else context_size
        return server_spec(self.config, self.matrix.of(cell), self.backends.serving, needed_context=needed)

    def needed_context(self, profile: str) -> int | None:
        """Tokens of context that a profile needs, or would like; None where it does not tell, as a user's may not."""
        if sizes := self.context_sizes(profile):
            return sizes[-1]
        needs = getattr(self.profiles[profile], "needed_context", None)
        return int(needs(self.settings[profile])) if needs is not None else None

    def context_sizes(self, profile: str) -> tuple[int, ...]:
        """The contexts a profile would like to have, ascending; empty for one that needs a certain size."""
        sizes = getattr(self.profiles[profile], "context_sizes", None)
        return tuple(sizes(self.settings[profile])) if sizes is not None else ()

    def candidate(self, cell: Cell, nodeid: str, host: str) -> Candidate:
        """A cell that is to be decided about."""
        sizes = self.context_sizes(cell.profile)
        spec = self.spec(cell, sizes[0] if sizes else None)  # what it can do with: larger ones it may leave out
        return Candidate(
            nodeid=nodeid,
            model=cell.model,
            model_size=self.matrix.of(cell).model.size,
            quantization=cell.quantization,
            profile=cell.profile,
            variant=cell.variant,
            backend=spec.kind,
            host=host,
            settings=spec.as_args(),
            limits=self.limits(cell),
        )

    @functools.cached_property
    def description(self) -> dict[str, Any]:
        """What makes a run comparable with itself when it is resumed; part of ``run.json``."""
        return {
            "mode": self.mode,
            "configuration": self.config.model_dump(mode="json"),
            "models": self.models.model_dump(mode="json", exclude_defaults=True),
            "host": self.host,
            **({"baseline": self.baseline.choice} if self.baseline is not None else {}),
        }

    def limits(self, cell: Cell) -> tuple[Limit, ...]:
        """The thresholds in force for a cell."""
        combination = self.matrix.of(cell)
        tables = [self.config.thresholds, combination.model.thresholds]
        if combination.variant is not None:
            tables.append(combination.variant.thresholds)
        return limits_in_force(cell.profile, self.profiles.emitted(cell.profile), tables)

    def stopping_rule(self, limits: tuple[Limit, ...]) -> StoppingRule:
        """When a cell has been sampled enough; quick mode stops at ``min_samples``, but measures outliers again."""
        rule = self.config.measurement
        by_metric: dict[str, tuple[float, ...]] = {}
        for limit in limits:
            by_metric[limit.metric] = (*by_metric.get(limit.metric, ()), limit.value)
        return StoppingRule(
            min_samples=rule.min_samples,
            max_samples=rule.min_samples if self.mode == "quick" else rule.max_samples,
            target_half_width_percent=rule.target_half_width_percent,
            max_seconds=rule.max_seconds,
            limits=by_metric,
        )

    @property
    def data_dirs(self) -> tuple[Path, ...]:
        """The user's own data first, then what is shipped."""
        return (self.rootdir / "data", share_dir("data"))

    @property
    def enabled_profiles(self) -> set[str]:
        """Profiles that are both configured and known."""
        return set(self.config.profiles) & set(self.profiles)


SUITE_KEY = pytest.StashKey[Suite]()
