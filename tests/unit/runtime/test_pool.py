"""The pool: one server at a time, one start per key, and no second try of what failed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pytest_llmbench.core.cell import ServerSpec
from pytest_llmbench.errors import CellError, ModelError, ServerError
from pytest_llmbench.runtime.pool import ServerPool

A, B = ServerSpec("embedded", "a", "135M/a.gguf"), ServerSpec("embedded", "b", "135M/b.gguf")


class Server:
    def __init__(self, name: str, history: list[str]) -> None:
        self.name = name
        self.alive = True
        self._history = history
        history.append(f"start {name}")

    def stop(self) -> None:
        self.alive = False
        self._history.append(f"stop {self.name}")


class Starter:
    """Starts servers, or fails as told, and remembers what happened."""

    def __init__(self) -> None:
        self.history: list[str] = []

    def of(self, name: str) -> Callable[[], Server]:
        return lambda: Server(name, self.history)

    def failing(self, error: BaseException) -> Callable[[], Server]:
        def start() -> Server:
            self.history.append("failed start")
            raise error

        return start


@pytest.fixture
def pool() -> ServerPool[Server]:
    return ServerPool()


@pytest.fixture
def starter() -> Starter:
    return Starter()


def test_one_start_per_key(pool: ServerPool[Server], starter: Starter) -> None:
    first = pool.lease(A, starter.of("a"))
    assert pool.lease(A, starter.of("again")) is first
    assert starter.history == ["start a"]
    assert pool.holds(A)
    assert not pool.holds(B)


def test_a_label_is_no_part_of_the_key(pool: ServerPool[Server], starter: Starter) -> None:
    first = pool.lease(A, starter.of("a"))
    assert pool.lease(ServerSpec("embedded", "another label", "135M/a.gguf"), starter.of("again")) is first


def test_the_old_server_ends_before_the_next_starts(pool: ServerPool[Server], starter: Starter) -> None:
    pool.lease(A, starter.of("a"))
    pool.lease(B, starter.of("b"))
    assert starter.history == ["start a", "stop a", "start b"]
    assert pool.holds(B)
    assert not pool.holds(A)


def test_a_dead_server_is_started_again(pool: ServerPool[Server], starter: Starter) -> None:
    first = pool.lease(A, starter.of("a"))
    first.alive = False
    second = pool.lease(A, starter.of("a"))
    assert second is not first
    assert second.alive
    assert starter.history == ["start a", "stop a", "start a"]


def test_a_failed_start_is_not_tried_again(pool: ServerPool[Server], starter: Starter) -> None:
    error = ServerError("server_start_timeout", "it took too long", {"timeout_seconds": 3})
    with pytest.raises(ServerError) as first:
        pool.lease(A, starter.failing(error))
    assert first.value is error
    for _ in range(2):
        with pytest.raises(ServerError, match="not tried again: it took too long") as later:
            pool.lease(A, starter.of("a"))
        assert later.value.code == "server_start_timeout"
        assert later.value.evidence == {"timeout_seconds": 3, "remembered": True}
    assert starter.history == ["failed start"]
    assert not pool.holds(A)


def test_any_failure_of_a_cell_is_remembered(pool: ServerPool[Server], starter: Starter) -> None:
    with pytest.raises(ModelError):
        pool.lease(A, starter.failing(ModelError("model_missing", "no file")))
    with pytest.raises(CellError, match="no file") as later:
        pool.lease(A, starter.of("a"))
    assert later.value.code == "model_missing"


def test_a_failure_concerns_only_its_key(pool: ServerPool[Server], starter: Starter) -> None:
    with pytest.raises(ServerError):
        pool.lease(A, starter.failing(ServerError("server_start_failed", "no")))
    assert pool.lease(B, starter.of("b")).name == "b"
    with pytest.raises(ServerError):
        pool.lease(A, starter.of("a"))
    assert pool.holds(B)  # a failure that is only remembered takes nobody's server away
    assert starter.history == ["failed start", "start b"]


def test_an_interrupted_start_is_not_remembered(pool: ServerPool[Server], starter: Starter) -> None:
    with pytest.raises(KeyboardInterrupt):
        pool.lease(A, starter.failing(KeyboardInterrupt()))
    assert pool.lease(A, starter.of("a")).name == "a"


def test_release(pool: ServerPool[Server], starter: Starter) -> None:
    pool.release()
    pool.lease(A, starter.of("a"))
    pool.release()
    pool.release()
    assert starter.history == ["start a", "stop a"]
    assert not pool.holds(A)
