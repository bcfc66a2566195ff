"""What samples come to: planted heat, throttling, power saving and neighbours are found, and none without them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from pytest_llmbench.core.metrics import METRICS
from pytest_llmbench.core.records import FLAGS, TelemetryRecord
from pytest_llmbench.errors import Primitive
from pytest_llmbench.telemetry.nvml import HW_THERMAL, POWER_CAP
from pytest_llmbench.telemetry.summary import VALUES_OF, cell_flags, cell_metrics, why_missing

CPUS = 8
FACTS: dict[str, Primitive] = {"cpu_count": CPUS}
Value = float | Callable[[int], float]


def samples(count: int = 60, **values: Value) -> list[TelemetryRecord]:
    """Two a second; each value as a number, or as a function of the sample's number."""
    return [
        TelemetryRecord(
            cell="a",
            t_ns=number * 500_000_000,
            values={name: value(number) if callable(value) else value for name, value in values.items()},
        )
        for number in range(count)
    ]


def working(cores: float = 4.0, count: int = 60, **values: Value) -> list[TelemetryRecord]:
    """A server that uses so many cores, and nobody else."""
    usual: dict[str, Value] = {
        "server_cpu_seconds_total": lambda number: 100 + cores * number / 2,
        "cpu_busy_percent": 100 * cores / CPUS,
        "cpu_steal_percent": 0.0,
    }
    return samples(count, **usual | values)


def reloaded(**values: Value) -> list[TelemetryRecord]:
    """Two servers one after the other, for 20 samples each; loading the second takes 20 samples and two cores."""

    def used(number: int) -> float:
        return 40 + 2 * number if number < 20 else 40 + 2 * (number - 40)

    found = working(4.0, 60, used_by_server=used, cpu_busy_percent=50.0, **values)
    for number, sample in enumerate(found):
        total = sample.values.pop("used_by_server")
        if 20 <= number < 40:
            del sample.values["server_cpu_seconds_total"]
        else:
            sample.values["server_cpu_seconds_total"] = total
    return found


def codes(found: Sequence[TelemetryRecord], facts: dict[str, Primitive] | None = None) -> list[str]:
    return [code for code, _ in cell_flags(found, FACTS | (facts or {}))]


class TestMetrics:
    def test_nothing_comes_of_nothing(self) -> None:
        assert cell_metrics([], 100) == {}
        assert cell_metrics(samples(1, throttle_events_total=5.0), 100) == {}
        assert cell_flags([], {}) == []

    def test_extremes(self) -> None:
        found = samples(
            10,
            cpu_temperature_celsius=lambda number: 60 + number % 7,
            gpu_temperature_celsius=lambda number: 70 - number,
            server_swap_bytes=lambda number: 2e9 if number == 4 else 1e9,
        )
        expected = {"cpu_temperature_celsius": 66, "gpu_temperature_celsius": 70, "swap_gb": 2.0}
        assert cell_metrics(found, None) == expected

    def test_no_swap_is_told_as_none(self) -> None:
        assert cell_metrics(samples(server_swap_bytes=0.0), None) == {"swap_gb": 0}

    def test_throttle_events_are_those_of_the_cell(self) -> None:
        assert cell_metrics(samples(10, throttle_events_total=500.0), None) == {"throttle_events": 0}
        rising = samples(10, throttle_events_total=lambda number: 500 + 3 * number)
        assert cell_metrics(rising, None) == {"throttle_events": 27}

    def test_energy_per_token_does_not_count_the_load(self) -> None:
        found = samples(20, package_energy_joules_total=lambda number: 1000 + 10 * number)
        later = [
            sample.model_copy(update={"values": {**sample.values, "server_cpu_seconds_total": 1.0}})
            for sample in found[10:]
        ]
        assert cell_metrics([*found[:10], *later], 45)["package_joules_per_token"] == pytest.approx(90 / 45)
        assert cell_metrics(found, 45) == {}  # no server was seen

    def test_energy_does_not_count_that_the_model_is_loaded_again(self) -> None:
        found = reloaded(package_energy_joules_total=lambda number: 10.0 * number, gpu_power_watts=20.0)
        metrics = cell_metrics(found, 38)
        assert metrics["package_joules_per_token"] == pytest.approx(380 / 38)  # 19 steps of 10 J for each server
        assert metrics["gpu_joules_per_token"] == pytest.approx(380 / 38)  # 19 steps of half a second at 20 W
        counted = reloaded(gpu_energy_joules_total=lambda number: 10.0 * number, gpu_power_watts=1.0)
        assert cell_metrics(counted, 38)["gpu_joules_per_token"] == pytest.approx(380 / 38)

    @pytest.mark.parametrize("tokens", [None, 0])
    def test_energy_without_tokens(self, tokens: int | None) -> None:
        found = working(package_energy_joules_total=float)
        assert "package_joules_per_token" not in cell_metrics(found, tokens)

    def test_energy_of_the_gpu_by_its_counter_or_its_power(self) -> None:
        counted = working(count=11, gpu_energy_joules_total=lambda number: 70.0 * number, gpu_power_watts=1.0)
        assert cell_metrics(counted, 100)["gpu_joules_per_token"] == pytest.approx(7.0)
        powered = working(count=11, gpu_power_watts=lambda number: 100.0 * number)  # 0 to 1000 W in 5 s
        assert cell_metrics(powered, 100)["gpu_joules_per_token"] == pytest.approx(25.0)

    def test_all_are_in_the_registry_and_so_are_the_flags(self) -> None:
        values: dict[str, Any] = dict.fromkeys([*VALUES_OF.values(), "server_swap_bytes"], 50.0)
        found = cell_metrics(working(**values), 10)
        assert found.keys() == {*VALUES_OF, "swap_gb"}
        assert found.keys() <= METRICS.keys()
        assert {"throttled", "power_saving", "busy_machine"} <= FLAGS.keys()

    def test_what_is_missing_says_why(self) -> None:
        assert why_missing({"throttle_events_total": "no counters", "server_pss_bytes": "no"}) == {
            "throttle_events": "no counters"
        }


def noisy(seed: int, mhz: float = 4000.0, sd: float = 0.02) -> Callable[[int], float]:
    noise = random.Random(seed)
    return lambda number: mhz * noise.gauss(1.0, sd)


class TestFrequency:
    def test_a_drop_that_lasts(self) -> None:
        found = working(cpu_frequency_mhz=lambda number: 4000.0 if number < 30 else 3000.0)
        assert cell_metrics(found, None) == {"frequency_drop_percent": 25}

    def test_a_moment_is_none(self) -> None:
        found = working(cpu_frequency_mhz=lambda number: 1000.0 if number in {20, 21} else 4000.0)
        assert cell_metrics(found, None) == {"frequency_drop_percent": 0}

    def test_nor_is_what_an_idle_server_leaves(self) -> None:
        found = working(
            server_cpu_seconds_total=lambda number: 4.0 * min(number, 30),
            cpu_frequency_mhz=lambda number: 4000.0 if number <= 30 else 800.0,
        )
        assert cell_metrics(found, None) == {"frequency_drop_percent": 0}

    @pytest.mark.parametrize("changes", [{"server_cpu_seconds_total": 5.0}, {"count": 20}])
    def test_too_little_to_tell(self, changes: dict[str, Any]) -> None:
        assert cell_metrics(working(**{"cpu_frequency_mhz": 4000.0, **changes}), None) == {}

    @pytest.mark.parametrize("count", [21, 200, 3600])
    def test_noise_is_none(self, count: int) -> None:
        """Of 100 clean cells none is flagged, and hardly one has any drop."""
        runs = [
            working(count=count, cpu_frequency_mhz=noisy(seed, sd=0.03)) for seed in range(100 if count < 999 else 9)
        ]
        drops = [cell_metrics(run, None)["frequency_drop_percent"] for run in runs]
        assert max(drops) < 10
        assert sum(drop > 0 for drop in drops) <= 2

    @pytest.mark.parametrize("seed", range(10))
    def test_a_small_drop_is_found_where_there_is_little_noise(self, seed: int) -> None:
        mhz = noisy(seed, sd=0.005)
        found = working(count=200, cpu_frequency_mhz=lambda number: mhz(number) * (1 - 0.03 * (number >= 100)))
        assert cell_metrics(found, None)["frequency_drop_percent"] == pytest.approx(3, abs=1)


class TestThrottled:
    def test_counted(self) -> None:
        found = working(throttle_events_total=lambda number: 7.0 + (number > 30))
        (flag,) = cell_flags(found, FACTS)
        assert flag[0] == "throttled"
        assert "1 times" in flag[1]
        assert codes(working(throttle_events_total=7.0)) == []

    @pytest.mark.parametrize("seed", range(10))
    def test_a_planted_thermal_drop(self, seed: int) -> None:
        """It warms up to 95 °C, and there the frequency falls by a fifth."""
        mhz = noisy(seed)
        found = working(
            cpu_frequency_mhz=lambda number: mhz(number) * (1.0 if number < 30 else 0.8),
            cpu_temperature_celsius=lambda number: min(95.0, 50 + 1.6 * number),
        )
        assert codes(found) == ["throttled"]

    @pytest.mark.parametrize("hottest", [79.0, 70.0])
    def test_a_drop_without_heat_is_only_a_number(self, hottest: float) -> None:
        found = working(
            cpu_frequency_mhz=lambda number: 4000.0 if number < 30 else 3000.0, cpu_temperature_celsius=hottest
        )
        assert codes(found) == []
        assert cell_metrics(found, None)["frequency_drop_percent"] == 25

    def test_a_drop_that_is_not_at_the_highest_temperature(self) -> None:
        found = working(
            cpu_frequency_mhz=lambda number: 4000.0 if number < 30 else 3000.0,
            cpu_temperature_celsius=lambda number: 92.0 if number < 30 else 60.0,
        )
        assert codes(found) == []

    def test_a_gpu_by_heat(self) -> None:
        found = working(gpu_throttle_reasons=lambda number: float(HW_THERMAL if number == 40 else 1))
        assert codes(found) == ["throttled"]
        assert codes(working(gpu_throttle_reasons=1.0)) == []  # idle

    def test_heat_of_a_moment_is_not_told_as_none(self) -> None:
        found = working(4.0, 400, gpu_throttle_reasons=lambda number: float(HW_THERMAL if number == 40 else 1))
        ((_, sentence),) = cell_flags(found, FACTS)
        assert "in 1 of 400 samples" in sentence

    @pytest.mark.parametrize(("capped", "expected"), [(6, []), (7, ["throttled"])])
    def test_a_gpu_by_power(self, capped: int, expected: list[str]) -> None:
        found = working(gpu_throttle_reasons=lambda number: float(POWER_CAP if number < capped else 0))
        assert codes(found) == expected


class TestPowerSaving:
    @pytest.mark.parametrize(
        "facts",
        [
            {},
            {"governor": "performance", "frequency_driver": "acpi-cpufreq", "turbo": True},
            {"governor": "schedutil", "frequency_driver": "acpi-cpufreq"},
            {"governor": "powersave", "frequency_driver": "intel_pstate", "energy_preference": "balance_performance"},
            {"governor": "powersave", "frequency_driver": "amd-pstate-epp", "energy_preference": "performance"},
            {"frequency_limit_mhz": 4400.0, "frequency_most_mhz": 4500.0, "power_source": "mains"},
            {"platform_profile": "balanced"},
        ],
    )
    def test_none(self, facts: dict[str, Primitive]) -> None:
        assert codes(working(), facts) == []

    @pytest.mark.parametrize(
        ("facts", "word"),
        [
            ({"governor": "powersave", "frequency_driver": "acpi-cpufreq"}, "governor"),
            ({"governor": "powersave", "frequency_driver": "intel_cpufreq"}, "governor"),
            ({"governor": "powersave"}, "governor"),
            ({"governor": "performance, powersave", "frequency_driver": "amd-pstate"}, "governor"),
            ({"governor": "powersave", "frequency_driver": "intel_pstate", "energy_preference": "power"}, "(power)"),
            ({"energy_preference": "balance_performance, balance_power"}, "(balance_power)"),
            ({"frequency_limit_mhz": 2000.0, "frequency_most_mhz": 4500.0}, "2000 MHz of 4500 MHz"),
            ({"turbo": False}, "turbo"),
            ({"platform_profile": "low-power"}, "low-power"),
            ({"power_source": "battery"}, "battery"),
        ],
    )
    def test_each(self, facts: dict[str, Primitive], word: str) -> None:
        (flag,) = cell_flags(working(), FACTS | facts)
        assert flag[0] == "power_saving"
        assert word in flag[1]


class TestBusyMachine:
    def test_stolen_time(self) -> None:
        assert codes(working(cpu_steal_percent=6.0)) == ["busy_machine"]
        assert codes(working(cpu_steal_percent=4.0)) == []

    @pytest.mark.parametrize(
        ("server", "others", "is_busy"),
        [
            (4.0, 0.1, False),
            (4.0, 0.7, False),  # less than a tenth, and there are idle cores for it
            (4.0, 0.9, True),
            (7.5, 0.2, False),
            (7.5, 0.4, True),  # no core is idle any more
            (7.0, 1.0, True),
            (0.0, 2.0, True),
        ],
    )
    def test_others(self, server: float, others: float, is_busy: bool) -> None:
        found = working(server, cpu_busy_percent=100 * (server + others) / CPUS)
        assert codes(found) == (["busy_machine"] if is_busy else [])

    def test_what_was_before_the_cell_does_not_count(self) -> None:
        found = working(count=10, cpu_busy_percent=lambda number: 100.0 if number == 0 else 50.0)
        assert codes(found) == []

    def test_nor_what_was_before_the_server(self) -> None:
        loading = samples(40, cpu_busy_percent=100.0, cpu_steal_percent=0.0)
        served = [sample.model_copy(update={"t_ns": sample.t_ns + 20_000_000_000}) for sample in working()]
        assert codes([*loading, *served]) == []

    def test_without_a_server_of_ours_nothing_is_said_of_others(self) -> None:
        assert codes(samples(cpu_busy_percent=100.0, cpu_steal_percent=0.0)) == []
        assert codes(samples(cpu_busy_percent=100.0, cpu_steal_percent=50.0)) == ["busy_machine"]

    def test_a_cell_too_short_to_tell(self) -> None:
        assert codes(working(count=4, cpu_busy_percent=100.0, cpu_steal_percent=50.0)) == []

    def test_loading_the_model_again_is_not_taken_for_others(self) -> None:
        assert codes(reloaded()) == []
