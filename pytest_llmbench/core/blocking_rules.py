"""Rules by which one cell's outcome makes another pointless: it can not be loaded, or it will be too slow."""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass

from pytest_llmbench.core.blocking_evidence import (
    RUN_ANYWAY,
    Candidate,
    Filed,
    asked,
    called,
    context_size,
    is_larger_model,
    is_larger_quantization,
    is_mixture,
    nominal_bits,
    parameters,
)
from pytest_llmbench.core.metrics import METRICS, format_quantity
from pytest_llmbench.core.records import CellRecord, Reason, ThresholdResult
from pytest_llmbench.core.thresholds import Limit
from pytest_llmbench.errors import Primitive

# What servers write when memory can not be had, and lines that say so although the server goes on without: llama.cpp
# falls back to ordinary memory where none can be pinned, and does not need its pages locked.
_NO_MEMORY = re.compile(
    r"failed to allocate|unable to allocate|cannot allocate memory|out of memory|std::bad_alloc|cudaMalloc failed"
    r"|ErrorOutOfDeviceMemory",
    re.IGNORECASE,
)
_HARMLESS = re.compile(r"pinned memory|mlock", re.IGNORECASE)
_KILLED = -9
# A wide interval is compared as wide as it is, and so is one of rates that rise or fall; what was discarded because
# something stood still is not in it.
_HARMLESS_FLAGS = {"imprecise", "drift", "stood_still", "outliers", "loads_differ", "leaking"}
_FAMILY = re.compile(r"(Q[4568])(?:_|$)", re.IGNORECASE | re.ASCII)
_PATH = ("Q4", "Q5", "Q6")


def failed_for_size(reason: Reason) -> bool:
    """Whether a server failed in a way that a larger model or context can only repeat.

    So did one that was not ready in time, that our memory watch stopped, or that ended for want of memory: by the
    kernel's count, by its log, or killed where nobody tells who did it. A binary that is missing, a corrupt file, a
    wrong quantization or a mismatch say nothing of size: the next file may be a sound one. Nor does a server that
    somebody else killed while the kernel counts no kill of its own.
    """
    if reason.code in {"server_start_timeout", "memory_exhausted"}:
        return True
    if reason.code not in {"server_start_failed", "server_died"}:
        return False
    out_of_memory = reason.evidence.get("out_of_memory")
    if out_of_memory is True or (out_of_memory is None and reason.evidence.get("exit_status") == _KILLED):
        return True
    log = str(reason.evidence.get("log_tail") or "")
    return any(_NO_MEMORY.search(line) and not _HARMLESS.search(line) for line in log.splitlines())


class LoadRule:
    """A model that could not be loaded for its size: nor can its larger quantizations and contexts.

    They have the same model, server and settings; at least one of quantization and context is larger, neither is
    smaller. A quantization whose size is not known by name is compared with itself only, a context that the server
    chooses with the like.
    """

    code = "blocked_by_load"

    def __init__(self) -> None:
        self._filed: Filed[CellRecord] = Filed()

    def learn(self, record: CellRecord) -> None:
        """File a load that failed for size; any other outcome replaces what was known of the cell."""
        if record.status == "error" and record.reason is not None and failed_for_size(record.reason):
            self._filed.put(record.nodeid, self._group(record), record)
        else:
            self._filed.drop(record.nodeid)

    def why(self, candidate: Candidate) -> Reason | None:
        """The reason, from the largest of what failed."""
        failed = [seen for seen in self._filed.of(self._group(candidate)) if self._needs_more(candidate, seen)]
        if not failed:
            return None
        seen = min(failed, key=lambda it: (-(nominal_bits(it.quantization) or 0), -(context_size(it) or 0), it.nodeid))
        context = context_size(seen)
        evidence: dict[str, Primitive] = {"rule": "load", "cell": seen.nodeid, "quantization": seen.quantization}
        if seen.reason is not None:
            evidence["code"] = seen.reason.code
            if "timeout_seconds" in seen.reason.evidence:
                evidence["timeout_seconds"] = seen.reason.evidence["timeout_seconds"]
        if context is not None:
            evidence["context_size"] = context
        message = (
            f"{called(seen)}{_with_context(seen)} {_load_failure(evidence)}; "
            f"{called(candidate)}{_with_context(candidate)} needs more; {RUN_ANYWAY}"
        )
        return Reason(code=self.code, message=message, evidence=evidence)

    @staticmethod
    def _group(cell: Candidate | CellRecord) -> Hashable:
        return cell.host, cell.backend, cell.model, asked(cell, "context_size")

    @staticmethod
    def _needs_more(candidate: Candidate, seen: CellRecord) -> bool:
        larger = is_larger_quantization(candidate.quantization, seen.quantization)
        if not larger and candidate.quantization != seen.quantization:
            return False
        context, failed = context_size(candidate), context_size(seen)
        if context is None or failed is None:
            return larger and context is failed
        return context >= failed and (larger or context > failed)


@dataclass(frozen=True, slots=True)
class Missed:
    """A cell that was measured and missed limits on its speed, with those results."""

    cell: CellRecord
    results: tuple[ThresholdResult, ...]

    def also_misses(self, limit: Limit) -> ThresholdResult | None:
        """The result whose whole interval misses this limit too; None where there is none."""
        missing = (result for result in self.results if _misses(result, limit))
        return min(missing, key=lambda result: result.key, default=None)


def missed_speed(record: CellRecord) -> Missed | None:
    """What a record says of too slow a cell; None where nothing, or where the measurement is doubtful."""
    if record.status != "failed" or set(record.flags) - _HARMLESS_FLAGS:
        return None
    results = tuple(
        result for result in record.thresholds if result.verdict == "fail" and _is_of_speed(result.metric, result.side)
    )
    return Missed(record, results) if results else None


def _is_of_speed(metric: str, side: str) -> bool:
    """Whether a limit is one that a larger model misses sooner: not that of a metric which tells nothing of it, nor one
    that is set on the wrong side (at most 20 tokens/s)."""
    known = METRICS.get(metric)
    return known is not None and known.no_better_when_larger and side == ("min" if known.better == "higher" else "max")


def _misses(result: ThresholdResult, limit: Limit) -> bool:
    if (result.metric, result.side) != (limit.metric, limit.side) or result.ci_low is None or result.ci_high is None:
        return False
    return result.ci_high < limit.value if limit.side == "min" else result.ci_low > limit.value


class SpeedRule:
    """A model that was too slow: a larger one of the same quantization, in the same profile, is no faster.

    Only where the larger one is judged on that metric too, and by a limit that the smaller one's whole interval misses:
    with a more relaxed limit it may pass. Mixtures of experts are not compared.
    """

    code = "blocked_by_speed"

    def __init__(self) -> None:
        self._filed: Filed[Missed] = Filed()

    def learn(self, record: CellRecord) -> None:
        """File a cell that was too slow; any other outcome replaces what was known of it."""
        missed = missed_speed(record)
        if missed is not None and not is_mixture(record.model, record.model_size):
            self._filed.put(record.nodeid, self._group(record), missed)
        else:
            self._filed.drop(record.nodeid)

    def why(self, candidate: Candidate) -> Reason | None:
        """The reason, from the largest model that was too slow."""
        slower = [
            seen
            for seen in self._filed.of(self._group(candidate))
            if is_larger_model(candidate.model_size, seen.cell.model_size)
        ]
        if not slower or is_mixture(candidate.model, candidate.model_size):
            return None
        slower.sort(key=lambda seen: (-(parameters(seen.cell.model_size) or 0), seen.cell.nodeid))
        for seen in slower:
            for limit in sorted(candidate.limits, key=lambda limit: limit.key):
                result = seen.also_misses(limit)
                if result is not None:
                    message = (
                        f"{_observation(seen, result, limit)}; {candidate.model} is larger and will do no better; "
                        f"{RUN_ANYWAY}"
                    )
                    return Reason(code=self.code, message=message, evidence=_facts("speed", seen, result, limit))
        return None

    @staticmethod
    def _group(cell: Candidate | CellRecord) -> Hashable:
        return cell.host, cell.backend, cell.quantization, cell.variant, cell.profile, asked(cell)


class QuantizationPathRule:
    """A model that was too slow in Q4, in Q5 and in Q6, all three by the same limit: Q8 will be so too.

    Only in what is bound by reading the weights: a prompt may be read faster in Q8 than in Q6, whose bits cost more
    arithmetic to unpack.
    Quality and variance count for nothing, and that Q2 and Q3 are too slow for a conversation leaves all others to run:
    they may serve another use.
    """

    code = "blocked_by_quantization_path"

    def __init__(self) -> None:
        self._filed: Filed[Missed] = Filed()

    def learn(self, record: CellRecord) -> None:
        """File a cell that was too slow; any other outcome replaces what was known of it."""
        missed = missed_speed(record)
        if missed is not None and _family(record.quantization) in _PATH:
            self._filed.put(record.nodeid, self._group(record), missed)
        else:
            self._filed.drop(record.nodeid)

    def why(self, candidate: Candidate) -> Reason | None:
        """The reason, with one cell of each family."""
        if _family(candidate.quantization) != "Q8":
            return None
        filed = sorted(self._filed.of(self._group(candidate)), key=lambda seen: seen.cell.nodeid)
        for limit in sorted(candidate.limits, key=lambda limit: limit.key) if filed else ():
            if not METRICS[limit.metric].no_better_with_more_bits:
                continue
            found: dict[str, tuple[Missed, ThresholdResult]] = {}
            for seen in filed:
                result = seen.also_misses(limit)
                if result is not None:
                    found.setdefault(_family(seen.cell.quantization) or "", (seen, result))
            if set(found) == set(_PATH):
                return self._reason(candidate, limit, found)
        return None

    def _reason(self, candidate: Candidate, limit: Limit, found: dict[str, tuple[Missed, ThresholdResult]]) -> Reason:
        seen, result = found[_PATH[-1]]
        evidence = _facts("quantization_path", seen, result, limit)
        evidence.update({f"cell_{family.lower()}": found[family][0].cell.nodeid for family in _PATH})
        others = " and ".join(found[family][0].cell.quantization for family in _PATH[:-1])
        message = (
            f"{_observation(seen, result, limit)}, and {others} missed it too; "
            f"{candidate.quantization} will do no better; {RUN_ANYWAY}"
        )
        return Reason(code=self.code, message=message, evidence=evidence)

    @staticmethod
    def _group(cell: Candidate | CellRecord) -> Hashable:
        return cell.host, cell.backend, cell.model, cell.variant, cell.profile, asked(cell)


def _family(quantization: str) -> str | None:
    """The family of a quantization that the path knows, by the beginning of its name."""
    match = _FAMILY.match(quantization)
    return match[1].upper() if match is not None else None


def _with_context(cell: Candidate | CellRecord) -> str:
    context = context_size(cell)
    return f" with a context of {context} tokens" if context is not None else ""


def _load_failure(evidence: dict[str, Primitive]) -> str:
    if evidence.get("code") == "server_start_timeout":
        seconds = evidence.get("timeout_seconds")
        limit = f"{seconds:g} s" if isinstance(seconds, int | float) else "time"
        return f"was not ready in {limit} (limits.max_load_time)"
    return "took more memory than there is"


def _observation(seen: Missed, result: ThresholdResult, limit: Limit) -> str:
    low, high, observed, wanted = (
        format_quantity(limit.metric, value) if value is not None else "?"
        for value in (result.ci_low, result.ci_high, result.observed, limit.value)
    )
    relation = "at least" if limit.side == "min" else "at most"
    return (
        f"{called(seen.cell)} had {limit.metric} {observed} (95 % interval {low} to {high}) where {relation} {wanted} "
        f"is wanted ({limit.key})"
    )


def _facts(rule: str, seen: Missed, result: ThresholdResult, limit: Limit) -> dict[str, Primitive]:
    return {
        "rule": rule,
        "cell": seen.cell.nodeid,
        "metric": limit.metric,
        "observed": result.observed,
        "ci_low": result.ci_low,
        "ci_high": result.ci_high,
        "key": limit.key,
        "limit": limit.value,
    }
