"""The founding design's derived scores: what a configuration gives for what it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pytest_llmbench.core.records import CellRecord, MetricValue

EFFICIENCY = "efficiency_score"
COST_BENEFIT = "cost_benefit_score"
EFFICIENCY_NEEDS = "decode_tokens_per_second"
_MEMORY, _QUALITY = "peak_memory_gb", "quality_score_percent"


def efficiency(metrics: Mapping[str, MetricValue], context_size: int | None) -> MetricValue | None:
    """``decode_tokens_per_second · context size / peak_memory_gb``, with the decode rate's interval.

    Args:
        context_size: tokens that the server's context holds.

    Returns:
        None where one of the three is not known.
    """
    rate, memory = metrics.get(EFFICIENCY_NEEDS), metrics.get(_MEMORY)
    if rate is None or memory is None or not memory.value or not context_size:
        return None
    factor = context_size / memory.value
    return MetricValue(
        value=rate.value * factor,
        unit="tokens²/s/GB",
        n=rate.n,
        ci_low=rate.ci_low * factor if rate.ci_low is not None else None,
        ci_high=rate.ci_high * factor if rate.ci_high is not None else None,
    )


@dataclass(frozen=True, slots=True)
class Configuration:
    """A model as it was run, with what its profiles found; None: not measured.

    Attributes:
        peak_memory_gb: the most of all its profiles.
        cost_benefit_score: 0 to 100, see :func:`configurations`.
    """

    model: str
    quantization: str
    variant: str | None
    backend: str
    host: str
    decode_tokens_per_second: float | None
    quality_score_percent: float | None
    peak_memory_gb: float | None
    efficiency_score: float | None
    cost_benefit_score: float | None = None


def configurations(records: Sequence[CellRecord]) -> list[Configuration]:
    """What a run's cells come to for each configuration, in their order.

    The cost-benefit score is ``quality · speed / memory``: the founding formula with ``quality_score_percent`` (of the
    quality profile), ``decode_tokens_per_second`` (of the interactive one) and ``peak_memory_gb``, scaled so that the
    best configuration of the same host has 100. Only configurations of which all three are known have one.
    """
    cells: dict[tuple[str, str, str | None, str, str], list[CellRecord]] = {}
    for record in records:
        if record.metrics:
            key = (record.model, record.quantization, record.variant, record.backend, record.host)
            cells.setdefault(key, []).append(record)
    plain = [_configuration(key, group) for key, group in cells.items()]
    best: dict[str, float] = {}
    for one in plain:
        if (worth := _worth(one)) is not None:
            best[one.host] = max(worth, best.get(one.host, 0.0))
    return [_scored(one, best.get(one.host)) for one in plain]


def _configuration(key: tuple[str, str, str | None, str, str], cells: Sequence[CellRecord]) -> Configuration:
    def first(name: str) -> float | None:
        return next((cell.metrics[name].value for cell in cells if name in cell.metrics), None)

    memory = [cell.metrics[_MEMORY].value for cell in cells if _MEMORY in cell.metrics]
    model, quantization, variant, backend, host = key
    return Configuration(
        model=model,
        quantization=quantization,
        variant=variant,
        backend=backend,
        host=host,
        decode_tokens_per_second=first(EFFICIENCY_NEEDS),
        quality_score_percent=first(_QUALITY),
        peak_memory_gb=max(memory, default=None),
        efficiency_score=first(EFFICIENCY),
    )


def _worth(one: Configuration) -> float | None:
    if one.quality_score_percent is None or one.decode_tokens_per_second is None or not one.peak_memory_gb:
        return None
    return one.quality_score_percent * one.decode_tokens_per_second / one.peak_memory_gb


def _scored(one: Configuration, best: float | None) -> Configuration:
    worth = _worth(one)
    if worth is None or best is None:
        return one
    return replace(one, cost_benefit_score=100 * worth / best if best > 0 else 0.0)
