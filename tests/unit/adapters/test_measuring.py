"""Several loads become one measurement, and what is known of every cell is added to it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pytest_llmbench.adapters.cell_run import CellRun
from pytest_llmbench.adapters.llm import LLM
from pytest_llmbench.adapters.measuring import Measuring
from pytest_llmbench.core.cell import Cell
from pytest_llmbench.core.records import MemoryRecord, ServerInfo
from pytest_llmbench.core.thresholds import Limit
from pytest_llmbench.errors import MeasurementInvalid, RequestError, ServerError
from pytest_llmbench.profiles.base import Measurement, ProfileContext

CELL = Cell(model="tiny", quantization="Q4_K_M", profile="fake")


class Server:
    """Is another one after each start; its load took as many seconds as there were starts."""

    def __init__(self, number: int, *, pid: int | None = None) -> None:
        self.endpoint: Any = None
        self.info = ServerInfo(kind="fake", pid=pid, context_size=2048, load_seconds=float(number))
        self.notes = (f"server {number}",)
        self.flags: tuple[str, ...] = ()
        self.name = f"pid {number}"

        self.alive = True

    def identity(self) -> str | None:
        return self.name if self.alive else None

    def death(self) -> ServerError:
        return ServerError("server_died", "it was killed")


class Profile:
    """Gives what it is told to give, one measurement for each load."""

    name = "fake"
    is_repeated_over_loads = True

    def __init__(self, *samples: list[float]) -> None:
        self.samples = list(samples)
        self.contexts: list[ProfileContext] = []

    def run(self, context: ProfileContext) -> Measurement:
        self.contexts.append(context)
        measurement, samples = Measurement(), self.samples[len(self.contexts) - 1]
        measurement.add_median("decode_tokens_per_second", samples)
        measurement.add("variance_percent", samples[0] / 10, None, 3)
        measurement.add_exact("throttle_events", len(self.contexts))
        measurement.sampling = {"samples": len(samples)}
        measurement.details = {"requests": [{"rate": samples[0]}]}
        measurement.notes = ["the same each time"]
        return measurement


class Sensing:
    telemetry = None

    def metrics(self, tokens: int) -> dict[str, float]:
        return {"cpu_temperature_celsius": 71.0, "throttle_events": 99.0, "package_joules_per_token": float(tokens)}

    def doubts(self) -> list[tuple[str, str]]:
        return [("throttled", "it was hot")]

    def why_missing(self) -> dict[str, str]:
        return {"gpu_temperature_celsius": "there is no GPU"}

    def follow(self, server_pid: int | None) -> None: ...


def measuring(profile: Profile, run: CellRun, loads: int, limits: tuple[Limit, ...] = ()) -> Measuring:
    suite: Any = SimpleNamespace(
        profiles={"fake": profile},
        settings={"fake": None},
        config=SimpleNamespace(measurement=SimpleNamespace(loads=loads, overlap="none")),
        stopping_rule=lambda limits: None,
        data_dirs=(),
        rootdir=None,
        sensing=Sensing(),
        watches=SimpleNamespace(disturbance=None),
        controller=None,
    )
    return Measuring(suite, run, limits, lambda record: None, lambda error: RequestError("x", "y"))


def measured(
    profile: Profile, loads: int = 1, *, can_reload: bool = True, limits: tuple[Limit, ...] = (), **run_fields: Any
) -> tuple[Measurement, CellRun]:
    starts = [1]

    def reload() -> Any:
        starts[0] += 1
        return Server(starts[0])

    run = CellRun(CELL, "n", "2026-01-31T23:59:59Z", 0.0, server=Server(1), **run_fields)  # type: ignore[arg-type]
    run.reload = reload if can_reload else None
    measurement = measuring(profile, run, loads, limits).measure()
    return measurement, run


def test_one_load_is_told_as_it_is() -> None:
    measurement, _ = measured(Profile([10, 11, 12, 13, 14, 15]))
    metric = measurement.metrics["decode_tokens_per_second"]
    assert (metric.value, metric.ci_low, metric.ci_high, metric.n) == (12.5, 10, 15, 6)
    assert measurement.sampling == {"samples": 6}
    assert "server 1" in measurement.notes


def test_of_several_loads_the_loads_are_what_counts() -> None:
    profile = Profile([10.0] * 6, [20.0] * 6, [30.0] * 6)
    measurement, run = measured(profile, loads=3)
    metric = measurement.metrics["decode_tokens_per_second"]
    assert (metric.value, metric.n) == (20, 18)
    assert metric.ci_low is not None
    assert metric.ci_high is not None
    assert metric.ci_low == 0  # three loads that differ so tell next to nothing, but no rate is negative
    assert metric.ci_high > 40
    assert "loads_differ" in measurement.flags
    assert measurement.metrics["variance_percent"].value == 2
    assert measurement.sampling["loads"] == 3
    assert measurement.sampling["load_2.samples"] == 6
    assert [row["load"] for row in measurement.details["requests"]] == [1, 2, 3]
    assert measurement.notes.count("the same each time") == 1
    assert run.server is not None
    assert run.server.notes == ("server 3",)


def test_extremes_of_several_loads_are_the_extreme_of_all() -> None:
    measurement, _ = measured(Profile([1.0] * 6, [1.0] * 6), loads=2)
    assert measurement.metrics["throttle_events"].value == 2
    assert "loads_differ" not in measurement.flags


def test_a_server_that_is_not_ours_is_measured_once_and_that_is_said() -> None:
    measurement, _ = measured(Profile([1.0] * 6), loads=3, can_reload=False)
    assert any("not ours to load again" in note for note in measurement.notes)
    assert measurement.metrics["decode_tokens_per_second"].n == 6


def test_a_profile_that_does_not_ask_for_it_is_not_repeated() -> None:
    profile = Profile([1.0] * 6)
    profile.is_repeated_over_loads = False
    measurement, _ = measured(profile, loads=3)
    assert not any("not ours" in note for note in measurement.notes)
    assert len(profile.contexts) == 1


def test_what_every_cell_knows_is_added_but_not_over_what_the_profile_found() -> None:
    memory = MemoryRecord(observed_peak_bytes=4_000_000_000, observed_swap_bytes=0)
    measurement, _ = measured(Profile([10.0] * 6), memory=memory, answered_tokens=7, load_read_bytes=50_000_000)
    values = {name: metric.value for name, metric in measurement.metrics.items()}
    assert values["throttle_events"] == 1
    assert values["cpu_temperature_celsius"] == 71
    assert values["package_joules_per_token"] == 7
    assert (values["peak_memory_gb"], values["swap_gb"]) == (4, 0)
    assert (values["load_seconds"], values["load_read_mb_per_second"]) == (1, 50)
    assert values["efficiency_score"] == 10 * 2048 / 4
    assert "throttled" in measurement.flags
    assert "it was hot" in measurement.notes
    peak = measurement.metrics["peak_memory_gb"]
    assert (peak.ci_low, peak.ci_high) == (4, 4)


@pytest.mark.parametrize(
    ("answers", "tokens"),
    [
        ([(True, 5), (False, None), (True, 7)], 12),
        ([(True, 5), (True, None), (True, 7)], None),  # or fewer tokens would have taken the energy of all
    ],
)
def test_tokens_of_all_answers_are_known_only_where_all_were_counted(
    answers: list[tuple[bool, int | None]], tokens: int | None
) -> None:
    suite: Any = SimpleNamespace(limits=lambda cell: (), file_line=lambda stream, record: None, on_request=bool)
    run = CellRun(CELL, "n", "2026-01-31T23:59:59Z", 0.0)
    llm: Any = LLM(suite, run)
    for ok, count in answers:
        llm._file(SimpleNamespace(ok=ok, output_tokens=count))
    assert run.answered_tokens == tokens


def test_why_a_limit_decides_nothing_is_said() -> None:
    limit = Limit("max_gpu_temperature_celsius", "gpu_temperature_celsius", "max", 80, critical=True)
    measurement, _ = measured(Profile([10.0] * 6), limits=(limit,))
    expected = "gpu_temperature_celsius was not measured, so its limit decides nothing: there is no GPU"
    assert expected in measurement.notes


def test_memory_of_gpus_counts_too() -> None:
    memory = MemoryRecord(observed_peak_bytes=1_000_000_000, observed_device_bytes=3_000_000_000)
    measurement, _ = measured(Profile([10.0] * 6), memory=memory)
    assert measurement.metrics["peak_memory_gb"].value == 4


def test_what_came_from_the_page_cache_says_nothing_of_the_disk() -> None:
    measurement, _ = measured(Profile([10.0] * 6), load_read_bytes=4096)
    assert "load_read_mb_per_second" not in measurement.metrics


def test_a_server_that_was_restarted_meanwhile_spoils_the_measurement() -> None:
    profile = Profile([1.0] * 6)
    run_of = profile.run

    def restarting(context: ProfileContext) -> Measurement:
        measurement = run_of(context)
        server.name = "pid 99"
        return measurement

    profile.run = restarting  # type: ignore[method-assign]
    server = Server(1)
    run = CellRun(CELL, "n", "2026-01-31T23:59:59Z", 0.0, server=server)  # type: ignore[arg-type]
    with pytest.raises(MeasurementInvalid) as caught:
        measuring(profile, run, 1).measure()
    assert caught.value.code == "server_restarted"


def test_a_server_that_dies_with_its_last_answer_was_not_restarted() -> None:
    profile = Profile([1.0] * 6)
    run_of, server = profile.run, Server(1)

    def killing(context: ProfileContext) -> Measurement:
        server.alive = False
        return run_of(context)

    profile.run = killing  # type: ignore[method-assign]
    run = CellRun(CELL, "n", "2026-01-31T23:59:59Z", 0.0, server=server)  # type: ignore[arg-type]
    with pytest.raises(ServerError, match="it was killed"):
        measuring(profile, run, 1).measure()


def test_of_several_loads_the_slowest_is_told_which_may_be_the_only_cold_one() -> None:
    run = CellRun(CELL, "n", "2026-01-31T23:59:59Z", 0.0, server=Server(9))  # type: ignore[arg-type]
    run.load_read_bytes = 90_000_000

    def reload() -> Any:
        run.load_read_bytes = 4096
        return Server(2)

    run.reload = reload
    measurement = measuring(Profile([1.0] * 6, [1.0] * 6), run, 2).measure()
    assert measurement.metrics["load_seconds"].value == 9
    assert measurement.metrics["load_read_mb_per_second"].value == 10
