"""Two runs beside each other: the same cells found, what can not be compared told apart, the rest judged together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pydantic import Field, computed_field

from pytest_llmbench.core.baseline import FILLED, TEST_SIZES, Baseline, BaselineCell
from pytest_llmbench.core.cell_comparison import CellComparison, Pair, judged_cells
from pytest_llmbench.core.environment import Difference, differences
from pytest_llmbench.core.records import Finite, Record
from pytest_llmbench.core.spreads import Spreads

_NAMED = 5  # cells in a sentence


class Absence(Record):
    """A cell that only one of the runs measured, and why, as far as that is known."""

    nodeid: str
    name: str
    reason: str


class RunComparison(Record):
    """All that is found between an earlier run and a later one.

    Attributes:
        old, new: ids of the runs.
        limit_percent: how much worse counts; of scores, percentage points.
        differences: between the environments, what weighs most first.
        broken: measured then, and now an error, not to be trusted, or with less of the context filled.
        missing: measured then, and now not tried, for a reason that is no fault.
        added: measured now, and not then.
    """

    old: str
    new: str
    limit_percent: Finite
    differences: list[Difference] = Field(default_factory=list)
    cells: list[CellComparison] = Field(default_factory=list)
    broken: list[Absence] = Field(default_factory=list)
    missing: list[Absence] = Field(default_factory=list)
    added: list[Absence] = Field(default_factory=list)

    @property
    def compared(self) -> list[CellComparison]:
        """The cells of which something could be compared that a verdict can rest on."""
        return [cell for cell in self.cells if cell.is_compared]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def exit_status(self) -> int:
        """0: nothing is known to be worse. 1: something is, something broke, or nothing could be compared."""
        is_worse = any(cell.having("regressed") for cell in self.cells)
        return 1 if is_worse or self.broken or not self.compared else 0

    @computed_field  # type: ignore[prop-decorator]
    @property
    def sentence(self) -> str:
        """The answer."""
        better = sum(bool(cell.having("improved")) for cell in self.compared)
        left_out = len(self.cells) - len(self.compared)
        parts = [
            self._verdict() if self.compared else self._nothing(),
            f"{better} became better by more than that" if better else "",
            f"{_cells(left_out)} could not be compared" if left_out and self.compared else "",
            f"{_cells(len(self.broken))} broke: {_list(one.name for one in self.broken)}" if self.broken else "",
        ]
        itself = f"Both are run {self.new}, which tells nothing of a change. " if self.old == self.new else ""
        return itself + "; ".join(filter(None, parts))

    def _nothing(self) -> str:
        if self.cells:
            return "Nothing could be compared: see the reasons"
        return f"Nothing could be compared: {self.old} and {self.new} have no cell that both measured"

    def _verdict(self) -> str:
        count, limit = len(self.compared), f"{self.limit_percent:g} %"
        worse = [(cell, cell.having("regressed")) for cell in self.compared if cell.having("regressed")]
        open_ = sum(bool(cell.having("inconclusive")) for cell in self.compared)
        if worse:
            names = _list(f"{cell.name} ({', '.join(one.metric for one in found)})" for cell, found in worse)
            return f"{len(worse)} of {_cells(count)} became worse by more than {limit}: {names}"
        if open_:
            if count == 1:
                return (
                    f"Whether the one cell that was compared became worse by more than {limit} can not be told: "
                    "see what would be needed"
                )
            return (
                f"No evidence that any of {_cells(count)} became worse by more than {limit}, but in {open_} of them "
                "that can not be told: see what would be needed"
            )
        if count == 1:
            return f"The one cell that was compared did not become worse by more than {limit}"
        return f"None of {_cells(count)} became worse by more than {limit}"


def compare(old: Baseline, new: Baseline, limit_percent: float, stored: Sequence[Baseline] = ()) -> RunComparison:
    """Compare two runs.

    Args:
        limit_percent: how much worse counts; of scores, percentage points.
        stored: earlier runs of the same output folder, without these two: they tell how much loads differ.
    """
    pairs, only_old, only_new = _matched(old.cells, new.cells)
    spreads = Spreads((old, new), stored)
    both = [(then, now) for then, now in pairs if then.is_measured and now.is_measured]
    compared = judged_cells(both, spreads, limit_percent)
    return RunComparison(
        old=old.run_id,
        new=new.run_id,
        limit_percent=limit_percent,
        differences=differences(old.environment, new.environment),
        cells=[cell for cell in compared if cell.metrics],
        broken=[broken for then, now in pairs if (broken := _broken(then, now)) is not None],
        missing=[
            *(_absence(then, _not_selected(new)) for then in only_old if then.is_measured),
            *(
                _absence(then, f"{now.status} now ({now.reason or 'no reason given'})")
                for then, now in pairs
                if then.is_measured and now.status in {"skipped", "blocked"}
            ),
        ],
        added=[
            *(_absence(now, "not in the earlier run") for now in only_new if now.is_measured),
            *(
                _absence(now, f"{then.status} then ({then.reason or 'no reason given'})")
                for then, now in pairs
                if now.is_measured and not then.is_measured
            ),
        ],
    )


def _broken(old: BaselineCell, new: BaselineCell) -> Absence | None:
    """Measured then; now it could not be, or no longer as far."""
    if not old.is_measured:
        return None
    if new.status in {"error", "invalid"}:
        return _absence(new, f"{new.status} ({new.reason or 'no reason given'})")
    then, now = old.work.get(FILLED), new.work.get(FILLED)
    same_sizes = old.work.get(TEST_SIZES) == new.work.get(TEST_SIZES)
    if isinstance(then, int) and isinstance(now, int) and now < then and same_sizes and new.is_measured:
        return _absence(new, f"the largest context that could be filled: {then} → {now} tokens")
    return None


def _absence(cell: BaselineCell, reason: str) -> Absence:
    return Absence(nodeid=cell.nodeid, name=cell.name, reason=reason)


def _not_selected(new: Baseline) -> str:
    return f"run {new.run_id} has no record of it: not selected, or the run was cut short"


def _matched(
    old: Sequence[BaselineCell], new: Sequence[BaselineCell]
) -> tuple[list[Pair], list[BaselineCell], list[BaselineCell]]:
    """Cells of both runs, then those of one only: by node id, and what is left by node id without the file."""
    pairs: list[Pair] = []
    for key_of in (_with_nodeid, _without_nodeid):
        by_key = {key_of(cell): cell for cell in old}
        pairs += [
            (by_key[key_of(cell)], cell)
            for cell in {key_of(one): one for one in new}.values()
            if key_of(cell) in by_key
        ]
        taken = {id(cell) for pair in pairs for cell in pair}
        old, new = ([cell for cell in side if id(cell) not in taken] for side in (old, new))
    return sorted(pairs, key=lambda pair: pair[1].nodeid), list(old), list(new)


def _with_nodeid(cell: BaselineCell) -> tuple[str | None, ...]:
    return (*cell.key, cell.nodeid)


def _without_nodeid(cell: BaselineCell) -> tuple[str | None, ...]:
    return cell.key


def _cells(count: int) -> str:
    return f"{count} cell" if count == 1 else f"{count} cells"


def _list(names: Iterable[str]) -> str:
    """The first of them, and how many more there are."""
    listed = list(names)
    more = len(listed) - _NAMED
    return ", ".join(listed[:_NAMED]) + (f" and {more} more" if more > 0 else "")
