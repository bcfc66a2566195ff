"""The same cell in two runs: whether its numbers can be compared, how far they are apart, and what that means."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from pydantic import Field

from pytest_llmbench.core.baseline import (
    COMPARED,
    MEMORY,
    OVER_LOADS,
    SAME_WORK,
    SAME_WORK_OF_OTHERS,
    SCORE,
    Baseline,
    BaselineCell,
    compared_metrics,
)
from pytest_llmbench.core.comparison import holm
from pytest_llmbench.core.environment import shown
from pytest_llmbench.core.metrics import METRICS
from pytest_llmbench.core.records import FLAGS, Change, MetricComparison, Record
from pytest_llmbench.core.regression import Contrast, contrast, contrast_answers, contrast_values, judge
from pytest_llmbench.core.spreads import Spreads

Pair = tuple[BaselineCell, BaselineCell]  # of the earlier run, of the later one


class CellComparison(Record):
    """A cell that both runs hold.

    Attributes:
        refusal: why no number of it can be compared; None where they can.
        notes: what else is another now, and may explain a change: settings, flags, a verdict of thresholds.
        metrics: of a cell that can not be compared, with the verdict ``not_comparable``.
    """

    nodeid: str
    model: str
    quantization: str
    variant: str | None
    profile: str
    refusal: str | None = None
    notes: list[str] = Field(default_factory=list)
    metrics: list[MetricComparison] = Field(default_factory=list)

    @property
    def name(self) -> str:
        """For people: ``<model> <quantization> [<variant>] <profile>``."""
        return " ".join(filter(None, (self.model, self.quantization, self.variant, self.profile)))

    @property
    def is_compared(self) -> bool:
        """Whether more than its memory could be compared, or its memory is worse, or is all there is."""
        told = {one.metric for one in self.metrics if one.verdict != "not_comparable"}
        return bool(told - {MEMORY} or self.having("regressed") or (told and len(self.metrics) == 1))

    def having(self, verdict: Change) -> list[MetricComparison]:
        """The metrics with a verdict."""
        return [metric for metric in self.metrics if metric.verdict == verdict]


def why_not_comparable(old: BaselineCell, new: BaselineCell) -> str | None:
    """Why the numbers of the same cell in two runs say nothing about a change; None where they do.

    Other hardware, another model file, or other work.
    """
    reasons = []
    if old.host != new.host:
        reasons.append(f"measured on other hardware ({old.host} → {new.host})")
    elif old.gpus != new.gpus and old.gpus is not None and new.gpus is not None:
        reasons.append(f"measured on other GPUs ({old.gpus} → {new.gpus})")
    if old.file_sha256 is not None and new.file_sha256 is not None and old.file_sha256 != new.file_sha256:
        reasons.append(f"another model file (sha256 {shown(old.file_sha256)} → {shown(new.file_sha256)})")
    elif old.file_bytes is not None and new.file_bytes is not None and old.file_bytes != new.file_bytes:
        reasons.append(f"another model file ({old.file_bytes} → {new.file_bytes} bytes)")
    for key, what in SAME_WORK.get(new.profile, SAME_WORK_OF_OTHERS).items():
        if old.work.get(key) != new.work.get(key):
            reasons.append(f"another {what} ({shown(old.work.get(key))} → {shown(new.work.get(key))})")
    return "; ".join(reasons) or None


def contrasts_of(old: BaselineCell, new: BaselineCell, spreads: Spreads) -> list[Contrast]:
    """Each metric that both hold, not judged yet; of cells that can be compared.

    One that can not be compared all the same is left out: without samples, without a direction, with numbers that no
    arithmetic takes. :func:`judged_cell` tells of those.
    """
    return [one for one in _contrasts(old, new, spreads).values() if isinstance(one, Contrast)]


def judged_cell(
    old: BaselineCell, new: BaselineCell, spreads: Spreads, limit_percent: float, comparisons: int
) -> CellComparison:
    """A cell by itself, while others are still to come: p-values are adjusted by Bonferroni.

    Args:
        limit_percent: how much worse counts; of scores, percentage points.
        comparisons: how many tests are made in the whole run, see :func:`comparable_count`.
    """
    if (refusal := why_not_comparable(old, new)) is not None:
        return _refused(old, new, refusal, limit_percent)
    found = _contrasts(old, new, spreads)
    adjusted = [min(1.0, p * max(1, comparisons)) for p in _p_values(found)]
    return _judged(old, new, found, adjusted=adjusted, limit_percent=limit_percent, comparisons=comparisons)


def comparable_count(baseline: Baseline, nodeids: Collection[str]) -> int:
    """How many tests these cells make with a baseline at most: metrics that have samples or answers there.

    A cell whose file was moved counts, too.
    """
    selected = set(nodeids)
    moved = {nodeid.partition("::")[2] for nodeid in selected - {cell.nodeid for cell in baseline.cells}}
    cells = [
        cell
        for cell in baseline.cells
        if cell.is_measured and (cell.nodeid in selected or cell.nodeid.partition("::")[2] in moved)
    ]
    return sum(bool(metric.samples) or name == SCORE for cell in cells for name, metric in cell.metrics.items())


def judged_cells(pairs: Sequence[Pair], spreads: Spreads, limit_percent: float) -> list[CellComparison]:
    """Cells judged together: p-values are adjusted after Holm, over all of them."""
    refusals = [why_not_comparable(old, new) for old, new in pairs]
    contrasts = [
        _contrasts(old, new, spreads) if refusal is None else {}
        for (old, new), refusal in zip(pairs, refusals, strict=True)
    ]
    p_values = [p for found in contrasts for p in _p_values(found)]
    adjusted, count = iter(holm(p_values)), len(p_values)
    judged = []
    for (old, new), refusal, found in zip(pairs, refusals, contrasts, strict=True):
        if refusal is not None:
            judged.append(_refused(old, new, refusal, limit_percent))
            continue
        own = [next(adjusted) for _ in _p_values(found)]
        judged.append(_judged(old, new, found, adjusted=own, limit_percent=limit_percent, comparisons=count))
    return judged


def _contrasts(old: BaselineCell, new: BaselineCell, spreads: Spreads) -> dict[str, Contrast | str]:
    """By metric; a sentence for one that can not be compared."""
    return {name: _contrast(old, new, name, spreads) for name in _names(old, new)}


def _contrast(old: BaselineCell, new: BaselineCell, name: str, spreads: Spreads) -> Contrast | str:
    then, now = old.metrics.get(name), new.metrics.get(name)
    if then is None or now is None:
        return "it was not measured then" if then is None else "it was measured then, and is not now"
    try:
        if name == SCORE:
            rows = ([{"id": key, "correct": one} for key, one in cell.answers.items()] for cell in (old, new))
            return contrast_answers(name, *rows)
        if METRICS[name].exact:
            return contrast_values(name, then.value, now.value)
        if not then.samples or not now.samples:
            when = "the earlier run" if not then.samples else "the later run"
            return f"{when} holds no samples of it; measure it again"
        return contrast(name, then.samples, now.samples, spreads.of(name, (old, new)))
    except KeyError:
        return "this version does not know it"
    except (ValueError, ArithmeticError) as exc:
        return str(exc)


def _names(old: BaselineCell, new: BaselineCell) -> list[str]:
    """In the order of the profile's table; a file has them in that of the alphabet."""
    measured = {*old.metrics, *new.metrics}
    known = [name for name in compared_metrics(new.profile, METRICS) if name in measured]
    return known + sorted(measured - set(known))


def _p_values(found: Mapping[str, Contrast | str]) -> list[float]:
    return [one.p_value for one in found.values() if isinstance(one, Contrast) and one.p_value is not None]


def _judged(
    old: BaselineCell,
    new: BaselineCell,
    found: Mapping[str, Contrast | str],
    *,
    adjusted: Iterable[float],
    limit_percent: float,
    comparisons: int,
) -> CellComparison:
    """Contrasts with their verdicts; ``adjusted``: of those that have a p-value, in their order."""
    p_values, metrics = iter(adjusted), []
    can_repeat = new.profile in OVER_LOADS or new.profile not in COMPARED
    for name, one in found.items():
        if isinstance(one, str):
            metrics.append(_not_comparable(old, new, name, one, limit_percent))
        else:
            p_value = next(p_values) if one.p_value is not None else None
            metrics.append(judge(one, limit_percent, p_value, comparisons, can_repeat=can_repeat))
    return _cell(old, new, metrics)


def _refused(old: BaselineCell, new: BaselineCell, refusal: str, limit_percent: float) -> CellComparison:
    metrics = [_not_comparable(old, new, name, refusal, limit_percent) for name in _names(old, new)]
    return _cell(old, new, metrics, refusal)


def _not_comparable(
    old: BaselineCell, new: BaselineCell, name: str, why: str, limit_percent: float
) -> MetricComparison:
    then, now = old.metrics.get(name), new.metrics.get(name)
    return MetricComparison(
        metric=name,
        old=then.value if then is not None else None,
        new=now.value if now is not None else None,
        ratio=None,
        ci_low=None,
        ci_high=None,
        p_value=None,
        limit_percent=limit_percent,
        verdict="not_comparable",
        message=why,
    )


def _cell(
    old: BaselineCell, new: BaselineCell, metrics: list[MetricComparison], refusal: str | None = None
) -> CellComparison:
    return CellComparison(
        nodeid=new.nodeid,
        model=new.model,
        quantization=new.quantization,
        variant=new.variant,
        profile=new.profile,
        refusal=refusal,
        notes=_notes(old, new),
        metrics=metrics,
    )


def _notes(old: BaselineCell, new: BaselineCell) -> list[str]:
    """What else is another now."""
    then = {"backend": old.backend, "server": old.server_version, "device": old.device, **old.settings}
    now = {"backend": new.backend, "server": new.server_version, "device": new.device, **new.settings}
    notes = [
        f"{key}: {shown(then.get(key))} → {shown(now.get(key))}"
        for key in dict.fromkeys([*then, *now])
        if then.get(key) != now.get(key)
    ]
    for when, flags, others in (("then", old.flags, new.flags), ("now", new.flags, old.flags)):
        notes += [f"only {when}: {FLAGS.get(flag, flag)}" for flag in flags if flag not in others]
    if old.status != new.status:
        notes.append(f"its thresholds: {old.status} → {new.status}")
    return notes
