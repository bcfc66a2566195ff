"""What a quantization costs in quality: the same questions, answered by two quantizations of one model.

The questions are paired, so what counts is how many only one of the two answered correctly: exact McNemar tests, their
p-values adjusted after Holm for all that are made of a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from pytest_llmbench.core.blocking_evidence import rough_bits
from pytest_llmbench.core.comparison import holm
from pytest_llmbench.core.proportions import mcnemar_p
from pytest_llmbench.core.records import CellRecord
from pytest_llmbench.errors import Primitive

SIGNIFICANCE = 0.05
PROFILE = "quality"
DETAILS_TABLE = "questions"

# What has to be the same for two cells to have been asked the same, and what it is called.
_SAME = {
    "bank_version": "version of the questions",
    "bank_fingerprint": "content of the questions",
    "output_tokens": "greatest length of an answer",
}
# What one had better not use a quantization for that has lost in a category.
_USE_OF_CATEGORY = {
    "math": "calculation",
    "comprehension": "questions about a text",
    "reasoning": "logical reasoning",
    "format": "output that a program reads",
}


@dataclass(frozen=True, slots=True)
class Discordance:
    """Questions that both were asked, of one category or all.

    Attributes:
        only_baseline: answered correctly by the baseline and not by the other.
        only_other: the other way round.
        p_value: exact McNemar, two-sided, not adjusted.
        adjusted_p_value: after Holm, over all comparisons of the run of the same kind: of whole scores, or of
            categories.
    """

    asked: int
    baseline_correct: int
    other_correct: int
    only_baseline: int
    only_other: int
    p_value: float
    adjusted_p_value: float

    @property
    def lost_points(self) -> float:
        """Percentage points of score by which the other is worse."""
        return 100 * (self.baseline_correct - self.other_correct) / self.asked

    @property
    def is_significant(self) -> bool:
        return self.adjusted_p_value < SIGNIFICANCE


@dataclass(frozen=True, slots=True)
class QuantizationComparison:
    """One quantization beside the baseline.

    Attributes:
        whole: over all questions; None where the two can not be compared.
        categories: the same by category, in the order in which they were asked.
        refusal: why they can not be compared.
    """

    model: str
    variant: str | None
    backend: str
    quantization: str
    baseline: str
    whole: Discordance | None = None
    categories: Mapping[str, Discordance] = field(default_factory=dict)
    refusal: str | None = None

    @property
    def retained_percent(self) -> float | None:
        """The other's score over the baseline's; None where they can not be compared, or the baseline has none."""
        if self.whole is None or not self.whole.baseline_correct:
            return None
        return 100 * self.whole.other_correct / self.whole.baseline_correct

    @property
    def sentence(self) -> str:
        """What follows, for people: categories that are significantly worse, else the whole score."""
        if self.whole is None:
            return f"{self.quantization} can not be compared with {self.baseline}: {self.refusal}"
        losses = [
            _loss(name, found)
            for name, found in self.categories.items()
            if found.is_significant and found.lost_points > 0
        ]
        whole = _whole(self.whole, self.retained_percent, self.baseline)
        return f"{self.quantization} {'; '.join([*losses, whole] if self.whole.is_significant else losses or [whole])}"


def compare_quantizations(records: Sequence[CellRecord], baseline: str | None) -> list[QuantizationComparison]:
    """Compare the quantizations of every model, variant and backend among a run's records.

    Args:
        records: of any profiles; those of the quality profile that hold answers count. Of two of the same cell, the
            later one does.
        baseline: a quantization; None: the one with the most bits per weight that was measured.

    Returns:
        One for each quantization but the baseline, most bits first. None for a model whose baseline was not measured.
    """
    found: list[QuantizationComparison] = []
    for cells in _groups(records):
        chosen = _baseline(cells, baseline)
        if chosen is not None:
            others = sorted(cells, key=lambda cell: -rough_bits(cell.quantization))
            found.extend(_compare(chosen, other) for other in others if other is not chosen)
    return _adjusted(found)


def _groups(records: Sequence[CellRecord]) -> list[list[CellRecord]]:
    """Cells that differ in nothing but the quantization."""
    groups: dict[tuple[str | None, ...], dict[str, CellRecord]] = {}
    for record in records:
        if record.profile == PROFILE and record.details.get(DETAILS_TABLE):
            test = record.nodeid.partition("[")[0]
            key = (test, record.model, record.variant, record.backend, record.host)
            groups.setdefault(key, {})[record.quantization] = record
    return [list(group.values()) for group in groups.values()]


def _baseline(cells: Sequence[CellRecord], asked_for: str | None) -> CellRecord | None:
    if asked_for is not None:
        return next((cell for cell in cells if cell.quantization.upper() == asked_for.upper()), None)
    return max(cells, key=lambda cell: rough_bits(cell.quantization))


def _compare(baseline: CellRecord, other: CellRecord) -> QuantizationComparison:
    comparison = QuantizationComparison(
        other.model, other.variant, other.backend, other.quantization, baseline.quantization
    )
    for key, what in _SAME.items():
        ours, theirs = other.sampling.get(key), baseline.sampling.get(key)
        if ours != theirs:
            return replace(comparison, refusal=f"they differ in the {what} ({ours} and {theirs}); measure them again")
    answers = _pairs(baseline, other)
    if not answers:
        return replace(comparison, refusal="no question was asked of both; measure them with the same set")
    names = dict.fromkeys(str(row["category"]) for row, _ in answers)
    return replace(
        comparison,
        whole=_discordance(answers),
        categories={name: _discordance([pair for pair in answers if pair[0]["category"] == name]) for name in names},
    )


_Row = Mapping[str, Primitive]


def _pairs(baseline: CellRecord, other: CellRecord) -> list[tuple[_Row, _Row]]:
    """The answers to each question that both were asked."""
    theirs = {row["id"]: row for row in other.details[DETAILS_TABLE]}
    return [(row, theirs[row["id"]]) for row in baseline.details[DETAILS_TABLE] if row["id"] in theirs]


def _discordance(pairs: Sequence[tuple[_Row, _Row]]) -> Discordance:
    correct = [(bool(row["correct"]), bool(other["correct"])) for row, other in pairs]
    only_baseline, only_other = correct.count((True, False)), correct.count((False, True))
    both = correct.count((True, True))
    p_value = mcnemar_p(only_baseline, only_other)
    return Discordance(len(pairs), both + only_baseline, both + only_other, only_baseline, only_other, p_value, p_value)


def _adjusted(found: Sequence[QuantizationComparison]) -> list[QuantizationComparison]:
    """Adjust the p-values of whole scores for their number, and those of categories for theirs."""
    wholes = iter(holm([one.whole.p_value for one in found if one.whole is not None]))
    parts = iter(holm([part.p_value for one in found for part in one.categories.values()]))
    return [
        replace(
            one,
            whole=replace(one.whole, adjusted_p_value=next(wholes)) if one.whole is not None else None,
            categories={name: replace(part, adjusted_p_value=next(parts)) for name, part in one.categories.items()},
        )
        for one in found
    ]


def _loss(category: str, found: Discordance) -> str:
    use = _USE_OF_CATEGORY.get(category)
    advice = f": avoid it for {use}" if use is not None else ""
    return f"loses {found.lost_points:.0f} points on {category} ({_evidence(found)}){advice}"


def _whole(found: Discordance, retained_percent: float | None, baseline: str) -> str:
    if retained_percent is None:
        said = f"answers {found.other_correct} of {found.asked} questions correctly, {baseline} none"
    else:
        said = f"retains {retained_percent:.0f} % of {baseline}'s score"
    return f"{said} ({_evidence(found)})"


def _evidence(found: Discordance) -> str:
    if not found.is_significant:
        return f"no evidence of difference, n = {found.asked}"
    p = found.adjusted_p_value
    return f"p {'< 0.001' if p < 0.001 else f'= {p:.3f}'} after Holm, n = {found.asked}"
