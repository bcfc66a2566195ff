"""Two small files of the kernel, on fake trees, and once on this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_llmbench.telemetry.pressure import MemoryPressure, Pressure, SwappedOut


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def stall(percent: float) -> str:
    return f"some avg10=99.00 avg60=1.00 avg300=0.00 total=5\nfull avg10={percent} avg60=2.00 avg300=0.00 total=4\n"


class TestPressure:
    def test_of_the_machine(self, tmp_path: Path) -> None:
        write(tmp_path / "proc/pressure/memory", stall(12.5))
        ask = MemoryPressure(proc=tmp_path / "proc", cgroups=tmp_path / "cgroup")
        assert ask() == Pressure(12.5, "machine")
        write(tmp_path / "proc/pressure/memory", stall(30))
        assert ask() == Pressure(30.0, "machine")

    @pytest.mark.parametrize("mount", ["cgroup", "cgroup/unified"])
    def test_of_our_control_group_comes_first(self, tmp_path: Path, mount: str) -> None:
        write(tmp_path / "proc/pressure/memory", stall(90))
        write(tmp_path / "proc/self/cgroup", "4:memory:/other\n0::/user.slice/run:1.scope\n")
        write(tmp_path / mount / "user.slice/run:1.scope/memory.pressure", stall(3))
        assert MemoryPressure(proc=tmp_path / "proc", cgroups=tmp_path / "cgroup")() == Pressure(3.0, "cgroup")

    @pytest.mark.parametrize("line", ["0::/../other", "4:memory:/here", "", "0::/elsewhere"])
    def test_a_group_that_can_not_be_seen(self, tmp_path: Path, line: str) -> None:
        write(tmp_path / "proc/pressure/memory", stall(8))
        write(tmp_path / "proc/self/cgroup", line + "\n")
        write(tmp_path / "cgroup/here/memory.pressure", stall(1))
        write(tmp_path / "other/memory.pressure", stall(2))
        assert MemoryPressure(proc=tmp_path / "proc", cgroups=tmp_path / "cgroup")() == Pressure(8.0, "machine")

    @pytest.mark.parametrize("text", [None, "", "some avg10=1.00", "full avg10=much", "full avg10="], ids=repr)
    def test_a_kernel_that_does_not_tell(self, tmp_path: Path, text: str | None) -> None:
        if text is not None:
            write(tmp_path / "proc/pressure/memory", text)
        assert MemoryPressure(proc=tmp_path / "proc", cgroups=tmp_path / "cgroup")() is None

    def test_here(self) -> None:
        pressure = MemoryPressure()()
        assert pressure is None or 0 <= pressure.full_percent <= 100


class TestSwappedOut:
    def test_in_bytes(self, tmp_path: Path) -> None:
        write(tmp_path / "vmstat", "pswpin 5\npswpout 300\npswpout_zero 7\n")
        assert SwappedOut(proc=tmp_path)() == 300 * os.sysconf("SC_PAGE_SIZE")

    @pytest.mark.parametrize("text", [None, "", "pswpin 5\n", "pswpout many\n"], ids=repr)
    def test_a_kernel_that_does_not_tell(self, tmp_path: Path, text: str | None) -> None:
        if text is not None:
            write(tmp_path / "vmstat", text)
        assert SwappedOut(proc=tmp_path)() is None
