"""What a server's processes use: fake trees of ``/proc``, and a real child."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_llmbench.telemetry.base import FollowsServer, SeldomRead
from pytest_llmbench.telemetry.server import ServerMemory, ServerProcesses
from tests.unit.telemetry.trees import write

MIB = 2**20
TICKS = os.sysconf("SC_CLK_TCK")
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def process(
    proc: Path, pid: int, *, started: int = 1, rss: int = 10, swap: int = 0, ticks: int = 0, children: str = ""
) -> None:
    """A process; sizes in kB, CPU time in ticks of which a quarter is of the kernel."""
    fields = ["S", *["0"] * 10, str(ticks - ticks // 4), str(ticks // 4), *["0"] * 6, str(started), "0"]
    write(
        proc,
        {
            f"{pid}/stat": f"{pid} (a) name) {' '.join(fields)}",
            f"{pid}/status": f"Name:\tx\nVmHWM:\t{rss} kB\nVmRSS:\t{rss} kB\nVmSwap:\t{swap} kB",
            f"{pid}/io": f"rchar: 1\nread_bytes: {pid * 1000}\nwrite_bytes: {pid * 10}\ncancelled_write_bytes: 9",
            f"{pid}/smaps_rollup": (
                f"0-1 ---p 0 00:00 0   [rollup]\nRss: {rss} kB\nPss: {rss // 2} kB\n"
                f"Private_Clean: 1 kB\nPrivate_Dirty: {rss // 4} kB\nSwapPss: 0 kB"
            ),
            f"{pid}/task/{pid}/children": children,
        },
    )


def end(proc: Path, pid: int) -> None:
    for name in ("stat", "status", "io", "smaps_rollup", f"task/{pid}/children"):
        (proc / str(pid) / name).unlink()


class TestProcesses:
    def test_a_tree(self, tmp_path: Path) -> None:
        process(tmp_path, 7, rss=1000, swap=5, ticks=4 * TICKS, children="8")
        process(tmp_path, 8, rss=500, swap=1, ticks=2 * TICKS)
        process(tmp_path, 9, rss=9999)
        source = ServerProcesses(proc=tmp_path)
        source.follow(7)
        assert source.read() == {
            "server_rss_bytes": 1500 * 1024,
            "server_swap_bytes": 6 * 1024,
            "server_cpu_seconds_total": pytest.approx(6.0),
            "server_read_bytes_total": 15_000,
            "server_written_bytes_total": 150,
        }
        assert source.pids == (7, 8)

    def test_what_a_process_has_used_counts_after_its_end(self, tmp_path: Path) -> None:
        process(tmp_path, 7, rss=1000, ticks=4 * TICKS, children="8")
        process(tmp_path, 8, rss=500, ticks=2 * TICKS)
        source = ServerProcesses(proc=tmp_path)
        source.follow(7)
        source.read()
        end(tmp_path, 8)
        process(tmp_path, 7, rss=1000, ticks=5 * TICKS)
        values = source.read()
        assert values["server_cpu_seconds_total"] == pytest.approx(7.0)
        assert values["server_read_bytes_total"] == 15_000
        assert values["server_rss_bytes"] == 1000 * 1024

    def test_nobody_is_followed(self, tmp_path: Path) -> None:
        source = ServerProcesses(proc=tmp_path)
        assert (source.read(), source.facts(), source.why_not, source.pids) == ({}, {}, {}, ())

    @pytest.mark.parametrize("pid", [None, 12345])
    def test_from_one_to_none(self, tmp_path: Path, pid: int | None) -> None:
        process(tmp_path, 7)
        source = ServerProcesses(proc=tmp_path)
        source.follow(7)
        assert source.read()
        source.follow(pid)
        assert source.read() == {}

    def test_from_one_to_another(self, tmp_path: Path) -> None:
        process(tmp_path, 7, ticks=4 * TICKS)
        process(tmp_path, 8, ticks=TICKS)
        source = ServerProcesses(proc=tmp_path)
        source.follow(7)
        source.read()
        source.follow(8)
        assert source.read()["server_cpu_seconds_total"] == pytest.approx(1.0)

    def test_one_that_has_died(self, tmp_path: Path) -> None:
        process(tmp_path, 7)
        source = ServerProcesses(proc=tmp_path)
        source.follow(7)
        source.read()
        end(tmp_path, 7)
        assert source.read() == {}

    def test_what_is_not_ours_to_read(self, tmp_path: Path) -> None:
        process(tmp_path, 7, rss=64)
        (tmp_path / "7/io").unlink()
        (tmp_path / "7/smaps_rollup").unlink()
        source = ServerProcesses(proc=tmp_path)
        source.follow(7)
        assert source.read().keys() == {"server_rss_bytes", "server_swap_bytes", "server_cpu_seconds_total"}
        assert ServerMemory(source, proc=tmp_path).read() == {}


class TestMemory:
    def test_a_tree(self, tmp_path: Path) -> None:
        process(tmp_path, 7, rss=1000, children="8")
        process(tmp_path, 8, rss=400)
        processes = ServerProcesses(proc=tmp_path)
        memory = ServerMemory(processes, proc=tmp_path)
        assert memory.read() == {}
        processes.follow(7)
        processes.read()
        assert memory.read() == {"server_pss_bytes": 700 * 1024, "server_uss_bytes": 352 * 1024}
        assert (memory.facts(), memory.why_not) == ({}, {})

    def test_what_the_sampler_sees_in_them(self) -> None:
        processes = ServerProcesses()
        memory = ServerMemory(processes)
        assert isinstance(processes, FollowsServer)
        assert isinstance(memory, SeldomRead)
        assert not isinstance(processes, SeldomRead)
        assert not isinstance(memory, FollowsServer)

    def test_where_only_rss_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "platform", "darwin")
        memory = ServerMemory(ServerProcesses())
        assert memory.read() == {}
        assert memory.why_not.keys() == {"server_pss_bytes", "server_uss_bytes"}


def test_a_real_child() -> None:
    code = "x = bytearray(b'x' * (64 << 20)); s = sum(range(10**6)); print(flush=True); input()"
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        processes = ServerProcesses()
        memory = ServerMemory(processes)
        processes.follow(child.pid)
        values = {**processes.read(), **memory.read()}
    finally:
        child.communicate()
    assert 64 * MIB < values["server_uss_bytes"] <= values["server_pss_bytes"] <= values["server_rss_bytes"] * 1.01
    assert values["server_rss_bytes"] < 200 * MIB
    assert values["server_cpu_seconds_total"] > 0
    assert values["server_swap_bytes"] >= 0
    assert {"server_read_bytes_total", "server_written_bytes_total"} <= values.keys()
    assert processes.read() == {}
