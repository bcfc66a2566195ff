"""Beside plugins that time tests out, rerun them or shuffle them, and under pytest's own ways to end early."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.plugin.bench import SUITE, SWITCH, Bench, properties
from tests.plugin.pitfalls import started_by_command

PLUGINS = {
    "randomly": "pytest_randomly",
    "random_order": "random_order",
    "pytest_order": "pytest_order",
    "rerunfailures": "pytest_rerunfailures",
}
Beside = Callable[..., None]


@pytest.fixture
def beside(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Beside:
    """Have the suite run beside the named plugins and none of the others, whatever is installed here."""

    def choose(*names: str) -> None:
        for name in names:
            if importlib.util.find_spec(PLUGINS[name]) is None:
                pytest.skip(f"the plugin {PLUGINS[name]} is not installed")
        monkeypatch.setenv("PYTEST_ADDOPTS", " ".join(f"-p no:{name}" for name in PLUGINS if name not in names))

    choose()
    return choose


def models(*names: str, **others: Any) -> list[dict[str, Any]]:
    return [{"name": name, "size": "1B", "served": {"Q4_K_M": "fake"}, **others} for name in names]


def by_model(records: list[dict[str, Any]]) -> dict[str, tuple[str, str | None]]:
    """Status and code of each model's record, of which there must be one."""
    assert len({record["nodeid"] for record in records}) == len(records)
    return {record["model"]: (record["status"], record["reason"] and record["reason"]["code"]) for record in records}


def superseded(bench: Bench) -> list[dict[str, Any]]:
    file = bench.latest / "superseded.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def last_failed(bench: Bench) -> set[str]:
    file = bench.path / ".pytest_cache" / "v" / "cache" / "lastfailed"
    return {nodeid.partition("[")[2].partition("-")[0] for nodeid in json.loads(file.read_text())}


# ---- pytest-timeout

_LOG_TIMERS = """
from pathlib import Path

def pytest_timeout_set_timer(item, settings):
    with Path("timers.txt").open("a") as file:
        file.write(f"{item.name.partition('[')[0]} {settings.timeout:g} {settings.method} {settings.func_only}\\n")
"""
_MARKED = """
import pytest

pytestmark = pytest.mark.llmbench(profile="interactive")

def test_plain(cell): pass

@pytest.mark.timeout(50)
def test_marked(cell): pass

@pytest.mark.timeout(50, func_only=False)
def test_insists(cell): pass

@pytest.mark.timeout(method="thread")
def test_thread(cell): pass
"""


def test_timeout_counts_a_cells_function_alone_unless_its_marker_says_otherwise(bench: Bench, beside: Beside) -> None:
    bench.write("conftest.py", SWITCH + _LOG_TIMERS)
    bench.write("suites/test_interactive.py", _MARKED)
    bench.write("suites/test_ordinary.py", "def test_ordinary(): pass\n")
    bench.run_subprocess("suites/", "--timeout", "40").assert_outcomes(passed=5)
    assert sorted((bench.path / "timers.txt").read_text().splitlines()) == [
        "test_insists 50 signal False",
        "test_marked 50 signal True",
        "test_ordinary 40 signal False",
        "test_plain 40 signal True",
        "test_thread 40 thread True",
    ]


def test_a_slow_start_is_not_what_a_timeout_counts(bench: Bench, beside: Beside) -> None:
    slow = "import time\n\n@pytest.fixture\ndef slow():\n    time.sleep(0.5)\n\n"
    text = SUITE.replace("import pytest\n", "import pytest\n" + slow).replace("(llm)", "(slow, cell)")
    bench.write("suites/test_interactive.py", text.replace("llm.measure().check()", "pass"))
    bench.run_subprocess("suites/", "--timeout", "0.3").assert_outcomes(passed=1)


# A marker that another plugin adds, and of the first cell alone: however slow this machine is, the others have time.
_FIRST_CELL_ONLY = """
import pytest

def pytest_collection_modifyitems(items):
    items[0].add_marker(pytest.mark.timeout(0.3))
"""


@pytest.mark.parametrize("ask", ["llm.measure().check()", "llm.chat('hello')"])
def test_time_is_up_while_a_request_is_answered(bench: Bench, beside: Beside, ask: str) -> None:
    bench.fake.cold_seconds = 1.5
    bench.models["models"] = models("a", "b")
    bench.write("conftest.py", SWITCH + _FIRST_CELL_ONLY)
    bench.write("suites/test_interactive.py", SUITE.replace("llm.measure().check()", ask))
    bench.run_subprocess("suites/").assert_outcomes(errors=1, passed=1)
    assert by_model(bench.cells()) == {"a": ("error", "timeout"), "b": ("passed", None)}
    reason = bench.cells()[0]["reason"]
    assert reason["evidence"] == {"timeout_seconds": 0.3}
    assert "longer than 0.3 s" in reason["message"]
    junit = bench.junit()
    assert len(list(junit["test_interactive[a-Q4_K_M]"].iter("error"))) == 1
    assert not list(junit["test_interactive[a-Q4_K_M]"].iter("failure"))
    assert properties(junit["test_interactive[a-Q4_K_M]"])["reason"] == "timeout"
    assert not list(junit["test_interactive[b-Q4_K_M]"].iter("error"))


@pytest.mark.parametrize(("markers", "starts"), [("", 1), (_FIRST_CELL_ONLY, 2)], ids=["in time", "time is up"])
@pytest.mark.slow
def test_a_server_whose_answer_was_not_waited_for_is_not_measured_again(
    bench: Bench, beside: Beside, markers: str, starts: int
) -> None:
    bench.write("conftest.py", SWITCH + markers)
    bench.write("suites/test_later.py", SUITE.replace("test_interactive", "test_later"))
    started_by_command(
        bench,
        "import threading\n"
        "from tests.servers.fake_openai import FakeOpenAI\n"
        "open('starts.txt', 'a').write('started ')\n"
        "with FakeOpenAI(port=port, cold_seconds=1.0):\n"
        "    threading.Event().wait(100)\n",
    )
    bench.run_subprocess("suites/")
    assert [cell["status"] for cell in bench.cells()] == ["error" if starts == 2 else "passed", "passed"]
    assert (bench.path / "starts.txt").read_text().split() == ["started"] * starts


def test_a_test_that_fails_with_the_same_words_is_a_failure(bench: Bench, beside: Beside) -> None:
    text = SUITE.replace("llm.measure().check()", "pytest.fail('Timeout (>0.3s) from pytest-timeout.')")
    bench.write("suites/test_interactive.py", text)
    bench.run("suites/").assert_outcomes(failed=1)
    assert by_model(bench.cells()) == {"tiny": ("failed", "test_failed")}


_B_HANGS = SUITE.replace("import pytest\n", "import time\nimport pytest\n").replace(
    "llm.measure().check()", "time.sleep(30 if llm.cell.model == 'b' else 0)"
)


def test_the_thread_method_ends_pytest_and_leaves_what_was_recorded(bench: Bench, beside: Beside) -> None:
    bench.models["models"] = models("a", "b", "c")
    bench.write("suites/test_interactive.py", _B_HANGS)
    result = bench.run_subprocess("suites/", "--timeout", "0.5", "--timeout-method", "thread")
    assert result.ret == 1
    assert by_model(bench.cells()) == {"a": ("passed", None)}
    assert (bench.latest / "run.json").exists()
    assert not (bench.path / "junit.xml").exists()  # there was nobody left to write it


@pytest.mark.slow
def test_under_xdist_the_thread_method_ends_a_worker_and_nothing_runs_again(bench: Bench, beside: Beside) -> None:
    beside("rerunfailures")
    bench.models["models"] = models("a", "b", "c")
    bench.write("suites/test_interactive.py", _B_HANGS)
    bench.run_subprocess("suites/", "--timeout", "0.5", "--timeout-method", "thread", "-n", "2", "--reruns", "2")
    assert by_model(bench.cells()) == {
        **dict.fromkeys(("a", "c"), ("passed", None)),
        "b": ("error", "worker_crashed"),
    }
    assert superseded(bench) == []


# ---- pytest-rerunfailures

_COUNTED = """
from pathlib import Path
import pytest

@pytest.mark.llmbench(profile="interactive")
def test_interactive(attempt, llm):
    assert llm.cell.model != "assertion"
    if llm.cell.model == "bug":
        raise KeyError("bug")
    if llm.cell.model == "hangs":
        import time
        time.sleep(30)
    llm.measure().check()

@pytest.fixture
def attempt(cell):
    with Path("attempts.txt").open("a") as file:
        file.write(cell.model + "\\n")
"""
_HANGS_IS_TIMED = """
import pytest

def pytest_collection_modifyitems(items):
    for item in items:
        if "[hangs-" in item.name:
            item.add_marker(pytest.mark.timeout(0.3))
"""


def attempts(bench: Bench) -> dict[str, int]:
    return dict(Counter((bench.path / "attempts.txt").read_text().split()))


@pytest.mark.parametrize("arguments", [(), pytest.param(("-n", "2"), marks=pytest.mark.slow)], ids=["alone", "xdist"])
def test_a_failed_request_is_rerun_and_nothing_else_is(
    bench: Bench, beside: Beside, arguments: tuple[str, ...]
) -> None:
    beside("rerunfailures")
    bench.fake.models = ("fake", "broken", "curt")
    bench.fake.fault = {"broken": "http_500", "curt": "short"}
    bench.models["models"] = [
        *models("good", "assertion", "bug", "hangs"),
        *models("slow", thresholds={"interactive": {"min_tokens_per_sec": 1e7}}),
        *models("broken", served={"Q4_K_M": "broken"}),
        *models("curt", served={"Q4_K_M": "curt"}),
        *models("absent", served={"Q4_K_M": "absent"}),
    ]
    bench.write("conftest.py", SWITCH + _HANGS_IS_TIMED)
    bench.write("suites/test_interactive.py", _COUNTED)
    bench.write(
        "suites/test_ordinary.py", "tries = []\ndef test_a():\n    tries.append(1)\n    assert len(tries) == 2\n"
    )
    result = bench.run_subprocess("suites/", "--reruns", "2", *arguments)
    assert result.parseoutcomes()["rerun"] == 3
    assert attempts(bench) == {**dict.fromkeys([m["name"] for m in bench.models["models"]], 1), "broken": 3}
    assert by_model(bench.cells()) == {
        "good": ("passed", None),
        "assertion": ("failed", "test_failed"),
        "bug": ("failed", "test_failed"),
        "hangs": ("error", "timeout"),
        "slow": ("failed", "below_threshold"),
        "broken": ("error", "http_error"),
        "curt": ("invalid", "short_answer"),
        "absent": ("error", "wrong_model_name"),
    }
    assert [(r["model"], r["reason"]["code"]) for r in superseded(bench)] == [("broken", "http_error")] * 2


def test_a_cell_that_is_rerun_leaves_one_record_which_says_so(bench: Bench, beside: Beside) -> None:
    beside("rerunfailures")
    bench.fake.fault["*"] = "http_500"
    bench.fake.faulty_requests = {0}
    bench.run("suites/", "--reruns", "2", "-p", "no:xdist").assert_outcomes(passed=1)
    (cell,) = bench.cells()
    assert (cell["status"], cell["reason"]) == ("passed", None)
    assert "attempt 2: a request of each attempt before failed, see superseded.jsonl" in cell["notes"]
    (before,) = superseded(bench)
    assert (before["nodeid"], before["status"], before["reason"]["code"]) == (cell["nodeid"], "error", "http_error")
    names = [p.attrib["name"] for p in bench.junit()["test_interactive[tiny-Q4_K_M]"].iter("property")]
    assert names.count("llmbench_status") == 1


@pytest.mark.parametrize(
    ("marker", "arguments", "expected"),
    [
        ("", [], 1),
        ("", ["--reruns", "1"], 2),
        ("", ["-o", "reruns=1"], 2),
        ("", ["-o", "reruns=none"], 1),
        ("", ["--reruns", "1", "--reruns-mode", "append"], 2),
        ("", ["--force-reruns", "1"], 2),
        ("", ["--reruns", "2", "--only-rerun", "AssertionError"], 1),
        ("", ["--reruns", "2", "--rerun-except", "http_error|out of luck"], 1),
        ("flaky", [], 2),
        ("flaky(1)", ["--reruns", "3"], 2),
        ("flaky(reruns=1, only_rerun=['RequestError'])", [], 2),
        ("flaky(reruns=2, rerun_except='out of luck')", [], 1),
        ("flaky(reruns=2, condition=True)", [], 1),
    ],
)
def test_how_often_and_for_what_remains_the_users_word(
    bench: Bench, beside: Beside, marker: str, arguments: list[str], expected: int
) -> None:
    beside("rerunfailures")
    bench.fake.fault["*"] = "http_500"
    mark = f"@pytest.mark.{marker}\n" if marker else ""
    bench.write("suites/test_interactive.py", _COUNTED.replace("@pytest.mark.llm", mark + "@pytest.mark.llm"))
    bench.run("suites/", "-p", "no:xdist", *arguments)
    assert attempts(bench) == {"tiny": expected}
    assert by_model(bench.cells()) == {"tiny": ("error", "http_error")}
    assert len(superseded(bench)) == expected - 1


# ---- pytest's own ways to end early


# Fast, because nothing is measured: which cell fails, the test itself decides.
_BAD_CELLS = """
import pytest
from pathlib import Path

@pytest.mark.llmbench(profile="interactive")
def test_interactive(cell):
    assert cell.model not in Path("bad.txt").read_text()
"""


@pytest.fixture
def cells_that_fail(bench: Bench, beside: Beside) -> Bench:
    """Five cells, of which the second and the fourth fail."""
    bench.models["models"] = models("a", "b", "c", "d", "e")
    bench.write("suites/test_interactive.py", _BAD_CELLS)
    bench.write("bad.txt", "bd")
    return bench


@pytest.mark.parametrize(("arguments", "measured"), [(["-x"], "ab"), (["--maxfail", "2"], "abcd")])
def test_a_run_that_stops_early_ends_in_order(cells_that_fail: Bench, arguments: list[str], measured: str) -> None:
    bench = cells_that_fail
    result = bench.run("suites/", *arguments)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert [cell["model"] for cell in bench.cells()] == list(measured)
    assert len(bench.junit()) == len(measured)
    assert last_failed(bench) == {"b", "d"} & set(measured)
    assert {"results.csv", "summary.md"} <= {path.name for path in bench.latest.iterdir()}
    assert json.loads((bench.latest / "run.json").read_text())["exit_status"] == 1


def test_under_xdist_a_run_that_stops_early_ends_in_order(cells_that_fail: Bench) -> None:
    bench = cells_that_fail
    result = bench.run_subprocess("suites/", "-x", "-n", "2")
    assert result.ret == pytest.ExitCode.INTERRUPTED  # so xdist calls it
    found = by_model(bench.cells())
    failed = {model for model, (status, _) in found.items() if status == "failed"}
    assert failed
    assert last_failed(bench) == failed
    assert len(bench.junit()) == len(found)
    assert not (bench.latest / "parts").exists()
    assert json.loads((bench.latest / "run.json").read_text())["exit_status"] == 2


# ---- order

_TRYFIRST, _TRYLAST = "@pytest.hookimpl(tryfirst=True)", "@pytest.hookimpl(trylast=True)"
_OUTERMOST = "@pytest.hookimpl(wrapper=True, tryfirst=True)"
_REVERSERS = {
    "plain": "def pytest_collection_modifyitems(items):\n    items.reverse()\n",
    "first": f"{_TRYFIRST}\ndef pytest_collection_modifyitems(items):\n    items.reverse()\n",
    "last": f"{_TRYLAST}\ndef pytest_collection_modifyitems(items):\n    items.reverse()\n",
    "before all": f"{_OUTERMOST}\ndef pytest_collection_modifyitems(items):\n    items.reverse()\n    yield\n",
    "after all": f"{_OUTERMOST}\ndef pytest_collection_modifyitems(items):\n    yield\n    items.reverse()\n",
}
CELLS = [
    f"{file}[{model}-{quantization}]"
    for quantization in ("Q4_K_M", "Q8_0")
    for model in ("a", "b")
    for file in ("test_again", "test_interactive")
]


@pytest.fixture
def mixed(bench: Bench, beside: Beside) -> Bench:
    """Eight cells of two files, which our order mixes, and four ordinary tests around them."""
    served = {"Q4_K_M": "fake", "Q8_0": "fake"}
    bench.models["models"] = models("a", "b", served=served)
    again = _BAD_CELLS.replace("test_interactive", "test_again")
    bench.write("suites/test_again.py", again + "\ndef test_1(): pass\n")
    bench.write("suites/test_interactive.py", _BAD_CELLS + "\ndef test_2(): pass\n")
    bench.write("suites/test_last.py", "def test_3(): pass\n\ndef test_4(): pass\n")
    bench.write("bad.txt", "b")
    return bench


def collected(bench: Bench, *arguments: str) -> list[str]:
    lines = bench.run("suites/", "--collect-only", "-q", *arguments).stdout.lines
    return [line.partition("::")[2] for line in lines if "::" in line]


def split(names: list[str]) -> tuple[list[str], list[str]]:
    """Cells and ordinary tests; the cells must stand together."""
    places = [place for place, name in enumerate(names) if "[" in name]
    assert places == list(range(places[0], places[0] + len(places)))
    return [names[place] for place in places], [name for name in names if "[" not in name]


def test_no_ordinary_test_stands_between_cells(mixed: Bench) -> None:
    assert collected(mixed) == [*CELLS, "test_1", "test_2", "test_3", "test_4"]


@pytest.mark.parametrize("kind", _REVERSERS)
def test_whoever_reorders_reorders_ordinary_tests(mixed: Bench, kind: str) -> None:
    mixed.write("conftest.py", "import pytest\n" + SWITCH + _REVERSERS[kind])
    assert split(collected(mixed)) == (CELLS, ["test_4", "test_3", "test_2", "test_1"])


@pytest.mark.parametrize("seed", ["1", "2", "3"])
@pytest.mark.parametrize(
    ("plugin", "arguments"),
    [
        ("randomly", ["-p", "randomly", "--randomly-seed={}"]),
        ("random_order", ["--random-order-bucket=global", "--random-order-seed={}"]),
    ],
)
def test_cells_keep_their_order_where_tests_are_shuffled(
    mixed: Bench, beside: Beside, plugin: str, arguments: list[str], seed: str
) -> None:
    beside(plugin)
    cells, others = split(collected(mixed, *(argument.format(seed) for argument in arguments)))
    assert cells == CELLS
    assert sorted(others) == ["test_1", "test_2", "test_3", "test_4"]


@pytest.mark.parametrize("option", ["--order-scope=session", "--indulgent-ordering", "--order-after-ff"])
def test_cells_keep_their_order_where_tests_are_numbered(mixed: Bench, beside: Beside, option: str) -> None:
    beside("pytest_order")
    order = "import pytest\n\n@pytest.mark.order({})\ndef test_{}(): pass\n"
    mixed.write("suites/test_last.py", order.format(2, 3) + order.format(1, 4))
    mixed.write(
        "suites/test_interactive.py", _BAD_CELLS.replace("@", "@pytest.mark.order(3)\n@") + "\ndef test_2(): pass"
    )
    assert split(collected(mixed, option)) == (CELLS, ["test_4", "test_3", "test_1", "test_2"])


def test_a_seed_that_is_set_again_for_each_test_repeats_no_prompt(bench: Bench, beside: Beside) -> None:
    beside("randomly")
    for _ in range(2):
        bench.run("suites/", "--randomly-seed=1").assert_outcomes(passed=1)
    beginnings = [prompt[:11] for prompt in bench.fake.prompts]
    assert len(beginnings) == 2 * 7
    assert len(set(beginnings)) == len(beginnings)


@pytest.mark.parametrize("kind", ["plain", "first"])
def test_stepwise_goes_on_in_the_order_of_cells(mixed: Bench, kind: str) -> None:
    mixed.write("conftest.py", "import pytest\n" + SWITCH + _REVERSERS[kind])
    bad = CELLS.index("test_again[b-Q4_K_M]")
    arguments = ("suites/", "--stepwise", "-k", "test_again or test_interactive")
    assert mixed.run(*arguments).ret == pytest.ExitCode.INTERRUPTED
    assert names(mixed) == CELLS[: bad + 1]
    mixed.run(*arguments)
    assert names(mixed) == [CELLS[bad]]
    mixed.run(*arguments, "--stepwise-skip")
    assert names(mixed) == CELLS[bad : bad + 2]  # the next one fails too
    mixed.write("bad.txt", "")
    mixed.run(*arguments)
    assert names(mixed) == CELLS[bad + 1 :]


def test_failed_first_leaves_cells_in_their_order(mixed: Bench) -> None:
    mixed.run("suites/")
    assert split(collected(mixed, "--ff"))[0] == CELLS
    assert split(collected(mixed, "--nf"))[0] == CELLS
    assert collected(mixed, "--lf") == [name for name in CELLS if "[b-" in name]


def names(bench: Bench) -> list[str]:
    """Of the cells of the latest run, in the order in which they were measured."""
    return [cell["nodeid"].partition("::")[2] for cell in bench.cells()]
