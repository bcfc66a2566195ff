"""How much loads of a model differ on a host, from all that is known of it but the two cells that are compared."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pytest_llmbench.core.baseline import Baseline, BaselineCell, BaselineSpread
from pytest_llmbench.core.spread import Spread, between_loads

_Key = tuple[str, str, str]  # profile, metric, host


@dataclass(frozen=True, slots=True)
class _Squares:
    """A sum of squared deviations of logarithms, and its degrees of freedom."""

    total: float = 0.0
    degrees: int = 0

    @classmethod
    def of(cls, spread: Spread | None) -> _Squares:
        return cls() if spread is None else cls(spread.log_sd**2 * spread.degrees, spread.degrees)

    def plus(self, other: _Squares) -> _Squares:
        return _Squares(self.total + other.total, self.degrees + other.degrees)

    def minus(self, other: _Squares) -> _Squares:
        return _Squares(max(0.0, self.total - other.total), self.degrees - other.degrees)


class Spreads:
    """How much loads differ, by profile, metric and host: pooled over cells, without the two that are compared.

    Each cell of the runs has its own mean, and so does each cell of the stored runs, over all of them: there, what
    differs from one session to the next counts, too, as long as model, settings, work and server's version are the
    same.

    Args:
        runs: that are compared. What one that was saved knows of the runs beside it counts where none are stored here.
        stored: earlier runs, without those.
    """

    def __init__(self, runs: Sequence[Baseline], stored: Sequence[Baseline] = ()) -> None:
        self._found: defaultdict[_Key, _Squares] = defaultdict(_Squares)
        self._has_stored: set[_Key] = set()
        self._count = len(stored)
        self._runs = tuple(runs)  # so that no other object gets the identity of one of their cells
        self._own: dict[tuple[int, str], _Squares] = {}
        for cell in (one for run in runs for one in run.cells if one.is_measured):
            for name, told in cell.metrics.items():
                self._own[id(cell), name] = squares = _Squares.of(between_loads([told.samples]))
                self._add(cell, name, squares)
        for cells in _alike(stored):
            for metric in dict.fromkeys(name for cell in cells for name in cell.metrics):
                loads = [load for cell in cells if metric in cell.metrics for load in cell.metrics[metric].samples]
                spread = _Squares.of(between_loads([loads]))
                if spread.degrees:
                    self._add(cells[0], metric, spread)
                    self._has_stored.add((cells[0].profile, metric, cells[0].host))
        for saved in (one for run in runs for one in run.spreads):
            key = (saved.profile, saved.metric, saved.host)
            if key not in self._has_stored:
                self._found[key] = self._found[key].plus(_Squares(saved.log_sd**2 * saved.degrees, saved.degrees))

    def of(self, metric: str, cells: Sequence[BaselineCell]) -> Spread | None:
        """The spread of all but these cells, which are one cell in both runs; None where nothing is known.

        One of them may be of a run that was not given, which need not have ended.
        """
        profile, host = cells[0].profile, cells[0].host
        found = self._found.get((profile, metric, host), _Squares())
        for cell in cells:
            found = found.minus(self._own.get((id(cell), metric), _Squares()))
        if found.degrees < 1:
            return None
        stored = f" and {self._count} stored runs" if (profile, metric, host) in self._has_stored else ""
        return Spread(math.sqrt(found.total / found.degrees), found.degrees, f"other cells of these runs{stored}")

    def saved(self, host: str) -> list[BaselineSpread]:
        """What is known of one machine, for a baseline's file."""
        return [
            BaselineSpread(
                profile=profile,
                metric=metric,
                host=host,
                log_sd=float(f"{math.sqrt(found.total / found.degrees):.4g}"),
                degrees=found.degrees,
                source=f"{self._count} stored runs",
            )
            for (profile, metric, where), found in sorted(self._found.items())
            if where == host and found.degrees
        ]

    def _add(self, cell: BaselineCell, metric: str, squares: _Squares) -> None:
        key = (cell.profile, metric, cell.host)
        self._found[key] = self._found[key].plus(squares)


def _alike(runs: Iterable[Baseline]) -> list[list[BaselineCell]]:
    """The measured cells of several runs that nothing is known to tell apart."""
    groups: defaultdict[tuple[object, ...], list[BaselineCell]] = defaultdict(list)
    for run in runs:
        for cell in run.cells:
            if cell.is_measured:
                alike = (sorted(cell.settings.items(), key=str), sorted(cell.work.items(), key=str))
                made = (cell.host, cell.backend, cell.server_version, cell.file_sha256, cell.device)
                groups[(*cell.key, *made, str(alike))].append(cell)
    return list(groups.values())
