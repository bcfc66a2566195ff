"""Pitfalls of prompts and answers (P01–P07, P09–P11): each is provoked, and noticed or without effect.

``docs/pitfalls.md`` says what goes wrong in each. Servers here are fast stand-ins; nothing is a measurement of a model.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from pytest_llmbench.cli import main
from pytest_llmbench.client.endpoint import Endpoint
from pytest_llmbench.client.generation import Generation
from pytest_llmbench.client.load import send
from pytest_llmbench.client.prompts import prompts_of
from pytest_llmbench.client.timings import ServerTimes
from pytest_llmbench.errors import RequestError
from tests.plugin.bench import Bench
from tests.plugin.pitfalls import (
    assert_measured,
    cell_of,
    code_of,
    letters,
    like_llama_cpp,
    long_story,
    ollama,
    on_ollama,
    samples_of,
)
from tests.servers.fake_openai import FakeOpenAI, Fault
from tests.servers.ollama_server import OllamaModel, WordEngine

NONCE_CHARACTERS = 11


# ---------------------------------------------------------------- P01, P02: prompts that a cache knows


@pytest.mark.parametrize("kind", ["openai", "llama.cpp"])
def test_p01_prompt_cache_finds_nothing_to_answer_from(bench: Bench, kind: str) -> None:
    bench.fake.caches_prompts = True
    if kind == "llama.cpp":
        like_llama_cpp(bench.fake)
    cell = cell_of(bench)
    assert_measured(cell)
    assert [record["cached_tokens"] for record in bench.requests()] == [0] * 7
    prompts = bench.fake.prompts
    assert len({prompt[:NONCE_CHARACTERS] for prompt in prompts}) == len(prompts) == 7
    assert len({prompt[NONCE_CHARACTERS:] for prompt in prompts}) == 1
    asked = [record["params"].get("cache_prompt") for record in bench.requests()]
    assert asked == [None if kind == "openai" else False] * 7
    assert ("prefill_tokens_per_second" in cell["metrics"]) == (kind == "llama.cpp")


def test_p01_prompt_cache_hits_are_no_samples(bench: Bench) -> None:
    bench.fake.fault["*"] = "cached"
    cell = cell_of(bench)
    assert code_of(cell) == ("invalid", "prompt_cache_hit")
    assert cell["flags"] == ["prompt_cache_hit"]
    assert cell["metrics"] == {}
    assert not any(record["usable"] for record in samples_of(bench))


def test_p01_prompt_cache_hit_now_and_then_is_left_out(bench: Bench) -> None:
    bench.fake.fault["*"], bench.fake.faulty_requests = "cached", {3}
    cell = cell_of(bench)
    assert "prompt_cache_hit" in cell["flags"]
    assert [record["usable"] for record in samples_of(bench)] == [True, True, False, True, True, True, True]
    assert cell["metrics"]["ttft_seconds"]["n"] == 6


def test_p02_ollama_counts_cached_tokens_without_saying_so(bench: Bench) -> None:
    with ollama(engine=WordEngine(prompt_word_seconds=0.001)) as server:
        on_ollama(bench, server)
        cell = cell_of(bench)
        endpoint = Endpoint(server.url, "ollama_generate", "tiny", extra={"options": {"num_ctx": 2048}})
        story = " ".join(f"chapter{number}" for number in range(200))
        cold, warm = (send(endpoint, Generation(4, prompt=story)) for _ in range(2))
    assert_measured(cell)
    assert "prefill_tokens_per_second" not in cell["metrics"]
    # The trap is there: the second count has the cached tokens in it, and the time has not.
    assert cold.prompt_tokens == warm.prompt_tokens == 201
    assert cold.server_timings is not None
    assert cold.server_timings["prompt_eval_duration"] > 190e6
    for record in (cold, warm):
        assert ServerTimes.of(record.server_timings).prefill_tokens_per_second is None
    prompts = [request.body["prompt"] for request in server.requests_to("/api/generate")]
    asked = [prompt for prompt in prompts if "lighthouse" in prompt]
    assert len({prompt[:NONCE_CHARACTERS] for prompt in asked}) == len(asked) == 7


# ---------------------------------------------------------------- P03 … P07: answers that are not what they seem


@pytest.mark.parametrize("kind", ["openai", "llama.cpp"])
def test_p03_short_answers_are_no_samples(bench: Bench, kind: str) -> None:
    bench.fake.fault["*"] = "short"
    if kind == "llama.cpp":
        like_llama_cpp(bench.fake)
    cell = cell_of(bench)
    assert code_of(cell) == ("invalid", "short_answer")
    assert (cell["flags"], cell["metrics"]) == (["short_answer"], {})
    if kind == "llama.cpp":
        assert all(record["params"]["ignore_eos"] is True for record in bench.requests())


def test_p03_a_model_of_ollama_that_ends_early(bench: Bench) -> None:
    with ollama(engine=WordEngine(answer_words=20)) as server:
        on_ollama(bench, server)
        cell = cell_of(bench)
    assert code_of(cell) == ("invalid", "short_answer")
    assert {record["finish_reason"] for record in samples_of(bench)} == {"stop"}


def test_p03_a_short_answer_among_others_is_in_no_number(bench: Bench) -> None:
    bench.fake.fault["*"], bench.fake.faulty_requests = "short", {2, 5}
    cell = cell_of(bench)
    assert "short_answer" in cell["flags"]
    usable = [record for record in samples_of(bench) if record["usable"]]
    assert [record["output_tokens"] for record in usable] == [30] * 6
    rates = [record["decode_tokens_per_second"] for record in usable]
    rate = cell["metrics"]["decode_tokens_per_second"]
    assert (rate["n"], rate["value"]) == (6, median(rates))


def test_p04_a_chunk_is_not_a_token(bench: Bench) -> None:
    bench.fake.tokens_per_piece = 10
    cell = cell_of(bench)
    assert "chunked_stream" in cell["flags"]
    assert not {"decode_tokens_per_second", "time_per_output_token_ms"} & cell["metrics"].keys()
    record = samples_of(bench)[0]
    assert (record["output_tokens"], record["chunks"], record["decode_tokens_per_second"]) == (30, 3, None)


def test_p05_an_empty_role_delta_is_no_token(bench: Bench) -> None:
    bench.fake.first_text_seconds = 0.05
    cell = cell_of(bench)
    assert_measured(cell)
    assert cell["metrics"]["ttft_seconds"]["ci_low"] >= 0.05
    for record in bench.requests():
        assert record["t_first_event_ns"] < record["t_first_token_ns"]
        assert record["ttft_seconds"] == pytest.approx((record["t_first_token_ns"] - record["t_send_ns"]) / 1e9)


def test_p06_reasoning_is_not_an_empty_answer(bench: Bench) -> None:
    bench.fake.reasoning_pieces, bench.fake.token_seconds = 15, 0.002
    cell = cell_of(bench)
    assert_measured(cell)
    assert any("tokens went to reasoning" in note for note in cell["notes"])
    assert cell["metrics"]["ttft_seconds"]["ci_low"] >= 0.03  # fifteen pieces of reasoning came first
    samples = samples_of(bench)
    reasoned = [record["ttft_seconds"] - record["time_to_first_reasoning_seconds"] for record in samples]
    assert cell["metrics"]["reasoning_seconds"]["value"] == pytest.approx(median(reasoned))
    assert cell["metrics"]["answering_seconds"]["value"] > 0
    for record in samples:
        assert record["t_first_reasoning_ns"] < record["t_first_token_ns"]
        assert record["time_to_first_reasoning_seconds"] < record["ttft_seconds"]


def test_p06_nothing_but_reasoning_says_where_the_tokens_went(bench: Bench) -> None:
    bench.fake.reasoning_pieces = 1000
    cell = cell_of(bench)
    assert code_of(cell) == ("error", "empty_answer")
    assert "all tokens went to reasoning" in cell["reason"]["message"]
    assert samples_of(bench)[-1]["reasoning"].startswith("word0 ")


def test_p06_a_model_of_ollama_that_thinks(bench: Bench) -> None:
    with ollama(models={"gpt-oss": OllamaModel(thinking_pieces=1000)}) as server:
        on_ollama(bench, server, model="gpt-oss")
        cell = cell_of(bench)
    assert code_of(cell) == ("error", "empty_answer")
    assert "all tokens went to reasoning" in cell["reason"]["message"]


@pytest.mark.parametrize(("fault", "first"), [("empty", 0), ("blank", 3)])
def test_p07_an_empty_answer_is_a_failed_request(bench: Bench, fault: Fault, first: int) -> None:
    bench.fake.fault["*"], bench.fake.faulty_requests = fault, range(first, 100)
    cell = cell_of(bench)
    assert code_of(cell) == ("error", "empty_answer")
    assert cell["metrics"] == {}
    *before, last = bench.requests()
    assert len(before) == first
    assert (last["ok"], last["usable"], last["error"]) == (False, False, "empty_answer")


# ---------------------------------------------------------------- P09, P10: prompts that are cut or too short


def test_p09_an_overlong_prompt_is_refused_instead_of_cut(bench: Bench) -> None:
    long_story(bench, 3000)
    with ollama() as server:
        on_ollama(bench, server, context=1024)
        cell = cell_of(bench)
        asked = server.requests_to("/api/generate")
    assert code_of(cell)[0] == "error"
    assert code_of(cell)[1] in {"prompt_too_long", "http_error"}
    assert cell["metrics"] == {}
    assert "exceed_context_size" in cell["reason"]["message"] or "context" in cell["reason"]["message"]
    assert all(request.body["truncate"] is False for request in asked if request.body.get("prompt"))


@pytest.mark.parametrize("cuts_to", ["half", "whole"])
def test_p09_a_prompt_cut_in_silence_makes_the_measurement_invalid(bench: Bench, cuts_to: Any) -> None:
    long_story(bench, 3000)
    with ollama(cuts_to=cuts_to, meddle=lambda _, body: {**body, "truncate": True}) as server:
        on_ollama(bench, server, context=1024)
        cell = cell_of(bench)
    assert code_of(cell) == ("invalid", "prompt_truncated")
    assert (cell["flags"], cell["metrics"]) == (["prompt_truncated"], {})
    assert cell["reason"]["evidence"]["read"] < 1024 < cell["reason"]["evidence"]["expected"]


def test_p09_a_prompt_a_little_too_long_that_is_cut_in_silence(bench: Bench) -> None:
    """What is left fills the context, so there was no room for the answer that came all the same."""
    long_story(bench, 1500)
    with ollama(cuts_to="whole", meddle=lambda _, body: {**body, "truncate": True}) as server:
        on_ollama(bench, server, context=1024)
        cell = cell_of(bench)
    assert {record["prompt_tokens"] for record in samples_of(bench)} == {1023}
    assert code_of(cell) == ("invalid", "prompt_truncated")


@pytest.mark.parametrize("kind", ["openai", "llama.cpp"])
def test_p09_a_prompt_cut_from_some_request_on(bench: Bench, kind: str) -> None:
    story = long_story(bench, 300)
    if kind == "llama.cpp":
        like_llama_cpp(bench.fake)
    bench.fake.fault["*"], bench.fake.faulty_requests = "cut", {3}
    cell = cell_of(bench)
    assert code_of(cell) == ("invalid", "prompt_truncated")
    evidence = cell["reason"]["evidence"]
    assert evidence["read"] < evidence["expected"]
    if kind == "llama.cpp":
        assert evidence["expected"] == len(letters("[12345678] " + story))
    assert [record["usable"] for record in samples_of(bench)] == [True, True, False]


def test_p09_a_long_prompt_that_is_read_is_no_matter(bench: Bench) -> None:
    long_story(bench, 3000)
    with ollama() as server:
        on_ollama(bench, server, context=4096)
        assert_measured(cell_of(bench))
    assert {record["prompt_tokens"] for record in samples_of(bench)} == {3002}  # with the role that the server adds


@pytest.mark.parametrize("kind", ["openai", "llama.cpp", "ollama"])
def test_p10_a_length_that_is_asked_for_is_filled(kind: str, tmp_path: Path) -> None:
    def measured(url: str) -> list[dict[str, Any]]:
        arguments = ["--requests", "4", "--tokens", "8", "--prompt-tokens", "600", "--output", str(tmp_path / "m")]
        assert main(["measure", url, *arguments, "--json"]) == 0
        lines = (tmp_path / "m" / "requests.jsonl").read_text().splitlines()
        return [record for record in map(json.loads, lines) if record["phase"] == "sample"]

    if kind == "ollama":
        with ollama() as server:
            records = measured(server.url)
    else:
        with FakeOpenAI() as fake:
            if kind == "llama.cpp":
                like_llama_cpp(fake)
            records = measured(fake.url)
    assert len(records) == 4
    for record in records:
        assert record["ok"]
        assert not {"prompt_truncated", "prompt_cache_hit"} & set(record["flags"])
        assert 0.95 * 600 <= record["prompt_tokens"] <= 1.05 * 600


def test_p10_a_request_that_was_not_read_whole_does_not_count(tmp_path: Path) -> None:
    with FakeOpenAI() as fake:
        like_llama_cpp(fake)
        fake.fault["*"], fake.faulty_requests = "cut", {2}
        arguments = ["--requests", "4", "--tokens", "8", "--prompt-tokens", "600", "--output", str(tmp_path / "m")]
        assert main(["measure", fake.url, *arguments, "--json"]) == 1
    records = [json.loads(line) for line in (tmp_path / "m" / "requests.jsonl").read_text().splitlines()]
    assert [record["error"] for record in records] == [None, None, "prompt_truncated", None, None]
    assert [record["usable"] for record in records] == [True, True, False, True, True]


def test_p10_a_length_that_the_server_cuts_is_refused() -> None:
    with FakeOpenAI(fault={"*": "cut"}) as fake:
        endpoint = Endpoint(fake.url, "openai_chat", "fake")
        with pytest.raises(RequestError) as caught:
            prompts_of(endpoint, 600, lambda generation: send(endpoint, generation))
    assert caught.value.code == "prompt_truncated"


# ---------------------------------------------------------------- P11: cold starts


def test_p11_the_cold_request_is_apart_and_in_no_number(bench: Bench) -> None:
    bench.fake.cold_seconds = 0.3
    cell = cell_of(bench)
    assert_measured(cell)
    warmup, *samples = bench.requests()
    assert [warmup["phase"], *(record["phase"] for record in samples)] == ["warmup", *["sample"] * 6]
    assert warmup["ttft_seconds"] >= 0.3
    assert cell["metrics"]["ttft_seconds"]["n"] == 6
    assert cell["metrics"]["ttft_seconds"]["value"] == median(record["ttft_seconds"] for record in samples)


def test_p11_a_model_that_was_loaded_again_meanwhile(bench: Bench) -> None:
    def someone_else_interferes(number: int, body: dict[str, Any]) -> dict[str, Any]:
        return {**body, "options": {**body["options"], "num_batch": 64}} if number == 4 else body

    with ollama(engine=WordEngine(load_seconds=0.6), meddle=someone_else_interferes) as server:
        on_ollama(bench, server)
        cell = cell_of(bench)
        assert server.loads == 3  # for this run, for somebody else, and back again
    assert "model_reloaded" in cell["flags"]
    assert [record["index"] for record in samples_of(bench) if not record["usable"]][:2] == [3, 4]
    usable = [record["ttft_seconds"] for record in samples_of(bench) if record["usable"]]
    assert (cell["metrics"]["ttft_seconds"]["n"], cell["metrics"]["ttft_seconds"]["value"]) == (6, median(usable))
