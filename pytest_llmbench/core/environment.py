"""Where a run was made, flat: what two runs differ in, and whether their numbers can still be compared.

Everything here reads what a file says, and a file may say anything: what has no sense is passed over.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pytest_llmbench.core.records import Record
from pytest_llmbench.core.redaction import redacted
from pytest_llmbench.errors import Primitive

Kind = Literal["incomparable", "doubtful", "changed"]
Environment = Mapping[str, Primitive]

MEANING: dict[Kind, str] = {
    "incomparable": "other hardware: cells that were measured on it are not compared",
    "doubtful": "this alone can change the numbers, whatever else was changed",
    "changed": "this may be the cause of a difference",
}
_GIB = 2**30
_UNKNOWN = "not known"
_NOT_SET = "not set"
# Keys of an environment, what kind of difference another value is, and what people call it; {} is what * stands for.
_RULES: tuple[tuple[str, Kind, str], ...] = (
    ("hardware.cpu", "incomparable", "processor"),
    ("hardware.physical_cores", "incomparable", "physical cores"),
    ("hardware.logical_cores", "incomparable", "logical cores"),
    ("hardware.memory_gib", "incomparable", "main memory in GiB"),
    ("hardware.machine", "incomparable", "architecture"),
    ("hardware.label", "incomparable", "label of the machine (LLMBENCH_HOST_LABEL)"),
    ("sensors.*.gpu_names", "incomparable", "GPUs"),
    ("servers", "doubtful", "version of the server"),
    ("hardware.os", "doubtful", "operating system and kernel"),
    ("sensors.*.gpu_driver_version", "doubtful", "GPU driver"),
    ("sensors.*.gpu_power_limit_watts", "doubtful", "power limit of the GPU in W"),
    ("sensors.*.governor", "doubtful", "governor of the CPU frequency"),
    ("sensors.*.frequency_driver", "doubtful", "driver of the CPU frequency"),
    ("sensors.*.energy_preference", "doubtful", "energy preference of the CPUs"),
    ("sensors.*.frequency_limit_mhz", "doubtful", "highest allowed CPU frequency in MHz"),
    ("sensors.*.turbo", "doubtful", "turbo"),
    ("sensors.*.power_source", "doubtful", "power source"),
    ("sensors.*.platform_profile", "doubtful", "power mode"),
    ("sensors.*.cpu_count", "doubtful", "CPUs that are online"),
    ("clock.implementation", "doubtful", "clock"),
    ("calibration.event_loop", "doubtful", "event loop of the client"),
    ("software.pytest-llmbench", "doubtful", "version of pytest-llmbench"),
    ("software.*", "doubtful", "version of {}"),
    ("git_commit", "changed", "git commit"),
    ("mode", "changed", "mode"),
    ("configuration.*", "changed", "{}"),
)
_PATTERNS = tuple((re.compile(re.escape(key).replace(r"\*", "(.+)")), kind, title) for key, kind, title in _RULES)
_ORDER = {kind: number for number, kind in enumerate(MEANING)}
# What no number depends on: where results go, what is judged, and which cells others make pointless; and the mode that
# is configured, as the command line may say another: `mode` is the one in force.
_WITHOUT_EFFECT = ("output", "logging", "model_dir", "resume_from", "thresholds", "blocking", "test_mode", "use_cases")
# What runs the tests, and what does arithmetic afterwards: nothing of them works while a token is awaited.
_NOT_TIMED = {"pytest", "pytest-xdist", "numpy", "scipy"}
_ERRORS = {
    "calibration.ttft_error_p99_ms": "error of times to first token in ms",
    "calibration.gap_error_p99_ms": "error of times between tokens in ms",
}
_MUCH_WORSE = 3.0  # of so few readings, a 99th percentile is easily twice another
_LEAST_ERROR_MS = 1.0


class Difference(Record):
    """One thing that two runs differ in.

    Attributes:
        kind: what follows for their numbers, see :data:`MEANING`.
        what: in words.
        old, new: as text; ``not known`` or ``not set`` where a run does not tell.
    """

    kind: Kind
    what: str
    old: str
    new: str
    sentence: str


def environment_of(description: Mapping[str, Any]) -> dict[str, Primitive]:
    """What ``run.json`` tells of where and how a run was made, by key: ``hardware.cpu``, ``sensors.<host>.governor``.

    Of the configuration, what no number depends on is left out.
    """
    hardware, calibration = _part(description, "hardware"), _part(description, "calibration")
    configuration = redacted(_part(description, "configuration"))
    servers, memory_bytes = description.get("servers"), hardware.get("memory_bytes")
    found: dict[str, Primitive] = {
        **_leaves({key: hardware[key] for key in hardware if key != "memory_bytes"}, "hardware"),
        **_leaves(_part(description, "software"), "software"),
        **_leaves({key: configuration[key] for key in configuration if key not in _WITHOUT_EFFECT}, "configuration"),
        **_errors(calibration),
    }
    if isinstance(memory_bytes, int | float) and math.isfinite(memory_bytes):
        found["hardware.memory_gib"] = round(memory_bytes / _GIB)
    if isinstance(servers, list):
        found["servers"] = ", ".join(sorted(map(str, servers)))
    for host, told in sorted(_part(description, "sensors").items(), key=str):
        if isinstance(told, Mapping):
            found |= _leaves(_part(told, "facts"), f"sensors.{host}")
    single = {
        "host": description.get("host"),
        "mode": description.get("mode"),
        "git_commit": description.get("git_commit"),
        "clock.implementation": _part(description, "clock").get("implementation"),
        "calibration.event_loop": calibration.get("event_loop"),
    }
    return found | {key: value for key, value in single.items() if isinstance(value, str)}


def differences(old: Environment, new: Environment) -> list[Difference]:
    """What two runs' environments differ in, what weighs most first.

    What only one of them tells counts where it may matter; of a machine whose sensors only one run asked, that is one
    difference. Sensors of machines that only one run used are passed over: their cells are not compared.
    """
    if not old or not new:
        return [_nothing_known("earlier" if not old else "later")]
    found = [*_of_sensors(old, new), *_of_errors(old, new)]
    for key in dict.fromkeys([*old, *new]):
        before, now = old.get(key), new.get(key)
        rule = _rule(key)
        if rule is not None and before != now and not _is_told_elsewhere(key, old, new):
            found.append(_difference(*rule, before, now, _NOT_SET if key.startswith("configuration.") else _UNKNOWN))
    return sorted(dict.fromkeys(found), key=lambda one: _ORDER[one.kind])


def gpus_of(environment: Environment, host: str) -> str | None:
    """The names of a machine's GPUs; None where its sensors tell of none."""
    names = environment.get(f"sensors.{host}.gpu_names")
    return names if isinstance(names, str) else None


def shown(value: Primitive, absent: str = _NOT_SET) -> str:
    """A value as text: a git commit or a digest is cut to what tells it apart.

    Args:
        absent: what None is called.
    """
    if value is None:
        return absent
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text[:12] if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", text) else text


def _rule(key: str) -> tuple[Kind, str] | None:
    for pattern, kind, title in _PATTERNS:
        match = pattern.fullmatch(key)
        if match is not None:
            name = match.group(1) if match.groups() else ""
            return ("changed", title.format(name)) if name in _NOT_TIMED else (kind, title.replace("{}", name))
    return None


def _is_told_elsewhere(key: str, old: Environment, new: Environment) -> bool:
    if key == "software.xllamacpp":  # the embedded engine, which is one of the servers that were used, or was not
        return "servers" in old and "servers" in new
    if key == "servers":  # known only when a run has ended
        return key not in old or key not in new
    parts = key.split(".")
    return parts[0] == "sensors" and not {parts[1]} <= _hosts(old) & _hosts(new)


def _nothing_known(run: str) -> Difference:
    sentence = f"the {run} run does not tell where and how it was made (run.json is missing or can not be read)"
    old, new = (_UNKNOWN if run == which else "known" for which in ("earlier", "later"))
    return Difference(kind="doubtful", what="environment", old=old, new=new, sentence=sentence)


def _of_sensors(old: Environment, new: Environment) -> Iterator[Difference]:
    """That only one of two runs on the same machine asked its sensors."""
    host = old.get("host")
    if host != new.get("host") or (host in _hosts(old)) == (host in _hosts(new)):
        return
    asked, not_asked = ("asked", _UNKNOWN) if host in _hosts(old) else (_UNKNOWN, "asked")
    yield Difference(
        kind="doubtful",
        what="sensors",
        old=asked,
        new=not_asked,
        sentence="only one of the runs tells governor, power source and GPU driver (measurement.telemetry), so these "
        "may differ",
    )


def _of_errors(old: Environment, new: Environment) -> Iterator[Difference]:
    """That the client timed much less precisely in one of the runs."""
    for key, title in _ERRORS.items():
        before, now = old.get(key), new.get(key)
        if not isinstance(before, int | float) or not isinstance(now, int | float):
            continue
        low, high = sorted((before, now))
        if high > _MUCH_WORSE * low and high - low > _LEAST_ERROR_MS:
            yield _difference("doubtful", title, round(before, 2), round(now, 2))


def _difference(kind: Kind, what: str, old: Primitive, new: Primitive, absent: str = _UNKNOWN) -> Difference:
    before, now = shown(old, absent), shown(new, absent)
    return Difference(kind=kind, what=what, old=before, new=now, sentence=f"{what}: {before} → {now}")


def _hosts(environment: Environment) -> set[str]:
    return {key.split(".")[1] for key in environment if key.startswith("sensors.")}


def _errors(calibration: Mapping[str, Any]) -> dict[str, Primitive]:
    """Of the calibration with the fewest streams."""
    errors = calibration.get("errors")
    first = errors[0] if isinstance(errors, list) and errors and isinstance(errors[0], Mapping) else {}
    values = {key: first.get(key.partition(".")[2]) for key in _ERRORS}
    return {key: value for key, value in values.items() if isinstance(value, int | float) and math.isfinite(value)}


def _part(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = value.get(key)
    return part if isinstance(part, Mapping) else {}


def _leaves(value: Any, path: str) -> dict[str, Primitive]:
    """All values with their places; an item of a list is named by its id, where it has one, and else by its number."""
    if isinstance(value, Mapping):
        parts = [(f"{path}.{key}", part) for key, part in value.items()]
    elif isinstance(value, list) and any(isinstance(part, Mapping | list) for part in value):
        names = [part.get("id", index) if isinstance(part, Mapping) else index for index, part in enumerate(value)]
        parts = [(f"{path}[{name}]", part) for name, part in zip(names, value, strict=True)]
    elif isinstance(value, list):
        return {path: ", ".join(map(str, value))} if value else {}
    else:
        is_fit = (
            value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))
        )
        return {path: value} if is_fit and value is not None else {}
    return {key: leaf for name, part in parts for key, leaf in _leaves(part, name).items()}
