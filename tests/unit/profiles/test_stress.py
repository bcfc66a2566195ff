"""The stress profile on a simulated machine, and once on a server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from pytest_llmbench.client.endpoint import LLAMA_CPP, Endpoint
from pytest_llmbench.core.metrics import COMMON_METRICS, METRICS
from pytest_llmbench.core.records import FLAGS, RequestRecord
from pytest_llmbench.core.settings import StressSettings
from pytest_llmbench.core.statistics import StoppingRule
from pytest_llmbench.core.thresholds import Limit, judge
from pytest_llmbench.errors import CellError, DiskFull, MeasurementInvalid, RequestError, ServerError
from pytest_llmbench.profiles.base import Measurement, ProfileContext, RequestSink
from pytest_llmbench.profiles.stress import ANSWER_SECONDS, FEWEST_TOKENS, StressProfile
from pytest_llmbench.profiles.vitals import Vitals
from tests.servers.fake_openai import FakeOpenAI
from tests.unit.profiles.stressed import DATA, LOST_CONNECTION, Machine, stress

CLEAN_RUNS = 50


def fan(celsius: float = 60.0, mhz: float = 3000.0, **more: float) -> Callable[[float], Mapping[str, float]]:
    """Sensors that always say the same."""
    return lambda _: {"cpu_temperature_celsius": celsius, "cpu_frequency_mhz": mhz, **more}


def column(measurement: Measurement, name: str) -> list[Any]:
    return [row[name] for row in measurement.details["vitals"]]


class TestAQuietRun:
    def test_the_rate_it_sustains(self) -> None:
        found = stress(Machine(noise=0.01))
        rate = found.metrics["sustained_tokens_per_second"]
        assert rate.value == pytest.approx(50, rel=0.01)
        assert rate.ci_low is not None
        assert rate.ci_high is not None
        assert rate.ci_low < rate.value < rate.ci_high
        assert rate.n == found.sampling["samples"] == len(found.samples["sustained_tokens_per_second"]) > 20

    def test_lasts_as_long_as_asked_and_no_longer_than_one_answer_more(self) -> None:
        machine = Machine()
        found = stress(machine, duration=1)
        seconds = found.sampling["seconds"]
        assert isinstance(seconds, float)
        assert 60 <= seconds < 60 + ANSWER_SECONDS
        assert found.sampling["stop_reason"] == "duration"
        assert found.sampling["planned_seconds"] == 60
        assert machine.probe_ran == [True, False]

    def test_has_no_flags_and_loses_nothing(self) -> None:
        found = stress(Machine())
        loss = found.metrics["decay_percent_per_hour"]
        assert found.flags == []
        assert loss.ci_low is not None
        assert loss.ci_high is not None
        assert loss.ci_low < 0 < loss.ci_high

    def test_a_short_one_says_that_its_loss_per_hour_is_extrapolated(self) -> None:
        assert any("extrapolated" in note for note in stress(Machine()).notes)
        assert not any("extrapolated" in note for note in stress(Machine(), duration=11).notes)

    def test_half_a_minute_tells_no_loss_per_hour(self) -> None:
        found = stress(Machine(), duration=0.5)
        assert "decay_percent_per_hour" not in found.metrics
        assert any("too short" in note for note in found.notes)

    def test_emits_what_it_says(self) -> None:
        delays = [(0.5 * number, 1.0) for number in range(400)]
        found = stress(Machine(sensors=fan(), delays=delays))
        assert set(found.metrics) == set(StressProfile.emits)
        assert set(StressProfile.emits) <= set(METRICS)
        assert not set(StressProfile.emits) & set(COMMON_METRICS)

    def test_needs_room_for_prompt_and_answer(self) -> None:
        assert StressProfile().needed_context(StressSettings(output_tokens=100)) == 356


class TestTheLengthOfAnswers:
    @pytest.mark.parametrize(
        ("rate", "interval", "expected"),
        [(50, 30, 256), (10, 30, 100), (10, 4, 40), (2, 30, 20), (0.1, 30, FEWEST_TOKENS)],
    )
    def test_is_what_comes_while_nobody_looks(self, rate: float, interval: float, expected: int) -> None:
        machine = Machine(rate=lambda _: rate, noise=0)
        stress(machine, sample_interval=interval)
        assert machine.asked_tokens[1] == pytest.approx(expected, abs=1)

    def test_becomes_less_on_a_machine_that_has_become_much_slower(self) -> None:
        machine = Machine(rate=lambda seconds: 50 if seconds < 60 else 2, noise=0)
        stress(machine, duration=4)
        assert machine.asked_tokens[1] == 256
        assert machine.asked_tokens[-1] == pytest.approx(2 * ANSWER_SECONDS * 2, abs=1)


class TestVitals:
    def test_a_row_per_interval_with_all_columns(self) -> None:
        sensors = fan(70, 2900, server_pss_bytes=2e9, server_swap_bytes=0, memory_available_bytes=8e9)
        found = stress(Machine(sensors=sensors, delays=[(number, 2.5) for number in range(200)]))
        rows = found.details["vitals"]
        assert len(rows) == pytest.approx(12, abs=2)
        minutes = column(found, "minute")
        assert minutes == sorted(minutes)
        assert minutes[0] == pytest.approx(10 / 60, abs=ANSWER_SECONDS / 60)
        assert {name: value for name, value in rows[0].items() if name not in {"minute", "tokens_per_second"}} == {
            "cpu_temperature_celsius": 70,
            "gpu_temperature_celsius": None,
            "cpu_frequency_mhz": 2900,
            "memory_gb": 2.0,
            "swap_gb": 0,
            "memory_available_gb": 8.0,
            "throttle_events": None,
            "scheduling_delay_ms": 2.5,
        }

    def test_the_rate_is_of_the_interval(self) -> None:
        found = stress(Machine(rate=lambda seconds: 50 if seconds < 60 else 30, noise=0))
        rates = column(found, "tokens_per_second")
        assert rates[0] == pytest.approx(50, rel=0.01)
        assert rates[-1] == pytest.approx(30, rel=0.01)

    def test_without_sensors_everything_else_is_there(self) -> None:
        found = stress(Machine())
        rows = found.details["vitals"]
        empty = {name for row in rows for name, value in row.items() if value is None}
        assert {"cpu_temperature_celsius", "cpu_frequency_mhz", "memory_gb", "throttle_events"} <= empty
        assert "scheduling_delay_ms" not in found.metrics

    def test_a_missing_sensor_leaves_its_threshold_inconclusive(self) -> None:
        limit = Limit("max_scheduling_delay_ms", "scheduling_delay_ms", "max", 10, critical=True)
        (without,) = judge([limit], stress(Machine()).metrics)
        (with_one,) = judge([limit], stress(Machine(delays=[(number / 10, 1) for number in range(1000)])).metrics)
        assert (without.verdict, with_one.verdict) == ("inconclusive", "pass")

    def test_memory_is_not_now_of_one_kind_and_now_of_another(self) -> None:
        """PSS is read in some samples only; RSS counts otherwise."""

        def sensors(seconds: float) -> Mapping[str, float]:
            return {"server_rss_bytes": 9e9, **({"server_pss_bytes": 5e9} if 20 < seconds < 40 else {})}

        assert set(column(stress(Machine(sensors=sensors)), "memory_gb")[3:]) == {None, 5.0}
        assert set(column(stress(Machine(sensors=fan(server_rss_bytes=9e9))), "memory_gb")) == {9.0}

    def test_the_frequency_is_of_the_time_in_which_it_works(self) -> None:
        """Between requests, when all sensors are read, cores idle and may slow down."""
        found = stress(Machine(sensors=lambda seconds: {"cpu_frequency_mhz": 800.0 if seconds % 0.5 else 3000.0}))
        assert set(column(found, "cpu_frequency_mhz")) == {3000.0}

    def test_how_late_the_probe_was_woken(self) -> None:
        delays = [(number / 10, 3.0 if number % 10 else 40.0) for number in range(1300)]
        delay = stress(Machine(delays=delays)).metrics["scheduling_delay_ms"]
        assert (delay.value, delay.ci_low, delay.ci_high) == (40.0, 40.0, 40.0)
        assert delay.n == pytest.approx(1200, abs=100)


class TestThrottling:
    def test_is_flagged_when_events_are_counted(self) -> None:
        found = stress(Machine(sensors=lambda seconds: fan(throttle_events_total=7.0 + (seconds > 60) * 2)(seconds)))
        assert found.flags == ["throttled"]
        assert found.sampling["throttled_after_minutes"] == pytest.approx(1.1, abs=0.2)
        assert column(found, "throttle_events")[0] == 0
        assert column(found, "throttle_events")[-1] == 2

    def test_is_flagged_when_it_is_hot_and_slower(self) -> None:
        found = stress(Machine(sensors=lambda seconds: (fan(70, 3000) if seconds < 60 else fan(86, 2500))(seconds)))
        assert found.flags == ["throttled"]

    @pytest.mark.parametrize(("celsius", "mhz", "events"), [(86, 3000, 7), (80, 2500, 7)])
    def test_neither_heat_nor_a_lower_frequency_alone_is_throttling(
        self, celsius: float, mhz: float, events: float
    ) -> None:
        def sensors(seconds: float) -> Mapping[str, float]:
            before = seconds < 60
            return fan(70 if before else celsius, 3000 if before else mhz, throttle_events_total=events)(seconds)

        found = stress(Machine(sensors=sensors))
        assert found.flags == []
        assert found.sampling["throttled_after_minutes"] is None


class TestBecomingSlower:
    """The bar: a planted fall is found, and none in 50 clean runs."""

    @pytest.mark.parametrize("at", [0.25, 0.5, 0.75])
    def test_a_fall_by_a_fifth_is_found_and_told(self, at: float) -> None:
        found = stress(Machine(rate=lambda seconds: 50 if seconds < 120 * at else 40, noise=0.03))
        assert "degrading" in found.flags
        (note,) = [note for note in found.notes if "fell by" in note]
        percent, minute = float(note.split("by ")[1].split(" %")[0]), float(note.split("after ")[1].split(" min")[0])
        assert percent == pytest.approx(20, abs=3)
        assert minute == pytest.approx(2 * at, abs=0.2)

    def test_a_slow_decline_is_found_and_measured(self) -> None:
        found = stress(Machine(rate=lambda seconds: 50 * (1 - 0.1 * seconds / 120), noise=0.01))
        loss = found.metrics["decay_percent_per_hour"]
        assert "degrading" in found.flags
        assert loss.value == pytest.approx(30 * 10 / 0.95, rel=0.2)
        assert loss.ci_low is not None
        assert loss.ci_low > 0

    def test_a_decline_is_found_where_answers_are_too_few_to_tell_a_moment(self) -> None:
        found = stress(Machine(rate=lambda seconds: 50 * (1 - 0.2 * seconds / 40), noise=0.002), duration=0.6)
        assert found.sampling["samples"] == 7
        assert "degrading" in found.flags
        assert not any("fell by" in note for note in found.notes)

    @pytest.mark.parametrize("noise", [0.005, 0.02])
    def test_none_is_found_in_clean_runs(self, noise: float) -> None:
        flagged = [seed for seed in range(CLEAN_RUNS) if stress(Machine(noise=noise, seed=seed)).flags]
        assert flagged == []

    def test_a_dip_that_passes_is_no_decline(self) -> None:
        found = stress(Machine(rate=lambda seconds: 40 if 50 < seconds < 65 else 50, noise=0.01))
        assert "degrading" not in found.flags

    def test_a_rise_is_no_decline(self) -> None:
        found = stress(Machine(rate=lambda seconds: 40 if seconds < 60 else 50))
        assert "degrading" not in found.flags
        assert found.metrics["decay_percent_per_hour"].value < 0

    def test_a_loss_below_three_percent_is_not_worth_a_flag(self) -> None:
        found = stress(Machine(rate=lambda seconds: 50 if seconds < 60 else 49, noise=0.002))
        assert "degrading" not in found.flags
        loss = found.metrics["decay_percent_per_hour"]
        assert loss.ci_low is not None
        assert loss.ci_low > 0  # it is measured, though


class TestAborting:
    @pytest.mark.parametrize("sensor", ["cpu_temperature_celsius", "gpu_temperature_celsius"])
    def test_heat_ends_it_at_the_end_of_the_answer_that_streams(self, sensor: str) -> None:
        found = stress(Machine(sensors=lambda seconds: {sensor: 91.0 if seconds > 60 else 70.0}))
        seconds = found.sampling["seconds"]
        assert isinstance(seconds, float)
        assert 59 < seconds < 62 + ANSWER_SECONDS
        assert found.flags == ["aborted"]
        assert found.sampling["stop_reason"] == "temperature"
        assert found.metrics["sustained_tokens_per_second"].value == pytest.approx(50, rel=0.02)
        assert column(found, sensor)[-1] == 91
        assert any(sensor[:3].upper() in note and "91 °C" in note for note in found.notes)

    def test_heat_ends_it_where_only_rows_are_read(self) -> None:
        found = stress(Machine(sensors=lambda s: {"cpu_temperature_celsius": 60 + s / 2}, is_sampled=False))
        assert found.sampling["stop_reason"] == "temperature"
        hot = [celsius for celsius in column(found, "cpu_temperature_celsius") if celsius > 90]
        assert len(hot) == 2

    @pytest.mark.parametrize(("until", "alarm"), [(10.3, False), (10.6, True)])
    def test_two_readings_at_once_are_one(self, until: float, alarm: bool) -> None:
        """What is read for a row is among the samples, too."""
        machine = Machine(sensors=lambda s: {"cpu_temperature_celsius": 120.0 if 10 <= s < until else 70.0})
        vitals = Vitals(machine, machine, 0, 90)
        machine.seconds = 10.2
        vitals.look(machine.clock())
        vitals.close_row(None)
        machine.seconds = 12
        vitals.look(machine.clock())
        assert vitals.rows[0]["cpu_temperature_celsius"] == 120
        assert (vitals.alarm is not None) == alarm

    @pytest.mark.parametrize("settings", [{}, {"abort_temperature": 80}])
    def test_one_hot_reading_is_none(self, settings: dict[str, float]) -> None:
        limit = settings.get("abort_temperature", 90)
        found = stress(
            Machine(sensors=lambda s: {"cpu_temperature_celsius": 120.0 if 60 < s <= 60.5 else limit}), **settings
        )
        assert found.sampling["stop_reason"] == "duration"

    @pytest.mark.parametrize(
        ("delays", "words"),
        [([(60, 5200)], "up to 5.2 s late"), ([(60, 1100), (64, 1200), (68, 1100)], "up to 1.2 s late")],
    )
    def test_a_machine_that_no_longer_responds(self, delays: list[tuple[float, float]], words: str) -> None:
        found = stress(Machine(delays=delays))
        assert found.sampling["stop_reason"] == "unresponsive"
        assert any(words in note for note in found.notes)
        assert found.flags == ["aborted"]

    @pytest.mark.parametrize("delays", [[(60, 4900)], [(60, 1100), (64, 1100), (68, 900), (72, 1100)]])
    def test_a_machine_that_still_does(self, delays: list[tuple[float, float]]) -> None:
        assert stress(Machine(delays=delays)).sampling["stop_reason"] == "duration"

    def test_a_machine_that_was_suspended_is_excused_once(self) -> None:
        machine = Machine(delays=[(60, 600_000)], stalls={13: 600.0}, standing_still={13})
        found = stress(machine, duration=15)
        assert found.sampling["stop_reason"] == "duration"
        assert found.flags == ["stood_still"]
        assert "stalls" not in found.details

    def test_a_machine_that_stands_still_again_and_again_is_not(self) -> None:
        machine = Machine(delays=[(seconds, 5500) for seconds in range(60, 120, 6)], standing_still=range(10, 40))
        assert stress(machine).sampling["stop_reason"] == "unresponsive"

    def test_a_server_stopped_for_swapping_leaves_what_was_measured(self) -> None:
        guard = ServerError("swapping", "the server was stopped: 0.3 GB of its memory were swapped out")
        found = stress(Machine(failures={12: guard}))
        assert found.sampling["stop_reason"] == "swapping"
        assert found.sampling["samples"] == 11
        assert found.flags == ["aborted"]
        assert any("swapped out" in note for note in found.notes)
        assert found.details["vitals"][-1]["tokens_per_second"] is not None

    def test_a_server_that_dies_before_anything_was_measured_is_an_error(self) -> None:
        death = ServerError("server_died", "gone")
        machine = Machine(failures={1: death})
        with pytest.raises(ServerError) as caught:
            stress(machine)
        assert caught.value is death
        assert machine.probe_ran == [True, False]


class TestFailedRequests:
    def test_one_is_counted_and_kept_and_no_end(self) -> None:
        machine = Machine(changes=dict.fromkeys((5, 9), LOST_CONNECTION))
        found = stress(machine)
        assert found.sampling["failed"] == 2
        assert found.sampling["stop_reason"] == "duration"
        assert found.flags == []
        assert any("2 of" in note and "connection_lost" in note for note in found.notes)
        assert [record.index for record in machine.filed if not record.usable] == [5, 9]

    def test_the_second_in_a_row_ends_it(self) -> None:
        found = stress(Machine(changes=dict.fromkeys((5, 6), LOST_CONNECTION)))
        assert found.sampling["stop_reason"] == "failed_requests"
        assert found.sampling["samples"] == 4
        assert found.flags == ["imprecise", "aborted"]

    def test_before_anything_was_measured_it_is_an_error(self) -> None:
        with pytest.raises(RequestError):
            stress(Machine(changes=dict.fromkeys((1, 2), LOST_CONNECTION)))

    def test_the_only_one_of_a_run_is_an_error(self) -> None:
        with pytest.raises(RequestError):
            stress(Machine(changes={1: LOST_CONNECTION}), duration=0.01)

    def test_an_answer_that_is_all_reasoning_is_a_sample(self) -> None:
        """What is answered does not matter here; a failed request would have no rate."""
        thoughts = {"ok": False, "error": "empty_answer", "reasoning": "Let me think"}
        found = stress(Machine(changes=dict.fromkeys(range(999), thoughts)))
        assert found.sampling["failed"] == 0
        assert found.metrics["sustained_tokens_per_second"].value == pytest.approx(50, rel=0.02)

    def test_what_every_request_would_fail_of_counts_as_well(self) -> None:
        refused = RequestError("connection_refused", "nobody listens")
        found = stress(Machine(failures={5: refused, 6: refused}))
        assert found.sampling["stop_reason"] == "failed_requests"

    def test_a_full_disk_is_no_failed_request(self) -> None:
        with pytest.raises(DiskFull):
            stress(Machine(failures={5: DiskFull("no space left")}))


class TestWhatIsNoSample:
    def test_what_stood_still_is_kept_apart(self) -> None:
        machine = Machine(standing_still={4}, stalls={4: 3.0})
        found = stress(machine)
        assert found.flags == ["stood_still"]
        assert found.sampling["rejected"] == 1
        assert min(found.samples["sustained_tokens_per_second"]) > 45
        assert [record.index for record in machine.filed if not record.usable] == [4]

    @pytest.mark.parametrize(
        ("changes", "code"),
        [
            ({"output_tokens": 12}, "short_answer"),
            ({"cached_tokens": 100}, "prompt_cache_hit"),
            ({"server_timings": {"load_duration": 9e9, "total_duration": 10e9}}, "model_reloaded"),
            ({"prompt_tokens": 60}, "prompt_truncated"),
            ({"prompt_tokens": 140, "prompt_truncated": True}, "prompt_truncated"),
        ],
    )
    def test_where_none_is_one_it_is_invalid(self, changes: dict[str, Any], code: str) -> None:
        warm = {"server_timings": {"load_duration": 1e6, "total_duration": 1e9}}
        machine = Machine(changes={0: warm, **dict.fromkeys(range(1, 99), changes)})
        with pytest.raises(MeasurementInvalid) as caught:
            stress(machine)
        assert caught.value.code == code
        assert code in FLAGS
        assert len(machine.asked_tokens) <= 7

    def test_that_the_machine_was_in_danger_is_said_first(self) -> None:
        hot = Machine(sensors=fan(95), changes={1: {"output_tokens": 3}})
        with pytest.raises(MeasurementInvalid, match="95 °C") as caught:
            stress(hot)
        assert caught.value.code == "aborted"

    def test_tokens_that_are_not_counted_make_no_rate(self) -> None:
        uncounted = {"output_tokens": None, "decode_tokens_per_second": None}
        found = stress(Machine(changes=dict.fromkeys(range(999), uncounted)))
        assert found.flags == ["tokens_not_counted"]
        assert not {"sustained_tokens_per_second", "decay_percent_per_hour"} & set(found.metrics)

    def test_a_late_client_is_flagged(self) -> None:
        found = stress(Machine(changes={number: {"flags": ["client_late"]} for number in range(1, 999)}))
        assert found.flags == ["client_late"]

    def test_another_model_that_answers_the_warm_up(self) -> None:
        machine = Machine(changes={1: {"response_model": "other"}, 0: {"response_model": "this"}})
        with pytest.raises(MeasurementInvalid) as caught:
            stress(machine)
        assert caught.value.code == "another_model_answered"


class TestStalls:
    def test_are_counted_and_told_with_their_time(self) -> None:
        found = stress(Machine(stalls={8: 2.5, 14: 1.5}))
        assert found.sampling["stalls"] == 2
        first, second = found.details["stalls"]
        assert first["seconds"] == pytest.approx(2.5, abs=0.1)
        assert first["minute"] == pytest.approx((7.5 * 5.2 + 1) / 60, abs=0.05)
        assert second["seconds"] == pytest.approx(1.5, abs=0.1)
        assert any("stalled 2 times" in note for note in found.notes)

    @pytest.mark.parametrize(("rate", "seconds"), [(50, 0.9), (10, 1.8)])
    def test_a_pause_that_is_short_or_common_is_none(self, rate: float, seconds: float) -> None:
        found = stress(Machine(rate=lambda _: rate, stalls={8: seconds}))
        assert found.sampling["stalls"] == 0
        assert "stalls" not in found.details


class _Quiet:
    """A probe that is always woken in time."""

    def start(self) -> None: ...

    def since(self, t_ns: int) -> list[float]:
        return [0.1]

    def stop(self) -> list[float]:
        return [0.1] * 100


def on_server(server: FakeOpenAI, sink: RequestSink, seconds: float) -> Measurement:
    context = ProfileContext(
        endpoint=Endpoint(server.url, "openai_chat", model="fake", capabilities=LLAMA_CPP),
        settings=StressSettings(duration=seconds / 60, sample_interval=0.2, output_tokens=24),
        rule=StoppingRule(6, 20, 5, 60, {}),
        nodeid=None,
        data_dirs=[DATA],
        sink=sink,
        on_failure=lambda error: error,
    )
    return StressProfile(_Quiet).run(context)


class TestOnAServer:
    def test_a_planted_fall_is_found(self) -> None:
        filed: list[RequestRecord] = []
        with FakeOpenAI(token_seconds=0.001) as server:

            def slow_down(record: RequestRecord) -> None:
                filed.append(record)
                server.token_seconds = 0.001 if len(filed) < 10 else 0.004

            found = on_server(server, slow_down, seconds=5)
        assert "degrading" in found.flags
        assert found.sampling["samples"] == len(filed) - 1
        assert len(found.details["vitals"]) >= 5
        assert all(body["stream"] for body in server.requests)

    def test_a_server_that_fails_from_a_moment_on(self) -> None:
        with FakeOpenAI(fault={"*": "http_500"}, faulty_requests=range(10, 1000)) as server:
            found = on_server(server, lambda record: None, seconds=5)
        assert found.sampling["stop_reason"] == "failed_requests"
        assert found.sampling["samples"] == 9
        assert "aborted" in found.flags

    def test_a_server_that_never_answers_a_prompt(self) -> None:
        with (
            FakeOpenAI(fault={"*": "http_500"}, faulty_requests=range(1, 1000)) as server,
            pytest.raises(CellError, match="500"),
        ):
            on_server(server, lambda record: None, seconds=5)
