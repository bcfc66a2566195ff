"""What several cells come to together: quantizations compared, configurations scored, and where the time went."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from pytest_llmbench.core.records import CellRecord
from pytest_llmbench.core.scores import Configuration, configurations
from pytest_llmbench.reports.run_data import RunData

_PHASES = {
    "calibrate": "calibrating the client",
    "fetch": "fetching and checking models",
    "load": "starting servers",
    "measure": "measuring",
    "rest": "all else",
}


def conclusions(run: RunData) -> list[str]:
    """Sentences about a run's cells together."""
    return [*comparisons(run), *scores(run.records), *where_the_time_went(run.records)]


def comparisons(run: RunData) -> list[str]:
    """Of each quantization that answered the quality questions, what it keeps of the baseline's score."""
    answered = [record for record in run.records if record.profile == "quality" and record.metrics]
    if not answered:
        return []
    from pytest_llmbench.core.quality_comparison import compare_quantizations

    baseline = _baseline(run.description)
    found = compare_quantizations(answered, baseline)
    compared = [" ".join(filter(None, (one.model, one.variant, one.sentence))) for one in found]
    if baseline is not None and all(record.quantization.upper() != baseline.upper() for record in answered):
        compared.append(f"quantizations are not compared: {baseline} (settings.quality.baseline) was not measured")
    return compared


def _baseline(description: object) -> str | None:
    """``configuration.settings.quality.baseline`` of a description that may be anything."""
    for key in ("configuration", "settings", "quality", "baseline"):
        description = description.get(key) if isinstance(description, Mapping) else None
    return description if isinstance(description, str) else None


def scores(records: Sequence[CellRecord]) -> list[str]:
    """The cost-benefit score of each configuration, best first; nothing where there is only one to compare."""
    scored = [(one.cost_benefit_score, one) for one in configurations(records) if one.cost_benefit_score is not None]
    if len(scored) < 2 or not any(score for score, _ in scored):
        return []
    ranked = sorted(scored, key=lambda pair: -pair[0])
    listed = ", ".join(f"{_name(one)} {score:.0f}" for score, one in ranked)
    return [f"cost-benefit (quality · speed / memory, the best has 100): {listed}"]


def where_the_time_went(records: Sequence[CellRecord]) -> list[str]:
    """The cells' time by profile and by phase, longest first."""
    by_profile: defaultdict[str, float] = defaultdict(float)
    by_phase: defaultdict[str, float] = defaultdict(float)
    for record in records:
        by_profile[record.profile] += record.duration_seconds
        for name, seconds in record.phases_seconds.items():
            by_phase[name] += seconds
        by_phase["rest"] += max(0.0, record.duration_seconds - sum(record.phases_seconds.values()))
    whole = sum(by_profile.values())
    if not any(record.phases_seconds for record in records):
        return []
    profiles = _longest_first(by_profile)
    phases = _longest_first({_PHASES.get(name, name): seconds for name, seconds in by_phase.items()})
    return [f"the cells took {whole:.0f} s, by profile: {profiles}", f"by phase: {phases}"] if profiles else []


def _longest_first(seconds: Mapping[str, float]) -> str:
    ordered = sorted(seconds.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{name} {some:.0f} s" for name, some in ordered if some >= 0.5)


def _name(one: Configuration) -> str:
    return " ".join(part for part in (one.model, one.quantization, one.variant) if part)
