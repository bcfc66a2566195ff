"""Matrix to items: one parametrized item per cell, in the order that starts each server once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from pytest_llmbench.adapters.state import Suite
from pytest_llmbench.core.cell import Cell
from pytest_llmbench.core.metrics import PROFILE_NAMES
from pytest_llmbench.core.yaml_source import nearest

MARKER = "llmbench"


def register_markers(config: pytest.Config, profiles: Sequence[str]) -> None:
    """Make the markers known, so that strict mode accepts them."""
    config.addinivalue_line(
        "markers", f"{MARKER}(profile): run this test once per cell of the matrix, as a use of this profile"
    )
    for name in dict.fromkeys([*PROFILE_NAMES, *profiles]):
        config.addinivalue_line("markers", f"{name}: cells of the {name.replace('_', ' ')} profile")


def generate(metafunc: pytest.Metafunc, suite: Suite) -> None:
    """Parametrize a marked test with its profile's cells; none for a profile that is not enabled."""
    marker = metafunc.definition.get_closest_marker(MARKER)
    if marker is None or "cell" not in metafunc.fixturenames:
        return
    profile = _profile_of(marker)
    known = {*suite.profiles, *PROFILE_NAMES}
    if profile not in known:
        pytest.fail(
            f"@pytest.mark.{MARKER}(profile={profile!r}): no such profile{nearest(profile, known)}; "
            f"allowed: {', '.join(sorted(known))}",
            pytrace=False,
        )
    mark = getattr(pytest.mark, profile)
    cells = suite.matrix.cells(profile) if profile in suite.enabled_profiles else []
    parameters = [pytest.param(cell, id=cell.id, marks=mark) for cell in cells]
    metafunc.parametrize("cell", parameters or [pytest.param(None, id="none")])


def arrange(items: list[pytest.Item], suite: Suite) -> None:
    """Drop placeholders of profiles that are not enabled, then put all cells, ordered, where the first of them stood.

    The order is a stable sort: stress last, then the matrix's rank, then the context that a profile needs, so that all
    cells of a server follow each other.
    Other tests keep their order, and none stands between two cells: a server stops before any other test.
    """
    items[:] = [item for item in items if not _is_placeholder(item)]
    _together(items, lambda item: _rank(item, suite))


def places_of(items: Sequence[pytest.Item]) -> dict[pytest.Item, int]:
    """Where each cell stands, for :func:`restore`."""
    return {item: place for place, item in enumerate(items) if cell_of(item) is not None}


def restore(items: list[pytest.Item], places: Mapping[pytest.Item, int]) -> None:
    """Bring the cells that are left back into an order; those that came since are last among them."""
    _together(items, lambda item: places.get(item, len(places) + len(items)))


def cell_of(item: pytest.Item | None) -> Cell | None:
    """The cell an item measures, None for any other test."""
    callspec = getattr(item, "callspec", None)
    cell = callspec.params.get("cell") if callspec is not None else None
    return cell if isinstance(cell, Cell) else None


def _is_placeholder(item: pytest.Item) -> bool:
    """Whether this stands for a test without cells; parametrized with nothing, it would be reported as a skip."""
    callspec = getattr(item, "callspec", None)
    return (
        callspec is not None
        and "cell" in callspec.params
        and cell_of(item) is None
        and item.get_closest_marker(MARKER) is not None
    )


def _together(items: list[pytest.Item], key: Callable[[pytest.Item], Any]) -> None:
    """Sort the cells and put them where the first of them stood; linear where they are in order already."""
    is_cell = [cell_of(item) is not None for item in items]
    if True not in is_cell:
        return
    first = is_cell.index(True)
    cells = sorted((item for item, yes in zip(items, is_cell, strict=True) if yes), key=key)
    others = [item for item, yes in zip(items, is_cell, strict=True) if not yes]
    items[:] = [*others[:first], *cells, *others[first:]]


def _rank(item: pytest.Item, suite: Suite) -> tuple[bool, int, int]:
    cell = cell_of(item)
    assert cell is not None  # noqa: S101 -- only cells are sorted
    return cell.profile == "stress", suite.matrix.of(cell).rank, suite.needed_context(cell.profile) or 0


def _profile_of(marker: pytest.Mark) -> str:
    profile = marker.kwargs.get("profile", marker.args[0] if marker.args else None)
    if not isinstance(profile, str):
        pytest.fail(f"@pytest.mark.{MARKER} needs a profile, for example profile='interactive'", pytrace=False)
    return profile


def switch_off(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Under ``-p no:llmbench``: deselect what only this plugin can run."""
    marked = [item for item in items if item.get_closest_marker(MARKER) is not None]
    if marked:
        config.hook.pytest_deselected(items=marked)
        items[:] = [item for item in items if item.get_closest_marker(MARKER) is None]
