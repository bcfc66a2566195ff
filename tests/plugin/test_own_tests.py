"""A user's own test with the ``llm`` fixture, profiles and backends of their own."""

from __future__ import annotations

import inspect
import textwrap

import pytest

from pytest_llmbench import hookspecs
from tests.plugin.bench import SWITCH, Bench

ANSWERS_IN_JSON = """
import pytest

@pytest.mark.llmbench(profile="interactive")
def test_answers_in_json(llm):
    reply = llm.chat("Return JSON with keys name and speed.")
    assert reply.json()["name"]
    assert reply.ttft_seconds <= llm.threshold("max_time_to_first_token")
"""


def test_own_test_passes_and_is_recorded(bench: Bench) -> None:
    bench.fake.answer = '```json\n{"name": "otter", "speed": 3}\n```'
    bench.write("suites/test_interactive.py", ANSWERS_IN_JSON)
    assert bench.run("suites/", "-m", "interactive").ret == pytest.ExitCode.OK
    (cell,) = bench.cells()
    assert (cell["status"], cell["profile"], cell["metrics"]) == ("passed", "interactive", {})
    (request,) = bench.requests()
    assert request["params"]["messages"] == [{"role": "user", "content": "Return JSON with keys name and speed."}]


def test_own_test_that_fails_is_a_failure_with_its_traceback(bench: Bench) -> None:
    bench.fake.answer = "no JSON here"
    bench.write("suites/test_interactive.py", ANSWERS_IN_JSON)
    assert bench.run("suites/").ret == pytest.ExitCode.TESTS_FAILED
    (cell,) = bench.cells()
    assert (cell["status"], cell["reason"]["code"]) == ("failed", "test_failed")
    (failure,) = bench.junit()["test_answers_in_json[tiny-Q4_K_M]"].iter("failure")
    assert "the answer is not JSON" in (failure.text or "")
    assert 'reply.json()["name"]' in (failure.text or "")


def test_own_test_with_a_broken_server_is_an_error(bench: Bench) -> None:
    bench.fake.fault["*"] = "truncated"
    bench.write("suites/test_interactive.py", ANSWERS_IN_JSON)
    bench.run("suites/")
    assert bench.cells()[0]["status"] == "error"
    assert len(list(bench.junit()["test_answers_in_json[tiny-Q4_K_M]"].iter("error"))) == 1


def test_threshold_lookup(bench: Bench) -> None:
    bench.config["thresholds"]["interactive"] = {"max_variance": None, "max_time_to_first_token": 3}
    bench.write(
        "suites/test_interactive.py",
        """
import math
import pytest

@pytest.mark.llmbench(profile="interactive")
def test_thresholds(llm):
    assert llm.threshold("max_time_to_first_token") == 3
    assert llm.threshold("min_tokens_per_sec") == 2
    assert llm.threshold("max_variance") == math.inf
    with pytest.raises(KeyError, match="did you mean 'max_variance'"):
        llm.threshold("max_varianc")
""",
    )
    bench.run("suites/").assert_outcomes(passed=1)


def test_own_skip_is_recorded_as_skipped(bench: Bench) -> None:
    bench.write(
        "suites/test_interactive.py",
        "import pytest\n\n@pytest.mark.llmbench(profile='interactive')\n"
        "def test_it(llm):\n    pytest.skip('not on Sundays')\n",
    )
    assert bench.run("suites/").ret == pytest.ExitCode.NO_TESTS_COLLECTED
    (cell,) = bench.cells()
    assert (cell["status"], cell["reason"]["code"]) == ("skipped", "test_skipped")
    assert "not on Sundays" in cell["reason"]["message"]


def example_of(hook: object) -> str:
    """The code block in a hook's docstring."""
    _, _, block = (inspect.getdoc(hook) or "").partition("::\n\n")
    return textwrap.dedent(block)


def test_registered_profile_runs_the_documented_example(bench: Bench) -> None:
    bench.write("conftest.py", SWITCH + example_of(hookspecs.pytest_llmbench_register_profiles))
    bench.write("suites/test_interactive.py", "")
    bench.write("suites/test_shout.py", SHOUT_SUITE)
    bench.config |= {
        "profiles": ["shout"],
        "settings": {"shout": {"words": 4}},
        "thresholds": {"shout": {"max_ttft_seconds": 20}},
    }
    result = bench.run("suites/", "-m", "shout")
    assert result.ret == pytest.ExitCode.OK
    (cell,) = bench.cells()
    assert cell["profile"] == "shout"
    assert cell["metrics"]["ttft_seconds"]["n"] == 6
    assert [t["key"] for t in cell["thresholds"]] == ["max_ttft_seconds"]
    assert {r["max_tokens"] for r in bench.fake.requests} == {4}


SHOUT_SUITE = """
import pytest

@pytest.mark.llmbench(profile="shout")
def test_shout(llm):
    llm.measure().check()
"""


def test_registered_backend_runs_the_documented_example(bench: Bench) -> None:
    bench.write("conftest.py", SWITCH + example_of(hookspecs.pytest_llmbench_register_backends))
    bench.write("server.url", bench.fake.url + "\n")
    bench.config |= {"backend": "from_file", "openai": {}}
    assert bench.run("suites/").ret == pytest.ExitCode.OK
    assert bench.cells()[0]["backend"] == "from_file"


def test_taken_names_are_refused(bench: Bench) -> None:
    bench.write(
        "conftest.py",
        SWITCH + "def pytest_llmbench_register_backends(registry):\n    registry.add('openai', None)\n",
    )
    result = bench.run("suites/")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "a backend named 'openai' exists already" in result.stderr.str()


@pytest.mark.parametrize("workers", [(), pytest.param(("-n", "2"), marks=pytest.mark.slow)], ids=["alone", "n2"])
def test_own_parametrization_beside_the_cells(bench: Bench, workers: tuple[str, ...]) -> None:
    bench.write(
        "suites/test_interactive.py",
        """
import os
import pytest

@pytest.mark.parametrize("question", ["a", "b", "crash"])
@pytest.mark.llmbench(profile="interactive")
def test_it(llm, question):
    if question == "crash" and "PYTEST_XDIST_WORKER" in os.environ:
        os._exit(3)
    llm.complete(question, max_tokens=4)
""",
    )
    bench.run_subprocess("suites/", *workers)
    statuses = sorted((c["nodeid"].rpartition("[")[2], c["status"]) for c in bench.cells())
    crashed = "error" if workers else "passed"
    assert statuses == [("tiny-Q4_K_M-a]", "passed"), ("tiny-Q4_K_M-b]", "passed"), ("tiny-Q4_K_M-crash]", crashed)]
    assert (bench.latest / "run.json").is_file()
    assert len(bench.requests()) == (2 if workers else 3)
