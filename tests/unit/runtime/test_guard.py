"""The guard on figures that are given to it, and once on a real server that takes more and more memory."""

from __future__ import annotations

import logging
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import psutil
import pytest

from pytest_llmbench.errors import ServerError
from pytest_llmbench.runtime import guard as guard_module
from pytest_llmbench.runtime.available import AvailableMemory
from pytest_llmbench.runtime.guard import Guard, GuardLimits, Sources
from pytest_llmbench.runtime.guard_rules import Left, held_by, memory_left, processes_of
from pytest_llmbench.runtime.process import ServerProcess, running_servers
from pytest_llmbench.telemetry.pressure import MemoryPressure, Pressure, SwappedOut
from pytest_llmbench.telemetry.process_tree import ProcessTree, Usage

MIB, GIB = 2**20, 2**30
PLENTY = (Left("machine", 16 * GIB, 32 * GIB),)


def usage(mib: int, *, swap: int = 0, shmem: int = 0, file: int = 0) -> Usage:
    """In MiB: anonymous memory and, beside it, other kinds."""
    resident = mib + shmem + file
    return Usage(resident * MIB, mib * MIB, file * MIB, shmem * MIB, swap * MIB, resident * MIB, is_pss=False)


class FakeTree:
    """Processes whose usages are set by hand."""

    def __init__(self, *usages: Usage, reading: Usage | None = None) -> None:
        self.usages = list(usages)
        self.pss = reading
        self.searches = self.readings = 0
        self.pids = tuple(range(1000, 1000 + len(usages)))

    def search(self) -> None:
        self.searches += 1

    def samples(self) -> Sequence[Usage]:
        return self.usages

    def reading(self) -> Usage | None:
        self.readings += 1
        return self.pss


class FakeServer:
    """A server that is ended at once."""

    def __init__(self, pid: int = 7, name: str = "llama-server") -> None:
        self.pid, self.name = pid, name
        self.alive = True
        self.reason: ServerError | None = None
        self.known: set[int] = set()

    def end_because(self, error: ServerError) -> bool:
        if not self.alive:
            return False
        self.reason, self.alive = error, False
        return True

    def remember(self, pids: Collection[int]) -> None:
        self.known = set(pids)


class World:
    """Everything a guard can see; seconds pass only by hand."""

    def __init__(self, *usages: Usage, limit: int | None = None, allow_swap: bool = False) -> None:
        self.server = FakeServer()
        self.servers: list[FakeServer] = [self.server]
        self.tree = FakeTree(*usages)
        self.trees: dict[int, FakeTree] = {self.server.pid: self.tree}
        self.pressure: Pressure | None = None
        self.swapped_out: int | None = 0
        self.left: tuple[Left, ...] = PLENTY
        self.now = 100.0
        sources = Sources(
            tree=lambda pid: self.trees.get(pid) or FakeTree(),
            pressure=lambda: self.pressure,
            swapped_out=lambda: self.swapped_out,
            left=lambda: self.left,
            servers=lambda: self.servers,
        )
        self.guard = Guard(GuardLimits(limit, allow_swap), sources, clock=lambda: self.now)

    def look(self, after: float = 0.2) -> float:
        self.now += after
        return self.guard.look()

    @property
    def reason(self) -> ServerError:
        assert self.server.reason is not None
        return self.server.reason


@pytest.fixture(autouse=True)
def _nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "pids", lambda: [1, 2])


class TestItsOwnLimit:
    def test_what_can_not_be_dropped_counts(self) -> None:
        world = World(usage(700, shmem=200, swap=90, file=5000), limit=1000 * MIB, allow_swap=True)
        world.look()
        assert world.server.reason is None
        world.tree.usages = [usage(711, shmem=200, swap=90, file=5000)]
        world.look()
        assert world.reason.code == "memory_exhausted"
        assert world.reason.evidence == {
            "pid": 7,
            "observed_bytes": 1001 * MIB,
            "anonymous_bytes": 711 * MIB,
            "shmem_bytes": 200 * MIB,
            "swap_bytes": 90 * MIB,
            "limit_bytes": 1000 * MIB,
            "bound_by": "max_memory_gb",
        }
        assert world.reason.message == (
            "the server (llama-server, process 7) was stopped: it held 1.050 GB of memory, 0.094 GB of it swapped out, "
            "more than the 1.049 GB of limits.max_memory_gb; choose a smaller context, quantization or model, or raise "
            "that limit"
        )

    def test_the_others_go_on(self) -> None:
        world = World(usage(2000), limit=1000 * MIB)
        world.servers.append(FakeServer(8, "replay"))
        world.trees[8] = FakeTree(usage(500))
        world.look()
        assert [server.alive for server in world.servers] == [False, True]

    def test_without_a_limit_nothing_is_too_much(self) -> None:
        world = World(usage(15_000))
        world.look()
        assert world.server.alive

    def test_what_processes_share_counts_once(self) -> None:
        """After a fork both have the same pages, and RSS counts them for each."""
        world = World(usage(600), usage(600), limit=1000 * MIB)
        world.tree.pss = usage(700)
        world.look()
        assert world.tree.readings == 1
        assert world.server.alive
        world.tree.pss = usage(1100)
        world.look(after=10)
        assert world.reason.evidence["observed_bytes"] == 1100 * MIB

    def test_pss_is_not_read_where_one_process_is_enough(self) -> None:
        world = World(usage(1001), usage(3), limit=1000 * MIB)
        world.look()
        assert not world.server.alive
        assert world.tree.readings == 0

    def test_processes_that_have_ended_meanwhile(self) -> None:
        world = World(usage(600), usage(600), limit=1000 * MIB)
        world.look()
        assert world.server.alive

    def test_where_a_system_tells_only_rss_the_limit_is_not_judged(self) -> None:
        """Mapped weights are in it, which the limit leaves out."""
        world = World(Usage(5 * GIB, None, None, None, None, 5 * GIB, is_pss=False), limit=GIB)
        world.look()
        assert world.server.alive

    def test_a_server_is_ended_once(self, caplog: pytest.LogCaptureFixture) -> None:
        world = World(usage(2000), limit=1000 * MIB)
        for _ in range(3):
            world.look()
        assert len(caplog.records) == 1

    def test_one_that_died_by_itself_was_not_stopped_by_us(self, caplog: pytest.LogCaptureFixture) -> None:
        world = World(usage(2000), limit=1000 * MIB)
        world.server.alive = False
        world.guard.begin_cell()
        world.look()
        assert world.guard.end_cell().stopped == ()
        assert caplog.records == []


class TestTheMachine:
    @pytest.mark.parametrize(
        ("total", "floor"),
        [(GIB // 2, 0.05 * GIB // 2), (4 * GIB, 128 * MIB), (32 * GIB, 0.02 * 32 * GIB), (512 * GIB, GIB)],
        ids=["small container", "4 GiB", "32 GiB", "large machine"],
    )
    def test_what_is_left_alone(self, total: int, floor: float) -> None:
        assert Left("machine", 0, total).floor_bytes == int(floor)

    @pytest.mark.parametrize("bound", ["machine", "cgroup"])
    def test_a_server_that_takes_the_rest_is_stopped(self, bound: str) -> None:
        world = World(usage(7000))
        tight = Left("machine" if bound == "machine" else "cgroup", 100 * MIB, 8 * GIB)
        world.left = (Left("machine", 20 * GIB, 32 * GIB), tight)
        world.look()
        assert world.reason.code == "memory_exhausted"
        floor = tight.floor_bytes
        assert world.reason.evidence["bound_by"] == bound
        assert world.reason.evidence["available_bytes"] == 100 * MIB
        assert world.reason.evidence["floor_bytes"] == floor
        assert world.reason.evidence["limit_bytes"] == 7000 * MIB + 100 * MIB - floor
        assert "of this machine were left" in world.reason.message or bound == "cgroup"

    def test_not_one_while_something_else_is_larger(self) -> None:
        world = World(usage(1000))
        world.left = (Left("machine", 100 * MIB, 8 * GIB),)
        world.trees[2] = FakeTree(usage(1001))
        world.look()
        assert world.server.alive
        world.trees[2] = FakeTree(usage(999))
        world.look(after=3)
        assert not world.server.alive

    def test_others_are_not_looked_at_all_the_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        world = World(usage(1000))
        world.left = (Left("machine", 100 * MIB, 8 * GIB),)
        world.trees[2] = FakeTree(usage(1001))
        lists = iter([[2]])
        monkeypatch.setattr(psutil, "pids", lambda: next(lists))
        for _ in range(10):
            world.look(after=0.1)
        world.trees[2] = FakeTree(usage(1))
        with pytest.raises(StopIteration):
            world.look(after=2)

    def test_only_processes_of_the_control_group_are_rivals_in_it(self, tmp_path: Path) -> None:
        world = World(usage(1000))
        world.trees[1], world.trees[2] = FakeTree(usage(5000)), FakeTree(usage(900))
        (tmp_path / "inner").mkdir()
        (tmp_path / "inner" / "cgroup.procs").write_text("2\n7\n", encoding="ascii")
        world.left = (Left("cgroup", 10 * MIB, 4 * GIB, str(tmp_path)),)
        world.look()
        assert not world.server.alive

    def test_what_the_server_has_started_is_no_rival(self) -> None:
        world = World(usage(1000), usage(1500))
        world.tree.pids = (7, 2)
        world.trees[2] = FakeTree(usage(2600))  # it has grown since
        world.left = (Left("machine", 100 * MIB, 8 * GIB),)
        world.look()
        assert not world.server.alive

    def test_the_largest_of_ours_goes_and_its_memory_is_waited_for(self) -> None:
        world = World(usage(1000))
        other = FakeServer(8, "large")
        world.servers.append(other)
        world.trees[8] = FakeTree(usage(3000))

        def end(error: ServerError) -> bool:
            other.reason = error
            return True

        other.end_because = end  # type: ignore[method-assign]
        world.left = (Left("machine", 100 * MIB, 8 * GIB),)
        for _ in range(5):
            world.look()
        assert other.reason is not None
        assert world.server.alive
        other.alive = False
        world.look(after=3)
        assert not world.server.alive

    def test_it_is_looked_at_more_often_when_little_is_left(self) -> None:
        world = World(usage(1000))
        assert world.look() == 0.2
        floor = Left("machine", 0, 32 * GIB).floor_bytes
        world.left = (Left("machine", floor + GIB // 4, 32 * GIB),)
        assert world.look(after=2) == pytest.approx(0.25 / 8)


class TestLeft:
    def test_all_cached_files_of_a_control_group_count_as_free(self, tmp_path: Path) -> None:
        """A mapped model in use fills a group up to its limit, and is dropped before anything is killed."""
        (tmp_path / "memory.stat").write_text("anon 5\nactive_file 700\ninactive_file 200\n", encoding="ascii")
        details = {"machine_available": 5000, "machine_total": 9000, "cgroup_available": 300, "cgroup_limit": 2000}
        left = memory_left(lambda: AvailableMemory(300, "cgroup", details, str(tmp_path)))
        assert left == (Left("machine", 5000, 9000), Left("cgroup", 1000, 2000, str(tmp_path)))

    def test_the_first_version_counts_what_is_below_apart(self, tmp_path: Path) -> None:
        (tmp_path / "memory.stat").write_text("active_file 1\ntotal_active_file 5000\n", encoding="ascii")
        details = {"machine_available": 5000, "machine_total": 9000, "cgroup_available": 300, "cgroup_limit": 2000}
        assert memory_left(lambda: AvailableMemory(300, "cgroup", details, str(tmp_path)))[1].bytes == 2000

    def test_here(self) -> None:
        for left in memory_left():
            assert 0 < left.floor_bytes < left.bytes <= left.total_bytes

    def test_processes_of_a_group_that_is_gone(self, tmp_path: Path) -> None:
        assert list(processes_of(str(tmp_path / "gone"))) == []


class TestPressure:
    def test_a_stall_that_lasts(self) -> None:
        world = World(usage(3000))
        world.pressure = Pressure(24.9, "cgroup")
        for _ in range(30):
            world.look()
        assert world.server.alive
        world.pressure = Pressure(25.0, "cgroup")
        world.look(after=1)
        world.look(after=1)
        assert world.server.alive
        world.look(after=1)
        assert world.reason.code == "memory_exhausted"
        assert world.reason.evidence["bound_by"] == "pressure"
        assert world.reason.evidence["pressure_percent"] == 25.0
        assert world.reason.evidence["pressure_source"] == "cgroup"

    def test_one_that_passes(self) -> None:
        world = World(usage(3000))
        for percent in (60.0, 60.0, 10.0, 60.0, 60.0, 10.0):
            world.pressure = Pressure(percent, "machine")
            world.look(after=1)
        assert world.server.alive

    def test_one_that_somebody_else_causes(self) -> None:
        world = World(usage(3000))
        world.trees[1] = FakeTree(usage(4000))
        world.pressure = Pressure(80.0, "machine")
        for _ in range(10):
            world.look(after=1)
        assert world.server.alive


class TestSwap:
    def test_a_server_that_is_swapped_out_is_stopped(self) -> None:
        world = World(usage(1000, swap=10))
        world.guard.begin_cell()
        world.swapped_out = 50 * MIB
        world.tree.usages = [usage(984, swap=26)]
        world.look()
        assert world.server.alive
        world.tree.usages = [usage(983, swap=27)]
        world.look()
        assert world.reason.code == "swapping"
        assert world.reason.evidence["swapped_bytes"] == 17 * MIB
        assert world.reason.evidence["limit_bytes"] == 16 * MIB
        assert world.reason.evidence["machine_swapped_bytes"] == 50 * MIB
        assert "limits.allow_swap" in world.reason.message

    def test_it_is_only_remembered_where_that_is_allowed(self) -> None:
        world = World(usage(1000, swap=10), allow_swap=True)
        world.guard.begin_cell()
        world.tree.usages = [usage(500, swap=510)]
        world.look()
        world.tree.usages = [usage(900, swap=110)]
        world.swapped_out = 600 * MIB
        world.look()
        assert world.server.alive
        seen = world.guard.end_cell()
        assert seen.has_swapped
        assert (seen.swapped_bytes, seen.machine_swapped_bytes, seen.stopped) == (500 * MIB, 600 * MIB, ())

    def test_what_the_cell_before_has_swapped_out_is_not_this_one_s(self) -> None:
        world = World(usage(500, swap=500), allow_swap=True)
        world.guard.begin_cell()
        world.look()
        seen = world.guard.end_cell()
        assert not seen.has_swapped
        assert seen.swapped_bytes == 0

    def test_of_a_server_that_starts_in_the_cell_everything_counts(self) -> None:
        world = World(usage(500, swap=40), allow_swap=True)
        world.servers = []
        world.guard.begin_cell()
        world.servers = [world.server]
        world.look()
        assert world.guard.end_cell().swapped_bytes == 40 * MIB

    def test_a_server_that_was_stopped_before_the_cell_s_end_counts(self) -> None:
        world = World(usage(500))
        world.guard.begin_cell()
        world.tree.usages = [usage(400, swap=100)]
        world.look()
        world.servers = []
        seen = world.guard.end_cell()
        assert seen.swapped_bytes == 100 * MIB
        assert seen.stopped == (world.reason,)

    def test_a_system_that_tells_nothing(self) -> None:
        world = World(Usage(GIB, None, None, None, None, GIB, is_pss=False))
        world.swapped_out, world.left = None, ()
        world.guard.begin_cell()
        world.look()
        seen = world.guard.end_cell()
        assert (seen.swapped_bytes, seen.machine_swapped_bytes, seen.pressure_percent) == (0, None, None)
        assert seen.least_left_bytes is None

    def test_what_else_was_seen_in_a_cell(self) -> None:
        world = World(usage(500))
        world.pressure = Pressure(20.0, "cgroup")
        world.look()
        world.pressure = Pressure(3.0, "cgroup")
        world.guard.begin_cell()
        world.left = (Left("machine", 9 * GIB, 32 * GIB), Left("cgroup", 5 * GIB, 8 * GIB))
        world.pressure = Pressure(7.0, "cgroup")
        world.look(after=2)
        world.left, world.pressure = PLENTY, Pressure(1.0, "cgroup")
        seen = world.guard.end_cell()
        assert (seen.least_left_bytes, seen.pressure_percent) == (5 * GIB, 7.0)


class TestWhenToLook:
    def test_halfway_to_the_limit_at_the_present_growth(self) -> None:
        world = World(usage(100), limit=1000 * MIB)
        assert world.look() == 0.2
        world.tree.usages = [usage(700)]  # 1000 MiB a second, 300 to go
        assert world.look(after=0.6) == pytest.approx(0.15)
        world.tree.usages = [usage(850)]
        assert world.look(after=0.15) == pytest.approx(0.075)
        world.tree.usages = [usage(999)]
        assert world.look(after=0.149) == pytest.approx(0.01)

    def test_one_quiet_look_does_not_calm_it(self) -> None:
        world = World(usage(100), limit=1000 * MIB)
        world.look()
        world.tree.usages = [usage(900)]
        quick = world.look(after=0.8)
        assert quick < 0.06
        assert world.look(after=0.05) == pytest.approx(2 * quick)
        for _ in range(5):
            world.look()
        assert world.look() == 0.2

    def test_without_servers_hardly_anything_is_done(self) -> None:
        world = World()
        world.servers = []
        world.left = ()
        assert world.look() == 0.2

    def test_children_are_looked_for_now_and_then_and_noted(self) -> None:
        world = World(usage(100))
        world.look()
        assert world.server.known == {1000}
        world.tree.pids = (1000, 1001)
        world.look()
        assert (world.tree.searches, world.server.known) == (1, {1000})
        world.look(after=1)
        assert (world.tree.searches, world.server.known) == (2, {1000, 1001})

    def test_costly_looks_are_rarer(self) -> None:
        allowance = guard_module._Allowance(100.0)
        assert allowance.pause_after(0.019, 100.0) == 0  # what was saved up
        assert allowance.pause_after(0.002, 100.0) == pytest.approx(0.2)  # one millisecond too much, at 0.5 %
        assert allowance.pause_after(0.0, 100.2) == pytest.approx(0, abs=1e-9)
        assert allowance.pause_after(0.05, 1000.0) == pytest.approx(6)  # no more than 20 ms were saved up meanwhile


def guards() -> int:
    return [thread.name for thread in threading.enumerate()].count("memory guard")


class TestTheThread:
    def test_starts_once_stops_and_starts_again(self) -> None:
        world = World(usage(100))
        with world.guard as guard:
            guard.start()
            assert guards() == 1
            until(lambda: guard.looks > 0)
        assert guards() == 0
        guard.stop()
        looks = guard.looks
        guard.start()
        until(lambda: guard.looks > looks)
        guard.stop()
        assert guards() == 0
        assert guard.cpu_seconds > 0

    def test_survives_what_it_does_not_understand(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(guard_module, "_PAUSE_AFTER_AN_ERROR_SECONDS", 0.01)
        world = World(usage(2000), limit=1000 * MIB)
        monkeypatch.setattr(world.tree, "samples", lambda: 1 // 0)
        world.guard.begin_cell()
        assert world.guard.end_cell().stopped == ()
        caplog.clear()
        with world.guard:
            until(lambda: "could not be watched just now" in caplog.text)
            monkeypatch.setattr(world.tree, "samples", lambda: world.tree.usages)
            until(lambda: not world.server.alive)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.005)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells what can not be dropped")
def test_a_real_server_that_takes_more_and_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("LLMBENCH_RUNTIME_DIR", str(tmp_path / "runtime"))
    caplog.set_level(logging.WARNING)
    code = """
        import sys, time
        print("loading", file=sys.stderr, flush=True)
        taken = []
        for _ in range(75):
            taken.append(b"x" * (8 << 20))
            time.sleep(0.02)
        time.sleep(60)
    """
    limit = 200 * MIB
    sources = Sources(ProcessTree, MemoryPressure(), SwappedOut())
    with Guard(GuardLimits(max_memory_bytes=limit), sources) as guard:
        guard.begin_cell()
        server = ServerProcess([sys.executable, "-I", "-S", "-c", textwrap.dedent(code)], tmp_path / "server")
        try:
            with pytest.raises(ServerError, match=r"more than the 0.210 GB of limits.max_memory_gb") as caught:
                server.wait_until(lambda: False, 30)
            seen = guard.end_cell()
        finally:
            server.stop()
    error = caught.value
    assert error.code == "memory_exhausted"
    assert error.evidence["bound_by"] == "max_memory_gb"
    assert error.evidence["limit_bytes"] == limit
    assert error.evidence["log_tail"] == "loading"
    observed = error.evidence["observed_bytes"]
    assert isinstance(observed, int)
    assert limit < observed <= 620 * MIB
    assert [one.code for one in seen.stopped] == ["memory_exhausted"]
    assert running_servers() == ()
    assert not psutil.pid_exists(server.pid)


def test_parts_of_what_is_held() -> None:
    holding = held_by([usage(5, shmem=3, swap=2, file=100), usage(1)])
    assert (holding.bytes, holding.anonymous_bytes, holding.shmem_bytes) == (11 * MIB, 6 * MIB, 3 * MIB)
    assert (holding.swap_bytes, holding.is_exact) == (2 * MIB, True)
