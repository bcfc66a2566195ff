"""A cell is measured: its profile runs, once per load of the model, and what is known of every cell is added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pytest_llmbench.adapters.cell_run import CellRun
from pytest_llmbench.adapters.memory import observe, watch
from pytest_llmbench.adapters.state import Suite
from pytest_llmbench.core.loads import loads_differ, over_loads
from pytest_llmbench.core.metrics import METRICS
from pytest_llmbench.core.records import MetricValue
from pytest_llmbench.core.scores import EFFICIENCY, efficiency
from pytest_llmbench.core.thresholds import Limit
from pytest_llmbench.errors import MeasurementInvalid
from pytest_llmbench.profiles.base import FailedRequest, Measurement, Profile, ProfileContext, RequestSink

OVERLAP_NOTES = {
    "downloads": "other workers may have fetched models meanwhile (measurement.overlap)",
    "starts": "other workers may have fetched models and started servers meanwhile (measurement.overlap)",
}
_LEAST_READ_BYTES = 1_000_000  # less than that, and the model was in the page cache


@dataclass(frozen=True)
class Measuring:
    """How one cell is measured.

    Attributes:
        limits: the thresholds in force.
        sink: takes each request's record.
        on_failure: what a failed request means for the cell.
    """

    suite: Suite
    run: CellRun
    limits: tuple[Limit, ...]
    sink: RequestSink
    on_failure: FailedRequest

    def measure(self) -> Measurement:
        """Run the cell's profile over as many loads of its model as configured, and put together what was found.

        Raises:
            CellError: it could not be measured, or the measurement can not be trusted.
        """
        suite, run = self.suite, self.run
        profile = suite.profiles[run.cell.profile]
        count = suite.config.measurement.loads if getattr(profile, "is_repeated_over_loads", False) else 1
        found: list[Measurement] = []
        while len(found) < count and (not found or self._load_again()):
            with run.phase("measure"):
                found.append(self._measure_once(profile))
        measurement = _together(found)
        if count > len(found):
            measurement.notes.append("this server is not ours to load again: measured over one load, not as configured")
        observe(run)  # now, so that limits on memory can be judged
        _add_what_is_known_of_every_cell(suite, run, self.limits, measurement)
        return measurement

    def _load_again(self) -> bool:
        run = self.run
        if run.reload is None:
            return False
        observe(run)
        run.server = run.reload()
        watch(self.suite, run, run.server)
        return True

    def _measure_once(self, profile: Profile) -> Measurement:
        suite, run, server = self.suite, self.run, self.run.server
        assert server is not None  # noqa: S101 -- the fixture has provided it
        identity = server.identity()
        measurement = profile.run(
            ProfileContext(
                endpoint=server.endpoint,
                settings=suite.settings[profile.name],
                rule=suite.stopping_rule(self.limits),
                nodeid=run.nodeid,
                data_dirs=suite.data_dirs,
                rootdir=suite.rootdir,
                sink=self.sink,
                next_index=run.sent_requests,
                on_failure=self.on_failure,
                context_size=server.info.context_size,
                telemetry=suite.sensing.telemetry,
                refused_sizes=run.refused_sizes,
                disturbance=suite.watches.disturbance,
                disturbances=run.disturbances,
            )
        )
        now = server.identity()
        ended_early = "aborted" in measurement.flags  # what was measured stands, though its server may not
        if identity is not None and now is None and not ended_early and not server.alive:
            raise server.death()
        if identity is not None and now != identity and not ended_early:  # a supervisor may have put in another
            raise MeasurementInvalid(
                "server_restarted",
                f"the server was restarted while it was measured ({identity} → {now}); look for the crash in its log "
                "or its supervisor's, then run the cell again",
                {"before": identity, "after": now},
            )
        measurement.notes.extend(server.notes)
        for flag in server.flags:
            measurement.flag(flag)
        _add_exactly(measurement, _of_the_load(run))
        return measurement


def _together(found: Sequence[Measurement]) -> Measurement:
    """One measurement of several loads: medians over loads, what is no median as its median, extremes as extremes."""
    if len(found) == 1:
        return found[0]
    whole = Measurement()
    for name in dict.fromkeys(name for one in found for name in one.metrics):
        having = [one for one in found if name in one.metrics]
        samples = [one.samples[name] for one in having if name in one.samples]
        values = [one.metrics[name] for one in having]
        if len(samples) == len(having) > 1:
            value, interval = over_loads(samples)
            whole.samples[name] = [sample for group in samples for sample in group]
            whole.by_load[name] = samples
            if interval is not None and min(whole.samples[name]) >= 0:  # Student's t knows of no least value
                interval = replace(interval, low=max(interval.low, 0.0))
            whole.add(name, value, interval, len(whole.samples[name]))
        else:
            whole.metrics[name] = _middle(name, values)
    for one in found:
        for flag in one.flags:
            whole.flag(flag)
    whole.notes = list(dict.fromkeys(note for one in found for note in one.notes))
    for number, one in enumerate(found, 1):
        whole.sampling |= {f"load_{number}.{key}": value for key, value in one.sampling.items()}
        for table, rows in one.details.items():
            whole.details.setdefault(table, []).extend({"load": number, **row} for row in rows)
    whole.sampling["loads"] = len(found)
    headline = [one.samples[name] for one in found for name in one.samples if name == next(iter(whole.samples), None)]
    if len(headline) > 1 and loads_differ(headline):
        whole.flag("loads_differ")
    return whole


def _middle(name: str, values: Sequence[MetricValue]) -> MetricValue:
    """Of a metric that is no median of samples: the middle load's value, between the outermost bounds of all."""
    if METRICS[name].exact:
        pick = min if METRICS[name].better == "higher" else max
        return pick(values, key=lambda value: value.value)
    ordered = sorted(values, key=lambda value: value.value)
    lows = [value.ci_low for value in values if value.ci_low is not None]
    highs = [value.ci_high for value in values if value.ci_high is not None]
    complete = len(lows) == len(highs) == len(values)
    return ordered[len(ordered) // 2].model_copy(
        update={
            "n": sum(value.n for value in values),
            "ci_low": min(lows) if complete else None,
            "ci_high": max(highs) if complete else None,
        }
    )


def _add_what_is_known_of_every_cell(
    suite: Suite, run: CellRun, limits: Sequence[Limit], measurement: Measurement
) -> None:
    """The metrics of :data:`~pytest_llmbench.core.metrics.COMMON_METRICS`, and the scores that follow."""
    _add_exactly(measurement, {**_of_the_memory(run), **suite.sensing.metrics(run.answered_tokens)})
    for flag, sentence in suite.sensing.doubts():
        measurement.flag(flag)
        measurement.notes.append(sentence)
    context_size = run.server.info.context_size if run.server is not None else None
    if (score := efficiency(measurement.metrics, context_size)) is not None:
        measurement.metrics[EFFICIENCY] = score
    why_missing = suite.sensing.why_missing()
    for name in dict.fromkeys(limit.metric for limit in limits if limit.metric not in measurement.metrics):
        if name in why_missing:
            measurement.notes.append(f"{name} was not measured, so its limit decides nothing: {why_missing[name]}")
    if suite.controller is not None and suite.config.measurement.overlap != "none":
        measurement.notes.append(OVERLAP_NOTES[suite.config.measurement.overlap])


def _add_exactly(measurement: Measurement, known: Mapping[str, float]) -> None:
    for name, value in known.items():
        if name not in measurement.metrics:
            measurement.add_exact(name, value)


def _of_the_load(run: CellRun) -> Mapping[str, float]:
    known: dict[str, float] = {}
    load_seconds = run.server.info.load_seconds if run.server is not None else None
    if load_seconds is not None:
        known["load_seconds"] = load_seconds
        if load_seconds > 0 and (run.load_read_bytes or 0) >= _LEAST_READ_BYTES:
            known["load_read_mb_per_second"] = (run.load_read_bytes or 0) / 1e6 / load_seconds
    return known


def _of_the_memory(run: CellRun) -> Mapping[str, float]:
    known: dict[str, float] = {}
    memory = run.memory
    if memory is not None and memory.observed_peak_bytes is not None:
        known["peak_memory_gb"] = (memory.observed_peak_bytes + (memory.observed_device_bytes or 0)) / 1e9
        if memory.observed_swap_bytes is not None:
            known["swap_gb"] = memory.observed_swap_bytes / 1e9
    return known
