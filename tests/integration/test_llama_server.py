"""A real llama-server, where one was built (``scripts/build-llama-server``)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pytest_llmbench.backends.base import RunningServer, StartRequest
from pytest_llmbench.backends.llama_cpp import LlamaCppBackend
from pytest_llmbench.backends.openai import OpenAIBackend
from pytest_llmbench.client.endpoint import LLAMA_CPP
from pytest_llmbench.client.generation import Generation
from pytest_llmbench.client.load import send
from pytest_llmbench.core.cell import ServerSpec
from pytest_llmbench.errors import CellError
from tests.integration.engines import LLAMA_SERVER, needs_llama_server
from tests.integration.suite import GONE_SECONDS, runs, wait_until

LABEL = "smol_Q4_1"


pytestmark = needs_llama_server


def _request(model_path: Path, log_stem: Path, quantization: str = "Q4_1", **fields: object) -> StartRequest:
    given: dict[str, object] = {
        "server_path": str(LLAMA_SERVER),
        "context_size": 512,
        "threads": 1,
        "max_load_seconds": 120.0,
    }
    spec = ServerSpec("llama_cpp", LABEL, model_file="x", **{**given, **fields})  # type: ignore[arg-type]
    return StartRequest(spec, model_path, log_stem, quantization)


@pytest.fixture
def server(model_path: Path, tmp_path: Path) -> Iterator[RunningServer]:
    started = LlamaCppBackend().start(
        _request(model_path, tmp_path / "smol", cache_type_k="q8_0", extra_args=("--flash-attn", "on"))
    )
    yield started
    started.stop()


def test_measures_with_what_was_asked_for(server: RunningServer) -> None:
    assert server.notes == ()
    assert server.flags == ()
    assert server.info.context_size == 512
    assert server.info.version is not None
    assert server.info.version.startswith("llama-server ")
    record = send(server.endpoint, Generation(max_tokens=60, prompt="Once", demand_length=True))
    assert record.ok, record.error_message
    assert (record.output_tokens, record.finish_reason, record.cached_tokens) == (60, "length", 0)
    assert record.response_model == LABEL
    assert str(server.endpoint.api_key) not in " ".join(psutil.Process(server.info.pid).cmdline())


def test_is_found_by_the_openai_kind(server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", str(server.endpoint.api_key))
    spec = ServerSpec(
        "openai", LABEL, model_name=LABEL, base_url=server.endpoint.base_url, api_key_env="KEY", context_size=100
    )
    other = OpenAIBackend().start(StartRequest(spec, None, tmp_path / "other", "Q4_1"))
    assert (other.endpoint.protocol, other.endpoint.capabilities) == ("llama_cpp", LLAMA_CPP)
    assert other.info.context_size == 512
    with pytest.raises(CellError) as caught:
        OpenAIBackend().start(StartRequest(spec, None, tmp_path / "other", "Q8_0"))
    assert caught.value.code == "wrong_quantization"


def test_its_death_is_described(server: RunningServer) -> None:
    assert server.info.pid is not None
    os.kill(server.info.pid, signal.SIGABRT)
    assert wait_until(lambda: not server.alive, GONE_SECONDS)
    assert "killed by SIGABRT" in server.death().message


@pytest.mark.parametrize(
    ("quantization", "fields", "code"),
    [
        ("Q8_0", {}, "wrong_quantization"),
        ("Q4_1", {"context_size": 20_000}, "context_mismatch"),
        ("Q4_1", {"extra_args": ("--draft", "5")}, "unknown_flag"),
        ("Q4_1", {"extra_args": ("--override-tensor", "nonsense")}, "server_start_failed"),
    ],
)
def test_what_can_not_be_is_refused(
    model_path: Path, tmp_path: Path, quantization: str, fields: dict[str, object], code: str
) -> None:
    with pytest.raises(CellError) as caught:
        LlamaCppBackend().start(_request(model_path, tmp_path / "smol", quantization, **fields))
    assert caught.value.code == code
    assert not [child for child in psutil.Process().children() if child.name() == "llama-server"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the kernel for it, which only Linux does")
def test_kill_9_takes_it_along(model_path: Path, tmp_path: Path) -> None:
    code = f"""
import time
from pathlib import Path
from tests.integration.test_llama_server import LlamaCppBackend, _request
request = _request(Path({str(model_path)!r}), Path({str(tmp_path / "smol")!r}))
print(LlamaCppBackend().start(request).info.pid, flush=True)
time.sleep(60)
"""
    root = Path(__file__).parents[2]
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    assert wait_until(lambda: not runs(pid), GONE_SECONDS)
