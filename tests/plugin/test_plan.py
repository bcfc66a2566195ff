"""``--llmbench-dry-run``: what would be done is told as it would be done, and nothing of it is done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_llmbench.adapters import plan as plan_adapter
from tests.ggufs.shape import write_shape
from tests.plugin.bench import SUITE, SWITCH, Bench
from tests.plugin.tiny_model import LARGE, SMALL, TINY, put_tiny_model
from tests.servers.hub import Hub, HubFile, HubRepo, small_gguf

DRY = "--llmbench-dry-run"
REPO = "somebody/tiny-GGUF"
WHEEL = {"wheel": "tiny-models==1.0", "member": "tiny.gguf", "size_bytes": 1_000_000}


def planned(bench: Bench, *arguments: str) -> dict[str, Any]:
    """The plan as data; the run must end well."""
    result = bench.run("suites/", DRY, "--llmbench-plan-file=plan.json", *arguments)
    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes()
    plan: dict[str, Any] = json.loads((bench.path / "plan.json").read_text())
    return plan


def by_id(plan: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {cell["nodeid"].partition("[")[2].removesuffix("]"): cell for cell in plan["cells"]}


def files(bench: Bench) -> set[str]:
    """What a run could have left, beside what is always there."""
    inputs = {"conftest.py", "plan.json", "junit.xml"}
    found = {path.relative_to(bench.path) for path in bench.path.rglob("*") if path.is_file()}
    ignored = {"suites", "configs", ".pytest_cache", "__pycache__"}
    return {str(path) for path in found if not ignored & set(path.parts) and path.name not in inputs}


def is_refused(cell: dict[str, Any], code: str, expected: str = "skip") -> bool:
    return bool(cell["expected"] == expected and cell["reason"]["code"] == code and not cell["starts_server"])


@pytest.fixture
def on_files(bench: Bench) -> Bench:
    """Two variants of a model that is here: one fits, the other does not."""
    put_tiny_model(bench, "embedded")
    return bench


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import close_session, constants

    file = HubFile(small_gguf(data_bytes=65536), size_bytes=100_000_000, sha256="0" * 64)
    with Hub({REPO: HubRepo({"tiny.gguf": file})}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        close_session()
        yield server
        close_session()


def test_nothing_is_started_or_left(bench: Bench) -> None:
    bench.write("suites/test_ordinary.py", "def test_fails(): assert 0\n")
    before = files(bench)
    result = bench.run("suites/", DRY)
    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes()
    result.stdout.fnmatch_lines(
        [
            "*= llmbench plan =*",
            "1  tiny-Q4_K_M  openai *–  run, ?",
            "1 cell: 1 to run (1 server start)",
            "1 other test without a model, not planned",
            "time: unknown, *",
        ]
    )
    assert files(bench) == before
    assert bench.fake.requests == bench.fake.proofs == []


def test_a_cell_that_fits_and_one_that_does_not(on_files: Bench) -> None:
    plan = planned(on_files)
    cells = by_id(plan)
    small, large = cells["tiny-Q4_0-small"], cells["tiny-Q4_0-large"]
    assert (small["expected"], small["fits"], small["starts_server"]) == ("run", True, True)
    assert small["method"] == "header"
    assert sum(small["parts"].values()) == small["predicted_bytes"] < 100_000_000
    assert (small["download_bytes"], small["source"], small["reason"]) == (0, None, None)
    size = (on_files.path / "models/1B/tiny.gguf").stat().st_size
    assert small["size_rule_bytes"] == large["size_rule_bytes"] == int(size * 1.2)
    assert is_refused(large, "does_not_fit")
    assert large["fits"] is False
    assert large["reason"]["message"].startswith("tiny Q4_0 needs 0.")
    assert large["reason"]["evidence"]["required_bytes"] == large["required_bytes"] > large["available_bytes"]
    totals = plan["totals"]
    assert (totals["to_run"], totals["to_skip"], totals["in_error"], totals["server_starts"]) == (1, 1, 0, 1)
    assert (totals["available_bytes"], totals["bound_by"]) == (100_000_000, "max_memory_gb")


def test_the_run_does_as_planned(on_files: Bench) -> None:
    reason = by_id(planned(on_files))["tiny-Q4_0-large"]["reason"]
    on_files.run("suites/", "-k", "large").assert_outcomes(skipped=1)
    (record,) = on_files.cells()
    assert record["reason"]["code"] == reason["code"]
    assert record["reason"]["message"] == reason["message"]


def test_in_order_with_the_servers_that_are_kept(on_files: Bench) -> None:
    on_files.config["variants"] = [{"id": "a"}, {"id": "b"}, {"id": "c", "ctx_size": 2 * SMALL}]
    on_files.config["embedded"] = {"default_ctx_size": SMALL}
    on_files.write("suites/test_again.py", SUITE.replace("test_interactive", "test_again"))
    looks_only = SUITE.replace("test_interactive(llm)", "test_look(cell)").replace("llm.measure().check()", "pass")
    on_files.write("suites/test_look.py", looks_only)
    plan = planned(on_files)
    assert [(cell["nodeid"].partition("::")[2], cell["starts_server"]) for cell in plan["cells"]] == [
        ("test_again[tiny-Q4_0-a]", True),
        ("test_interactive[tiny-Q4_0-a]", False),
        ("test_look[tiny-Q4_0-a]", False),
        ("test_again[tiny-Q4_0-b]", False),  # differs from a in name only
        ("test_interactive[tiny-Q4_0-b]", False),
        ("test_look[tiny-Q4_0-b]", False),
        ("test_again[tiny-Q4_0-c]", True),
        ("test_interactive[tiny-Q4_0-c]", False),
        ("test_look[tiny-Q4_0-c]", False),
    ]
    assert plan["cells"][2]["predicted_bytes"] is None


def test_another_test_does_not_stand_between_the_cells_of_a_server(on_files: Bench) -> None:
    on_files.config["variants"] = [{"id": "a"}]
    on_files.write("suites/test_again.py", SUITE.replace("test_interactive", "test_again"))
    on_files.write("suites/test_between.py", "def test_between(): pass\n")
    plan = planned(on_files)
    assert [cell["starts_server"] for cell in plan["cells"]] == [True, False]
    assert plan["totals"]["other_tests"] == 1


def test_a_model_that_is_not_to_be_had(on_files: Bench) -> None:
    del on_files.config["variants"]
    on_files.models["models"] += [
        {"name": "gone", "size": "1B", "files": {"Q4_0": "gone.gguf"}},
        {"name": "wheel", "size": "1B", "files": {"Q4_0": "w.gguf"}, "source": {"Q4_0": WHEEL}},
        {"name": "wrong", "size": "1B", "files": {"Q4_0": "wrong.gguf"}},
    ]
    write_shape(on_files.path / "models/1B/wrong.gguf", TINY, "Q8_0", vocabulary="none")
    cells = by_id(planned(on_files))
    assert is_refused(cells["gone-Q4_0"], "model_missing", "error")
    assert is_refused(cells["wrong-Q4_0"], "wrong_quantization", "error")
    wheel = cells["wheel-Q4_0"]
    assert (wheel["expected"], wheel["method"]) == ("run", "file_size")
    assert wheel["predicted_bytes"] == wheel["size_rule_bytes"] == 1_200_000
    assert (wheel["download_bytes"], wheel["source"]) == (1_000_000, "tiny-models==1.0 on the package index")
    result = on_files.run("suites/", DRY)
    result.stdout.fnmatch_lines(
        [
            "*wheel-Q4_0 *~0.001 GB  0.001 GB  run, ?",
            "~ from the file's size × 1.2, *",
            "* would be an error (model_missing): gone Q4_0: models/1B/gone.gguf is missing, *",
            "* to be downloaded from tiny-models==1.0 on the package index",
            "4 cells: 2 to run (2 server starts), 2 in error",
            "download: 0.001 GB; * free for models",
        ]
    )


def test_without_downloads(on_files: Bench, hub: Hub) -> None:
    del on_files.config["variants"]
    on_files.models["models"] += [
        {"name": "far", "size": "1B", "files": {"Q4_0": "far.gguf"}, "repo": REPO},
        {
            "name": "vast",
            "size": "1B",
            "files": {"Q4_0": "v.gguf"},
            "source": {"Q4_0": WHEEL | {"size_bytes": 10**9}},
        },
    ]
    cells = by_id(planned(on_files, "--llmbench-no-download"))
    assert cells["tiny-Q4_0"]["expected"] == "run"
    assert is_refused(cells["far-Q4_0"], "not_downloaded")
    assert is_refused(cells["vast-Q4_0"], "does_not_fit")  # its size is known, and looked at first, as in a run
    assert not hub.requests


def test_a_hub_is_asked_for_the_header_alone_and_only_once(on_files: Bench, hub: Hub) -> None:
    on_files.config["limits"] = {}
    for name in ("one", "two"):  # two names for the same file: fetched once
        model = {"name": name, "size": "7B", "files": {"Q4_1": "tiny.gguf"}, "repo": REPO}
        on_files.models["models"].append(model)
    on_files.models["full_mode_quants"] = ["Q4_1"]
    before = files(on_files)
    plan = planned(on_files)
    assert len(plan["cells"]) == 4
    assert {cell["source"] for cell in plan["cells"]} == {f"{REPO} on Hugging Face"}
    assert {cell["download_bytes"] for cell in plan["cells"]} == {100_000_000}
    assert {cell["method"] for cell in plan["cells"]} == {"header"}
    assert plan["totals"]["download_bytes"] == 100_000_000
    assert {Path(name).parent for name in files(on_files) - before} == {Path("models/.headers")}
    assert hub.bytes_sent < 20_000_000
    hub.requests.clear()
    planned(on_files)
    assert set(hub.requests) == {"info"}


def test_a_header_that_can_not_be_read(on_files: Bench, hub: Hub) -> None:
    hub.repos[REPO].files["far.gguf"] = HubFile(b"no GGUF at all")
    on_files.models["models"] = [{"name": "far", "size": "7B", "files": {"Q4_0": "far.gguf"}, "repo": REPO}]
    plan = planned(on_files)
    assert all(is_refused(cell, "bad_model_file", "error") for cell in plan["cells"])
    assert plan["totals"]["download_bytes"] == 0


def test_a_disk_that_is_too_small(on_files: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    del on_files.config["limits"]
    files_of = {"size": "1B", "files": {"Q4_0": "w.gguf"}}
    on_files.models["models"] = [{"name": "w", "source": {"Q4_0": WHEEL | {"size_bytes": 2_000_000_000}}, **files_of}]
    usage = shutil.disk_usage(".")._replace(free=1_000_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    totals = planned(on_files)["totals"]
    assert totals["disk_suffices"] is False
    assert (totals["download_bytes"], totals["free_disk_bytes"]) == (2_000_000_000, 1_000_000_000)
    result = on_files.run("suites/", DRY)
    result.stdout.fnmatch_lines(["warning: the downloads do not fit: *models has 1.0 GB free, *"])


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ({"ctx_size": LARGE}, "run"),
        ({"ctx_size": LARGE + 1}, "error"),
        ({"ctx_size": LARGE + 1, "backend": "llama_cpp", "extra_args": ["--rope-scaling", "yarn"]}, "run"),
        ({"ctx_size": LARGE + 1, "backend": "ollama"}, "run"),
    ],
)
def test_a_context_beyond_the_trained_one(on_files: Bench, variant: dict[str, Any], expected: str) -> None:
    on_files.config |= {"limits": {}, "variants": [{"id": "long", **variant}]}
    (cell,) = planned(on_files)["cells"]
    assert cell["expected"] == expected
    if expected == "error":
        assert is_refused(cell, "context_mismatch", "error")
        assert "lower ctx_size, or what settings ask for" in cell["reason"]["message"]
        assert cell["reason"]["evidence"] == {"asked_tokens": LARGE + 1, "trained_tokens": LARGE}


def test_durations_of_earlier_runs(bench: Bench) -> None:
    assert bench.run("suites/").ret == pytest.ExitCode.OK
    (record,) = bench.cells()
    bench.models["models"].append({"name": "new", "size": "1B", "served": {"Q4_K_M": "fake"}})
    plan = planned(bench)
    assert by_id(plan)["tiny-Q4_K_M"]["expected_seconds"] == pytest.approx(record["duration_seconds"])
    assert by_id(plan)["new-Q4_K_M"]["expected_seconds"] is None
    assert plan["totals"]["cells_of_known_duration"] == 1
    result = bench.run("suites/", DRY)
    result.stdout.fnmatch_lines(["time: about * s for 1 of 2 cells; the others are new"])
    assert len(list((bench.path / "results").glob("*/cells.jsonl"))) == 2  # one run, and `latest`


def test_selection(bench: Bench) -> None:
    bench.models["models"].append({"name": "other", "size": "1B", "served": {"Q4_K_M": "fake"}})
    assert set(by_id(planned(bench, "-k", "other"))) == {"other-Q4_K_M"}
    assert set(by_id(planned(bench, "-m", "interactive"))) == {"tiny-Q4_K_M", "other-Q4_K_M"}
    bench.models["models"][1]["served"]["Q4_K_M"] = "unknown to the server"
    assert bench.run("suites/").ret == pytest.ExitCode.TESTS_FAILED
    for _ in range(2):  # and it does not forget what failed
        assert set(by_id(planned(bench, "--lf"))) == {"other-Q4_K_M"}
    assert bench.run("suites/", DRY, "-k", "nothing").ret == pytest.ExitCode.NO_TESTS_COLLECTED


@pytest.mark.parametrize("distribution", [["-n", "2"], ["-n", "auto"], ["--dist", "each", "--tx", "2*popen"]])
def test_one_plan_under_xdist(bench: Bench, distribution: list[str]) -> None:
    bench.write("conftest.py", SWITCH + "import os\nopen(f'process-{os.getpid()}', 'w').close()\n")
    result = bench.run_subprocess("suites/", DRY, *distribution)
    assert result.ret == pytest.ExitCode.OK
    assert result.stdout.str().count("1  tiny-Q4_K_M") == 1
    assert len(list(bench.path.glob("process-*"))) == 1
    assert not (bench.path / "results").exists()


@pytest.mark.parametrize("plugin", ["no:xdist", "no:cacheprovider", "no:terminal"])
def test_without_a_neighbour(bench: Bench, plugin: str) -> None:
    bench.run("suites/", DRY, "--llmbench-plan-file=plan.json", "-p", plugin)
    assert len(json.loads((bench.path / "plan.json").read_text())["cells"]) == 1
    assert bench.fake.requests == []


def test_switched_on_by_the_ini_file(bench: Bench) -> None:
    bench.write("pytest.ini", "[pytest]\nllmbench_dry_run = true\n")
    result = bench.run("suites/")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["1 cell: 1 to run (1 server start)"])
    assert bench.fake.requests == []


@pytest.mark.parametrize(("arguments", "runs"), [([], False), (["--continue-on-collection-errors"], True)])
def test_what_can_not_be_collected(bench: Bench, arguments: list[str], runs: bool) -> None:
    bench.write("suites/test_broken.py", "import nothing_of_that_name\n")
    result = bench.run("suites/", DRY, *arguments)
    assert result.ret == (pytest.ExitCode.TESTS_FAILED if runs else pytest.ExitCode.INTERRUPTED)
    assert ("llmbench plan" in result.stdout.str()) == runs
    assert bench.fake.requests == []


def test_what_the_user_skips(bench: Bench) -> None:
    bench.write(
        "suites/test_interactive.py", SUITE.replace("def test", '@pytest.mark.skip("not\\x1b[2J now")\ndef test')
    )
    result = bench.run("suites/", DRY)
    result.stdout.fnmatch_lines(["1 would be skipped (marked): not\\x1b[[]2J now"])


def test_a_plan_that_can_not_be_written(bench: Bench) -> None:
    result = bench.run("suites/", DRY, "--llmbench-plan-file=nowhere/plan.json")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --llmbench-plan-file: nowhere/plan.json can not be written: No such file*"])


def test_thousands_of_cells_on_few_servers(on_files: Bench) -> None:
    on_files.config["variants"] = [{"id": f"v{number}", "ctx_size": LARGE} for number in range(3000)]
    result = on_files.run("suites/", DRY)
    assert result.ret == pytest.ExitCode.OK
    assert result.duration < 20  # a search for what would help takes some 15 ms, and would be made 3000 times
    result.stdout.fnmatch_lines(["… and 2700 more cells; *", "1–300 would be skipped (does_not_fit): *"])


def test_not_for_every_server_is_it_told_what_would_help(on_files: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_adapter, "_EXPLAINED", 1)
    on_files.config["variants"].append({"id": "huge", "ctx_size": 2 * LARGE})
    cells = by_id(planned(on_files))
    large, huge = (cells[f"tiny-Q4_0-{variant}"]["reason"]["message"] for variant in ("large", "huge"))
    assert "it would fit with" in large
    assert "more than there is; plan fewer cells to learn what would help" in huge
    assert is_refused(cells["tiny-Q4_0-huge"], "does_not_fit")


def test_is_told_in_the_help(bench: Bench) -> None:
    text = bench.run("--help").stdout.str()
    assert "--llmbench-dry-run" in text
    assert "llmbench_dry_run" in text
    assert "plan-file" not in text
