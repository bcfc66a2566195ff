"""What cells that ran needed, and by that what a larger one will need, where no header tells it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

from pytest_llmbench.core.blocking_evidence import (
    RUN_ANYWAY,
    Candidate,
    Filed,
    asked,
    called,
    context_size,
    is_mixture,
    nominal_bits,
    parameters,
)
from pytest_llmbench.core.quantities import gigabytes
from pytest_llmbench.core.records import CellRecord, Reason

_LEAST_OBSERVATIONS = 3
_REACH = 2.0  # a trend is followed to so many times the largest it was learnt from
_LEAST_MARGIN = 0.10
_LEAST_ERROR = 0.03  # of an observation: labels are rounded, and a peak depends on the requests


@dataclass(frozen=True, slots=True, order=True)
class Demand:
    """What a server's memory grows with; ``weight_bytes`` are nominal: parameters times bits per weight."""

    weight_bytes: float
    parameters: float
    context_tokens: float

    @property
    def cache(self) -> float:
        """What the cache of keys and values grows with, in no unit.

        A token has keys and values in every layer, as wide as the model or a part of it: layers times width. Parameters
        grow with layers times width squared, and models keep about the same shape (layers in proportion to width), so
        the cache grows with the context times the parameters to the power of 2/3.
        """
        return float((self.context_tokens or 1) * self.parameters ** (2 / 3))

    def covers(self, other: Demand) -> bool:
        """Whether it is no smaller than another in anything."""
        return (
            self.weight_bytes >= other.weight_bytes
            and self.parameters >= other.parameters
            and self.context_tokens >= other.context_tokens
        )


@dataclass(frozen=True, slots=True, order=True)
class Observation:
    """A cell that ran, and the most memory its server had."""

    demand: Demand
    model: str
    nodeid: str
    peak_bytes: int
    name: str


@dataclass(frozen=True, slots=True)
class Prediction:
    """Bytes; ``closest`` is the largest observation it was learnt from."""

    predicted_bytes: int
    margin_bytes: int
    closest: Observation
    observations: int


def demand_of(cell: Candidate | CellRecord) -> Demand | None:
    """A cell's demand; None where its size can not be told from names."""
    count, bits = parameters(cell.model_size), nominal_bits(cell.quantization)
    if not count or bits is None or is_mixture(cell.model, cell.model_size):
        return None
    return Demand(count * bits / 8, count, context_size(cell) or 0)


class MemoryTrend:
    """A cell that needs more memory than there is, by what smaller ones of the same server and settings needed.

    Only upwards, and only for what is larger than everything that ran. What servers on a device needed is no
    evidence: main memory then holds whatever the device does not.
    """

    code = "blocked_by_memory_trend"

    def __init__(self) -> None:
        self._filed: Filed[Observation] = Filed()
        self._known: dict[Hashable, dict[tuple[Demand, str], Prediction | None]] = {}

    def learn(self, record: CellRecord) -> None:
        """File what a measured cell needed; any other outcome replaces what was known of it."""
        self._known.pop(self._filed.drop(record.nodeid), None)
        observation = _observation(record)
        if observation is not None:
            group = self._group(record)
            self._filed.put(record.nodeid, group, observation)
            self._known.pop(group, None)

    def why(self, candidate: Candidate, available_bytes: Callable[[], int | None]) -> Reason | None:
        """The reason, from all smaller cells together."""
        prediction = self._predict(candidate)
        available = available_bytes() if prediction is not None else None
        if prediction is None or available is None:
            return None
        least = prediction.predicted_bytes - prediction.margin_bytes
        if least <= available:
            return None
        closest = prediction.closest
        message = (
            f"{closest.name} needed {gigabytes(closest.peak_bytes)}; by that and {prediction.observations - 1} others, "
            f"{called(candidate)} will need at least {gigabytes(least)}, and {gigabytes(available)} may be "
            f"used; {RUN_ANYWAY}, or switch blocking.memory_trend off"
        )
        evidence = {
            "rule": "memory_trend",
            "cell": closest.nodeid,
            "observations": prediction.observations,
            "observed_bytes": closest.peak_bytes,
            "predicted_bytes": prediction.predicted_bytes,
            "margin_bytes": prediction.margin_bytes,
            "available_bytes": available,
        }
        return Reason(code=self.code, message=message, evidence=evidence)

    def _predict(self, candidate: Candidate) -> Prediction | None:
        group = self._group(candidate)
        demand = demand_of(candidate)
        if demand is None or not self._filed.of(group):
            return None
        known = self._known.setdefault(group, {})
        key = (demand, candidate.model)
        if key not in known:
            known[key] = predict(self._filed.of(group), demand, candidate.model)
        return known[key]

    @staticmethod
    def _group(cell: Candidate | CellRecord) -> Hashable:
        return cell.host, cell.backend, asked(cell, "context_size"), context_size(cell) is None


def _observation(record: CellRecord) -> Observation | None:
    memory, demand = record.memory, demand_of(record)
    if record.status not in {"passed", "failed"} or memory is None or demand is None or memory.observed_device_bytes:
        return None
    peak_bytes = (memory.observed_peak_bytes or 0) + (memory.observed_swap_bytes or 0)
    if not memory.observed_peak_bytes or peak_bytes <= 0:
        return None
    return Observation(demand, record.model, record.nodeid, peak_bytes, called(record))


def predict(filed: Iterable[Observation], demand: Demand, model: str) -> Prediction | None:
    """Extrapolate upwards from the observations that ``demand`` covers.

    The formula is ``memory = a + b · weight_bytes + c · cache``, none of a, b and c negative, fitted by least squares
    of the relative errors (C. L. Lawson and R. J. Hanson, *Solving Least Squares Problems*, 1974, chapter 23). The
    cache is left out where it is the same in all observations, for then nothing tells its part from the rest. What is
    larger than a trend can reach counts as large as it reaches, which can only be too little: twice the largest
    observed, and of the context no more than the observed one where there was but one. The margin is the largest of

    * a tenth of the prediction,
    * two standard errors of it, ``2 · s · sqrt(xᵀ (AᵀA)⁻¹ x)``, where A are the observations' terms, each divided by
      the memory that was observed, x those of the prediction, and s the residuals' standard deviation, at least 3 %:
      observations that lie close together do not reach far,
    * for a model of which nothing was observed, its cache: how many heads share keys and values differs from model to
      model, and with it the cache by a factor of 3 and more. Where the cache was left out, it is in ``a``.

    None where there are fewer than three observations of different weights, or something as large has run already.
    """
    smallest: dict[tuple[Demand, str], Observation] = {}
    for seen in sorted(filed):
        if seen.demand.covers(demand):
            return None
        if demand.covers(seen.demand):
            key = (seen.demand, seen.model)
            other = smallest.get(key)
            smallest[key] = seen if other is None or seen.peak_bytes < other.peak_bytes else other
    used = list(smallest.values())
    if len({seen.demand.weight_bytes for seen in used}) < _LEAST_OBSERVATIONS:
        return None
    predicted, error, cache = _extrapolate(used, _within_reach(demand, [seen.demand for seen in used]))
    unseen = cache if model not in {seen.model for seen in used} else 0.0
    margin = max(_LEAST_MARGIN * predicted, 2 * error, unseen)
    return Prediction(round(predicted), round(margin), used[-1], len(used))


def _within_reach(demand: Demand, observed: Sequence[Demand]) -> Demand:
    contexts = {seen.context_tokens for seen in observed}
    return Demand(
        min(demand.weight_bytes, _REACH * max(seen.weight_bytes for seen in observed)),
        min(demand.parameters, _REACH * max(seen.parameters for seen in observed)),
        min(demand.context_tokens, max(contexts) * (_REACH if len(contexts) > 1 else 1)),
    )


def _extrapolate(used: Sequence[Observation], demand: Demand) -> tuple[float, float, float]:
    """The prediction, its standard error, and the cache's part in it; bytes."""
    import numpy as np
    from scipy.optimize import nnls

    terms = np.array([_terms(seen.demand) for seen in used])
    wanted = np.array(_terms(demand))
    if np.ptp(terms[:, 2]) == 0:
        terms, wanted = terms[:, :2], wanted[:2]
    scale = terms.max(axis=0)
    relative = terms / scale / np.array([[seen.peak_bytes] for seen in used], dtype=float)
    wanted = wanted / scale
    norm = np.linalg.norm(relative, axis=0)  # bytes and tokens differ by many powers of ten
    factors, rest = nnls(relative / norm, np.ones(len(used)))
    factors /= norm
    used_terms = factors > 0
    freedom = len(used) - int(used_terms.sum())
    spread = max(_LEAST_ERROR, rest / freedom**0.5 if freedom > 0 else 0.0)
    inverse = np.linalg.pinv(relative[:, used_terms] / norm[used_terms])
    at = wanted[used_terms] / norm[used_terms]
    error = spread * float(np.linalg.norm(at @ inverse))
    holds_cache = -1 if len(wanted) == len(_terms(demand)) else 0
    cache = float(factors[holds_cache] * wanted[holds_cache])
    return float(factors @ wanted), error, cache


def _terms(demand: Demand) -> tuple[float, float, float]:
    return 1.0, demand.weight_bytes, demand.cache
