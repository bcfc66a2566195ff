"""What the samples of a cell come to: metrics that every profile has, and doubts. Pure; nothing is read here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median

from pytest_llmbench.core.records import TelemetryRecord
from pytest_llmbench.errors import Primitive
from pytest_llmbench.telemetry.nvml import HW_SLOWDOWN, HW_THERMAL, POWER_BRAKE, POWER_CAP, SW_THERMAL

# What each metric is made of: where that can not be read, its thresholds are inconclusive, for this reason.
VALUES_OF: Mapping[str, str] = {
    "cpu_temperature_celsius": "cpu_temperature_celsius",
    "gpu_temperature_celsius": "gpu_temperature_celsius",
    "throttle_events": "throttle_events_total",
    "package_joules_per_token": "package_energy_joules_total",
    "gpu_joules_per_token": "gpu_energy_joules_total",
    "frequency_drop_percent": "cpu_frequency_mhz",
}
_NS = 1e9
_GB = 1e9
_BUSY_CORES = 0.5  # of CPU time per second, from which on the server is at work
_BLOCKS, _LEAST_BLOCK = 20, 10  # samples in a block, five seconds: what does not last as long is no drop
_THROTTLED_DROP_PERCENT = 10.0
_HOT_CELSIUS, _PLATEAU_CELSIUS = 80.0, 3.0
_POWER_CAP_SHARE = 0.1
_LEAST_SECONDS, _LEAST_SAMPLES = 1.0, 4  # less says nothing about who else was there
_STEAL_PERCENT = 5.0
_OTHERS_SHARE, _OTHERS_CORES = 0.1, 0.25
_LIMITED = 0.95
# Drivers under whose governor "powersave" the processor itself finds the speed; anywhere else it means the lowest.
_AUTONOMOUS_DRIVERS = {"intel_pstate", "amd-pstate-epp"}
_SAVING_PREFERENCES = {"power", "balance_power"}
_THERMAL_REASONS = SW_THERMAL | HW_THERMAL | HW_SLOWDOWN
_POWER_REASONS = POWER_CAP | POWER_BRAKE


def why_missing(why_not: Mapping[str, str]) -> dict[str, str]:
    """Metric → why this machine can not have it.

    Args:
        why_not: what can not be read, and why.
    """
    return {metric: why_not[value] for metric, value in VALUES_OF.items() if value in why_not}


def cell_metrics(
    samples: Sequence[TelemetryRecord],
    tokens: int | None,
) -> dict[str, float]:
    """Metrics of the registry by name; what the samples do not tell is left out.

    Energy is counted from the first sample of a server on to its last, so that loading is not in it; what it took while
    nothing was asked is.

    Args:
        samples: of one cell, in order.
        tokens: that were generated meanwhile; None where that is not known.
    """
    metrics: dict[str, float] = {}
    for name in ("cpu_temperature_celsius", "gpu_temperature_celsius"):
        if found := _values(samples, name):
            metrics[name] = max(found)
    if (events := _rise(samples, "throttle_events_total")) is not None:
        metrics["throttle_events"] = events
    if swapped := _values(samples, "server_swap_bytes"):
        metrics["swap_gb"] = max(swapped) / _GB
    servers = _by_server(samples)
    for name, joules in (
        ("package_joules_per_token", _sum(_rise(served, "package_energy_joules_total") for served in servers)),
        ("gpu_joules_per_token", _sum(_gpu_joules(served) for served in servers)),
    ):
        if tokens and joules is not None:
            metrics[name] = joules / tokens
    drop = _frequency_drop(samples)
    if drop is not None:
        metrics["frequency_drop_percent"] = drop.percent
    return metrics


def cell_flags(samples: Sequence[TelemetryRecord], facts: Mapping[str, Primitive]) -> list[tuple[str, str]]:
    """Doubts: code of a flag and a sentence each, the same code perhaps several times.

    Args:
        samples: of one cell, in order.
        facts: of the machine, as the sampler tells them.
    """
    return [
        *(("throttled", sentence) for sentence in _throttled(samples)),
        *(("power_saving", sentence) for sentence in _power_saving(facts)),
        *(("busy_machine", sentence) for sentence in _busy_machine(samples, facts)),
    ]


def _throttled(samples: Sequence[TelemetryRecord]) -> Iterator[str]:
    events = _rise(samples, "throttle_events_total")
    if events:
        yield f"the processor throttled itself {events:.0f} times because of heat; give it better cooling or less work"
    drop = _frequency_drop(samples)
    if drop is not None and drop.percent > _THROTTLED_DROP_PERCENT:
        hottest = max(_values(samples, "cpu_temperature_celsius"), default=0.0)
        meanwhile = _values(drop.slow, "cpu_temperature_celsius")
        if meanwhile and hottest >= _HOT_CELSIUS and median(meanwhile) > hottest - _PLATEAU_CELSIUS:
            yield (
                f"the CPU's frequency fell by {drop.percent:.0f} % while it was at {median(meanwhile):.0f} °C; "
                "give it better cooling or less work"
            )
    reasons = [int(value) for value in _values(samples, "gpu_throttle_reasons")]
    hot = sum(bool(bits & _THERMAL_REASONS) for bits in reasons)
    if hot:
        yield f"the GPU lowered its clock because of heat in {hot} of {len(reasons)} samples"
    capped = sum(bool(bits & _POWER_REASONS) for bits in reasons)
    if capped > _POWER_CAP_SHARE * len(reasons):
        yield f"the GPU lowered its clock to keep its power limit in {100 * capped / len(reasons):.0f} % of the samples"


def _power_saving(facts: Mapping[str, Primitive]) -> Iterator[str]:
    governors = str(facts.get("governor", "")).split(", ")
    drivers = set(str(facts.get("frequency_driver", "")).split(", "))
    preferences = set(str(facts.get("energy_preference", "")).split(", "))
    if "powersave" in governors and not drivers <= _AUTONOMOUS_DRIVERS:
        yield "the governor powersave keeps the CPUs slow; sudo cpupower frequency-set -g performance"
    for preference in sorted(preferences & _SAVING_PREFERENCES):
        yield (
            f"the CPUs are told to prefer saving energy ({preference}); write performance to "
            "/sys/devices/system/cpu/cpu*/cpufreq/energy_performance_preference, or choose another power mode"
        )
    limit_mhz, most_mhz = facts.get("frequency_limit_mhz"), facts.get("frequency_most_mhz")
    if isinstance(limit_mhz, float) and isinstance(most_mhz, float) and limit_mhz < _LIMITED * most_mhz:
        yield (
            f"the CPUs are limited to {limit_mhz:.0f} MHz of {most_mhz:.0f} MHz; "
            f"sudo cpupower frequency-set -u {most_mhz:.0f}MHz"
        )
    if facts.get("turbo") is False:
        yield "turbo is switched off, so the CPUs stay at their nominal frequency; the firmware or sysfs switches it on"
    if facts.get("platform_profile") == "low-power":
        yield "the machine's power mode is low-power; choose performance, for example with powerprofilesctl"
    if facts.get("power_source") == "battery":
        yield "the machine ran on its battery; plug it in"


def _busy_machine(samples: Sequence[TelemetryRecord], facts: Mapping[str, Primitive]) -> Iterator[str]:
    """Whether others than the server took what it could have used.

    A step of a model ends when its slowest thread does, so a quarter of one core that others take slows all of them
    where no core is idle. Where one is, the kernel moves the others there; from a tenth of the machine on they are
    in the way all the same, in caches and at the memory.
    """
    servers = _by_server(samples) or ([list(samples)] if samples else [])
    # Shares of time are of what was before a sample: of the first, that is another cell's, or the loading of a model.
    during = [sample for served in servers for sample in served[1:]]
    seconds = sum(served[-1].t_ns - served[0].t_ns for served in servers) / _NS
    busy, steal = _values(during, "cpu_busy_percent"), _values(during, "cpu_steal_percent")
    if min(len(busy), len(steal)) < _LEAST_SAMPLES or seconds < _LEAST_SECONDS:
        return
    if fmean(steal) > _STEAL_PERCENT:
        yield (
            f"the hypervisor gave {fmean(steal):.0f} % of this virtual machine's CPU time to others; "
            "run it on dedicated cores, or on a machine of its own"
        )
    count = facts.get("cpu_count")
    server_seconds = _sum(_rise(served, "server_cpu_seconds_total") for served in servers)
    if not isinstance(count, int) or server_seconds is None:
        return
    others = count * fmean(busy) / 100 - server_seconds / seconds
    idle = count * (1 - (fmean(busy) + fmean(steal)) / 100)
    if others > (_OTHERS_CORES if idle < 1 else max(_OTHERS_CORES, _OTHERS_SHARE * count)):
        yield f"others used {others:.1f} of this machine's {count} CPUs meanwhile; end other programs, run again"


@dataclass(frozen=True, slots=True)
class _Drop:
    """By how much the frequency fell, and the samples in which it was well below the one at the beginning."""

    percent: float
    slow: Sequence[TelemetryRecord]


def _frequency_drop(samples: Sequence[TelemetryRecord]) -> _Drop | None:
    """Of the samples before which the server worked; None where these are too few to tell.

    The first of up to twenty blocks against the lowest, by their medians: an idle CPU lowers its frequency, and a
    single reading may catch any moment. A drop within four standard errors is none; the error of a median is 1.25 times
    that of a mean, and the spread within blocks is told by their median absolute deviation, made good for the size of
    a block by n / (n − 0.8) (Croux and Rousseeuw 1992).
    """
    busy = [sample for sample in _while_busy(samples) if sample.values.get("cpu_frequency_mhz", 0) > 0]
    if len(busy) < 2 * _LEAST_BLOCK:
        return None
    mhz = _values(busy, "cpu_frequency_mhz")
    size = max(_LEAST_BLOCK, len(mhz) // _BLOCKS)
    blocks = [mhz[begin : begin + size] for begin in range(0, len(mhz) - size + 1, size)]
    medians = [median(block) for block in blocks]
    spread = 1.4826 * median(abs(one - middle) for block, middle in zip(blocks, medians, strict=True) for one in block)
    fallen = medians[0] - min(medians)
    if fallen <= 4 * 1.25 * spread * size / (size - 0.8) * (2 / size) ** 0.5:
        return _Drop(0.0, ())
    limit_mhz = medians[0] * (1 - _THROTTLED_DROP_PERCENT / 100)
    slow = [sample for sample in busy if sample.values["cpu_frequency_mhz"] < limit_mhz]
    return _Drop(100 * fallen / medians[0], slow)


def _while_busy(samples: Sequence[TelemetryRecord]) -> Iterator[TelemetryRecord]:
    for before, after in pairwise(_served(samples)):
        seconds = (after.t_ns - before.t_ns) / _NS
        used = after.values["server_cpu_seconds_total"] - before.values["server_cpu_seconds_total"]
        if seconds > 0 and used >= _BUSY_CORES * seconds:
            yield after


def _served(samples: Sequence[TelemetryRecord]) -> list[TelemetryRecord]:
    """Those that tell of the server."""
    return [sample for sample in samples if "server_cpu_seconds_total" in sample.values]


def _by_server(samples: Sequence[TelemetryRecord]) -> list[list[TelemetryRecord]]:
    """Those that tell of a server, apart for each: where the CPU time used has fallen, it was loaded again."""
    servers: list[list[TelemetryRecord]] = []
    used = 0.0
    for sample in _served(samples):
        if not servers or sample.values["server_cpu_seconds_total"] < used:
            servers.append([])
        servers[-1].append(sample)
        used = sample.values["server_cpu_seconds_total"]
    return servers


def _sum(parts: Iterable[float | None]) -> float | None:
    """Of those that are known; None where none is."""
    known = [part for part in parts if part is not None]
    return sum(known) if known else None


def _gpu_joules(samples: Sequence[TelemetryRecord]) -> float | None:
    """By the GPU's counter or, without one, by the power between the samples."""
    counted = _rise(samples, "gpu_energy_joules_total")
    having = [sample for sample in samples if "gpu_power_watts" in sample.values]
    if counted is not None or len(having) < 2:
        return counted
    return sum(
        (after.t_ns - before.t_ns) / _NS * (before.values["gpu_power_watts"] + after.values["gpu_power_watts"]) / 2
        for before, after in pairwise(having)
    )


def _rise(samples: Sequence[TelemetryRecord], name: str) -> float | None:
    """By how much a counter rose; None without two values. One that falls has begun anew, or lost a part."""
    values = _values(samples, name)
    if len(values) < 2:
        return None
    return sum(max(0.0, after - before) for before, after in pairwise(values))


def _values(samples: Sequence[TelemetryRecord], name: str) -> list[float]:
    return [sample.values[name] for sample in samples if name in sample.values]
