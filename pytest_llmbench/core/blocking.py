"""What the cells of a run teach about those to come: which of them are pointless, and by what evidence.

Each rule stands alone, can be switched off under ``blocking:``, and compares only what ran on the same machine. What is
blocked depends on what was learnt, not on the order in which it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pytest_llmbench.core.blocking_evidence import Candidate
from pytest_llmbench.core.blocking_rules import LoadRule, QuantizationPathRule, SpeedRule
from pytest_llmbench.core.config import BlockingConfig
from pytest_llmbench.core.memory_trend import MemoryTrend
from pytest_llmbench.core.records import CellRecord, Reason
from pytest_llmbench.core.stress_selection import StressSelection

__all__ = ["Blocking", "Candidate"]


class _Rule(Protocol):
    def learn(self, record: CellRecord) -> None: ...

    def why(self, candidate: Candidate) -> Reason | None: ...


class Blocking:
    """All rules that are switched on. Not safe for several threads at once."""

    def __init__(self, rules: BlockingConfig) -> None:
        chosen: list[tuple[bool, Callable[[], _Rule]]] = [
            (rules.load, LoadRule),
            (rules.speed, SpeedRule),
            (rules.quantization_path, QuantizationPathRule),
            (rules.stress_selection, StressSelection),
        ]
        self._rules = [make() for is_on, make in chosen if is_on]
        self._memory_trend = MemoryTrend() if rules.memory_trend else None

    def learn(self, record: CellRecord) -> None:
        """Take in how a cell ended; a second record of a cell replaces the first. What is no evidence is ignored."""
        for rule in self._rules:
            rule.learn(record)
        if self._memory_trend is not None:
            self._memory_trend.learn(record)

    def why(self, candidate: Candidate, available_bytes: Callable[[], int | None]) -> Reason | None:
        """Why a cell is pointless, by the first rule that says so; None where it is worth running.

        Args:
            available_bytes: memory that its server may use; None where that is not to be judged by the trend of other
                cells, such as when a header tells more. Only called where the trend has a prediction.
        """
        for rule in self._rules:
            reason = rule.why(candidate)
            if reason is not None:
                return reason
        return self._memory_trend.why(candidate, available_bytes) if self._memory_trend is not None else None
