"""Thresholds: which keys a profile knows, whether a written limit makes sense, and the three-valued verdict."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pytest_llmbench.core.metrics import (
    FOUNDING_THRESHOLDS,
    METRICS,
    SETTINGS_AMONG_THRESHOLDS,
    ThresholdKey,
    format_quantity,
)
from pytest_llmbench.core.records import MetricComparison, MetricValue, ThresholdResult
from pytest_llmbench.core.yaml_source import nearest, shown
from pytest_llmbench.errors import RegressionFailure, ThresholdFailure


class UnusableThreshold(ValueError):
    """A threshold key or limit that can not be used; the caller adds file and line."""


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit in force."""

    key: str
    metric: str
    side: Literal["min", "max"]
    value: float
    critical: bool


def known_keys(profile: str, emitted: Iterable[str]) -> dict[str, ThresholdKey]:
    """Every threshold key a profile understands: its founding keys, and ``min_``/``max_`` of each metric it emits."""
    keys = {key.key: key for key in FOUNDING_THRESHOLDS.get(profile, ())}
    for name in emitted:
        for side in ("min", "max"):
            keys.setdefault(
                f"{side}_{name}", ThresholdKey(f"{side}_{name}", name, side, math.nan, maximum=METRICS[name].maximum)
            )
    return keys


def check_limit(profile: str, key: str, value: Any, keys: Mapping[str, ThresholdKey]) -> Limit | None:
    """Turn a written limit into a Limit; None when ``null`` switches it off.

    Raises:
        UnusableThreshold: the key judges no metric of this profile, or the value is not a possible limit.
    """
    if key not in keys:
        allowed = sorted(keys)
        suggestion = nearest(key, allowed)
        msg = f"no metric of profile {profile!r} is judged by this key{suggestion}; allowed: {', '.join(allowed)}"
        raise UnusableThreshold(msg)
    if value is None:
        return None
    # Compared rather than asked with math.isfinite, which can not take an integer beyond the range of floats.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        msg = f"a limit is a number (or null for none), not {shown(value)}"
        raise UnusableThreshold(msg)
    known = keys[key]
    if value < 0:
        msg = f"a limit can not be negative, but is {value}; 0 or more is allowed"
        raise UnusableThreshold(msg)
    if known.maximum is not None and value > known.maximum:
        msg = f"{value} is more than {known.metric} can reach; allowed: 0 to {known.maximum:g}"
        raise UnusableThreshold(msg)
    return Limit(key, known.metric, known.side, float(value), known.critical)


def limits_in_force(
    profile: str, emitted: Iterable[str], tables: Sequence[Mapping[str, Mapping[str, Any]]]
) -> tuple[Limit, ...]:
    """The founding defaults overlaid by each table in turn (configuration, model, variant: the later wins).

    Raises:
        UnusableThreshold: see :func:`check_limit`; tables from files were checked at start already.
    """
    keys = known_keys(profile, emitted)
    written: dict[str, Any] = {key.key: key.default for key in FOUNDING_THRESHOLDS.get(profile, ())}
    settings = SETTINGS_AMONG_THRESHOLDS.get(profile, ())
    for table in tables:
        written.update({key: value for key, value in (table.get(profile) or {}).items() if key not in settings})
    limits = (check_limit(profile, key, value, keys) for key, value in written.items())
    return tuple(limit for limit in limits if limit is not None)


def judge(limits: Iterable[Limit], metrics: Mapping[str, MetricValue]) -> list[ThresholdResult]:
    """Compare each limit with what was observed.

    *pass* and *fail* need the whole interval on one side of the limit; an interval that straddles it, a metric without
    an interval, or one that was not observed is *inconclusive*.
    """
    results = []
    for limit in limits:
        observed = metrics.get(limit.metric)
        results.append(
            ThresholdResult(
                key=limit.key,
                metric=limit.metric,
                side=limit.side,
                limit=limit.value,
                critical=limit.critical,
                observed=observed.value if observed else None,
                ci_low=observed.ci_low if observed else None,
                ci_high=observed.ci_high if observed else None,
                n=observed.n if observed else 0,
                verdict=_verdict(limit, observed),
                margin_percent=_margin_percent(limit, observed.value) if observed else None,
            )
        )
    return results


def _verdict(limit: Limit, observed: MetricValue | None) -> Literal["pass", "fail", "inconclusive"]:
    if observed is None or observed.ci_low is None or observed.ci_high is None:
        return "inconclusive"
    worst, best = (observed.ci_low, observed.ci_high) if limit.side == "min" else (-observed.ci_high, -observed.ci_low)
    bound = limit.value if limit.side == "min" else -limit.value
    if worst >= bound:
        return "pass"
    return "fail" if best < bound else "inconclusive"


def _margin_percent(limit: Limit, observed: float) -> float | None:
    """How far the observation is on the good side of the limit, in percent of the limit.

    None for a limit of 0, or so close to 0 that the margin is beyond the range of floats.
    """
    if limit.value == 0:
        return None
    margin = observed - limit.value if limit.side == "min" else limit.value - observed
    percent = margin / limit.value * 100
    return percent if math.isfinite(percent) else None


def explain(result: ThresholdResult) -> str:
    """One line: key, limit, observed value with interval, margin, verdict."""
    mark = {"pass": "✓", "fail": "✗", "inconclusive": "?"}[result.verdict]
    relation = "at least" if result.side == "min" else "at most"
    limit = format_quantity(result.metric, result.limit)
    if result.observed is None:
        return f"{mark} {result.key}: {relation} {limit}, not observed → {result.verdict}"
    observed = format_quantity(result.metric, result.observed)
    interval = "no interval"
    if result.ci_low is not None and result.ci_high is not None:
        low, high = (format_quantity(result.metric, bound) for bound in (result.ci_low, result.ci_high))
        interval = f"95 % interval {low} to {high}"
    margin = ""
    if result.margin_percent is not None:
        margin = f", margin {result.margin_percent:+.1f} % of the limit"
    facts = f"observed {observed} ({interval}, n={result.n}){margin}"
    return f"{mark} {result.key}: {relation} {limit}, {facts} → {result.verdict}"


_MARKS = {"regressed": "✗", "inconclusive": "?", "not_comparable": "?", "improved": "✓", "unchanged": "✓"}


def explain_comparison(one: MetricComparison) -> str:
    """One line: metric, value then and now, how much worse with its interval, verdict."""
    values = ""
    if one.old is not None and one.new is not None:
        values = f" {format_quantity(one.metric, one.old)} → {format_quantity(one.metric, one.new)},"
    return f"{_MARKS[one.verdict]} {one.metric}:{values} {one.message} → {one.verdict.replace('_', ' ')}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement of one measurement.

    Attributes:
        subject: whose measurement, as messages name it.
        inconclusive_fails: whether an undecided comparison fails the cell (``measurement.inconclusive``).
        ended_early: why the measurement had to be ended before its time, which no limit that is met makes good.
        comparisons: with the baseline, where there is one.
    """

    subject: str
    results: tuple[ThresholdResult, ...]
    inconclusive_fails: bool = False
    ended_early: str | None = None
    comparisons: tuple[MetricComparison, ...] = ()

    @property
    def worse(self) -> list[MetricComparison]:
        """The comparisons with the baseline that fail the cell."""
        failing = {"regressed", "inconclusive"} if self.inconclusive_fails else {"regressed"}
        return [one for one in self.comparisons if one.verdict in failing]

    @property
    def missed(self) -> list[ThresholdResult]:
        """The results that fail the cell."""
        failing = {"fail", "inconclusive"} if self.inconclusive_fails else {"fail"}
        return [result for result in self.results if result.verdict in failing]

    def explain(self) -> str:
        """Every threshold, one line each, under a line that counts."""
        undecided = sum(result.verdict == "inconclusive" for result in self.results)
        counts = [f"{len(self.missed)} of {len(self.results)} thresholds not met"]
        if undecided:
            counts[0] += f", {undecided} inconclusive{' (fails by configuration)' if self.inconclusive_fails else ''}"
        if self.ended_early is not None:
            counts.append(self.ended_early)
        if self.comparisons:
            worse = f"{len(self.worse)} of {len(self.comparisons)} metrics worse than the baseline"
            counts.insert(0 if self.worse and not self.missed else len(counts), worse)
        ordered = sorted(self.results, key=lambda result: result not in self.missed)  # what is shown may be cut
        compared = sorted(self.comparisons, key=lambda one: one not in self.worse)
        lines = [*(explain(result) for result in ordered), *(explain_comparison(one) for one in compared)]
        if self.worse and not self.missed:
            lines = [*lines[len(ordered) :], *lines[: len(ordered)]]
        return "\n".join([f"{self.subject}: {'; '.join(counts)}", *(f"  {line}" for line in lines)])

    def check(self) -> None:
        """The one assertion of a cell.

        Raises:
            ThresholdFailure: some threshold is not met, or it was ended early; the message shows all of them.
            RegressionFailure: all are met, but the cell is worse than the baseline's.
        """
        if self.missed or self.ended_early is not None:
            raise ThresholdFailure(self.explain())
        if self.worse:
            raise RegressionFailure(self.explain())
