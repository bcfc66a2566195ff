"""The long context profile on a server that reads at once: what it asks, what it refuses to believe, where it stops."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from pytest_llmbench.client.endpoint import LLAMA_CPP, Capabilities, Endpoint, ProtocolName
from pytest_llmbench.core.metrics import METRICS
from pytest_llmbench.core.records import FLAGS, RequestRecord, TelemetryRecord
from pytest_llmbench.core.settings import LongContextSettings
from pytest_llmbench.core.statistics import StoppingRule
from pytest_llmbench.errors import CellError, MeasurementInvalid, RequestError, ServerError
from pytest_llmbench.profiles.base import Measurement, ProfileContext
from pytest_llmbench.profiles.long_context import LongContextProfile, Room
from pytest_llmbench.telemetry.base import NoTelemetry, Telemetry
from tests.servers.reader import Reader, pieces

CHAT = Capabilities()
VLLM = Capabilities(ignores_end_of_sequence=True, tokenizer=True)


@dataclass
class Stop:
    """Something that stood still."""

    sentence: str = "the machine stood still"


@dataclass
class Readings:
    """A server's memory, as told before and after each size."""

    values: list[dict[str, float]]
    between_values: list[dict[str, float]] = field(default_factory=list)

    @property
    def why_not(self) -> Mapping[str, str]:
        return {}

    def now(self) -> TelemetryRecord:
        return TelemetryRecord(cell=None, t_ns=0, values=self.values.pop(0))

    def between(self, begin_ns: int, end_ns: int) -> Sequence[TelemetryRecord]:
        assert begin_ns < end_ns
        return [TelemetryRecord(cell=None, t_ns=begin_ns, values=values) for values in self.between_values]


@dataclass
class TimedContext(ProfileContext):
    """Says how long requests took, so that no test depends on it: by the tokens that came from no cache."""

    load_seconds: Callable[[int], float] = lambda tokens: tokens / 1000

    def request(self, *arguments: Any, **options: Any) -> RequestRecord:
        record = super().request(*arguments, **options)
        fresh = (record.prompt_tokens or 0) - (record.cached_tokens or 0)
        times = {"ttft_seconds": self.load_seconds(fresh), "decode_tokens_per_second": 50.0}
        return record.model_copy(update=times)


class Run:
    """One run of the profile on a server.

    Attributes:
        records: as they were filed.
    """

    def __init__(
        self,
        server: Reader,
        sizes: Sequence[int] = (512, 1024),
        *,
        protocol: ProtocolName = "llama_cpp",
        capabilities: Capabilities = LLAMA_CPP,
        limit: float | None = 60.0,
        samples: int = 2,
        telemetry: Telemetry | None = None,
        disturbance: Callable[[int, int], Stop | None] = lambda begin_ns, end_ns: None,
        death: ServerError | None = None,
        **fields: Any,
    ) -> None:
        self.server = server
        self.records: list[RequestRecord] = []
        self.context = TimedContext(
            endpoint=Endpoint(server.url, protocol, "m", capabilities=capabilities),
            settings=LongContextSettings(test_sizes=list(sizes), samples=samples, output_tokens=16),
            rule=StoppingRule(6, 20, 5.0, 120.0, {} if limit is None else {"context_load_seconds": [limit]}),
            nodeid="cell",
            data_dirs=(),
            sink=self.sink,
            on_failure=lambda error: death or error,
            telemetry=telemetry or NoTelemetry(),
            disturbance=disturbance,
            **fields,
        )

    def measure(self) -> Measurement:
        measurement = LongContextProfile().run(self.context)
        assert set(measurement.metrics) <= set(LongContextProfile.emits)
        assert set(measurement.flags) <= set(FLAGS)
        return measurement

    def fails(self, kind: type[CellError]) -> CellError:
        with pytest.raises(kind) as caught:
            LongContextProfile().run(self.context)
        return caught.value

    @property
    def samples(self) -> list[RequestRecord]:
        return [record for record in self.records if record.phase == "sample"]

    def sink(self, record: RequestRecord) -> None:
        self.records.append(record)

    @property
    def cold(self) -> list[RequestRecord]:
        return [record for record in self.samples if record.output_tokens != 6]

    @property
    def warm(self) -> list[RequestRecord]:
        return [record for record in self.samples if record.output_tokens == 6]


def chats(server: Reader, sizes: Sequence[int] = (1024, 2048), **fields: Any) -> Run:
    return Run(server, sizes, **{"protocol": "openai_chat", "capabilities": CHAT, **fields})


def after_nonce(text: str) -> list[str]:
    """Tokens of a text as of a server to which all beginnings are one."""
    return pieces(text[11:])


def rows(measurement: Measurement, *keys: str) -> list[tuple[Any, ...]]:
    return [tuple(row[key] for key in keys) for row in measurement.details["sizes"]]


class TestExactly:
    def test_each_prompt_has_the_tokens_that_were_counted_and_fills_95_percent(self) -> None:
        with Reader() as server:
            run = Run(server)
            measurement = run.measure()
        found = [(r.prompt_tokens, r.output_tokens) for r in run.cold]
        # 5 % of 512 are 25: 18 for one more turn, 7 for the answer. 1024 has room for all 16, and 990 are 97 %.
        assert found == [(487, 7), (487, 7), (990, 16), (990, 16)]
        assert rows(measurement, "context_tokens", "prompt_tokens", "usable") == [(512, 487, True), (1024, 990, True)]
        assert all(row["filled_percent"] >= 95 for row in measurement.details["sizes"])  # type: ignore[operator]
        assert "512 tokens: answers have 7, so that the prompt can fill 95 %" in measurement.notes

    def test_every_metric_comes_out(self) -> None:
        with Reader() as server:
            measurement = Run(server).measure()
        assert set(measurement.metrics) == set(LongContextProfile.emits)
        assert set(measurement.metrics) <= set(METRICS)
        assert measurement.metrics["context_load_seconds"].value == pytest.approx(0.99)
        assert measurement.metrics["depth_tokens_per_second"].value == pytest.approx(50)
        assert measurement.metrics["slowdown_percent_per_1k_tokens"].value == pytest.approx(0)
        assert measurement.metrics["warm_continuation_seconds"].value < 0.05
        assert measurement.metrics["largest_usable_context_tokens"].value == 1024
        assert measurement.metrics["recall_percent"].value == 100
        assert measurement.sampling == {"samples": 4, "rejected": 0, "stop_reason": "all_sizes", "output_tokens": 16}

    def test_every_prompt_is_fresh_and_asks_for_another_fact_in_another_place(self) -> None:
        with Reader() as server:
            measurement = Run(server, samples=3).measure()
            cold = [body["prompt"] for body in server.requests if body["cache_prompt"] is False][1:]
        assert len({prompt[:10] for prompt in cold}) == len(cold) == 6
        facts = measurement.details["facts"]
        assert len({row["fact"] for row in facts}) == len({row["place_percent"] for row in facts}) == 6
        assert all(str(row["fact"]) in prompt for row, prompt in zip(facts, cold, strict=True))

    def test_a_server_that_cuts_prompts_is_not_believed(self) -> None:
        with Reader(reads_at_most=900) as server:
            run = Run(server)
            error = run.fails(MeasurementInvalid)
        assert error.code == "prompt_truncated"
        assert error.evidence == {"read": 900, "expected": 990}
        assert not run.records[-1].usable

    def test_a_server_that_counts_otherwise_than_its_tokenizer_is_not_believed(self) -> None:
        with Reader(tokenizer=lambda text: [*pieces(text), "another"]) as server:
            error = Run(server).fails(MeasurementInvalid)
        assert error.code == "prompt_truncated"

    def test_a_context_too_small_for_the_question(self) -> None:
        with Reader() as server:
            assert Run(server, (64,)).fails(RequestError).code == "prompt_too_short"
            assert Run(server, (16,)).fails(RequestError).code == "prompt_too_short"


class TestWithoutTokenizer:
    @pytest.mark.parametrize("split", [str.split, lambda text: text.replace("e", " ").split()])
    def test_prompts_are_fitted_by_what_the_server_counts(self, split: Callable[[str], list[str]]) -> None:
        with Reader(split=split, tokenizer=None) as server:
            run = chats(server)
            measurement = run.measure()
        assert all(row["filled_percent"] >= 95 for row in measurement.details["sizes"])  # type: ignore[operator]
        assert [row["usable"] for row in measurement.details["sizes"]] == [True, True]
        usable = [record for record in run.cold if record.usable]
        for record, size in zip(usable, (1024, 1024, 2048, 2048), strict=True):
            assert record.prompt_tokens is not None
            assert 0.95 * size <= record.prompt_tokens <= size - 16
        assert any("has no tokenizer" in note for note in measurement.notes)

    def test_a_tokenizer_that_knows_nothing_of_the_template_is_exact_enough(self) -> None:
        with Reader(around=23) as server:
            run = chats(server, capabilities=VLLM)
            measurement = run.measure()
        assert [row["usable"] for row in measurement.details["sizes"]] == [True, True]
        assert all(row["filled_percent"] >= 95 for row in measurement.details["sizes"])  # type: ignore[operator]
        assert not any("has no tokenizer" in note for note in measurement.notes)

    def test_a_guess_that_missed_is_corrected(self) -> None:
        def split(text: str) -> list[str]:  # the longer the text, the more tokens a word has
            found = text.split()
            return found + found[: len(found) // 12 if len(found) > 400 else 0]

        with Reader(split=split, tokenizer=None) as server:
            run = chats(server)
            measurement = run.measure()
        assert [row["usable"] for row in measurement.details["sizes"]] == [True, True]
        assert measurement.sampling["rejected"] == sum(not record.usable for record in run.records) > 0
        assert "context_not_filled" not in measurement.flags

    def test_one_that_never_counts_alike_can_not_be_filled(self) -> None:
        with Reader(tokenizer=None) as server:
            server.split = lambda text: (
                text.split() + text.split()[: len(text) // 80 if len(server.requests) % 2 and len(text) > 2000 else 0]
            )
            assert chats(server).fails(MeasurementInvalid).code == "context_not_filled"

    def test_a_cut_is_no_guess_that_missed(self) -> None:
        with Reader(tokenizer=None, reads_at_most=700) as server:
            assert chats(server).fails(MeasurementInvalid).code == "prompt_truncated"

    def test_already_the_warm_up_is_cut(self) -> None:
        with Reader(tokenizer=None, reads_at_most=120) as server:
            assert chats(server).fails(MeasurementInvalid).code == "prompt_truncated"

    def test_a_server_that_counts_nothing(self) -> None:
        with Reader(tokenizer=None, counts=False) as server:
            run = chats(server)
            error = run.fails(MeasurementInvalid)
        assert error.code == "tokens_not_counted"
        assert len(run.records) == 1


class TestContinuing:
    def test_one_more_turn_goes_on_with_the_conversation_and_may_use_the_cache(self) -> None:
        with Reader() as server:
            run = Run(server)
            measurement = run.measure()
        _, *asked = server.requests
        assert [body["cache_prompt"] for body in asked] == [False, True] * 4
        for record, cold, warm in zip(run.cold, asked[::2], asked[1::2], strict=True):
            assert warm["prompt"].startswith(cold["prompt"] + record.output)
            assert len(warm["prompt"]) < len(cold["prompt"]) + len(record.output) + 40
        assert [record.prompt_tokens for record in run.cold] <= [record.cached_tokens for record in run.warm]
        assert measurement.metrics["warm_continuation_seconds"].n == 2
        assert not any("cache" in note for note in measurement.notes)

    def test_in_a_chat_it_is_a_message(self) -> None:
        with Reader(tokenizer=None, caches="always") as server:
            chats(server, (2048, 4096)).measure()
        conversations = [body["messages"] for body in server.requests if len(body["messages"]) > 1]
        assert len(conversations) == 4
        assert [message["role"] for message in conversations[0]] == ["user", "assistant", "user"]
        assert conversations[0][2]["content"] == "And then?"

    def test_without_a_cache_it_pays_for_the_whole_prompt(self) -> None:
        with Reader(caches="never") as server:
            measurement = Run(server).measure()
        assert "no cache: one more turn of a conversation pays for its whole prompt again" in measurement.notes
        assert "warm_continuation_seconds" in measurement.metrics

    def test_an_empty_answer_to_it_is_no_failure_of_the_size(self) -> None:
        with Reader(otherwise="", filler=" ") as server:
            measurement = Run(server).measure()
        assert rows(measurement, "usable", "warm_seconds") == [(True, None), (True, None)]
        assert "512 tokens: one more turn was answered with nothing" in measurement.notes

    def test_it_is_cut(self) -> None:
        with Reader(reads_at_most=995) as server:
            error = Run(server, (1024,)).fails(MeasurementInvalid)
        assert error.code == "prompt_truncated"
        assert error.evidence["read"] == 995

    def test_where_it_does_not_fit_it_is_left_out(self) -> None:
        with Reader() as server:
            measurement = Run(server, (320,)).measure()
        assert "warm_continuation_seconds" not in measurement.metrics
        assert "320 tokens: no room for one more turn, so no warm continuation" in measurement.notes


class TestStopping:
    def test_sizes_that_can_not_be_had_are_named_with_the_reason(self) -> None:
        with Reader() as server:
            run = Run(server, (512, 1024, 2048), context_size=1024, refused_sizes={4096: "it does not fit"})
            measurement = run.measure()
        assert rows(measurement, "context_tokens", "usable", "reason") == [
            (512, True, None),
            (1024, True, None),
            (2048, False, "the server's context holds 1024 tokens"),
            (4096, False, "it does not fit"),
        ]
        assert "4096 tokens: it does not fit" in measurement.notes
        assert max(server.read) <= 1024

    def test_none_can_be_had(self) -> None:
        with Reader() as server:
            error = Run(server, (2048,), context_size=1024).fails(ServerError)
        assert error.code == "context_mismatch"
        assert "2048: the server's context holds 1024 tokens" in error.message
        assert server.requests == []

    def test_a_size_that_fails_is_the_last(self) -> None:
        with Reader(fails_from=900) as server:
            run = Run(server, (512, 1024, 2048))
            measurement = run.measure()
        first, second, third = rows(measurement, "usable", "reason")
        assert first == (True, None)
        assert "out of memory" in second[1]
        assert third[1].startswith("not tried: 1024 tokens: ")
        assert measurement.metrics["largest_usable_context_tokens"].value == 512
        assert measurement.metrics["context_load_seconds"].n == 2
        assert any(note.startswith("no larger context was tried: 1024 tokens: ") for note in measurement.notes)
        assert "out of memory" in str(measurement.sampling["stop_reason"])
        assert "aborted" not in measurement.flags

    def test_smaller_sizes_stand_when_the_server_dies_of_a_larger_one(self) -> None:
        with Reader(fails_from=900) as server:
            run = Run(server, death=ServerError("server_died", "killed for want of memory"))
            measurement = run.measure()
        assert "aborted" in measurement.flags
        assert rows(measurement, "usable", "reason") == [(True, None), (False, "killed for want of memory")]

    def test_the_first_size_must_not_fail(self) -> None:
        with Reader(fails_from=400) as server:
            assert "out of memory" in Run(server).fails(RequestError).message

    def test_a_size_that_loads_too_slowly_is_the_last(self) -> None:
        with Reader() as server:
            run = Run(server, (512, 1024, 2048), limit=5, samples=3, load_seconds=lambda tokens: (tokens / 400) ** 2)
            measurement = run.measure()
        assert [reason is None for (reason,) in rows(measurement, "reason")] == [True, False, False]
        _, slow, untried = measurement.details["sizes"]
        assert slow["reason"] == "took 6.1 s to load, more than the limit of 5 s"
        assert untried["reason"] == f"not tried: 1024 tokens: {slow['reason']}"
        assert measurement.metrics["context_load_seconds"].n == 2  # the third would have told nothing more

    def test_without_a_limit_no_load_is_too_slow(self) -> None:
        with Reader() as server:
            measurement = Run(server, limit=None).measure()
        assert [reason for (reason,) in rows(measurement, "reason")] == [None, None]

    def test_a_size_during_which_the_server_was_swapped_is_the_last(self) -> None:
        quiet, swapped = {"server_pss_bytes": 1e9, "server_swap_bytes": 0.0}, {"server_swap_bytes": 2e8}
        with Reader() as server:
            measurement = Run(server, (512, 1024, 2048), telemetry=Readings([quiet, quiet, quiet, swapped])).measure()
        assert [usable for (usable,) in rows(measurement, "usable")] == [True, False, False]
        assert [swap for (swap,) in rows(measurement, "swap_gb")] == [0.0, 0.2, None]
        assert measurement.flags.count("swapped") == 1
        assert measurement.metrics["largest_usable_context_tokens"].value == 512

    def test_the_peak_between_two_readings_is_not_missed(self) -> None:
        readings = Readings([{"server_rss_bytes": 1e9}] * 4, [{"server_rss_bytes": 3e9}])
        with Reader() as server:
            measurement = Run(server, telemetry=readings).measure()
        assert rows(measurement, "memory_gb", "swap_gb") == [(3.0, None), (3.0, None)]


class TestUsable:
    def test_a_context_whose_facts_are_not_found_is_not(self) -> None:
        with Reader(knows=lambda tokens: tokens < 600) as server:
            measurement = Run(server, (512, 1024, 2048)).measure()
        assert rows(measurement, "recalled", "usable") == [(2, True), (0, False), (0, False)]
        assert measurement.metrics["largest_usable_context_tokens"].value == 512
        recall = measurement.metrics["recall_percent"]
        assert recall.value == pytest.approx(100 / 3)
        assert recall.ci_low is not None
        assert recall.ci_high is not None
        assert 0 < recall.ci_low < recall.value < recall.ci_high < 100

    def test_none_is(self) -> None:
        with Reader(knows=lambda tokens: False) as server:
            measurement = Run(server, (512,)).measure()
        assert measurement.metrics["largest_usable_context_tokens"].value == 0
        assert any(note.startswith("no context was usable") for note in measurement.notes)


class TestNoSamples:
    def test_a_prompt_from_a_cache(self) -> None:
        with Reader(caches="always", split=after_nonce, tokenizer=after_nonce) as server:
            run = Run(server)
            error = run.fails(MeasurementInvalid)
        assert error.code == "prompt_cache_hit"
        assert [record.usable for record in run.samples] == [False] * 3

    def test_a_few_tokens_that_every_chat_begins_with_may_come_from_a_cache_that_nobody_can_switch_off(self) -> None:
        with Reader(caches="always", split=lambda text: ["<chat>"] * 5 + pieces(text)[1:]) as server:
            run = chats(server, capabilities=VLLM)
            measurement = run.measure()
        assert {record.cached_tokens for record in run.cold} >= {5}
        assert measurement.metrics["context_load_seconds"].n == 2
        assert "prompt_cache_hit" not in measurement.flags
        assert any("came from a cache" in note for note in measurement.notes)

    def test_standing_still_is_repeated(self) -> None:
        calls = iter([None, Stop()])
        with Reader() as server:
            run = Run(server, (512,), disturbance=lambda begin_ns, end_ns: next(calls, None))
            measurement = run.measure()
        assert [record.usable for record in run.samples] == [False, True, True, True, True]
        assert "stood_still" in measurement.flags
        assert (measurement.sampling["samples"], measurement.sampling["rejected"]) == (2, 1)

    def test_but_not_for_ever(self) -> None:
        calls = iter([None, Stop(), Stop(), Stop()])
        with Reader() as server:
            error = Run(server, disturbance=lambda begin_ns, end_ns: next(calls, None)).fails(MeasurementInvalid)
        assert error.code == "stood_still"

    def test_one_more_turn_that_stood_still_is_no_sample_and_not_repeated(self) -> None:
        calls = iter([None, None, Stop()])
        with Reader() as server:
            run = Run(server, (512,), disturbance=lambda begin_ns, end_ns: next(calls, None))
            measurement = run.measure()
        assert [record.usable for record in run.samples] == [True, False, True, True]
        assert measurement.metrics["warm_continuation_seconds"].n == 1

    def test_a_short_answer_has_no_rate_but_was_loaded(self) -> None:
        with Reader(answers_at_most=6, tokenizer=None) as server:
            measurement = chats(server).measure()
        assert "short_answer" in measurement.flags
        assert "depth_tokens_per_second" not in measurement.metrics
        assert measurement.metrics["context_load_seconds"].n == 2
        assert measurement.metrics["largest_usable_context_tokens"].value == 2048

    def test_another_model_answers(self) -> None:
        with Reader(model=("m", "n")) as server:
            run = Run(server)
            assert run.fails(MeasurementInvalid).code == "another_model_answered"
        assert not run.records[-1].usable


class TestRoom:
    def test_prompt_answer_and_one_more_turn_fit(self) -> None:
        room = Room.of(4096, 64, 18, 0.0)
        assert (room.prompt_tokens, room.output_tokens, room.has_turn) == (4014, 64, True)
        assert room.least_prompt_tokens == 3892

    @pytest.mark.parametrize("size", [128, 320, 512, 1000, 1024, 2048, 4096, 65536])
    @pytest.mark.parametrize("slack", [0.0, 0.005, 0.02])
    @pytest.mark.parametrize("output", [2, 16, 64, 5000])
    def test_no_size_is_filled_less_than_95_percent_or_overfull(self, size: int, slack: float, output: int) -> None:
        room = Room.of(size, output, 38, slack)
        miss = slack * size / 2
        assert 0.95 * size <= room.prompt_tokens - miss + 1
        assert room.least_prompt_tokens >= 0.95 * size
        assert room.prompt_tokens + miss + room.output_tokens + 38 * room.has_turn <= size + 1
        assert 2 <= room.output_tokens <= output


def test_sizes_are_asked_for_in_ascending_order() -> None:
    settings = LongContextSettings(test_sizes=[4096, 512, 1024])
    assert list(LongContextProfile().context_sizes(settings)) == [512, 1024, 4096]
