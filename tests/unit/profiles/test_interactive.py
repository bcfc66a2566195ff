"""The interactive profile on a server whose every answer is written down beforehand, and on one that streams."""

from __future__ import annotations

from statistics import fmean, stdev
from typing import Any

import pytest

from pytest_llmbench.client.endpoint import LLAMA_CPP, Endpoint, ProtocolName
from pytest_llmbench.client.generation import PATHS
from pytest_llmbench.client.load import send
from pytest_llmbench.core.metrics import FOUNDING_THRESHOLDS, METRICS
from pytest_llmbench.core.settings import InteractiveSettings, settings_in_mode
from pytest_llmbench.core.statistics import median
from pytest_llmbench.errors import LlmbenchError, MeasurementInvalid, ServerError
from pytest_llmbench.profiles.base import Measurement, ProfileContext
from pytest_llmbench.profiles.interactive import PROMPT_TOKENS_AT_MOST, InteractiveProfile
from tests.servers.fake_openai import FakeOpenAI, Fault
from tests.unit.profiles.stories import STORY_TOKENS, TEXT, Answer, Script, answer, context, failure

EVEN = [50.0, 50.1, 49.9, 50.2, 49.8, 50.0]


def measure(script: Script, monkeypatch: pytest.MonkeyPatch, *, short_answers: int = 0, **changes: Any) -> Measurement:
    settings = InteractiveSettings(output_tokens=STORY_TOKENS, short_answers=short_answers)
    return InteractiveProfile().run(context(script, monkeypatch, settings=settings, **changes))


def value(measurement: Measurement, name: str) -> float:
    return measurement.metrics[name].value


def short(seconds: float, **fields: Any) -> Answer:
    """A short answer whose last token came after so many seconds."""
    return answer(tokens=2, seconds=[0.1, seconds], finish_reason="stop", **fields)


def test_what_it_emits_is_in_the_registry_and_holds_what_thresholds_judge() -> None:
    emits = InteractiveProfile.emits
    assert len(set(emits)) == len(emits)
    assert set(emits) <= set(METRICS)
    assert {key.metric for key in FOUNDING_THRESHOLDS["interactive"]} <= set(emits)


class TestTheStory:
    def test_yields_every_number_of_its_stream(self, monkeypatch: pytest.MonkeyPatch) -> None:
        script = Script([answer(rate=rate, ttft=0.2 + rate / 1000) for rate in EVEN])
        found = measure(script, monkeypatch)
        assert value(found, "ttft_seconds") == pytest.approx(0.25)
        assert value(found, "decode_tokens_per_second") == pytest.approx(50)
        assert value(found, "steady_tokens_per_second") == pytest.approx(50, rel=1e-4)
        assert value(found, "time_per_output_token_ms") == pytest.approx(20)
        assert value(found, "answering_seconds") == pytest.approx((STORY_TOKENS - 1) / 50)
        assert {metric.n for name, metric in found.metrics.items() if name != "variance_percent"} == {6}
        assert found.metrics["variance_percent"].n == 6 * 4
        assert not {"reasoning_seconds", "prefill_tokens_per_second"} & found.metrics.keys()
        assert (found.flags, found.notes) == ([], [])
        assert set(found.metrics) <= set(InteractiveProfile.emits)

    def test_tells_variance_within_and_between_apart(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rates = [40.0, 60.0, 45.0, 55.0, 50.0, 65.0]
        even = measure(Script([answer(rate=rate) for rate in rates]), monkeypatch, max_samples=6)
        assert value(even, "variance_within_percent") == pytest.approx(0, abs=0.01)
        between = even.metrics["variance_between_percent"]
        assert between.value == pytest.approx(100 * stdev(rates) / fmean(rates))
        assert between.ci_low is not None
        assert between.ci_high is not None
        assert between.ci_low < between.value < between.ci_high
        stalls = [0.2 + number / 50 + (number > 60) * 1.0 for number in range(STORY_TOKENS)]
        stalling = measure(Script([answer(seconds=stalls)]), monkeypatch)
        assert value(stalling, "variance_between_percent") == pytest.approx(0, abs=1e-6)
        assert value(stalling, "variance_within_percent") > 20
        assert value(stalling, "variance_percent") > 20

    def test_tells_the_beginning_and_the_steady_state_apart(self, monkeypatch: pytest.MonkeyPatch) -> None:
        slow = [0.2 + number / 10 for number in range(26)]
        found = measure(Script([answer(seconds=slow + [slow[-1] + n / 100 for n in range(1, 76)])]), monkeypatch)
        assert value(found, "steady_tokens_per_second") == pytest.approx(100)
        assert value(found, "decode_tokens_per_second") == pytest.approx(100 / 3.25)

    def test_tells_reasoning_and_answering_apart(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = measure(Script([answer(ttft=0.5, rate=50, thoughts=50)]), monkeypatch)
        assert value(found, "reasoning_seconds") == pytest.approx(1.0)
        assert value(found, "answering_seconds") == pytest.approx(1.0)
        assert value(found, "ttft_seconds") == pytest.approx(1.5)
        assert value(found, "decode_tokens_per_second") == pytest.approx(50)
        assert value(found, "first_sentence_seconds") > 1.5

    def test_can_be_read_once_its_first_sentence_is_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        characters = [len("It was dark."), *[0] * (STORY_TOKENS - 2), len(TEXT) - len("It was dark.")]
        found = measure(Script([answer(ttft=0.3, piece_characters=characters)]), monkeypatch)
        assert value(found, "first_sentence_seconds") == pytest.approx(0.3)

    def test_without_a_sentence_counts_as_the_one_that_took_longest(self, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = measure(Script([answer()]), monkeypatch)
        found = measure(Script([answer(), answer(text="word " * 30), answer()]), monkeypatch)
        metric = found.metrics["first_sentence_seconds"]
        assert metric.value == pytest.approx(value(whole, "first_sentence_seconds"))
        assert (metric.ci_low, metric.ci_high, metric.n) == (None, None, 6)
        assert any("in 1 of 6 answers no sentence" in note for note in found.notes)

    def test_that_are_mostly_without_a_sentence_have_no_time_until_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = measure(Script([answer(text="word " * 30)]), monkeypatch)
        assert "first_sentence_seconds" not in found.metrics
        assert any("not measured" in note for note in found.notes)

    def test_that_is_short_has_no_windows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        script = Script([answer(tokens=20)], warmup=answer(tokens=20))
        settings = InteractiveSettings(output_tokens=20, short_answers=0)
        found = InteractiveProfile().run(context(script, monkeypatch, settings=settings))
        assert not {"variance_percent", "variance_within_percent", "steady_tokens_per_second"} & found.metrics.keys()
        assert any("variance not measured" in note for note in found.notes)
        assert value(found, "variance_between_percent") == pytest.approx(0, abs=1e-9)


class TestHonesty:
    """Pitfalls P28 to P31."""

    def test_p28_two_modes_show_in_the_interval_and_between_requests(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = measure(Script([answer(rate=rate) for rate in (50.0, 100.0) * 10]), monkeypatch)
        rate = found.metrics["decode_tokens_per_second"]
        assert rate.ci_low is not None
        assert rate.ci_high is not None
        assert (round(rate.ci_low), round(rate.ci_high)) == (50, 100)
        assert value(found, "variance_between_percent") > 30
        assert "imprecise" in found.flags
        assert len(found.samples["decode_tokens_per_second"]) == found.sampling["samples"] == 20

    def test_p28_a_trend_is_flagged(self, monkeypatch: pytest.MonkeyPatch) -> None:
        falling = measure(Script([answer(rate=50 - number / 4) for number in range(20)]), monkeypatch)
        assert "drift" in falling.flags
        assert falling.sampling["stop_reason"] == "max_samples"
        assert "drift" not in measure(Script([answer(rate=rate) for rate in EVEN]), monkeypatch).flags

    def test_p29_an_outlier_is_kept_and_taken_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        script = Script([answer(rate=rate) for rate in (50.0, 50.1, 20.0, 50.2, 49.8, 50.0, 51.0)])
        found = measure(script, monkeypatch, max_samples=6)
        assert "outliers" in found.flags
        assert script.story_count == found.sampling["samples"] == 7
        assert found.sampling["outliers"] == 1
        assert found.sampling["outlier_values"] == "20.0 tokens/s"
        assert found.sampling["values_taken_again"] == "51.0 tokens/s"
        assert min(found.samples["decode_tokens_per_second"]) == pytest.approx(20)
        assert found.metrics["decode_tokens_per_second"].ci_low == pytest.approx(20)
        assert all(record.usable for record in script.filed)
        (note,) = [note for note in found.notes if "far off" in note]
        assert note.endswith("were kept (20.0 tokens/s); 1 more (51.0 tokens/s) do not")

    def test_p29_an_outlier_that_comes_back_is_no_accident(self, monkeypatch: pytest.MonkeyPatch) -> None:
        script = Script([answer(rate=rate) for rate in (50.0, 50.1, 20.0, 50.2, 49.8, 50.0, 21.0)])
        found = measure(script, monkeypatch, max_samples=6)
        assert any("of 1 more (21.0 tokens/s) 1 lie far off, too" in note for note in found.notes)

    def test_p29_without_time_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        script = Script([answer(rate=rate) for rate in (50.0, 50.1, 20.0, 50.2, 49.8, 50.0)])
        found = measure(script, monkeypatch, max_seconds=1e-9)
        assert script.story_count == 6
        assert found.sampling["values_taken_again"] == ""
        assert any("none could be taken again" in note for note in found.notes)

    def test_p29_nothing_is_said_of_clean_runs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = measure(Script([answer(rate=rate) for rate in EVEN]), monkeypatch)
        assert "outliers" not in found.flags
        assert "outliers" not in found.sampling

    def test_p30_the_order_is_always_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        script = Script()
        measure(script, monkeypatch, short_answers=2)
        assert [record.index for record in script.filed] == list(range(1 + 6 + 4))
        assert [record.phase for record in script.filed] == ["warmup", *["sample"] * 10]
        assert [one.max_tokens for one in script.asked] == [32, *[STORY_TOKENS] * 6, 64, 64, 256, 256]

    @pytest.mark.parametrize("protocol", PATHS)
    def test_p31_everything_is_greedy(self, monkeypatch: pytest.MonkeyPatch, protocol: ProtocolName) -> None:
        script, endpoint = Script(), Endpoint("http://127.0.0.1:1", protocol, "tiny")
        measure(script, monkeypatch, short_answers=1, endpoint=endpoint)
        for generation in script.asked:
            _, _, body = generation.payload(endpoint)
            sampling = body["options"] if protocol.startswith("ollama") else body
            assert sampling["temperature"] == 0
            assert "seed" not in sampling

    def test_percentiles_only_where_numbers_allow(self, monkeypatch: pytest.MonkeyPatch) -> None:
        few = measure(Script(), monkeypatch).sampling
        assert few["chunk_gap_ms_p50"] == few["chunk_gap_ms_p99"] == pytest.approx(20)
        assert not [name for name in few if name.startswith("ttft_seconds")]
        many = measure(Script(), monkeypatch, min_samples=40, max_samples=40).sampling
        assert [name for name in many if name.startswith("ttft_seconds")] == ["ttft_seconds_p90"]
        assert many["ttft_seconds_p90"] == pytest.approx(0.2)


class TestShortForms:
    def test_are_medians_where_there_are_six(self, monkeypatch: pytest.MonkeyPatch) -> None:
        times = [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
        script = Script(lines=[short(time) for time in times], paragraphs=[short(10 * time) for time in times])
        found = measure(script, monkeypatch, short_answers=6)
        line, paragraph = (found.metrics[f"{form}_answer_seconds"] for form in ("one_line", "paragraph"))
        assert (line.value, line.ci_low, line.ci_high, line.n) == (median(times), 0.5, 1.0, 6)
        assert (paragraph.value, paragraph.ci_low, paragraph.ci_high) == (7.5, 5.0, 10.0)
        assert found.notes == []

    def test_are_geometric_means_where_there_are_fewer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = measure(Script(lines=[short(1.0), short(4.0)]), monkeypatch, short_answers=2)
        line = found.metrics["one_line_answer_seconds"]
        assert line.value == pytest.approx(2.0)
        assert line.n == 2
        assert line.ci_low is not None
        assert line.ci_high is not None
        assert line.ci_low < 1 < 4 < line.ci_high

    def test_are_single_values_in_quick_mode(self, monkeypatch: pytest.MonkeyPatch) -> None:
        quick = InteractiveSettings(**settings_in_mode("interactive", {"output_tokens": STORY_TOKENS}, "quick"))
        script = Script(lines=[short(1.5)])
        found = InteractiveProfile().run(context(script, monkeypatch, settings=quick))
        line = found.metrics["one_line_answer_seconds"]
        assert line.value == pytest.approx(1.5)
        assert (line.ci_low, line.ci_high, line.n) == (None, None, 1)

    def test_can_be_left_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        script = Script()
        found = measure(script, monkeypatch, short_answers=0)
        assert all(generation.messages is None for generation in script.asked)
        assert not {"one_line_answer_seconds", "paragraph_answer_seconds"} & found.metrics.keys()

    def test_are_asked_as_a_user_s_message_that_no_cache_has_seen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        script = Script()
        measure(script, monkeypatch, short_answers=2)
        asked = [generation.messages for generation in script.asked if generation.messages is not None]
        contents = [message["content"] for messages in asked for message in messages]
        assert len(set(contents)) == 4
        assert len({content.partition("] ")[2] for content in contents}) == 2
        assert all(len(content.split()) < 60 for content in contents)
        assert not any(generation.demand_length for generation in script.asked if generation.messages is not None)

    def test_that_were_cut_are_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        cut = answer(tokens=64, finish_reason="length")
        found = measure(Script(lines=[short(1.0), cut]), monkeypatch, short_answers=2)
        assert "1 of 2 one-line answers did not end within 64 tokens" in found.notes
        assert found.metrics["one_line_answer_seconds"].n == 2

    def test_that_fail_are_a_note_and_not_tried_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        empty = failure("empty_answer", "the answer holds no text")
        script = Script(lines=[short(1.0), empty], paragraphs=[empty])
        found = measure(script, monkeypatch, short_answers=6)
        assert found.metrics["one_line_answer_seconds"].n == 1
        assert "paragraph_answer_seconds" not in found.metrics
        assert value(found, "decode_tokens_per_second") == pytest.approx(50)
        assert [record.usable for record in script.filed[7:]] == [True, False, False]
        assert [note for note in found.notes if "failed" in note] == [
            "only 1 of 6 one-line answers were measured, then one failed: the answer holds no text",
            "only 0 of 6 answers in a paragraph were measured, then one failed: the answer holds no text",
        ]

    def test_that_the_server_dies_of_end_the_cell(self, monkeypatch: pytest.MonkeyPatch) -> None:
        script = Script(lines=[failure("connection_lost", "the server hung up")])
        script.death = ServerError("server_died", "the server ended with status 3")
        with pytest.raises(LlmbenchError, match="status 3"):
            measure(script, monkeypatch, short_answers=2)

    @pytest.mark.parametrize("what", ["stood_still", "model_reloaded"])
    def test_that_were_disturbed_are_no_samples(self, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
        reloaded = {"server_timings": {"load_duration": 900_000_000}} if what == "model_reloaded" else {}
        script = Script(lines=[short(1.0), short(9.0, **reloaded), short(1.0)])
        still = [False] * 8 + [what == "stood_still"] + [False] * 9
        found = measure(script, monkeypatch, short_answers=3, stood_still=lambda: still[len(script.asked) - 1])
        assert found.flags == [what]
        line = found.metrics["one_line_answer_seconds"]
        assert line.value == pytest.approx(1.0)
        assert line.n == 2
        assert f"1 of 3 one-line answers are no samples: 1 {what}" in found.notes
        assert [record.usable for record in script.filed[7:10]] == [True, False, True]

    @pytest.mark.parametrize(("protocol", "ends"), [("openai_chat", True), ("llama_cpp", False)])
    def test_that_another_model_signs(
        self, monkeypatch: pytest.MonkeyPatch, protocol: ProtocolName, ends: bool
    ) -> None:
        script = Script(lines=[short(1.0, response_model="other")])
        endpoint = Endpoint("http://127.0.0.1:1", protocol, "tiny")
        if ends:
            with pytest.raises(MeasurementInvalid, match="'other' answered"):
                measure(script, monkeypatch, short_answers=1, endpoint=endpoint)
            assert not script.filed[-1].usable
        else:  # another route, whose signatures may look different
            assert "one_line_answer_seconds" in measure(script, monkeypatch, short_answers=1, endpoint=endpoint).metrics

    @pytest.mark.parametrize(("tokens", "count", "room"), [(500, 6, 500), (100, 6, 256), (100, 0, 100)])
    def test_fit_into_the_context(self, tokens: int, count: int, room: int) -> None:
        settings = InteractiveSettings(output_tokens=tokens, short_answers=count)
        assert InteractiveProfile().needed_context(settings) == PROMPT_TOKENS_AT_MOST + room


class TestOnAServer:
    def run(self, server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch) -> tuple[Measurement, ProfileContext]:
        endpoint = Endpoint(server.url, "llama_cpp", "fake", capabilities=LLAMA_CPP)
        settings = InteractiveSettings(output_tokens=30, short_answers=1)
        given = context(Script(), monkeypatch, endpoint=endpoint, settings=settings, max_samples=6, max_seconds=1e-9)
        monkeypatch.setattr("pytest_llmbench.profiles.base.send", send)
        return InteractiveProfile().run(given), given

    def test_short_forms_go_through_the_chat_template(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with FakeOpenAI(props={}, tokenizer=lambda text: [1] * len(text.split())) as server:
            found, _ = self.run(server, monkeypatch)
        assert [path for path in server.paths if path != "/tokenize"] == [
            *["/completion"] * 7,
            *["/v1/chat/completions"] * 2,
        ]
        last = server.requests[-1]
        assert (last["max_tokens"], last["cache_prompt"], last["temperature"]) == (256, False, 0)
        assert "ignore_eos" not in last
        assert found.metrics["paragraph_answer_seconds"].n == 1
        assert found.metrics["paragraph_answer_seconds"].value > 255 * server.token_seconds

    @pytest.mark.parametrize("fault", ["empty", "http_500", "truncated", "error_event"])
    def test_short_forms_that_go_wrong_leave_the_story_as_it_is(
        self, monkeypatch: pytest.MonkeyPatch, fault: Fault
    ) -> None:
        with FakeOpenAI(fault={"*": fault}, faulty_requests=range(7, 100)) as server:
            found, given = self.run(server, monkeypatch)
        assert found.metrics["decode_tokens_per_second"].n == 6
        assert len([note for note in found.notes if "then one failed" in note]) == 2
        assert given.next_index == 9
