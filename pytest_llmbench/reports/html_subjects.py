"""What a run measured, by what it was: a model as it was run, with its cells of all profiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pytest_llmbench.core.blocking_evidence import parameters, rough_bits
from pytest_llmbench.core.records import CellRecord, MetricValue
from pytest_llmbench.reports.html_text import model_of, shown

_MACHINE_CHARACTERS = 6  # of a fingerprint, enough to tell a few apart


@dataclass
class Subject:
    """A model in a quantization, in a variant, on a server, on a machine.

    Attributes:
        model: with what else tells it from others of the run: variant, and backend and host where there are several.
        size: the label, such as ``7B``.
        alone: no other model is in the run, so that the quantization is name enough.
    """

    model: str
    quantization: str
    size: str
    alone: bool = False
    cells: list[CellRecord] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.model} {self.quantization}"

    @property
    def short_name(self) -> str:
        """For where there is little room."""
        return self.quantization if self.alone else self.name

    @property
    def parameters(self) -> float | None:
        """By its label; None for one that can not be read."""
        return parameters(self.size)

    @property
    def file_gb(self) -> float | None:
        """Of the model's file; None where the server brings its own."""
        return next((cell.model_file.size_bytes / 1e9 for cell in self.cells if cell.model_file is not None), None)

    def of(self, profile: str) -> Iterator[CellRecord]:
        """Its cells of a profile."""
        return (cell for cell in self.cells if cell.profile == profile)

    def metric(self, name: str, profile: str | None = None) -> MetricValue | None:
        """The first that was measured, of a profile or of any."""
        cells = self.cells if profile is None else self.of(profile)
        return next((cell.metrics[name] for cell in cells if name in cell.metrics), None)

    def most(self, name: str) -> MetricValue | None:
        """The largest of all its cells."""
        found = [cell.metrics[name] for cell in self.cells if name in cell.metrics]
        return max(found, key=lambda metric: metric.value, default=None)


def subjects(records: Sequence[CellRecord]) -> list[Subject]:
    """In the order of the records."""
    found: dict[tuple[str, str, str | None, str, str], Subject] = {}
    names = _Names(records)
    for record in records:
        key = (record.model, record.quantization, record.variant, record.backend, record.host)
        if key not in found:
            quantization = shown(record.quantization, 24)
            found[key] = Subject(names.of(record), quantization, record.model_size)
        found[key].cells.append(record)
    alone = len({one.model for one in found.values()}) == 1
    for one in found.values():
        one.alone = alone
    return list(found.values())


def by_bits(quantizations: Iterator[str] | Sequence[str]) -> list[str]:
    """Quantizations, the fewest bits per weight first."""
    return sorted(dict.fromkeys(quantizations), key=lambda name: (rough_bits(name), name))


class _Names:
    """Names of a run's models: no longer than it takes to tell them apart."""

    def __init__(self, records: Sequence[CellRecord]) -> None:
        self._several_backends = len({record.backend for record in records}) > 1
        self._several_hosts = len({record.host for record in records}) > 1

    def of(self, record: CellRecord) -> str:
        name = model_of(record)
        if self._several_backends:
            name += f" · {shown(record.backend, 24)}"
        if self._several_hosts:
            name += f" · {shown(record.host[:_MACHINE_CHARACTERS])}"
        return name
