"""``llmbench baseline``: keep of a run what later ones are compared with."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from pytest_llmbench.core.baseline import OVER_LOADS, Baseline, BaselineCell
from pytest_llmbench.core.spreads import Spreads
from pytest_llmbench.errors import ConfigError, RecordError
from pytest_llmbench.runtime.baselines import run_baseline, stored_baselines, write_baseline
from pytest_llmbench.runtime.run_folder import find_run

LEAST_LOADS = 3
LEAST_SAMPLES = 10  # of each load


def run(options: argparse.Namespace) -> int:
    """Run the command. Returns 0, or 1 where the run has nothing to compare later.

    Raises:
        ConfigError: no such run, or it can not be read.
        RecordError: the file can not be written, or is something else.
    """
    try:
        baseline = run_baseline(find_run(options.output, options.run))
    except RecordError as exc:
        raise ConfigError(str(exc)) from exc
    measured = [cell for cell in baseline.cells if cell.is_measured and cell.metrics]
    if not measured:
        sys.stderr.write(f"llmbench: run {baseline.run_id} has measured nothing; no baseline was written\n")
        return 1
    host = baseline.environment.get("host")
    if isinstance(host, str):
        stored = stored_baselines(options.output, host, {baseline.run_id})
        baseline = baseline.model_copy(update={"spreads": Spreads((), stored).saved(host)})
    size = write_baseline(baseline, options.file)
    sys.stdout.write(f"wrote {options.file}: {_cells(len(measured))} of run {baseline.run_id}, {size / 1000:.1f} kB\n")
    for line in _warnings(baseline, measured):
        sys.stdout.write(f"{line}\n")
    return 0


def _warnings(baseline: Baseline, measured: list[BaselineCell]) -> Iterator[str]:
    """What will make comparisons with it say less than they could."""
    small = [cell for cell in measured if cell.profile in OVER_LOADS and not _is_enough(cell)]
    if small:
        loads, samples = (min(found) for found in zip(*map(_size, small), strict=True))
        yield (
            f"too small for a baseline: {_cells(len(small))} with as few as {loads} load{'s' * (loads != 1)} of "
            f"{samples} samples, so small changes will stay inconclusive; measure with "
            f"measurement: {{min_samples: {LEAST_SAMPLES}, loads: {LEAST_LOADS}}} or more, then save again"
        )
    left_out = len(baseline.cells) - len(measured)
    if left_out:
        yield f"{_cells(left_out)} measured nothing, and can not be compared later"
    doubtful = [cell for cell in measured if set(cell.flags) - {"imprecise"}]
    if doubtful:
        flags = ", ".join(sorted({flag for cell in doubtful for flag in cell.flags} - {"imprecise"}))
        yield f"{_cells(len(doubtful))} with doubts ({flags}): a baseline had better have none"


def _is_enough(cell: BaselineCell) -> bool:
    loads, samples = _size(cell)
    return loads >= LEAST_LOADS and samples >= LEAST_SAMPLES


def _size(cell: BaselineCell) -> tuple[int, int]:
    """Loads, and samples of the smallest of them, of the metric that has most."""
    groups = [metric.samples for metric in cell.metrics.values() if metric.samples]
    return max(((len(group), min(map(len, group))) for group in groups), default=(0, 0))


def _cells(count: int) -> str:
    return f"{count} cell" if count == 1 else f"{count} cells"
