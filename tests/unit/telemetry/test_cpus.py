"""Shares of time and frequencies of CPUs, on fake trees."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from pytest_llmbench.telemetry.cpus import CpuShares, Frequencies, Times
from tests.unit.telemetry.trees import write

TICK = 1 / os.sysconf("SC_CLK_TCK")


def shares(*readings: Mapping[int, Times]) -> CpuShares:
    found = CpuShares()
    for reading in readings:
        found.update(reading)
    return found


class TestTimes:
    def test_of_linux(self) -> None:
        stat = (
            "cpu  1 2 3 4 5 6 7 8 9 10\n"
            "cpu0 100 10 50 800 40 3 7 20 9 9\n"
            "cpu3 0 0 0 5 0 0 0 0 0 0\n"
            "intr 5 1\ncpu9 1 1 1 1 1 1 1 1\n"
        )
        found = Times.of_linux(stat)
        assert found.keys() == {0, 3}
        assert found[0] == pytest.approx((170 * TICK, 20 * TICK, 840 * TICK))  # guests are in user and nice already

    @pytest.mark.parametrize("stat", ["", "nonsense", "cpu0 1 2 3\n", "cpu0 a b c d e f g h\n", "cpux 1 2 3 4 5 6 7 8"])
    def test_of_a_text_that_is_none(self, stat: str) -> None:
        assert Times.of_linux(stat) == {}

    def test_of_psutil(self) -> None:
        times = SimpleNamespace(user=1.0, nice=0.5, system=2.0, idle=4.0)
        assert Times.of_psutil([times]) == {0: Times(3.5, 0.0, 4.0)}


class TestShares:
    def test_nothing_is_known_from_one_reading(self) -> None:
        found = shares({0: Times(5, 0, 5)})
        assert (found.percentages, found.busy) == ({}, {})

    def test_between_two_readings(self) -> None:
        found = shares({0: Times(5, 0, 5), 1: Times(0, 0, 0)}, {0: Times(6, 0, 5), 1: Times(0.25, 0.25, 0.5)})
        assert found.percentages == pytest.approx({"cpu_busy_percent": 62.5, "cpu_steal_percent": 12.5})
        assert found.busy == pytest.approx({0: 1.0, 1: 0.25})

    def test_a_reading_too_soon_is_left_for_the_next(self) -> None:
        found = shares({0: Times(0, 0, 0)}, {0: Times(1, 0, 0)}, {0: Times(1, 0, 0.05)})
        assert found.busy_percent == 100
        found.update({0: Times(1, 0, 0.15)})  # 0.15 s after the one that counted
        assert found.busy_percent == 0

    def test_counts_of_waiting_that_fall_are_no_time(self) -> None:
        found = shares({0: Times(0, 0, 10)}, {0: Times(1, 0, 9)})
        assert found.busy_percent == 100

    def test_a_cpu_that_comes_and_one_that_goes(self) -> None:
        found = shares({0: Times(0, 0, 0), 1: Times(0, 0, 0)}, {0: Times(1, 0, 1), 2: Times(9, 0, 0)})
        assert found.busy == {0: 0.5}


def cpufreq(root: Path, cpu: int, **files: object) -> None:
    write(root / f"cpu{cpu}/cpufreq", files)


class TestFrequencies:
    def test_weighted_with_the_work(self, tmp_path: Path) -> None:
        for cpu, khz in enumerate((4_000_000, 2_000_000, 800_000)):
            cpufreq(tmp_path, cpu, scaling_cur_freq=khz)
        found = Frequencies(tmp_path)
        assert found.why_not == {}
        assert found.read_mhz({0: 0.75, 1: 0.25, 2: 0.0}) == pytest.approx(3500)
        assert found.read_mhz({}) == pytest.approx(6800 / 3)
        assert found.read_mhz({0: 0.0, 1: 0.0, 2: 0.0}) == pytest.approx(6800 / 3)

    def test_only_the_busiest_are_asked(self, tmp_path: Path) -> None:
        for cpu in range(40):
            cpufreq(tmp_path, cpu, scaling_cur_freq=3_000_000 if cpu >= 24 else 1_000_000)
        assert Frequencies(tmp_path).read_mhz({cpu: cpu / 40 for cpu in range(40)}) == pytest.approx(3000)

    def test_one_that_does_not_tell_just_now(self, tmp_path: Path) -> None:
        cpufreq(tmp_path, 0, scaling_cur_freq=3_000_000)
        cpufreq(tmp_path, 1, scaling_cur_freq="<unknown>")
        assert Frequencies(tmp_path).read_mhz({0: 1, 1: 1}) == pytest.approx(3000)
        cpufreq(tmp_path, 0, scaling_cur_freq="")
        assert Frequencies(tmp_path).read_mhz({0: 1, 1: 1}) is None

    def test_a_virtual_machine_has_none(self, tmp_path: Path) -> None:
        write(tmp_path, {"cpu0/topology/core_id": 0})
        found = Frequencies(tmp_path)
        assert "virtual machine" in found.why_not["cpu_frequency_mhz"]
        assert found.read_mhz({0: 1.0}) is None
        assert found.facts() == {}

    def test_facts(self, tmp_path: Path) -> None:
        for cpu, governor in enumerate(("powersave", "performance", "powersave")):
            cpufreq(
                tmp_path,
                cpu,
                scaling_cur_freq=1_000_000,
                scaling_governor=governor,
                scaling_driver="intel_pstate",
                energy_performance_preference="balance_performance",
                scaling_max_freq=3_000_000 + cpu,
                cpuinfo_max_freq=4_500_000,
            )
        write(tmp_path, {"intel_pstate/no_turbo": 1})
        assert Frequencies(tmp_path).facts() == {
            "governor": "performance, powersave",
            "frequency_driver": "intel_pstate",
            "energy_preference": "balance_performance",
            "turbo": False,
            "frequency_limit_mhz": pytest.approx(3000.002),
            "frequency_most_mhz": 4500,
        }

    @pytest.mark.parametrize(("boost", "turbo"), [(1, True), (0, False)])
    def test_turbo_of_other_drivers(self, tmp_path: Path, boost: int, turbo: bool) -> None:
        write(tmp_path, {"cpufreq/boost": boost, "cpu0/cpufreq/scaling_cur_freq": 5})
        assert Frequencies(tmp_path).facts() == {"turbo": turbo}
