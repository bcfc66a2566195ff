"""A profile that would like several contexts, as a user may register one, on servers that can not have the largest."""

from __future__ import annotations

import pytest

from pytest_llmbench.adapters.device import HeldDevice
from pytest_llmbench.adapters.sensing import Sensing
from tests.plugin.bench import ONE_CELL, SWITCH, Bench
from tests.plugin.test_plan import by_id, planned
from tests.plugin.tiny_model import put_tiny_model

SIZED = (
    SWITCH
    + """
from dataclasses import replace

from pydantic import BaseModel

from pytest_llmbench.backends.openai import OpenAIBackend
from pytest_llmbench.errors import ServerError
from pytest_llmbench.profiles.base import Measurement


class OnFile(OpenAIBackend):
    brings_model = False

    def start(self, request):
        if request.spec.context_size > 2048:
            raise ServerError("context_mismatch", "no more than 2048", {"actual_tokens": 2048})
        return super().start(
            replace(request, spec=replace(request.spec, base_url=%r, model_name="fake", context_size=None))
        )


class Settings(BaseModel):
    pass


class Sized:
    name, emits, settings_model = "sized", (), Settings

    def context_sizes(self, settings):
        return [1024, 2048, 4096]

    def run(self, context):
        return Measurement(notes=[str(dict(context.refused_sizes))])


def pytest_llmbench_register_backends(registry):
    registry.add("on_file", OnFile())


def pytest_llmbench_register_profiles(registry):
    registry.add(Sized())
"""
)


@pytest.fixture
def sized(bench: Bench) -> Bench:
    bench.write("conftest.py", SIZED % bench.fake.url)
    suite = (bench.path / "suites/test_interactive.py").read_text()
    bench.write("suites/test_interactive.py", suite.replace("interactive", "sized"))
    put_tiny_model(bench, "on_file")
    bench.config |= {
        "profiles": ["sized"],
        "settings": {},
        "thresholds": {},
        "variants": [],
        "embedded": {"default_ctx_size": 1024},
    }
    return bench


def predicted_bytes(bench: Bench, most: int) -> int:
    """What is predicted where it does not want more."""
    conftest = bench.path / "conftest.py"
    conftest.write_text(conftest.read_text().replace("[1024, 2048, 4096]", f"[1024, {most}]"))
    bench.run("suites/")
    (cell,) = bench.cells()
    return int(cell["memory"]["predicted_bytes"])


def test_what_was_predicted_is_of_the_context_that_it_got(sized: Bench) -> None:
    sized.run("suites/").assert_outcomes(passed=1)
    (cell,) = sized.cells()
    assert cell["settings"]["context_size"] == 2048
    assert "{4096: 'the server does not give more than 2048 tokens'}" in cell["notes"]
    assert cell["memory"]["predicted_bytes"] == predicted_bytes(sized, 2048)


def test_the_plan_tells_of_the_context_that_a_run_will_ask_for(sized: Bench) -> None:
    needed = predicted_bytes(sized, 2048)
    (cell,) = planned(sized)["cells"]
    assert cell["expected"] == "run"
    assert cell["predicted_bytes"] == needed


def test_what_was_sampled_while_it_waited_for_others_is_not_of_the_cell(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    begin, take = Sensing.begin_cell, HeldDevice.take

    def noted_begin(sensing: Sensing, nodeid: str) -> None:
        happened.append("begin")
        begin(sensing, nodeid)

    def noted_take(device: HeldDevice, *arguments: object) -> None:
        happened.append("take")
        take(device, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Sensing, "begin_cell", noted_begin)
    monkeypatch.setattr(HeldDevice, "take", noted_take)
    bench.config["measurement"] |= {"overlap": "starts"}
    bench.run(ONE_CELL).assert_outcomes(passed=1)
    assert happened == ["begin", "take", "begin"]
    bench.config["measurement"] |= {"overlap": "none"}
    happened.clear()
    bench.run(ONE_CELL).assert_outcomes(passed=1)
    assert happened == ["take", "begin"]


def test_the_plan_tells_what_a_run_finds_to_be_the_same(bench: Bench) -> None:
    put_tiny_model(bench, "embedded")
    bench.config["variants"] = [{"id": f"gpu{n}", "ctx_size": 1024, "gpu_layers": n} for n in (40, 80)]
    bench.config["limits"] = {}
    cells = by_id(planned(bench))
    assert cells["tiny-Q4_0-gpu40"]["expected"] == "run"
    assert cells["tiny-Q4_0-gpu80"]["reason"]["code"] == "same_as_another"
    assert cells["tiny-Q4_0-gpu80"]["expected"] == "skip"
