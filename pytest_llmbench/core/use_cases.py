"""What people want a model for: which profiles show whether it is fit, and what counts how much."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pytest_llmbench.core.config import Config, UseCaseConfig
from pytest_llmbench.core.metrics import METRICS, PROFILE_NAMES
from pytest_llmbench.core.yaml_source import nearest, shown

if TYPE_CHECKING:
    from pytest_llmbench.core.validation import Loaded

OVERALL = "overall"
# What a use that names no profile rests on, as far as the run measured it: the founding profiles without stress, which
# is measured of one configuration only.
EVERYDAY_PROFILES: tuple[str, ...] = ("interactive", "long_context", "batch", "quality")
_SIDES = {"min_": "min", "max_": "max"}


@dataclass(frozen=True, slots=True)
class UseCase:
    """One use.

    Attributes:
        name: the key in ``use_cases:``.
        title: for people.
        profiles: a configuration that was not measured in all of them is no candidate. None named: all of
            :data:`EVERYDAY_PROFILES` that the run measured.
        weights: metric → how much it counts, beside the others.
        requires: ``min_<metric>`` or ``max_<metric>`` → limit; what misses one is not fit for the use.
    """

    name: str
    title: str
    profiles: tuple[str, ...]
    weights: Mapping[str, float] = field(default_factory=dict)
    requires: Mapping[str, float] = field(default_factory=dict)


FOUNDING_USE_CASES: tuple[UseCase, ...] = (
    UseCase(
        "interactive",
        "Interactive storytelling",
        ("interactive",),
        {"decode_tokens_per_second": 1, "ttft_seconds": 1, "quality_score_percent": 2},
    ),
    UseCase(
        "long_context",
        "Long context work",
        ("long_context",),
        {
            "largest_usable_context_tokens": 1,
            "context_load_seconds": 1,
            "recall_percent": 1,
            "depth_tokens_per_second": 0.5,
            "quality_score_percent": 1,
        },
    ),
    UseCase(
        "documents",
        "Document processing",
        ("batch",),
        {"documents_per_hour": 2, "quality_score_percent": 1},
    ),
    UseCase(
        "accuracy",
        "Accuracy-critical work",
        ("quality",),
        {"quality_score_percent": 3, "math_score_percent": 1},
        {"min_quality_score_percent": 70},
    ),
    UseCase(
        OVERALL,
        "Overall",
        (),
        {
            "decode_tokens_per_second": 1,
            "ttft_seconds": 1,
            "context_load_seconds": 0.5,
            "recall_percent": 0.5,
            "documents_per_hour": 1,
            "quality_score_percent": 4,
            "peak_memory_gb": 0.5,
        },
    ),
)


def use_cases_of(description: Mapping[str, Any]) -> tuple[UseCase, ...]:
    """The use cases of a run: the founding ones, changed and added to by ``use_cases`` of its configuration.

    Args:
        description: ``run.json``; what in it is no use case (it may come from another version) is passed over.
    """
    configuration = description.get("configuration")
    written = configuration.get("use_cases") if isinstance(configuration, Mapping) else None
    table: dict[str, UseCaseConfig | None] = {}
    for name, value in written.items() if isinstance(written, Mapping) else ():
        with suppress(ValueError):
            table[str(name)] = None if value is None else UseCaseConfig.model_validate(value)
    return merged(table)


def merged(written: Mapping[str, UseCaseConfig | None]) -> tuple[UseCase, ...]:
    """The founding use cases, overlaid by what the user wrote; ``overall`` last, None switches one off."""
    found: dict[str, UseCase] = {use.name: use for use in FOUNDING_USE_CASES if use.name != OVERALL}
    overall = {use.name: use for use in FOUNDING_USE_CASES if use.name == OVERALL}
    for name, changes in written.items():
        table = overall if name == OVERALL else found
        if changes is None:
            table.pop(name, None)
        else:
            table[name] = _changed(table.get(name, UseCase(name, name, ())), changes)
    return (*found.values(), *overall.values())


def _changed(use: UseCase, changes: UseCaseConfig) -> UseCase:
    said = {
        "title": changes.title,
        "profiles": tuple(changes.profiles) if changes.profiles is not None else None,
        "weights": changes.weights,
        "requires": changes.requires,
    }
    return replace(use, **{key: value for key, value in said.items() if value is not None})  # type: ignore[arg-type]


def check_use_cases(config: Loaded[Config], profiles: Iterable[str] = ()) -> None:
    """Refuse a use case that can not decide anything.

    Args:
        profiles: the registered ones, beside those every installation knows.

    Raises:
        ConfigError: an unknown profile or metric, a limit out of range, no weight, or ``null`` for what is no founding
            use case; pointing at the key.
    """
    founding = {use.name: use for use in FOUNDING_USE_CASES}
    known = sorted({*PROFILE_NAMES, *profiles})
    for name, written in config.value.use_cases.items():
        for location, problem in _problems(written, founding.get(name), founding, name, known):
            raise config.document.error(("use_cases", name, *location), problem)


def _problems(
    written: UseCaseConfig | None,
    founding: UseCase | None,
    all_founding: Iterable[str],
    name: str,
    profiles: Iterable[str],
) -> Iterable[tuple[tuple[str | int, ...], str]]:
    if written is None:
        if founding is None:
            yield (), f"null switches off a founding use case{nearest(name, all_founding)}: {', '.join(all_founding)}"
        return
    for index, profile in enumerate(written.profiles or ()):
        if profile not in profiles:
            yield (
                ("profiles", index),
                f"{profile!r} is no profile{nearest(profile, profiles)}; allowed: {', '.join(profiles)}",
            )
    for metric in written.weights or {}:
        if metric not in METRICS:
            yield ("weights", metric), f"no such metric{nearest(metric, METRICS)}; allowed: {', '.join(METRICS)}"
    for key, limit in (written.requires or {}).items():
        problem = _unusable(key, limit)
        if problem is not None:
            yield ("requires", key), problem
    weights = written.weights if written.weights is not None else founding.weights if founding is not None else {}
    if not any(weights.values()):
        yield ("weights",), "weighs nothing, so it can not rank; write for example {decode_tokens_per_second: 1}"


def _unusable(key: str, limit: float) -> str | None:
    side, metric = key[:4], key[4:]
    if side not in _SIDES or metric not in METRICS:
        allowed = [f"{each}{name}" for each in _SIDES for name in METRICS]
        return f"judges no metric{nearest(key, allowed)}; write min_ or max_ before the name of a metric"
    maximum = METRICS[metric].maximum
    if maximum is not None and limit > maximum:
        return f"{shown(limit)} is more than {metric} can reach; allowed: 0 to {maximum:g}"
    return None
