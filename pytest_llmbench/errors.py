"""Every error this package raises on purpose.

::

    LlmbenchError
    ├── ConfigError                 a file, key or value the user wrote; shown as a usage error, exit status 4
    ├── RecordError                 a run's folder can not be written or read
    │   └── DiskFull                no space is left for it: the run ends, and can be resumed
    └── CellError                   this cell could not be measured (record status ``error``)
        ├── ModelError              model file: unknown source, download, checksum, disk space
        │   └── ModelNotDownloaded  absent and downloads are switched off (record status ``skipped``)
        ├── DoesNotFit              predicted to need more memory than there is (record status ``skipped``)
        ├── SameAsAnother           what differs lies beyond the model (record status ``skipped``)
        ├── ServerError             server: will not start, died, serves something else than asked
        ├── RequestError            one request: refused, timed out, broken stream, empty answer
        └── MeasurementInvalid      measured, but the numbers can not be trusted (record status ``invalid``)

``ThresholdFailure`` and its ``RegressionFailure`` stand apart: each is an ``AssertionError``, the verdict of a
measurement that worked.

A ``CellError`` carries a stable ``code`` for dashboards, a message for people (what happened, where, what to do next)
and ``evidence``: primitives only, because it travels between processes and into records.
"""

from __future__ import annotations

from collections.abc import Mapping

Primitive = str | int | float | bool | None


def readable(text: str, keep: str = "") -> str:
    """Escape what a terminal would obey and what UTF-8 can not hold: messages quote files, servers, models and logs."""
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode("ascii") for c in text)


class LlmbenchError(Exception):
    """Base of the tree."""


class ConfigError(LlmbenchError):
    """What the user configured can not be used; the message names file, line and key."""


class RecordError(LlmbenchError):
    """A run's folder can not be written or read."""


class DiskFull(RecordError):
    """No space is left for records; what was measured so far is kept."""


class CellError(LlmbenchError):
    """A cell could not be measured.

    Args:
        code: stable, machine-readable cause, e.g. ``server_start_failed``.
        message: what happened, where, and what to do next.
        evidence: facts that support the message, primitives only.
    """

    status = "error"

    def __init__(self, code: str, message: str, evidence: Mapping[str, Primitive] | None = None) -> None:
        message = readable(message, keep="\n\t")
        super().__init__(message)
        self.code = code
        self.message = message
        self.evidence: dict[str, Primitive] = dict(evidence or {})


class ModelError(CellError):
    """The model's file is not to be had, or is not what was promised."""


class ModelNotDownloaded(ModelError):
    """The model is absent and downloading is switched off."""

    status = "skipped"


class DoesNotFit(CellError):
    """The server would need more memory than it may use, so it is not even tried."""

    status = "skipped"


class SameAsAnother(CellError):
    """Another cell was measured on the very same server: what the two differ in lies beyond the model."""

    status = "skipped"


class ServerError(CellError):
    """The server did not start, died, or is not the server that was asked for."""


class RequestError(CellError):
    """One request did not yield a complete, usable answer."""


class MeasurementInvalid(CellError):
    """Something was measured, but it must not be believed."""

    status = "invalid"


class ThresholdFailure(AssertionError):
    """A measurement that worked is below a threshold."""


class RegressionFailure(ThresholdFailure):
    """A measurement that met its thresholds is worse than the baseline's."""
