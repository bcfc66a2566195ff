"""The record of a cell before anything is known of it but its name."""

from __future__ import annotations

from pytest_llmbench.adapters.state import Suite
from pytest_llmbench.core.cell import Cell, ServerSpec
from pytest_llmbench.core.records import CellRecord, Reason, ServerInfo, Status
from pytest_llmbench.runtime.run_folder import utc_now


def blank_record(
    suite: Suite, cell: Cell, nodeid: str, status: Status, reason: Reason | None, *, spec: ServerSpec | None = None
) -> CellRecord:
    """What is known of a cell without having run it.

    Args:
        spec: the server it was given, where that is known.
    """
    spec = spec or suite.spec(cell)
    return CellRecord(
        run_id=suite.folder.run_id,
        nodeid=nodeid,
        backend=spec.kind,
        model=cell.model,
        quantization=cell.quantization,
        model_size=suite.matrix.of(cell).model.size,
        profile=cell.profile,
        variant=cell.variant,
        settings=spec.as_args(),
        status=status,
        reason=reason,
        server=ServerInfo(kind=spec.kind, args=spec.as_args()),
        host=suite.host,
        started_at=utc_now(),
        duration_seconds=0.0,
    )
