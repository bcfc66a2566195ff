"""What is no candidate for a use, and why, in as few sentences as tell it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from pytest_llmbench.core.blocking_evidence import RUN_ANYWAY, rough_bits
from pytest_llmbench.core.fitness import first_line
from pytest_llmbench.core.measured import Key, Names, key_of, listed
from pytest_llmbench.core.quantities import gigabytes
from pytest_llmbench.core.records import CellRecord, Reason

_MEMORY_CODES = {"does_not_fit", "blocked_by_memory_trend"}
_SAID = {
    "blocked": "not measured, as others tell how it would end",
    "error": "could not be measured",
    "invalid": "measured, but the numbers can not be trusted",
    "skipped": "skipped",
}
_LISTED = 3


@dataclass(frozen=True, slots=True)
class Exclusion:
    """Why a configuration is no candidate.

    Attributes:
        kind: of the cause; what differs in nothing but the quantization and has the same is told together.
        reason: None where there is no record that tells.
        missing: what was not measured.
    """

    key: Key
    kind: str
    reason: Reason | None
    missing: str

    @property
    def needed_bytes(self) -> tuple[int, int] | None:
        """What it needs, and what there is, of the memory that is short; None where that is not the cause."""
        if self.kind != "memory" or self.reason is None:
            return None
        facts = self.reason.evidence
        for need, there in (("device_bytes", "device_free_bytes"), ("required_bytes", "available_bytes")):
            found = facts.get(need), facts.get(there)
            if isinstance(found[0], int) and isinstance(found[1], int) and found[0] > found[1]:
                return found[0], found[1]
        predicted, margin, available = (
            facts.get("predicted_bytes"),
            facts.get("margin_bytes"),
            facts.get("available_bytes"),
        )
        if isinstance(predicted, int) and isinstance(available, int):
            return predicted - (margin if isinstance(margin, int) else 0), available
        return None


def exclusions(
    records: Sequence[CellRecord], candidates: Collection[Key], missing: Mapping[Key, Sequence[str]]
) -> list[Exclusion]:
    """Every configuration that has a record and is no candidate, by model and from few bits to many.

    Args:
        missing: of each configuration, the profiles (or metrics that the use requires) it was not measured in; those
            that are no candidate and miss none are of no interest here.
    """
    by_key: dict[Key, list[CellRecord]] = {}
    for record in records:
        if (key := key_of(record)) not in candidates and missing.get(key):
            by_key.setdefault(key, []).append(record)
    found = [_exclusion(key, cells, missing[key]) for key, cells in by_key.items()]
    return sorted(found, key=lambda one: (one.key[0], one.key[2:], rough_bits(one.key[1]), one.key[1]))


def _exclusion(key: Key, cells: Sequence[CellRecord], missing: Sequence[str]) -> Exclusion:
    telling = sorted((cell for cell in cells if cell.profile in missing), key=lambda cell: cell.nodeid)
    memory = [cell for cell in telling if cell.reason is not None and cell.reason.code in _MEMORY_CODES]
    for cell in memory or [cell for cell in telling if cell.reason is not None]:
        code = cell.reason.code if cell.reason is not None else ""
        return Exclusion(key, "memory" if memory else f"{cell.status}:{code}", cell.reason, cell.profile)
    return Exclusion(key, f"unknown:{','.join(missing)}", None, listed(missing))


def told(found: Sequence[Exclusion], names: Names) -> tuple[str, ...]:
    """The sentences, one for what a model's quantizations have in common."""
    groups: dict[tuple[str, str, str], list[Exclusion]] = {}
    for one in found:
        groups.setdefault((one.key[0], names.rest(one.key), one.kind), []).append(one)
    return tuple(_sentence(model, rest, group) for (model, rest, _), group in groups.items())


def _sentence(model: str, rest: str, group: Sequence[Exclusion]) -> str:
    quantizations = [one.key[1] for one in group]
    several = len(group) > 1
    if len(group) > _LISTED:
        who = f"{model}{rest}, {len(group)} quantizations ({quantizations[0]} to {quantizations[-1]})"
    else:
        who = f"{model} {listed(quantizations)}{rest}"
    sizes = [size for size in (one.needed_bytes for one in group) if size is not None]
    if sizes:
        least, there = min(sizes)[0], max(size[1] for size in sizes)
        verb = "do not fit" if several else "does not fit"
        return (
            f"{who} {verb}: {'at least ' if several else ''}{gigabytes(least)} needed, {gigabytes(there)} may be used"
        )
    first = group[0]
    status = first.kind.partition(":")[0]
    if first.reason is None or status not in _SAID:
        return f"{who}: not measured: {first.missing}"
    message = first_line(first.reason.message.replace(f"; {RUN_ANYWAY}", ""))
    return f"{who}: {_SAID[status]}: {message}"
