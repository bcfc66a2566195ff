"""The sensors of the machine that a process measures on: begun with its first cell, ended with its session."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pytest_llmbench.core.records import TelemetryRecord
from pytest_llmbench.telemetry.base import NoTelemetry, Telemetry

if TYPE_CHECKING:
    from pytest_llmbench.telemetry.sampler import Sampler

logger = logging.getLogger(__name__)


class Sensing:
    """Samples while a cell runs, and keeps what was sampled for the cell's record.

    Args:
        enabled: whether anything is sampled at all.
    """

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self._sampler: Sampler | None = None
        self._facts: Mapping[str, Any] = {}
        self._samples: Sequence[TelemetryRecord] = ()

    @property
    def telemetry(self) -> Telemetry:
        """What a profile may ask."""
        return self._sampler if self._sampler is not None else NoTelemetry()

    def begin(self, sink: Callable[[TelemetryRecord], None], told: Callable[[dict[str, Any]], None]) -> None:
        """Before the first cell. Safe to call again.

        Args:
            sink: takes each sample, from another thread.
            told: what the sensors of this machine tell and what not, once.
        """
        if self._sampler is not None or not self._enabled:
            return
        from pytest_llmbench.telemetry.sampler import Sampler
        from pytest_llmbench.telemetry.sources import sources_here

        self._sampler = Sampler(sources_here(), sink)
        self._sampler.start()
        self._facts = self._sampler.facts()
        told({"not_available": dict(self._sampler.why_not), "facts": dict(self._facts)})

    def begin_cell(self, nodeid: str) -> None:
        """A cell's server is about to be started, or used."""
        self._samples = ()
        if self._sampler is not None:
            self._facts = self._sampler.facts()
            self._sampler.begin_cell(nodeid, None)

    def follow(self, server_pid: int | None) -> None:
        """The cell's server runs, or another in its place."""
        if self._sampler is not None and server_pid is not None:
            self._sampler.follow(server_pid)

    def end_cell(self) -> None:
        """The cell is over. Safe to call again."""
        if self._sampler is not None:
            self._sampler.end_cell()
            if self._sampler.trouble is not None:
                logger.warning("samples of the sensors could not be kept: %s", self._sampler.trouble)

    def metrics(self, tokens: int | None) -> Mapping[str, float]:
        """What the samples of this cell come to.

        Args:
            tokens: that the server has generated meanwhile; None where that is not known.
        """
        if self._sampler is None:
            return {}
        from pytest_llmbench.telemetry.summary import cell_metrics

        self._samples = ()  # a test may measure twice
        return cell_metrics(self._of_this_cell(), tokens or None)

    def doubts(self) -> Sequence[tuple[str, str]]:
        """What they make doubtful: code of a flag, sentence."""
        if self._sampler is None:
            return ()
        from pytest_llmbench.telemetry.summary import cell_flags

        return cell_flags(self._of_this_cell(), self._facts)

    def why_missing(self) -> Mapping[str, str]:
        """Why nothing is told for a metric: name → sentence. To be asked while the cell runs."""
        from pytest_llmbench.telemetry.summary import VALUES_OF, why_missing

        if self._sampler is None:
            return {} if self._enabled else dict.fromkeys(VALUES_OF, "measurement.telemetry is false")
        return why_missing(self._sampler.why_not)

    def end(self) -> None:
        """Stop. Safe to call again."""
        sampler, self._sampler = self._sampler, None
        if sampler is not None:
            sampler.stop()

    def _of_this_cell(self) -> Sequence[TelemetryRecord]:
        if not self._samples and self._sampler is not None:
            self._sampler.now()  # counters of energy up to this moment
            self._samples = self._sampler.between(0, 1 << 62)
        return self._samples
