"""The client against everything that goes wrong, by name; see ``tests/servers/faulty.py``.

Most faults are waits, so they are played several at a time before the first test looks at what became of one.
"""

from __future__ import annotations

import sys
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from pytest_llmbench.client.endpoint import Endpoint
from pytest_llmbench.client.exchange import Deadlines
from pytest_llmbench.client.generation import Generation
from pytest_llmbench.client.load import ClosedLoop, run_load
from pytest_llmbench.core.records import RequestRecord
from tests.servers.faulty import FAULTS, MODEL, Expected, FaultyServer

_AT_ONCE = 6
PLAYABLE = {name: fault for name, fault in FAULTS.items() if sys.platform == "linux" or not fault.linux_only}


def _play(name: str) -> RequestRecord:
    fault, records = FAULTS[name], list[RequestRecord]()
    limits = fault.limits
    with FaultyServer(fault) as server:
        run_load(
            Endpoint(server.url, fault.protocol, MODEL),
            [Generation(max_tokens=3, prompt="x")] * fault.requests,
            ClosedLoop(1),
            records.append,
            deadlines=Deadlines(limits.connect, limits.first_token, limits.gap, limits.whole),
        )
    assert len(records) == fault.requests
    return records[-1]


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest) -> dict[str, Future[RequestRecord]]:
    items = [item for item in request.session.items if isinstance(item, pytest.Function) and item.path == request.path]
    selected = {item.callspec.params["name"] for item in items}
    with ThreadPoolExecutor(_AT_ONCE) as executor:
        return {name: executor.submit(_play, name) for name in PLAYABLE if name in selected}


@pytest.mark.parametrize("name", PLAYABLE)
def test_what_becomes_of_it(name: str, outcomes: dict[str, Future[RequestRecord]]) -> None:
    record, expected = outcomes[name].result(), FAULTS[name].expected
    assert record.error == expected.error, record.error_message
    assert expected.message in (record.error_message or "")
    if expected.error is None or expected.output:
        assert record.output == expected.output
    if expected.error is None or expected.reasoning:
        assert record.reasoning == expected.reasoning
    assert tuple((call["name"], call["arguments"]) for call in record.tool_calls) == expected.tool_calls
    assert _differences(record, expected) == {}
    if expected.tokens_unknown:
        assert record.output_tokens is None
    assert (record.ttft_seconds or 0.0) >= expected.ttft_seconds
    assert (record.connect_seconds or 0.0) >= expected.connect_seconds


def _differences(record: RequestRecord, expected: Expected) -> dict[str, tuple[object, object]]:
    """What the record says otherwise than expected, where something is expected."""
    pairs = {
        "pieces": (record.chunks, expected.pieces),
        "output_tokens": (record.output_tokens, expected.output_tokens),
        "finish_reason": (record.finish_reason, expected.finish_reason),
        "response_model": (record.response_model, expected.response_model),
        "retries": (record.retries, expected.retries),
        "connection_reused": (record.connection_reused, expected.connection_reused),
    }
    return {name: pair for name, pair in pairs.items() if pair[1] is not None and pair[0] != pair[1]}
