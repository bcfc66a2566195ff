"""What a measurement relies on, asked of every real engine in the same words."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pytest_llmbench.backends.base import RunningServer
from pytest_llmbench.client.generation import Generation
from pytest_llmbench.client.load import ClosedLoop, run_load, send
from pytest_llmbench.client.prompts import count_tokens, nonce, prompts_of
from pytest_llmbench.client.timings import ServerTimes
from pytest_llmbench.core.records import RequestRecord
from tests.integration.engines import ENGINES, running
from tests.integration.suite import closest_to_1

PROMPT = "Once upon a time, on a small island in the north, there lived a keeper of a lighthouse. "


@pytest.fixture(scope="module", params=ENGINES)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[RunningServer]:
    model_path = request.getfixturevalue("model_path")
    with running(request.param, model_path, tmp_path_factory.mktemp("logs") / request.param) as started:
        yield started


@pytest.fixture(autouse=True)
def leaves_no_process() -> None:
    """The engine of this module lives as long as the module."""


def _samples(server: RunningServer, count: int, tokens: int) -> list[RequestRecord]:
    records = [
        send(server.endpoint, Generation(max_tokens=tokens, prompt=nonce() + PROMPT, demand_length=True))
        for _ in range(count)
    ]
    assert [record.error_message for record in records] == [None] * count
    return records


def test_describes_itself(server: RunningServer) -> None:
    assert server.info.context_size == 1024
    assert server.info.version
    assert server.info.load_seconds is not None
    assert server.info.load_seconds > 0
    assert server.identity() == server.identity() is not None
    assert server.flags == ()


def test_gives_the_length_that_is_demanded(server: RunningServer) -> None:
    (record,) = _samples(server, 1, 48)
    assert (record.output_tokens, record.output_tokens_source) == (48, "timings.predicted_n")
    assert record.finish_reason == "length"
    assert record.chunks == 48


def test_reads_the_whole_prompt_and_nothing_from_a_cache(server: RunningServer) -> None:
    prompt = nonce() + PROMPT
    generation = Generation(max_tokens=4, prompt=prompt, demand_length=True)
    first, again = (send(server.endpoint, generation) for _ in range(2))
    assert (first.cached_tokens, again.cached_tokens) == (0, 0)
    assert first.prompt_tokens == again.prompt_tokens == count_tokens(server.endpoint, prompt)


def test_takes_prompts_of_an_exact_length(server: RunningServer) -> None:
    prompts = prompts_of(server.endpoint, 700, lambda generation: send(server.endpoint, generation))
    prompt = next(iter(prompts))
    record = send(server.endpoint, Generation(max_tokens=4, prompt=prompt, demand_length=True))
    assert record.prompt_tokens == 700
    assert not prompts.contradicts(record)


def test_refuses_a_prompt_beyond_its_context(server: RunningServer) -> None:
    prompt = next(iter(prompts_of(server.endpoint, 1100, lambda generation: send(server.endpoint, generation))))
    record = send(server.endpoint, Generation(max_tokens=4, prompt=prompt))
    assert (record.ok, record.error) == (False, "prompt_too_long")


def test_its_clock_agrees_with_ours(server: RunningServer) -> None:
    handovers_ms: list[float] = []

    def ratio() -> float:
        (record,) = _samples(server, 1, 64)
        times = ServerTimes.of(record.server_timings)
        assert record.decode_tokens_per_second is not None
        assert times.decode_tokens_per_second is not None
        assert record.ttft_seconds is not None
        assert times.prompt_seconds is not None
        handovers_ms.append(1000 * (record.ttft_seconds - times.prompt_seconds))
        return record.decode_tokens_per_second / times.decode_tokens_per_second

    assert closest_to_1(ratio, within=0.01) == pytest.approx(1, abs=0.01)
    assert min(handovers_ms) > 0  # reading and writing HTTP come on top, and nothing is taken off


def test_chats_through_the_models_template(server: RunningServer) -> None:
    messages = ({"role": "user", "content": "Say hello."},)
    record = send(server.endpoint, Generation(max_tokens=16, messages=messages))
    assert record.ok, record.error_message
    assert record.protocol == "openai_chat"
    assert record.output.strip()


def test_same_greedy_answer_twice(server: RunningServer) -> None:
    generation = Generation(max_tokens=24, prompt=PROMPT, demand_length=True)
    assert send(server.endpoint, generation).output == send(server.endpoint, generation).output


def test_loses_no_request_in_sequence(server: RunningServer) -> None:
    """The server promises to keep connections, and closes them: whoever reuses one loses the next request."""
    records: list[RequestRecord] = []
    summary = run_load(
        server.endpoint,
        (Generation(max_tokens=2, prompt=f"{number} and") for number in range(60)),
        ClosedLoop(1),
        records.append,
    )
    assert (summary.sent, summary.failed) == (60, 0)
    assert all(record.output_tokens for record in records)


def test_loses_no_request_of_many_streams(server: RunningServer) -> None:
    for _ in range(4):
        records: list[RequestRecord] = []
        generations = (Generation(max_tokens=2, prompt=f"{number} and") for number in range(16))
        summary = run_load(server.endpoint, generations, ClosedLoop(16), records.append)
        assert (summary.sent, summary.failed) == (16, 0), [r.error_message for r in records if not r.ok]
        assert sorted(record.index for record in records) == list(range(16))
