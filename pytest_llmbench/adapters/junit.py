"""JUnit's properties of a whole run: on what machine, with what versions; of a cell they are in ``results``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pytest

from pytest_llmbench.core.records import CellRecord
from pytest_llmbench.reports.plain import plain

_HARDWARE = ("label", "cpu", "physical_cores", "logical_cores", "machine", "os")
_SOFTWARE = ("pytest-llmbench", "python", "pytest", "pytest-xdist")
_FACTS = {
    "gpu_names": "gpu",
    "gpu_driver_version": "gpu_driver",
    "governor": "governor",
    "power_source": "power_source",
}


def add_suite_properties(config: pytest.Config, description: Mapping[str, Any], records: Iterable[CellRecord]) -> None:
    """Say in JUnit's ``<testsuite>`` what the run's numbers depend on; nothing without ``--junitxml``.

    To be called where the XML is written, before that: under xdist that is the controller, while the fixture
    ``record_testsuite_property`` of pytest would reach only a worker.

    Args:
        description: what ``run.json`` says; parts may be missing.
        records: of the run so far.
    """
    writers = (getattr(plugin, "add_global_property", None) for plugin in config.pluginmanager.get_plugins())
    add = next((writer for writer in writers if callable(writer)), None)
    if add is not None:
        for name, value in suite_properties(description, records):
            add(name, value)


def suite_properties(description: Mapping[str, Any], records: Iterable[CellRecord]) -> Iterator[tuple[str, str]]:
    """Name and value of each; a value is one line in which no character is left that XML forbids."""
    records = tuple(records)
    hardware, software = _table(description, "hardware"), _table(description, "software")
    memory = hardware.get("memory_bytes")
    facts = [_table(told, "facts") for told in _table(description, "sensors").values()]
    found = {
        "run_id": _together(record.run_id for record in records),
        "mode": description.get("mode"),
        "started_at": description.get("started_at"),
        "git_commit": description.get("git_commit"),
        "host": description.get("host"),
        **{name: hardware.get(name) for name in _HARDWARE},
        "memory_gb": f"{memory / 1e9:.1f}" if isinstance(memory, int | float) else None,
        **{name: _together(fact.get(key) for fact in facts) for key, name in _FACTS.items()},
        **{name: software.get(name) for name in _SOFTWARE},
        "engine": _together(f"{r.server.kind} {r.server.version}" for r in records if r.server.version),
        "device": _together(record.device for record in records),
    }
    for name, value in found.items():
        if value not in {None, ""}:
            yield name, plain(str(value))


def _table(description: object, key: str) -> Mapping[str, Any]:
    value = description.get(key) if isinstance(description, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def _together(values: Iterable[Any]) -> str:
    """Each that is told, once, in the order in which they came."""
    return ", ".join(dict.fromkeys(str(value) for value in values if value is not None))
