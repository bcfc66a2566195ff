"""Pitfalls of clocks, streams and sampling (P16–P19, P27, P29, P31, P38): each is provoked, and noticed or harmless.

``docs/pitfalls.md`` says what goes wrong in each. Servers here are fast stand-ins; nothing is a measurement of a model.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from itertools import cycle
from statistics import median
from typing import Any

import pytest

from pytest_llmbench.client.endpoint import Endpoint
from pytest_llmbench.client.exchange import Deadlines
from pytest_llmbench.client.generation import Generation
from pytest_llmbench.client.load import ClosedLoop, run_load, send
from pytest_llmbench.client.transport import new_event_loop
from pytest_llmbench.core.records import RequestRecord
from tests.plugin.bench import SUITE, SWITCH, Bench
from tests.plugin.pitfalls import (
    assert_measured,
    cell_of,
    code_of,
    letters,
    like_llama_cpp,
    ollama,
    on_ollama,
    samples_of,
)
from tests.servers.fake_openai import FakeOpenAI, Fault
from tests.servers.faulty import FAULTS, LATE_SECONDS, MODEL, PROTOCOLS, FaultyServer, ProtocolName

# ---------------------------------------------------------------- P16 … P19: the client's own times


@pytest.mark.skipif(sys.platform != "linux", reason="fills the queue of connections as Linux has it")
def test_p16_connecting_is_not_part_of_the_time_to_first_token() -> None:
    fault = FAULTS["openai_chat: connects late"]
    with FaultyServer(fault) as server:
        began_ns = time.perf_counter_ns()
        record = send(Endpoint(server.url, "openai_chat", MODEL), Generation(4, prompt="Once"))
    assert record.ok
    assert record.connect_seconds is not None
    assert record.connect_seconds >= LATE_SECONDS
    assert (record.t_send_ns - began_ns) / 1e9 >= record.connect_seconds
    assert record.t_first_token_ns is not None
    assert record.ttft_seconds == pytest.approx((record.t_first_token_ns - record.t_send_ns) / 1e9)


def test_p17_a_wall_clock_that_steps_changes_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    real, real_ns, steps = time.time, time.time_ns, cycle([0, 7200, -7200])
    began_ns = time.perf_counter_ns()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: real() + next(steps))
        patch.setattr(time, "time_ns", lambda: real_ns() + next(steps) * 10**9)
        cell = cell_of(bench)
    ended_ns = time.perf_counter_ns()
    assert_measured(cell)
    assert 0 < cell["duration_seconds"] < (ended_ns - began_ns) / 1e9
    times = [
        record[name] for record in bench.requests() for name in ("t_send_ns", "t_first_token_ns", "t_last_token_ns")
    ]
    assert [began_ns, *times, ended_ns] == sorted([began_ns, *times, ended_ns])
    for record in bench.requests():
        assert 0 < record["ttft_seconds"] < (ended_ns - began_ns) / 1e9


def test_p18_a_client_that_reads_late_says_so() -> None:
    records: list[RequestRecord] = []

    def slow_sink(record: RequestRecord) -> None:
        if not records:  # by now the next request of this stream is under way, and its answer waits
            time.sleep(0.3)
        records.append(record)

    with FakeOpenAI() as fake:
        endpoint = Endpoint(fake.url, "openai_chat", "fake")
        generations = [Generation(20, prompt="Once")] * 3
        summary = run_load(endpoint, generations, ClosedLoop(1), slow_sink, deadlines=Deadlines(whole=60))
    assert summary.max_lag_ms >= 200
    by_index = {record.index: record for record in records}
    assert "client_late" in by_index[1].flags
    assert by_index[1].client_lag_ms >= 200


def test_p18_a_client_that_is_late_all_the_time_is_a_doubt(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy_loop() -> asyncio.AbstractEventLoop:
        """A loop on which something else works for 50 ms at a time."""
        loop = new_event_loop()

        def hog() -> None:
            time.sleep(0.05)
            loop.call_later(0.005, hog)

        loop.call_soon(hog)
        return loop

    monkeypatch.setattr("pytest_llmbench.client.load.new_event_loop", busy_loop)
    bench.fake.token_seconds = 0.001
    cell = cell_of(bench)
    assert cell["status"] == "passed"
    assert "client_late" in cell["flags"]
    assert all("client_late" in record["flags"] for record in samples_of(bench))


def test_p19_nothing_else_is_asked_while_a_request_is_timed(bench: Bench) -> None:
    fake = bench.fake
    like_llama_cpp(fake)
    fake.start_time = 1.7e9
    fake.token_seconds = 0.001
    assert_measured(cell_of(bench))
    asked = list(zip(fake.paths, fake.times_ns, strict=True))
    others = [(path, t_ns) for path, t_ns in asked if path != "/completion"]
    assert sum(path == "/tokenize" for path, _ in others) >= 6  # so there is something that could disturb
    for record in bench.requests():
        assert not [path for path, t_ns in others if record["t_send_ns"] < t_ns < record["t_last_token_ns"]]


# ---------------------------------------------------------------- P27: errors under HTTP 200


@pytest.mark.parametrize("kind", ["openai", "llama.cpp"])
@pytest.mark.parametrize(("fault", "code"), [("error_event", "server_error_event"), ("truncated", "stream_truncated")])
def test_p27_an_event_stream_that_breaks_off_has_failed(bench: Bench, kind: str, fault: Fault, code: str) -> None:
    if kind == "llama.cpp":
        like_llama_cpp(bench.fake)
    bench.fake.fault["*"], bench.fake.faulty_requests = fault, {2}
    assert code_of(cell_of(bench)) == ("error", code)
    last = bench.requests()[-1]
    assert (last["ok"], last["usable"], last["error"]) == (False, False, code)
    assert last["output"].startswith("word0 ")


@pytest.mark.parametrize(("fault", "code"), [("error_line", "server_error_event"), ("stutter", "stream_truncated")])
def test_p27_lines_of_ollama_that_break_off_have_failed(bench: Bench, fault: Any, code: str) -> None:
    def breaks_later(number: int, body: dict[str, Any]) -> dict[str, Any]:
        if number == 3:
            server.fault["*"] = fault
        return body

    with ollama(meddle=breaks_later) as server:
        on_ollama(bench, server)
        cell = cell_of(bench)
    assert code_of(cell) == ("error", code)
    last = bench.requests()[-1]
    assert (last["index"], last["ok"], last["usable"], last["error"]) == (2, False, False, code)


# ---------------------------------------------------------------- P29: outliers


def test_p29_an_outlier_is_in_every_number(bench: Bench) -> None:
    bench.fake.every_second_answer_slower = 20
    cell = cell_of(bench)
    samples = samples_of(bench)
    assert all(record["usable"] for record in samples)
    rates = sorted(record["decode_tokens_per_second"] for record in samples)
    assert rates[0] <= 250  # every second answer paused for 4 ms before each word, the others hardly
    metric = cell["metrics"]["decode_tokens_per_second"]
    assert (metric["n"], metric["value"]) == (6, median(rates))
    assert (metric["ci_low"], metric["ci_high"]) == (rates[0], rates[-1])


# ---------------------------------------------------------------- P31: chance


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_p31_every_protocol_is_greedy_unless_told_otherwise(protocol: ProtocolName) -> None:
    def sampling(generation: Generation) -> dict[str, Any]:
        """What the server was sent, which the record has to repeat."""
        with FaultyServer(FAULTS[f"{protocol}: keeps the connection"]) as server:
            record = send(Endpoint(server.url, protocol, MODEL), generation)
            sent = json.loads(server.requests[0].partition(b"\r\n\r\n")[2])
        names = {"temperature", "seed", "top_p", "top_k"}
        bodies = [body["options"] if protocol.startswith("ollama") else body for body in (sent, record.params)]
        found, recorded = ({name: value for name, value in body.items() if name in names} for body in bodies)
        assert found == recorded
        return found

    assert sampling(Generation(4, prompt="Once")) == {"temperature": 0.0}
    warm = [sampling(Generation(4, prompt="Once", temperature=0.7)) for _ in range(2)]
    assert [set(found) for found in warm] == [{"temperature", "seed"}] * 2
    assert warm[0]["seed"] != warm[1]["seed"]
    assert sampling(Generation(4, prompt="Once", temperature=0.7, seed=5)) == {"temperature": 0.7, "seed": 5}


def test_p31_a_run_is_greedy_and_a_seed_is_recorded(bench: Bench) -> None:
    own = 'llm.complete("x", max_tokens=3); llm.chat("x", max_tokens=3); llm.chat("y", max_tokens=3, temperature=0.7)'
    bench.write("suites/test_own.py", SUITE.replace("llm.measure().check()", own))
    bench.run("suites/").assert_outcomes(passed=2)
    *greedy, warm = sorted(bench.fake.requests, key=lambda body: float(body["temperature"]))
    assert len(greedy) == 7 + 2
    assert {body["temperature"] for body in [*greedy, *bench.fake.proofs]} == {0}
    assert not any("seed" in body for body in greedy)
    (recorded,) = [record["params"] for record in bench.requests() if record["params"]["temperature"]]
    assert (recorded["temperature"], recorded["seed"]) == (0.7, warm["seed"])


# ---------------------------------------------------------------- P38: somebody else's tokenizer


TOKENIZERS = ("tokenizers", "transformers", "tiktoken", "sentencepiece")
REPORT_IMPORTS = """
def pytest_sessionfinish():
    import pathlib, sys
    pathlib.Path("imported.txt").write_text(" ".join(name for name in %r if name in sys.modules))
"""


def test_p38_tokens_that_the_server_does_not_count_are_not_counted(bench: Bench) -> None:
    for name in TOKENIZERS:  # all of them can be imported
        bench.write(f"{name}.py", "")
    bench.write("conftest.py", SWITCH + REPORT_IMPORTS % (TOKENIZERS,))
    bench.fake.fault["*"] = "no_usage"
    bench.run_subprocess("suites/")
    (cell,) = bench.cells()
    assert "tokens_not_counted" in cell["flags"]
    assert not {"decode_tokens_per_second", "variance_percent"} & cell["metrics"].keys()
    assert cell["metrics"]["ttft_seconds"]["n"] >= 6
    for record in bench.requests():
        assert (record["output_tokens"], record["output_tokens_source"], record["prompt_tokens"]) == (None, None, None)
    assert (bench.path / "imported.txt").read_text() == ""


def test_p38_a_prompt_is_as_long_as_the_servers_own_tokenizer_says(bench: Bench) -> None:
    like_llama_cpp(bench.fake)  # its tokenizer makes a token of every second character
    assert_measured(cell_of(bench))
    counts = [len(letters(prompt)) for prompt in bench.fake.prompts]
    assert [record["prompt_tokens"] for record in bench.requests()] == counts
    assert {record["output_tokens_source"] for record in bench.requests()} == {"timings.predicted_n"}
