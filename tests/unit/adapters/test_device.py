"""The device of a process: one lease at a time, and an environment that is as it was afterwards."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import pytest

from pytest_llmbench.adapters.device import HeldDevice
from pytest_llmbench.core.cell import ServerSpec
from pytest_llmbench.errors import CellError, ServerError
from pytest_llmbench.runtime.devices import CPUS

SHOWN = "CUDA_VISIBLE_DEVICES"


@dataclass
class Lease:
    name: str
    environment: dict[str, str]
    released: int = 0

    def release(self) -> None:
        self.released += 1


@dataclass
class Pool:
    """Leases what is asked for; ``busy``: nothing is free."""

    gpus: tuple[str, ...] = ("7",)
    busy: bool = False
    leases: list[Lease] = field(default_factory=list)

    def lease(self, uses_gpu: bool, _told: object) -> Lease:
        if self.busy:
            raise ServerError("device_busy", "somebody else measures here")
        name = self.gpus[0] if uses_gpu and self.gpus else CPUS
        self.leases.append(Lease(name, {SHOWN: "" if name == CPUS else name}))
        return self.leases[-1]


def spec(gpu_layers: int | None) -> ServerSpec:
    return ServerSpec(kind="fake", label="fake", gpu_layers=gpu_layers)


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Pool:
    monkeypatch.setenv(SHOWN, "5")
    return Pool()


def held(pool: Pool) -> HeldDevice:
    return HeldDevice(pool)  # type: ignore[arg-type]


def test_it_is_kept_for_servers_of_its_kind_and_changed_for_others(pool: Pool) -> None:
    device = held(pool)
    device.take(spec(99), print)
    device.take(spec(None), print)
    assert [lease.name for lease in pool.leases] == ["7"]
    assert os.environ[SHOWN] == "7"
    device.take(spec(0), print)
    assert [(lease.name, lease.released) for lease in pool.leases] == [("7", 1), (CPUS, 0)]
    assert os.environ[SHOWN] == ""
    device.release()
    device.release()
    assert [lease.released for lease in pool.leases] == [1, 1]
    assert os.environ[SHOWN] == "5"


def test_a_variable_that_was_not_set_is_taken_away_again(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SHOWN)
    device = held(pool)
    device.take(spec(99), print)
    assert os.environ[SHOWN] == "7"
    device.release()
    assert SHOWN not in os.environ


def test_where_no_gpu_is_known_a_server_that_may_find_one_sees_what_there_is(pool: Pool) -> None:
    pool.gpus = ()
    device = held(pool)
    device.take(spec(99), print)
    assert (device.name, os.environ[SHOWN]) == (CPUS, "5")


def test_one_that_is_busy_leaves_nothing_behind(pool: Pool) -> None:
    device = held(pool)
    device.take(spec(99), print)
    pool.busy = True
    with pytest.raises(CellError):
        device.take(spec(0), print)
    assert (device.name, os.environ[SHOWN]) == (None, "5")
    assert pool.leases[0].released == 1
    pool.busy = False
    device.take(spec(0), print)
    assert device.name == CPUS
    device.release()


@pytest.mark.parametrize(("layers", "gpus", "waits"), [(0, ("7",), False), (None, ("7",), True), (99, (), False)])
def test_only_a_server_that_uses_a_leased_gpu_has_to_wait_for_it(
    pool: Pool, layers: int | None, gpus: tuple[str, ...], waits: bool
) -> None:
    pool.gpus = gpus
    assert held(pool).is_chosen_by_lease(spec(layers)) == waits
