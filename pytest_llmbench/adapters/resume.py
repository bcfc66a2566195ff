"""``--llmbench-resume``: go on with an earlier run in its own folder, and report on the whole of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pytest_llmbench.core.config import Config
from pytest_llmbench.core.records import SCHEMA_VERSION, CellRecord
from pytest_llmbench.core.resuming import differences, is_finished, last_of_each
from pytest_llmbench.errors import ConfigError, RecordError
from pytest_llmbench.runtime.mending import (
    SUPERSEDED,
    cut_torn_line,
    set_aside_cells,
    set_aside_repeated_cells,
    set_aside_requests,
    set_aside_samples,
)
from pytest_llmbench.runtime.run_folder import RunFolder, find_run, read_cells

ANYWAY = "--llmbench-resume-anyway"


@dataclass
class EarlierRun:
    """A run that is being gone on with.

    Attributes:
        path: its folder.
        description: its ``run.json``.
        records: its cells' last records, by node id.
        has_repeated: whether some cell has several.
        differences: what was configured otherwise then.
    """

    path: Path
    description: Mapping[str, Any]
    records: dict[str, CellRecord]
    has_repeated: bool = False
    differences: list[str] = field(default_factory=list)

    @property
    def finished(self) -> dict[str, CellRecord]:
        """The records that stay: of cells that were measured and judged."""
        return {nodeid: record for nodeid, record in self.records.items() if is_finished(record)}


def wanted(pytest_config: pytest.Config, config: Config) -> str | None:
    """The RUN to go on with: of the command line, the ini file, or the configuration."""
    option: str | None = pytest_config.getoption("llmbench_resume")
    ini: str | None = pytest_config.getini("llmbench_resume") or None
    return option or ini or config.resume_from


def find(run: str, output_dir: Path, rootdir: Path) -> Path | None:
    """The folder of the run; None where the newest is wanted and there is none yet.

    Raises:
        ConfigError: there is no such run.
    """
    try:
        return find_run(output_dir, str(_folder_of(run, rootdir)))
    except RecordError as exc:
        if run == "latest":
            return None
        raise ConfigError(f"--llmbench-resume: {exc}") from exc
    except (OSError, ValueError) as exc:  # no name for a file at all
        raise ConfigError(f"--llmbench-resume: {run[:80]!r} is no run: {exc}") from exc


def read(path: Path) -> EarlierRun:
    """Read a run back, whose folder was claimed before: what comes later would be overlooked.

    Raises:
        ConfigError: its files can not be understood.
    """
    try:
        lines = list(read_cells(path))
    except (RecordError, OSError) as exc:
        raise ConfigError(f"--llmbench-resume: {exc}") from exc
    records = last_of_each(lines)
    return EarlierRun(path, _description(path), records, has_repeated=len(lines) > len(records))


def _folder_of(run: str, rootdir: Path) -> str | Path:
    """A RUN may also be one of the files in its folder, as the founding ``resume_from`` has it."""
    given = rootdir / run
    if given.is_file() and given.name != "latest":
        return given.parent
    return given if given.is_dir() else run


def _description(path: Path) -> dict[str, Any]:
    try:
        description = json.loads((path / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        description = None
    if not isinstance(description, dict):
        raise ConfigError(f"--llmbench-resume: {path / 'run.json'} can not be read, so nobody knows what the run was")
    version = description.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise ConfigError(
            f"--llmbench-resume: {path / 'run.json'} was written with schema {version}, this version reads up to "
            f"{SCHEMA_VERSION}; upgrade"
        )
    return description


def compare(earlier: EarlierRun, now: Mapping[str, Any], *, anyway: bool) -> None:
    """Find what is another now than in the earlier run, and refuse it unless it is wanted.

    Args:
        now: ``configuration``, ``models``, ``mode``, ``host`` and ``baseline``, as in ``run.json``.

    Raises:
        ConfigError: with every difference.
    """
    before = {key: earlier.description[key] for key in now if key in earlier.description}
    if isinstance(baseline := earlier.description.get("baseline"), Mapping):
        before["baseline"] = {key: baseline.get(key) for key in ("run_id", "max_regression_percent")}
    with suppress(ValueError, KeyError):  # keys that came later have their defaults
        before["configuration"] = Config.model_validate(before["configuration"], strict=False).model_dump(mode="json")
    earlier.differences = differences(before, now)
    if earlier.differences and not anyway:
        told = "\n".join(f"  {line}" for line in earlier.differences)
        raise ConfigError(
            f"--llmbench-resume: run {earlier.path.name} was made otherwise (then → now):\n{told}\n"
            f"undo that, start a new run, or go on all the same with {ANYWAY}"
        )


def prepare(earlier: EarlierRun, folder: RunFolder, selected: Sequence[str]) -> None:
    """Make the folder ready for what is to be done again.

    Args:
        selected: node ids of this session's tests; records of other cells stay.

    Raises:
        RecordError: the disk refuses.
    """
    folder.claim()
    finished = earlier.finished
    again = {nodeid for nodeid in selected if nodeid in earlier.records and nodeid not in finished}
    try:
        for name in ("cells.jsonl", "requests.jsonl", "telemetry.jsonl", SUPERSEDED):
            cut_torn_line(folder.path / name)
        folder.join_parts()
    except OSError as exc:
        raise RecordError(f"{folder.path} can not be made ready: {exc.strerror}") from exc
    if earlier.has_repeated:
        set_aside_repeated_cells(folder.path)
    if again:
        set_aside_cells(folder.path, again)
    kept = earlier.records.keys() - again
    set_aside_requests(folder.path, but_of=kept)
    set_aside_samples(folder.path, but_of=kept)
