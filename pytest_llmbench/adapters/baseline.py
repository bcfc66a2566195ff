"""``--llmbench-baseline``: each cell is compared with the same cell of an earlier run when it has been measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from pytest_llmbench.adapters.blank import blank_record
from pytest_llmbench.adapters.cell_run import CellRun
from pytest_llmbench.adapters.resume import EarlierRun
from pytest_llmbench.adapters.state import SUITE_KEY, Suite
from pytest_llmbench.core.baseline import Baseline, baseline_cell, baseline_from, baseline_text
from pytest_llmbench.core.cell_comparison import CellComparison, comparable_count, judged_cell
from pytest_llmbench.core.environment import differences, environment_of
from pytest_llmbench.core.records import CellRecord
from pytest_llmbench.core.spreads import Spreads
from pytest_llmbench.errors import ConfigError, RecordError
from pytest_llmbench.profiles.base import Measurement
from pytest_llmbench.runtime.baselines import read_baseline, stored_baselines

DEFAULT_LIMIT_PERCENT = 5.0
_SHIPPED = "llmbench_baseline"  # the baseline on its way to a worker, which may have another disk


@dataclass
class BaselineCheck:
    """What cells are compared with.

    Attributes:
        limit_percent: how much worse counts.
        stored: earlier runs of this host beside it: they tell how much loads differ.
        comparisons: how many tests this run makes. A cell is judged before the next is measured, so each test gets
            its share of the 5 % by which all of them together may be wrong.
        nodeids: of all cells of this run.
    """

    baseline: Baseline
    limit_percent: float
    stored: list[Baseline] = field(default_factory=list)
    comparisons: int = 0
    nodeids: frozenset[str] = frozenset()

    @property
    def choice(self) -> dict[str, Any]:
        """What was asked for: another one makes another run of it."""
        return {"run_id": self.baseline.run_id, "max_regression_percent": self.limit_percent}

    @cached_property
    def _spreads(self) -> Spreads:
        return Spreads((self.baseline,), self.stored)

    def compare(self, record: CellRecord, environment: Mapping[str, Any]) -> CellComparison | None:
        """A measured cell beside the same of the baseline; None where that has none."""
        new = baseline_cell(record, environment)
        old = self.baseline.counterpart(new, self.nodeids)
        if old is None or not old.is_measured:
            return None
        return judged_cell(old, new, self._spreads, self.limit_percent, self.comparisons)


def read_check(
    pytest_config: pytest.Config, output: Path, host: Callable[[], str], worker: Mapping[str, Any] | None
) -> BaselineCheck | None:
    """What the options ask for; None where they ask for no baseline.

    Raises:
        ConfigError: there is no such baseline, or the limit is none.
    """
    limit_percent = _limit_percent(pytest_config)
    try:
        if worker is not None:
            text = worker.get(_SHIPPED)
            return BaselineCheck(baseline_from(text, "the controller's baseline"), limit_percent) if text else None
        if (wanted := _wanted(pytest_config)) is None:
            return None
        baseline = read_baseline(output, wanted)
    except RecordError as exc:
        raise ConfigError(f"--llmbench-baseline: {exc}") from exc
    return BaselineCheck(baseline, limit_percent, stored_baselines(output, host(), {baseline.run_id}))


def refuse_itself(check: BaselineCheck, earlier: EarlierRun) -> None:
    """A run that goes on is the latest, and of the cells that are left it can tell nothing.

    Raises:
        ConfigError: it is its own baseline.
    """
    if check.baseline.run_id == earlier.path.name:
        before = earlier.description.get("baseline")
        told = f"; it was begun with --llmbench-baseline {before.get('run_id')}" if isinstance(before, Mapping) else ""
        raise ConfigError(f"run {earlier.path.name} can not be its own --llmbench-baseline{told}")


def ship(node: Any, suite: Suite) -> None:
    """Controller: give the baseline to a worker, and what the stored runs tell, which lie on this disk."""
    node.workerinput[_SHIPPED] = None
    if suite.baseline is not None:
        told = suite.baseline.baseline
        spreads = [*told.spreads, *Spreads((), suite.baseline.stored).saved(suite.host)]
        newest = {(one.profile, one.metric, one.host): one for one in spreads}
        node.workerinput[_SHIPPED] = baseline_text(told.model_copy(update={"spreads": list(newest.values())}))


def count_comparisons(config: pytest.Config, nodeids: Iterable[str]) -> None:
    """Know how many tests this run makes, as soon as it is known which cells it has; of one that goes on, in all."""
    suite = config.stash.get(SUITE_KEY, None)
    if suite is not None and suite.baseline is not None:
        before = suite.earlier.records if suite.earlier is not None else ()
        suite.baseline.nodeids = frozenset({*nodeids, *before})
        suite.baseline.comparisons = comparable_count(suite.baseline.baseline, suite.baseline.nodeids)


def compare_cell(suite: Suite, run: CellRun, measurement: Measurement) -> CellComparison | None:
    """What was measured beside the baseline; None where there is nothing to compare with."""
    if suite.baseline is None:
        return None
    record = blank_record(suite, run.cell, run.nodeid, "passed", None, spec=run.spec)
    record = record.model_copy(
        update={
            "metrics": measurement.metrics,
            "samples": measurement.samples_by_load,
            "sampling": measurement.sampling,
            "details": measurement.details,
            "flags": measurement.flags,
            "server": run.server.info if run.server is not None else record.server,
            "device": run.device,
            "model_file": run.model_file,
        }
    )
    return suite.baseline.compare(record, environment_of(_known_now(suite)))


def about(suite: Suite, description: Mapping[str, Any]) -> dict[str, Any] | None:
    """For ``run.json``: what the cells were compared with, and in what the two runs' surroundings differ.

    Args:
        description: ``run.json`` as far as it is known.
    """
    if suite.baseline is None:
        return None
    baseline = suite.baseline.baseline
    found = differences(baseline.environment, environment_of(description))
    return {
        **suite.baseline.choice,
        "comparisons": suite.baseline.comparisons,
        "differences": [f"{one.kind}: {one.sentence}" for one in found],
    }


def _known_now(suite: Suite) -> dict[str, Any]:
    return {**suite.description, "hardware": suite.hardware, "sensors": suite.sensors}


def _wanted(pytest_config: pytest.Config) -> str | None:
    """RUN or PATH: of the command line, relative to where one stands, or of the ini file, relative to the rootdir."""
    given: str | None = pytest_config.getoption("llmbench_baseline")
    configured: str | None = pytest_config.getini("llmbench_baseline") or None
    folder = pytest_config.invocation_params.dir if given is not None else pytest_config.rootpath
    wanted = given if given is not None else configured
    if wanted is None or wanted == "latest":
        return wanted
    try:
        path = Path(folder, wanted)
        return str(path) if path.exists() else wanted
    except (OSError, ValueError):  # no name for a file at all
        return wanted


def _limit_percent(pytest_config: pytest.Config) -> float:
    text = pytest_config.getoption("llmbench_max_regression") or pytest_config.getini("llmbench_max_regression")
    if not text:
        return DEFAULT_LIMIT_PERCENT
    try:
        limit = float(text)
    except ValueError:
        limit = -1.0
    if not 0 < limit <= 1000:
        raise ConfigError(
            f"--llmbench-max-regression: {str(text)[:80]!r} is not allowed; write a percentage above 0, for example 5"
        )
    return limit
