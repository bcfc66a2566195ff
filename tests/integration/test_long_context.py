"""Contexts of the real engine are filled with exactly what was counted, and a conversation goes on from its cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_llmbench.backends.base import RunningServer
from pytest_llmbench.core.records import RequestRecord
from pytest_llmbench.core.settings import LongContextSettings
from pytest_llmbench.core.statistics import StoppingRule
from pytest_llmbench.profiles.base import ProfileContext
from pytest_llmbench.profiles.long_context import LongContextProfile
from tests.integration.engines import running


@pytest.fixture
def server(model_path: Path, tmp_path: Path) -> Iterator[RunningServer]:
    with running("embedded", model_path, tmp_path / "embedded", context_size=1024) as started:
        yield started


def test_fills_512_and_1024_exactly_and_continues_from_the_cache(server: RunningServer) -> None:
    records: list[RequestRecord] = []

    def sink(record: RequestRecord) -> None:
        records.append(record)

    context = ProfileContext(
        endpoint=server.endpoint,
        settings=LongContextSettings(test_sizes=[512, 1024, 2048], output_tokens=16, samples=2),
        rule=StoppingRule(6, 20, 5.0, 120.0, {}),
        nodeid=None,
        data_dirs=(),
        sink=sink,
        on_failure=lambda error: error,
        context_size=server.info.context_size,
    )
    measurement = LongContextProfile().run(context)
    assert set(measurement.metrics) == set(LongContextProfile.emits)
    assert all(record.usable for record in records)
    _, *asked = records
    cold, warm = asked[::2], asked[1::2]
    assert [(record.prompt_tokens, record.cached_tokens, record.output_tokens) for record in cold] == [
        (487, 0, 7),
        (487, 0, 7),
        (990, 0, 16),
        (990, 0, 16),
    ]
    small, large, refused = measurement.details["sizes"]
    assert [row["filled_percent"] for row in (small, large)] == [100 * 487 / 512, 100 * 990 / 1024]
    assert refused["reason"] == "the server's context holds 1024 tokens"
    for before, after in zip(cold, warm, strict=True):
        assert before.prompt_tokens is not None
        assert after.cached_tokens is not None
        assert after.prompt_tokens is not None
        assert before.prompt_tokens <= after.cached_tokens < after.prompt_tokens < before.prompt_tokens + 30
        assert after.output_tokens == 6
