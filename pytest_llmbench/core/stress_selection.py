"""Which configuration the stress profile runs: one that did well, and close to the end of what does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from pytest_llmbench.core.blocking_evidence import RUN_ANYWAY, Candidate, context_size, parameters, rough_bits
from pytest_llmbench.core.records import CellRecord, Reason
from pytest_llmbench.errors import Primitive

STRESS = "stress"
_SPOILS_STATUS = {"failed", "error", "invalid"}
_SPOILS_RATING = {"poor", "failed"}
_BEYOND_STATUS = {"failed", "error", "blocked"}
_BEYOND_CODE = "does_not_fit"  # skipped without a try, for want of memory


class _Demand(NamedTuple):
    """What a configuration asks of the machine; the name makes the order complete."""

    weight_bytes: float
    context_tokens: int
    name: tuple[str, str, str, str]


@dataclass(slots=True)
class _Machine:
    """What is known of a machine: its cells but for stress, and what they come to, once that was asked."""

    records: dict[str, CellRecord] = field(default_factory=dict)
    selection: _Selection | None = None


@dataclass(frozen=True, slots=True)
class _Selection:
    """The configurations that did well, least demanding first, and which of them is stressed."""

    acceptable: tuple[_Demand, ...]
    chosen: _Demand | None


class StressSelection:
    """One configuration is stressed: the last that did well where a more demanding one did not, else the one before.

    A configuration is a backend, model, quantization and variant. It did well when a cell of another profile passed
    with a rating of acceptable or better (or none), and no cell failed, ended in an error, was invalid or was rated
    below. Demand is the weights' size, then the context, then the name. Where nothing but stress is run, all is run.
    """

    code = "not_selected_for_stress"

    def __init__(self) -> None:
        self._machines: dict[str, _Machine] = {}
        self._machine_of: dict[str, _Machine] = {}

    def learn(self, record: CellRecord) -> None:
        """Remember a cell of another profile, in place of what was known of it; stress itself selects nothing."""
        earlier = self._machine_of.pop(record.nodeid, None)
        if earlier is not None:
            del earlier.records[record.nodeid]
            earlier.selection = None
        if record.profile != STRESS:
            machine = self._machine_of[record.nodeid] = self._machines.setdefault(record.host, _Machine())
            machine.records[record.nodeid] = record
            machine.selection = None

    def why(self, candidate: Candidate) -> Reason | None:
        """The reason, with the configuration that is stressed instead."""
        machine = self._machines.get(candidate.host)
        if candidate.profile != STRESS or machine is None or not machine.records:
            return None
        if machine.selection is None:
            machine.selection = _select(machine.records.values())
        chosen = machine.selection.chosen
        if chosen is not None and chosen.name == _name(candidate):
            return None
        evidence: dict[str, Primitive] = {
            "rule": "stress_selection",
            "acceptable": len(machine.selection.acceptable),
            "selected": _words(chosen.name) if chosen is not None else None,
        }
        message = f"{_explanation(machine.selection, candidate)}; {RUN_ANYWAY}"
        return Reason(code=self.code, message=message, evidence=evidence)


def _select(records: Iterable[CellRecord]) -> _Selection:
    by_name: dict[tuple[str, str, str, str], list[CellRecord]] = {}
    for record in records:
        by_name.setdefault(_name(record), []).append(record)
    demands = {name: max(map(_demand, cells)) for name, cells in by_name.items()}
    acceptable = tuple(sorted(demands[name] for name, cells in by_name.items() if _did_well(cells)))
    if not acceptable:
        return _Selection((), None)
    failed_beyond = any(
        demands[name] > acceptable[-1] and any(map(_is_beyond, cells)) for name, cells in by_name.items()
    )
    chosen = acceptable[-1] if failed_beyond or len(acceptable) == 1 else acceptable[-2]
    return _Selection(acceptable, chosen)


def _did_well(cells: list[CellRecord]) -> bool:
    spoiled = any(cell.status in _SPOILS_STATUS or cell.rating in _SPOILS_RATING for cell in cells)
    return not spoiled and any(cell.status == "passed" for cell in cells)


def _is_beyond(cell: CellRecord) -> bool:
    return cell.status in _BEYOND_STATUS or (cell.reason is not None and cell.reason.code == _BEYOND_CODE)


def _demand(cell: CellRecord) -> _Demand:
    weight_bytes = (parameters(cell.model_size) or 0) * rough_bits(cell.quantization) / 8
    return _Demand(weight_bytes, context_size(cell) or 0, _name(cell))


def _name(cell: Candidate | CellRecord) -> tuple[str, str, str, str]:
    return cell.model, cell.quantization, cell.variant or "", cell.backend


def _words(name: tuple[str, str, str, str]) -> str:
    *cell, backend = name
    return f"{' '.join(part for part in cell if part)} on {backend}"


def _explanation(selection: _Selection, candidate: Candidate) -> str:
    if selection.chosen is None:
        return "no configuration passed its other profiles with a rating of acceptable or better, so none is stressed"
    which = "the most demanding" if selection.chosen == selection.acceptable[-1] else "the last but one"
    return (
        f"stress runs {_words(selection.chosen.name)}, {which} of {len(selection.acceptable)} that passed with a "
        f"rating of acceptable or better, and not {_words(_name(candidate))}"
    )
