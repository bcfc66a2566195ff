"""Samples, what is none, and samples that lie far off."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_llmbench.client.generation import Generation
from pytest_llmbench.core.statistics import StoppingRule
from pytest_llmbench.errors import MeasurementInvalid, RequestError
from pytest_llmbench.profiles.base import ProfileContext, PromptTokens
from pytest_llmbench.profiles.sampling import MOST_AGAIN, Sampler, far_off
from tests.unit.profiles.stories import STORY_TOKENS, Answer, Script, answer, context, failure

EVEN = [50.0, 50.1, 49.9, 50.2, 49.8, 50.0]
RELOADED = {"load_duration": 900_000_000, "total_duration": 2_000_000_000}


def rule(**changes: Any) -> StoppingRule:
    values: dict[str, Any] = {"min_samples": 6, "max_samples": 6, "target_half_width_percent": 5, "max_seconds": 1e6}
    return StoppingRule(**{**values, "limits": {}, **changes})


def stories(*rates: float) -> list[Answer]:
    return [answer(rate=rate) for rate in rates]


def sampler(script: Script, given: ProfileContext, expected: PromptTokens | None = None) -> Sampler:
    def ask() -> tuple[Generation, PromptTokens]:
        return Generation(STORY_TOKENS, prompt="x"), expected or PromptTokens(1, exact=False)

    warmup = given.request(Generation(8, prompt="x"), "warmup")
    return Sampler(given, ask, STORY_TOKENS, warmup, lambda _: {})


class TestFarOff:
    def test_are_those_that_matter_to_a_result(self) -> None:
        assert far_off([*EVEN, 30.0], rule()) == [6]
        assert far_off([30.0, *EVEN, 90.0], rule()) == [0, 7]

    def test_are_not_those_within_the_precision_that_is_asked_for(self) -> None:
        assert far_off([*EVEN, 52.0], rule()) == []
        assert far_off([*EVEN, 52.0], rule(target_half_width_percent=1)) == [6]

    def test_are_not_those_of_samples_that_spread_anyway(self) -> None:
        assert far_off([30.0, 70.0, 40.0, 60.0, 50.0, 80.0], rule()) == []

    def test_are_none_of_no_samples(self) -> None:
        assert far_off([], rule()) == []


class TestLookingAgain:
    def test_takes_none_where_nothing_is_far_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        script = Script(stories(*EVEN))
        one = sampler(script, context(script, monkeypatch))
        assert one.run() == "precise"
        assert one.look_again() is None
        assert script.story_count == 6

    def test_takes_as_many_as_there_were_and_keeps_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        script = Script(stories(50.0, 30.0, 50.1, 49.9, 50.2, 20.0, 50.0, 49.9, 50.1, 50.2, 49.8))
        one = sampler(script, context(script, monkeypatch, max_samples=8, target_half_width_percent=4))
        one.run()
        before = list(one.samples.headline)
        found = one.look_again()
        assert found is not None
        assert found.values == pytest.approx([rate for rate in before if rate < 40])
        assert len(found.again) == len(found.values) == 2
        assert found.still == 0
        assert one.samples.headline == before + found.again
        assert [record.usable for record in script.filed] == [True] * len(one.samples.records)

    @pytest.mark.parametrize(("again", "still"), [(50.0, 0), (29.0, 1)])
    def test_says_whether_they_are_far_off_as_well(
        self, monkeypatch: pytest.MonkeyPatch, again: float, still: int
    ) -> None:
        script = Script(stories(*EVEN, 30.0, again))
        one = sampler(script, context(script, monkeypatch, min_samples=7, max_samples=7))
        one.run()
        found = one.look_again()
        assert found is not None
        assert [*found.values, *found.again] == pytest.approx([30, again])
        assert found.still == still

    def test_takes_three_at_most_beyond_the_most_samples(self, monkeypatch: pytest.MonkeyPatch) -> None:
        script = Script(stories(*EVEN * 2, 30.0, 31.0, 32.0, 33.0, 50.0))
        one = sampler(script, context(script, monkeypatch, min_samples=16, max_samples=16))
        one.run()
        found = one.look_again()
        assert found is not None
        assert (len(found.values), len(found.again), script.story_count) == (4, MOST_AGAIN, 16 + MOST_AGAIN)

    def test_takes_none_when_there_is_no_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        script = Script(stories(*EVEN, 30.0))
        one = sampler(script, context(script, monkeypatch, min_samples=7, max_samples=7, max_seconds=1e-9))
        one.run()
        found = one.look_again()
        assert found is not None
        assert (len(found.values), found.again, script.story_count) == (1, [], 7)

    def test_takes_no_other_for_one_that_is_no_sample(self, monkeypatch: pytest.MonkeyPatch) -> None:
        script = Script([*stories(*EVEN, 30.0), answer(cached_tokens=9)])
        one = sampler(script, context(script, monkeypatch, min_samples=7, max_samples=7))
        one.run()
        found = one.look_again()
        assert found is not None
        assert (found.again, script.story_count) == ([], 8)
        assert one.samples.rejected == {"prompt_cache_hit": 1}

    def test_looks_at_the_waits_where_rates_are_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        waits = [answer(ttft=ttft, decode_tokens_per_second=None) for ttft in (0.2, 0.2, 0.201, 0.2, 0.2, 0.9, 0.2)]
        script = Script(waits)
        one = sampler(script, context(script, monkeypatch))
        one.run()
        found = one.look_again()
        assert found is not None
        assert one.samples.headline_name == "ttft_seconds"
        assert (found.values, found.again) == ([0.9], [0.2])


class TestWhatIsNoSample:
    @pytest.mark.parametrize(
        ("fields", "code"),
        [
            ({"cached_tokens": 3}, "prompt_cache_hit"),
            ({"tokens": 20}, "short_answer"),
            ({"output_tokens": None, "finish_reason": "stop"}, "short_answer"),
            ({"server_timings": RELOADED}, "model_reloaded"),
        ],
    )
    def test_is_left_out_and_counted(self, monkeypatch: pytest.MonkeyPatch, fields: Answer, code: str) -> None:
        script = Script([answer(), answer(**fields), answer()])
        one = sampler(script, context(script, monkeypatch))
        one.run()
        assert one.samples.rejected == {code: 1}
        assert [record.usable for record in script.filed] == [True, False, True, True, True, True, True]
        assert len(one.samples.records) == 6

    @pytest.mark.parametrize(
        ("fields", "code", "advice"),
        [
            ({"cached_tokens": 3}, "prompt_cache_hit", "switch it off"),
            ({"tokens": 20}, "short_answer", "ask for fewer"),
            ({"server_timings": RELOADED}, "model_reloaded", "memory"),
        ],
    )
    def test_ends_the_cell_when_there_is_little_else(
        self, monkeypatch: pytest.MonkeyPatch, fields: Answer, code: str, advice: str
    ) -> None:
        script = Script([answer(), answer(**fields)])
        with pytest.raises(MeasurementInvalid, match=f"6 of 7 requests .*{advice}") as caught:
            sampler(script, context(script, monkeypatch)).run()
        assert caught.value.code == code
        assert caught.value.evidence == {"rejected": 6, "usable": 1}

    def test_may_even_have_failed_while_something_stood_still(self, monkeypatch: pytest.MonkeyPatch) -> None:
        script = Script([answer(), failure("stream_stalled", "no text for 120 s"), answer()])
        given = context(script, monkeypatch, stood_still=lambda: script.story_count == 2)
        one = sampler(script, given)
        one.run()
        assert one.samples.rejected == {"stood_still": 1}
        assert given.disturbances == ["the machine stood still for 3 s"]

    def test_is_a_failure_that_ends_the_cell(self, monkeypatch: pytest.MonkeyPatch) -> None:
        script = Script([answer(), failure("stream_truncated", "the server hung up")])
        with pytest.raises(RequestError, match="hung up"):
            sampler(script, context(script, monkeypatch)).run()
        assert [record.usable for record in script.filed] == [True, False]


class TestWhatMakesNothingCount:
    @pytest.mark.parametrize(
        ("fields", "expected", "context_size", "code"),
        [
            ({"prompt_tokens": 99}, PromptTokens(100, exact=False), None, "prompt_truncated"),
            ({"prompt_tokens": 101}, PromptTokens(100, exact=True), None, "prompt_truncated"),
            ({"prompt_truncated": True}, PromptTokens(1, exact=False), None, "prompt_truncated"),
            ({"prompt_tokens": 140}, PromptTokens(1, exact=False), 140 + STORY_TOKENS - 1, "prompt_truncated"),
            ({"response_model": "other"}, PromptTokens(1, exact=False), None, "another_model_answered"),
        ],
    )
    def test_ends_the_cell_at_once(
        self,
        monkeypatch: pytest.MonkeyPatch,
        fields: Answer,
        expected: PromptTokens,
        context_size: int | None,
        code: str,
    ) -> None:
        script = Script([answer(prompt_tokens=expected.expected), answer(**fields)])
        given = context(script, monkeypatch)
        given.context_size = context_size
        with pytest.raises(MeasurementInvalid) as caught:
            sampler(script, given, expected).run()
        assert caught.value.code == code
        assert [record.usable for record in script.filed] == [True, False]

    def test_is_not_a_context_that_is_exactly_full(self, monkeypatch: pytest.MonkeyPatch) -> None:
        script = Script([answer(prompt_tokens=140)])
        given = context(script, monkeypatch)
        given.context_size = 140 + STORY_TOKENS
        assert sampler(script, given).run() == "precise"
