"""``metrics.md``: every metric, what judges it and what a value of it feels like; every doubt."""

from __future__ import annotations

import math

from pytest_llmbench.adapters.registry import ProfileRegistry
from pytest_llmbench.core.baseline import COMPARED
from pytest_llmbench.core.metrics import COMMON_METRICS, FOUNDING_THRESHOLDS, METRICS, Metric
from pytest_llmbench.core.ratings import INTERPRETATIONS
from pytest_llmbench.core.records import FLAGS
from scripts.reference.text import page, table

INTRODUCTION = """Every number that a cell may have: what it means, which profiles measure it, which limits judge it.
How each comes about is told in [how to measure](../measuring.md) and [the profiles](../profiles.md); what the sensors
say in [telemetry](../telemetry.md).

Any metric of a profile can be limited under its own name, `min_<metric>` or `max_<metric>`; the limits that have names
of their own and a default stand with the metric. A limit that is missed makes the rating *failed*, unless it says
*poor*. A value without an interval, or none at all, can not meet a limit: the verdict is then *inconclusive*."""

DOUBTS = """A flag on a record says why its numbers are in doubt. A clean record has none."""


def metrics_page() -> str:
    """The page of the metrics."""
    profiles = ProfileRegistry()
    groups: dict[str, list[str]] = {name: [] for name in profiles}
    rest = []
    for name in METRICS:
        owners = [profile for profile in profiles if name in profiles.emitted(profile)]
        if name in COMMON_METRICS or not owners:
            rest.append(name)
        else:
            groups[owners[0]].append(name)
    groups["every profile"] = [name for name in rest if name in COMMON_METRICS]
    groups["several profiles of a configuration"] = [name for name in rest if name not in COMMON_METRICS]
    overview = table(
        ("metric", "unit", "better", "measured by"),
        (
            (f"[`{name}`](#{name})", METRICS[name].unit, METRICS[name].better, ", ".join(_owners(name, group)))
            for group, names in groups.items()
            for name in names
        ),
    )
    sections = [
        [f"## Of {group}", *(line for name in names for line in _section(METRICS[name]))]
        for group, names in groups.items()
    ]
    doubts = ["## Doubts", "", DOUBTS, "", *table(("flag", "meaning"), ((f"`{k}`", v) for k, v in FLAGS.items()))]
    return page("Metrics", INTRODUCTION, overview, *sections, doubts)


def _owners(name: str, group: str) -> list[str]:
    profiles = ProfileRegistry()
    return [p for p in profiles if name in profiles.emitted(p) and name not in COMMON_METRICS] or [group]


def _section(metric: Metric) -> list[str]:
    facts = [f"unit: {metric.unit}", f"better: {metric.better}"]
    if metric.maximum is not None:
        facts.append(f"at most {metric.maximum:g}")
    if metric.exact:
        facts.append("a count or an extreme: its interval is the value itself")
    lines = ["", f"### `{metric.name}`", "", metric.meaning, "", f"- {'; '.join(facts)}"]
    if metric.formula is not None:
        lines.append(f"- formula: {metric.formula}")
    if metric.no_better_when_larger:
        more = ", nor the same model in a quantization of more bits" if metric.no_better_with_more_bits else ""
        lines.append(f"- a larger model is no better in it{more}: blocking rests on that")
    lines += [
        f"- limit: `{key.key}` of `{profile}`, {'at least' if key.side == 'min' else 'at most'} {key.default:g} by "
        f"default{'' if key.critical else '; missed, the rating is *poor*'}"
        for profile, keys in FOUNDING_THRESHOLDS.items()
        for key in keys
        if key.metric == metric.name
    ]
    compared = [profile for profile, names in COMPARED.items() if metric.name in names]
    if compared:
        lines.append(f"- compared between runs: {', '.join(compared)}")
    if metric.name in INTERPRETATIONS:
        bands = ((f"{bound:g}" if bound < math.inf else "–", words) for bound, words in INTERPRETATIONS[metric.name])
        lines += ["", *table(("below", "in plain words"), bands)]
    return lines
