"""Which event loop carries the client, and what every test here must leave behind: nothing."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Iterator

import pytest

from pytest_llmbench.client import load


@pytest.fixture(params=["uvloop", "asyncio"])
def event_loop_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test once on each event loop."""
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    else:
        monkeypatch.setattr(load, "new_event_loop", asyncio.new_event_loop)
    return str(request.param)


@pytest.fixture(scope="module")
def nothing_left() -> None:
    """What earlier tests left behind is not put down to the first test that looks at its own."""
    gc.collect()


@pytest.fixture
def no_leaks(nothing_left: None) -> Iterator[None]:
    """A socket or loop that is left to the garbage collector warns, and warnings are errors: collect it in the test."""
    unraisable: list[sys.UnraisableHookArgs] = []
    previous, sys.unraisablehook = sys.unraisablehook, unraisable.append
    try:
        yield
        gc.collect()
    finally:
        sys.unraisablehook = previous
    assert [str(one.exc_value) for one in unraisable] == []
