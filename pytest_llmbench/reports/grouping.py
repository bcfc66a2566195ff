"""A run's cells by configuration: what stands in one row, or under one heading."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pytest_llmbench.core.records import CellRecord
from pytest_llmbench.core.scores import configurations


@dataclass(slots=True)
class ConfigurationCells:
    """The cells of a model as it was run.

    Attributes:
        measured: of each profile the cell that stands for it: the first that measured something, else the first.
        others: cells of the same profiles that do not, such as a user's own tests.
        cost_benefit_score: see :func:`~pytest_llmbench.core.scores.configurations`; None where it can not be told.
    """

    model: str
    quantization: str
    variant: str | None
    measured: dict[str, CellRecord] = field(default_factory=dict)
    others: list[CellRecord] = field(default_factory=list)
    cost_benefit_score: float | None = None

    def add(self, record: CellRecord) -> None:
        """Take in one more cell."""
        known = self.measured.get(record.profile)
        if known is None:
            self.measured[record.profile] = record
        elif record.metrics and not known.metrics:
            self.measured[record.profile] = record
            self.others.append(known)
        else:
            self.others.append(record)

    @property
    def cells(self) -> tuple[CellRecord, ...]:
        """All of them."""
        return (*self.measured.values(), *self.others)

    @property
    def size_gb(self) -> float | None:
        """The model's file, in 10⁹ bytes; None where no cell knows it."""
        sizes = [cell.model_file.size_bytes for cell in self.cells if cell.model_file is not None]
        return round(sizes[0] / 1e9, 3) if sizes else None

    @property
    def memory_gb(self) -> float | None:
        """The most memory that a server of it was seen to have, in 10⁹ bytes."""
        return _most_gb(cell.memory.observed_peak_bytes for cell in self.cells if cell.memory is not None)

    @property
    def predicted_memory_gb(self) -> float | None:
        """The most that was predicted, in 10⁹ bytes."""
        return _most_gb(cell.memory.predicted_bytes for cell in self.cells if cell.memory is not None)


def by_configuration(records: Sequence[CellRecord]) -> list[ConfigurationCells]:
    """Cells by model, quantization and variant, whatever came first."""
    groups: dict[tuple[str, str, str | None], ConfigurationCells] = {}
    for record in records:
        key = (record.model, record.quantization, record.variant)
        groups.setdefault(key, ConfigurationCells(*key)).add(record)
    for one in configurations(records):
        groups[one.model, one.quantization, one.variant].cost_benefit_score = one.cost_benefit_score
    return list(groups.values())


def _most_gb(sizes: Iterable[int | None]) -> float | None:
    known = [size for size in sizes if size is not None]
    return round(max(known) / 1e9, 3) if known else None
