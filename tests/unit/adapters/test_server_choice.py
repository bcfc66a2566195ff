"""Which context a cell's server gets: the largest that can be had, and the same again while that server runs."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_llmbench.adapters import server_choice
from pytest_llmbench.adapters.server_choice import choose_server
from pytest_llmbench.core.cell import Cell, ServerSpec
from pytest_llmbench.core.records import Reason

CELL = Cell("tiny", "Q4_K_M", "long_context")
SIZES = (1024, 2048, 4096)
SPEC = ServerSpec(kind="llama_cpp", label="tiny_Q4_K_M", model_file="1B/tiny.gguf")


class Suite:
    """Knows one model, and holds at most one server."""

    def __init__(self, *, trained: int | None = 4096, spec: ServerSpec = SPEC) -> None:
        header = SimpleNamespace(context_length=trained, block_count=32)
        self.matrix = SimpleNamespace(of=lambda cell: SimpleNamespace(model="tiny"))
        self.store = SimpleNamespace(header=lambda model, quantization: SimpleNamespace(header=header))
        self.pool = SimpleNamespace(holds=lambda key: key == self.held)
        self.held: ServerSpec | None = None
        self._spec = spec

    def context_sizes(self, profile: str) -> tuple[int, ...]:
        return SIZES

    def spec(self, cell: Cell, context_size: int | None = None) -> ServerSpec:
        return replace(self._spec, context_size=context_size or SIZES[-1])


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The largest context that fits into memory."""
    largest = {"tokens": 1 << 20}

    def predict(suite: Any, cell: Cell, spec: ServerSpec) -> Any:
        verdict = "fits" if (spec.context_size or 0) <= largest["tokens"] else "does_not_fit"
        return SimpleNamespace(verdict=verdict, reason=lambda quantization: Reason(code="x", message="needs more"))

    monkeypatch.setattr(server_choice, "predict", predict)
    return largest


def chosen(suite: Any) -> tuple[int | None, dict[int, str]]:
    choice = choose_server(suite, CELL)
    return choice.spec.context_size, choice.refused


def test_the_largest_that_fits(room: dict[str, int]) -> None:
    room["tokens"] = 2048
    assert chosen(Suite()) == (2048, {4096: "it needs more"})


def test_what_a_running_server_of_ours_took_is_not_held_against_its_next_cell(room: dict[str, int]) -> None:
    suite = Suite()
    suite.held = choose_server(suite, CELL).spec  # type: ignore[arg-type]
    room["tokens"] = 1024
    assert chosen(suite) == (4096, {})


def test_no_more_than_the_model_was_trained_for(room: dict[str, int]) -> None:
    assert chosen(Suite(trained=2048)) == (2048, {4096: "the model was trained for 2048 tokens"})
    assert chosen(Suite(trained=None)) == (4096, {})


def test_a_model_that_is_stretched_may_have_more(room: dict[str, int]) -> None:
    """As the plan has it."""
    suite = Suite(trained=2048, spec=replace(SPEC, extra_args=("--rope-scaling", "yarn", "--rope-scale", "2")))
    assert chosen(suite) == (4096, {})
