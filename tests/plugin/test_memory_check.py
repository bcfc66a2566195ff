"""Whether a cell fits is decided before it is fetched and before it is loaded, and told with its figures."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pytest_llmbench.runtime import memory_check
from pytest_llmbench.runtime.available import AvailableMemory
from tests.ggufs.attention_models import dense
from tests.ggufs.shape import write_shape
from tests.plugin.bench import SWITCH, Bench, properties
from tests.plugin.tiny_model import LARGE, SMALL, put_tiny_model
from tests.servers.hub import Hub, HubFile, HubRepo

# A kind that starts on a file of ours, and is the fake server in truth.
ON_FILE = (
    SWITCH
    + """
from dataclasses import replace
from pathlib import Path

from pytest_llmbench.backends.openai import OpenAIBackend


class OnFile(OpenAIBackend):
    brings_model = False

    def start(self, request):
        with Path("started.txt").open("a") as file:
            file.write(f"{request.spec.context_size}\\n")
        spec = replace(request.spec, base_url=%r, model_name="fake", context_size=None)
        return super().start(replace(request, spec=spec))


def pytest_llmbench_register_backends(registry):
    registry.add("on_file", OnFile())
"""
)
CELL = "test_interactive[tiny-Q4_0-{}]"


@pytest.fixture
def on_file(bench: Bench) -> Bench:
    bench.write("conftest.py", ON_FILE % bench.fake.url)
    put_tiny_model(bench, "on_file")
    return bench


def by_variant(bench: Bench) -> dict[str, dict[str, Any]]:
    return {cell["variant"]: cell for cell in bench.cells()}


def started(bench: Bench) -> list[int]:
    path = bench.path / "started.txt"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def test_one_cell_is_refused_and_the_others_run(on_file: Bench) -> None:
    assert on_file.run("suites/").ret == pytest.ExitCode.OK
    cells = by_variant(on_file)
    assert {name: cell["status"] for name, cell in cells.items()} == {"small": "passed", "large": "skipped"}
    assert started(on_file) == [SMALL]

    reason, memory = cells["large"]["reason"], cells["large"]["memory"]
    assert reason["code"] == "does_not_fit"
    assert reason["evidence"]["available_bytes"] == 100_000_000
    assert reason["evidence"]["bound_by"] == "max_memory_gb"
    assert reason["evidence"]["largest_part"] == "compute"
    assert reason["evidence"]["required_bytes"] == memory["required_bytes"] > 100_000_000
    assert SMALL < reason["evidence"]["largest_context"] < LARGE
    assert memory["parts"]["kv_bytes"] == LARGE * 2 * 2 * 2 * 64 * 2  # tokens, K and V, layers, heads, width, bytes
    assert memory["observed_peak_bytes"] is None
    assert cells["small"]["memory"]["required_bytes"] < 100_000_000


def test_junit_tells_the_figures(on_file: Bench) -> None:
    on_file.run("suites/")
    case = on_file.junit()[CELL.format("large")]
    skipped = case.find("skipped")
    assert skipped is not None
    message = skipped.attrib["message"]
    assert message.startswith("tiny Q4_0 needs 0.")
    assert "; 0.100 GB may be used (limits.max_memory_gb); largest part: compute; it would fit with " in message
    assert properties(case)["reason"] == "does_not_fit"


def test_what_is_uncertain_is_tried(on_file: Bench) -> None:
    shape = dense("newest", 2, 256, 4, 2, 512, 320, LARGE, tokenizer="llama")
    write_shape(on_file.path / "models" / "1B" / "tiny.gguf", shape, "Q4_0", vocabulary="none")
    on_file.run("suites/", "-k", "large")
    memory = by_variant(on_file)["large"]["memory"]
    assert memory["predicted_low_bytes"] < 100_000_000 < memory["predicted_high_bytes"]
    assert started(on_file) == [LARGE]


def test_without_a_limit_everything_runs(on_file: Bench) -> None:
    on_file.config["limits"] = {}
    on_file.run("suites/")
    assert started(on_file) == [SMALL, LARGE]
    assert by_variant(on_file)["large"]["memory"]["bound_by"] != "max_memory_gb"


def test_nothing_but_skips_is_no_success(on_file: Bench) -> None:
    on_file.config["limits"] = {"max_memory_gb": 0.001}
    assert on_file.run("suites/").ret == pytest.ExitCode.NO_TESTS_COLLECTED


@pytest.mark.slow
def test_refused_on_a_worker_too(on_file: Bench) -> None:
    assert on_file.run_subprocess("suites/", "-n", "2").ret == pytest.ExitCode.OK
    assert {name: cell["status"] for name, cell in by_variant(on_file).items()} == {
        "small": "passed",
        "large": "skipped",
    }


def test_earlier_runs_correct_the_prediction(on_file: Bench) -> None:
    on_file.run("suites/", "-k", "small")
    first = on_file.latest / "cells.jsonl"
    record = json.loads(first.read_text())
    predicted = record["memory"]["predicted_bytes"]
    assert record["memory"]["correction_factor"] is None
    record["memory"]["observed_peak_bytes"] = int(predicted * 1.1)
    first.write_text(json.dumps(record) + "\n")

    on_file.run("suites/", "-k", "small")
    memory = by_variant(on_file)["small"]["memory"]
    assert memory["predicted_bytes"] == predicted
    assert memory["correction_factor"] == pytest.approx(1.1, rel=1e-3)
    assert memory["correction_samples"] == 1
    assert memory["required_bytes"] == pytest.approx(predicted * 1.1 - memory["parts"]["repacked_bytes"], rel=1e-3)


def test_what_was_measured_is_noted_with_the_model(on_file: Bench) -> None:
    on_file.run("suites/", "-k", "small")
    (entry,) = json.loads((on_file.path / "models" / "metadata.json").read_text())["files"].values()
    assert entry["last_tested_at"].startswith("20")
    assert entry["estimated_memory_bytes"] == by_variant(on_file)["small"]["memory"]["predicted_bytes"]


def test_cells_of_one_server_are_compared_once(on_file: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a running server of ours took is not held against its next cell."""

    def available(limit_bytes: int | None) -> AvailableMemory:
        return AvailableMemory(1 if started(on_file) else 100_000_000, "machine", {})

    monkeypatch.setattr(memory_check, "available_memory", available)
    on_file.write("suites/test_again.py", (on_file.path / "suites" / "test_interactive.py").read_text())
    on_file.run("suites/", "-k", "small")
    first, second = on_file.cells()
    assert started(on_file) == [SMALL]
    assert first["status"] == second["status"] == "passed"
    assert second["memory"]["predicted_bytes"] == first["memory"]["predicted_bytes"]
    assert second["memory"]["available_bytes"] == 1


def test_refused_before_the_download(on_file: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    file = on_file.path / "models" / "1B" / "tiny.gguf"
    content = file.read_bytes()
    file.unlink()
    on_file.models["models"][0]["repo"] = "someone/tiny"
    with Hub({"someone/tiny": HubRepo(files={"tiny.gguf": HubFile(content)})}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
        on_file.run("suites/", "-k", "large")
        assert by_variant(on_file)["large"]["reason"]["code"] == "does_not_fit"
        assert not file.exists()
        on_file.run("suites/", "-k", "small")
    assert by_variant(on_file)["small"]["status"] == "passed"
    assert file.exists()
