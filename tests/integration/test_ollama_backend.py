"""The Ollama backend with the real engine behind a test server that speaks Ollama's API. No run on Ollama."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests

from pytest_llmbench.backends.base import StartRequest
from pytest_llmbench.backends.ollama import OllamaBackend, OllamaServer
from pytest_llmbench.client.generation import Generation
from pytest_llmbench.client.load import send
from pytest_llmbench.client.timings import ServerTimes, was_reloaded
from pytest_llmbench.core.cell import ServerSpec
from tests.integration.suite import closest_to_1

stand_in = pytest.importorskip("tests.servers.ollama_server")


def test_an_imported_file_is_measured_and_agrees_with_the_servers_own_clock(model_path: Path, tmp_path: Path) -> None:
    with stand_in.OllamaServer({}, stand_in.EmbeddedEngine()) as served:
        spec = ServerSpec(
            kind="ollama",
            label="SmolLM2_Q4_1",
            model_name="smollm2:135m-q4_1",
            context_size=512,
            threads=1,
            base_url=served.url,
            chat_mode="auto",
        )
        server = OllamaBackend().start(StartRequest(spec, model_path, tmp_path / "smollm2"))
        assert isinstance(server, OllamaServer)
        try:
            assert server.info.context_size == 512
            assert server.info.load_seconds is not None
            assert server.info.load_seconds > 0
            assert server.info.args["quantization"] == "Q4_1"
            assert server.info.args["model_sha256"] == (
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
            )
            assert server.flags == ()
            warm = send(server.endpoint, Generation(16, prompt="Warm up."), phase="warmup")
            warm_load = ServerTimes.of(warm.server_timings).load_seconds

            def ratio() -> float:
                record = send(server.endpoint, Generation(60, prompt="Write a long story about a lighthouse."))
                assert record.ok, record.error_message
                assert record.finish_reason == "length"
                assert record.output_tokens == 60
                assert not was_reloaded(record.server_timings, warm_load)
                times = ServerTimes.of(record.server_timings)
                assert times.cached_tokens is None
                assert times.prefill_tokens_per_second is None
                assert times.decode_tokens_per_second is not None
                assert record.decode_tokens_per_second is not None
                return record.decode_tokens_per_second / times.decode_tokens_per_second

            near = 0.015  # one token more or less would be 0.017
            assert closest_to_1(ratio, within=near) == pytest.approx(1, abs=near)
            assert served.loads == 1
            # Another context would be another load: that it shows is what the check above rests on.
            other = server.endpoint.replace(extra={**server.endpoint.extra, "options": {"num_ctx": 1024}})
            again = send(other, Generation(8, prompt="Once more."))
            assert again.ok, again.error_message
            assert served.loads == 2
            assert was_reloaded(again.server_timings, warm_load)
        finally:
            server.stop()
        assert requests.get(f"{served.url}/api/ps", timeout=5).json() == {"models": []}
