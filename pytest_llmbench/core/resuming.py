"""Going on with a run that was cut short: which cells are finished, and whether it is still the same run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pytest_llmbench.core.records import CellRecord
from pytest_llmbench.core.yaml_source import shown

# What may differ, because no number depends on it.
_WITHOUT_EFFECT = (
    "configuration.output",
    "configuration.logging",
    "configuration.model_dir",
    "configuration.resume_from",
    "configuration.use_cases",
)
_ABSENT = object()


def is_finished(record: CellRecord) -> bool:
    """Whether a cell needs no second look: it was measured and judged.

    An error is retried; an invalid measurement too. What was skipped or blocked is decided anew, which costs little and
    may come out otherwise: the error that blocked it may be gone, or the disk no longer full.
    """
    return record.status in {"passed", "failed"}


def last_of_each(records: Iterable[CellRecord]) -> dict[str, CellRecord]:
    """The last record of each cell, by node id, in the order in which the cells came first."""
    found: dict[str, CellRecord] = {}
    for record in records:
        found[record.nodeid] = record
    return found


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of a run's description is another now, one line each: ``limits.max_memory_gb: 14 → 12``."""
    old, new = dict(_leaves(before)), dict(_leaves(now))
    changed = [
        key
        for key in dict.fromkeys([*old, *new])
        if old.get(key, _ABSENT) != new.get(key, _ABSENT) and not key.startswith(_WITHOUT_EFFECT)
    ]
    lines = []
    for key in changed:
        item = key[: key.rfind("]") + 1]
        if item and not any(other.startswith(f"{item}.") for other in (new if key in old else old)):
            lines.append(f"{_shortened(item)}: {'removed' if key in old else 'added'}")
        else:
            lines.append(f"{_shortened(key)}: {_told(old.get(key, _ABSENT))} → {_told(new.get(key, _ABSENT))}")
    return list(dict.fromkeys(lines))


def _shortened(key: str) -> str:
    return key.removeprefix("configuration.").replace("models.models[", "models[", 1)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All values with their places. An item of a list is named by what names it there, so that one more is one line."""
    if isinstance(value, Mapping) and value:
        for key, part in value.items():
            yield from _leaves(part, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value and all(isinstance(part, Mapping) for part in value):
        for index, part in enumerate(value):
            yield from _leaves(part, f"{path}[{part.get('name', part.get('id', index))}]")
    else:
        yield path, value


def _told(value: Any) -> str:
    return "(absent)" if value is _ABSENT else shown(value)
