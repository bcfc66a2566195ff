"""A glance at the servers that should be running, before the first test: minutes of other cells need not pass first.

It only warns. The authoritative check is the backend's own, before the first measurement on a server.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from pytest_llmbench.adapters.state import Suite
from pytest_llmbench.core.cell import Cell, ServerSpec
from pytest_llmbench.errors import ServerError

_AT_ONCE = 8


def warnings_of(suite: Suite, cells: Iterable[Cell]) -> list[str]:
    """One line per server that can not be used as it is now, in the order of the cells."""
    specs: dict[ServerSpec, None] = dict.fromkeys(suite.spec(cell) for cell in cells)
    with ThreadPoolExecutor(_AT_ONCE) as executor:
        problems = executor.map(lambda spec: _look(suite, spec), specs)
    lines = [
        f"warning: {spec.kind}: {problem.message} ({problem.code})"
        for spec, problem in zip(specs, problems, strict=True)
        if problem is not None
    ]
    return list(dict.fromkeys(lines))


def _look(suite: Suite, spec: ServerSpec) -> ServerError | None:
    look = getattr(suite.backends[spec.kind], "first_look", None)  # a user's kind may have none
    problem: ServerError | None = look(spec) if look is not None else None
    return problem
