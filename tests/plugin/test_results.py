"""What a run leaves behind: records, files, JUnit, an exit status."""

from __future__ import annotations

import csv
import json

import pytest

from pytest_llmbench.reports import WRITERS, write_reports
from tests.plugin.bench import ONE_CELL, SUITE, SWITCH, Bench, properties
from tests.servers.fake_openai import Fault


def test_passed_cell_is_recorded_with_metrics_and_intervals(bench: Bench) -> None:
    assert bench.run("suites/").ret == pytest.ExitCode.OK
    (cell,) = bench.cells()
    assert (cell["status"], cell["nodeid"], cell["model"]) == ("passed", ONE_CELL, "tiny")
    assert (cell["quantization"], cell["model_size"], cell["profile"]) == ("Q4_K_M", "1B", "interactive")
    assert cell["reason"] is None
    assert cell["schema_version"] == 1
    rate = cell["metrics"]["decode_tokens_per_second"]
    assert rate["n"] == 6
    assert rate["ci_low"] <= rate["value"] <= rate["ci_high"]
    assert {"min_tokens_per_sec", "max_time_to_first_token"} == {t["key"] for t in cell["thresholds"]}
    assert {t["verdict"] for t in cell["thresholds"]} == {"pass"}
    assert cell["rating"] == "excellent"
    assert cell["server"]["kind"] == "openai"
    assert len(cell["host"]) == 16
    assert cell["duration_seconds"] > 0


def test_every_request_is_recorded_warmup_apart(bench: Bench) -> None:
    bench.run("suites/")
    requests = bench.requests()
    assert [r["phase"] for r in requests] == ["warmup", *["sample"] * 6]
    assert [r["index"] for r in requests] == list(range(7))
    for request in requests:
        assert request["cell"] == ONE_CELL
        assert request["ok"]
        assert request["error"] is None
        assert request["output_tokens_source"] == "usage.completion_tokens"
        assert request["t_send_ns"] < request["t_first_token_ns"] < request["t_last_token_ns"] <= request["t_end_ns"]
        assert request["chunks"] == request["output_tokens"] == request["params"]["max_tokens"]
        assert request["finish_reason"] == "length"
        assert request["cached_tokens"] == 0
        assert request["output"].startswith("word0 ")


def test_nonce_stands_first_and_differs(bench: Bench) -> None:
    bench.run("suites/")
    prompts = [r["messages"][0]["content"] for r in bench.fake.requests]
    assert len({prompt[:11] for prompt in prompts}) == len(prompts)
    assert len({prompt[11:] for prompt in prompts}) == 1


def test_run_folder_holds_every_file_and_latest_points_to_it(bench: Bench) -> None:
    del bench.config["output"]
    bench.run("suites/")
    assert (bench.path / "results" / "latest").is_symlink()
    names = {path.name for path in bench.latest.iterdir()}
    derived = {"report.json", "results.csv", "summary.md", "report.html"}
    assert {"run.json", "cells.jsonl", "requests.jsonl"} | derived <= names
    before = {name: (bench.latest / name).read_bytes() for name in derived}
    write_reports(bench.latest, WRITERS)
    assert {name: (bench.latest / name).read_bytes() for name in derived} == before
    run = json.loads((bench.latest / "run.json").read_text())
    assert run["run_id"] == bench.latest.name == bench.cells()[0]["run_id"]
    assert run["schema_version"] == 1
    assert run["configuration"]["openai"]["base_url"] == bench.fake.url
    assert run["hardware"]["memory_bytes"] > 0
    assert run["software"]["pytest"]
    assert run["clock"]["monotonic"] is True
    assert run["models"]["models"][0]["name"] == "tiny"
    assert run["started_at"] < run["finished_at"]
    (row,) = csv.DictReader((bench.latest / "results.csv").read_text().splitlines())
    assert float(row["interactive_tps"]) == bench.cells()[0]["metrics"]["decode_tokens_per_second"]["value"]
    assert row["interactive_rating"] == "excellent"
    assert "tiny" in (bench.latest / "summary.md").read_text()


def test_below_threshold_is_one_junit_failure_that_shows_every_threshold(bench: Bench) -> None:
    bench.config["thresholds"]["interactive"]["min_tokens_per_sec"] = 1e7
    assert bench.run("suites/").ret == pytest.ExitCode.TESTS_FAILED
    case = bench.junit()["test_interactive[tiny-Q4_K_M]"]
    (failure,) = case.iter("failure")
    assert not list(case.iter("error"))
    text = failure.text or ""
    assert "min_tokens_per_sec: at least 10000000.0 tokens/s, observed" in text
    assert "95 % interval" in text
    assert ", margin -" in text
    assert "% of the limit → fail" in text
    assert "max_time_to_first_token: at most 30.000 s" in text
    assert "Traceback" not in text
    assert ".py:" not in text
    (cell,) = bench.cells()
    assert cell["status"] == "failed"
    assert cell["reason"]["code"] == "below_threshold"
    assert cell["rating"] == "failed"


def test_junit_properties_of_a_measured_cell(bench: Bench) -> None:
    bench.run("suites/")
    found = properties(bench.junit()["test_interactive[tiny-Q4_K_M]"])
    assert found["model"] == "tiny"
    assert found["quantization"] == "Q4_K_M"
    assert found["rating"] == "excellent"
    assert found["llmbench_status"] == "passed"
    value = bench.cells()[0]["metrics"]["decode_tokens_per_second"]["value"]
    assert float(found["decode_tokens_per_second"]) == value
    assert float(found["decode_tokens_per_second_ci_low"]) <= value


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("truncated", "stream_truncated"),
        ("error_event", "server_error_event"),
        ("http_500", "http_error"),
        ("empty", "empty_answer"),
    ],
)
def test_broken_request_is_an_error_not_a_failure(bench: Bench, fault: Fault, code: str) -> None:
    bench.fake.fault["*"] = fault
    assert bench.run("suites/").ret == pytest.ExitCode.NO_TESTS_COLLECTED  # nothing was measured
    (cell,) = bench.cells()
    assert (cell["status"], cell["reason"]["code"]) == ("error", code)
    case = bench.junit()["test_interactive[tiny-Q4_K_M]"]
    (error,) = case.iter("error")
    assert not list(case.iter("failure"))
    assert cell["reason"]["message"] in (error.text or "")
    assert "Traceback" not in (error.text or "")
    request = bench.requests()[-1]
    assert (request["ok"], request["error"], request["usable"]) == (False, code, False)


@pytest.mark.parametrize(
    ("fault", "code"),
    [("short", "short_answer"), ("not_counted_short", "short_answer"), ("cached", "prompt_cache_hit")],
)
def test_unusable_answers_make_the_measurement_invalid(bench: Bench, fault: Fault, code: str) -> None:
    bench.fake.fault["*"] = fault
    assert bench.run("suites/").ret == pytest.ExitCode.TESTS_FAILED
    (cell,) = bench.cells()
    assert (cell["status"], cell["reason"]["code"], cell["flags"]) == ("invalid", code, [code])
    assert cell["metrics"] == {}
    assert len(list(bench.junit()["test_interactive[tiny-Q4_K_M]"].iter("error"))) == 1
    samples = [r for r in bench.requests() if r["phase"] == "sample"]
    assert len(samples) == 6
    assert not any(r["usable"] for r in samples)


def test_tokens_nobody_counted_are_not_guessed(bench: Bench) -> None:
    bench.fake.fault["*"] = "no_usage"
    assert bench.run("suites/").ret == pytest.ExitCode.OK
    (cell,) = bench.cells()
    assert "decode_tokens_per_second" not in cell["metrics"]
    assert cell["metrics"]["ttft_seconds"]["n"] >= 6
    assert "tokens_not_counted" in cell["flags"]
    verdicts = {t["key"]: t["verdict"] for t in cell["thresholds"]}
    assert verdicts == {"min_tokens_per_sec": "inconclusive", "max_time_to_first_token": "pass"}


def test_sampling_ends_where_tokens_are_counted_now_and_then(bench: Bench) -> None:
    bench.fake.fault["*"] = "usage_twice"
    assert bench.run("suites/").ret == pytest.ExitCode.OK
    (cell,) = bench.cells()
    assert cell["sampling"]["samples"] == 6
    assert cell["metrics"]["decode_tokens_per_second"]["n"] == 2
    assert "tokens_not_counted" in cell["flags"]


def test_reasoning_tokens_do_not_raise_the_rate(bench: Bench) -> None:
    bench.fake.token_seconds = 0.002
    bench.fake.reasoning_pieces = 24
    bench.run("suites/")
    (cell,) = bench.cells()
    assert cell["metrics"]["decode_tokens_per_second"]["value"] <= 500
    assert cell["metrics"]["ttft_seconds"]["value"] >= 24 * 0.002
    assert any("reasoning" in note for note in cell["notes"])


def test_a_chunked_stream_is_flagged_and_its_rate_absent(bench: Bench) -> None:
    bench.fake.tokens_per_piece = 10
    bench.run("suites/")
    (cell,) = bench.cells()
    assert "chunked_stream" in cell["flags"]
    assert "decode_tokens_per_second" not in cell["metrics"]


@pytest.mark.parametrize(("limit", "most", "is_clear"), [(1000, 40, True), (20, 12, False)], ids=["clear", "undecided"])
def test_sampling_goes_on_while_a_limit_is_undecided(bench: Bench, limit: float, most: int, is_clear: bool) -> None:
    bench.fake.token_seconds, bench.fake.every_second_answer_slower = 0.01, 3  # some 10 and 30 ms, in turn
    bench.config["settings"]["interactive"]["output_tokens"] = 8
    bench.config["thresholds"]["interactive"]["max_time_per_output_token_ms"] = limit
    bench.config["measurement"] = {"max_samples": most, "target_half_width_percent": 100}
    bench.run("suites/")
    (cell,) = bench.cells()
    assert (cell["sampling"]["stop_reason"] == "precise") is is_clear
    assert (cell["sampling"]["samples"] < most) is is_clear


def test_imprecise_measurement_is_flagged(bench: Bench) -> None:
    bench.config["measurement"]["target_half_width_percent"] = 1e-6
    bench.run("suites/")
    assert "imprecise" in bench.cells()[0]["flags"]


def test_expected_failure_is_recorded_as_measured(bench: Bench) -> None:
    bench.config["thresholds"]["interactive"]["min_tokens_per_sec"] = 1e7
    bench.write("suites/test_interactive.py", SUITE.replace("@pytest", "@pytest.mark.xfail\n@pytest", 1))
    assert bench.run("suites/").ret == pytest.ExitCode.OK
    (cell,) = bench.cells()
    assert (cell["status"], cell["reason"]["code"]) == ("failed", "below_threshold")


def test_a_cell_that_never_asked_the_model_was_not_measured(bench: Bench) -> None:
    bench.write("suites/test_interactive.py", SUITE.replace("llm.measure().check()", "pass"))
    assert bench.run("suites/").ret == pytest.ExitCode.NO_TESTS_COLLECTED


def test_own_test_does_not_replace_the_measurement_in_the_csv(bench: Bench) -> None:
    bench.config["thresholds"]["interactive"]["min_tokens_per_sec"] = 1e7
    bench.write("suites/test_own.py", SUITE.replace("llm.measure().check()", "llm.complete('x', max_tokens=3)"))
    bench.run("suites/").assert_outcomes(passed=1, failed=1)
    (row,) = csv.DictReader((bench.latest / "results.csv").read_text().splitlines())
    assert (row["interactive_status"], row["interactive_rating"]) == ("failed", "failed")


def test_server_that_will_not_stop_does_not_spoil_the_next_cell(bench: Bench) -> None:
    bench.models["models"].append({"name": "other", "size": "2B", "served": {"Q4_K_M": "fake"}})
    bench.write("conftest.py", SWITCH + STUBBORN)
    result = bench.run_subprocess("suites/")  # it changes a class for good
    assert [c["status"] for c in bench.cells()] == ["passed", "passed"]
    assert "previous item was not torn down" not in result.stdout.str()
    result.stdout.fnmatch_lines(["*it will not stop*"])


STUBBORN = """
from pytest_llmbench.backends.openai import OpenAIServer
from pytest_llmbench.errors import ServerError

def stop(self):
    if self.info.args["model_name"] == "fake" and not OpenAIServer.refused:
        OpenAIServer.refused = True
        raise ServerError("server_not_stopped", "it will not stop")

OpenAIServer.refused = False
OpenAIServer.stop = stop
"""


def test_run_cut_short_says_so(bench: Bench) -> None:
    bench.write("suites/test_interactive.py", SUITE.replace("llm.measure().check()", "raise KeyboardInterrupt"))
    result = bench.run_subprocess("suites/")  # in this process it would end the tests of ours
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*results in*", "*the run was cut short*"])
    assert json.loads((bench.latest / "run.json").read_text())["exit_status"] == 2
    assert "none was finished" in (bench.latest / "summary.md").read_text()


def test_inconclusive_fails_where_configured(bench: Bench) -> None:
    bench.fake.fault["*"] = "no_usage"
    bench.config["measurement"]["inconclusive"] = "fail"
    assert bench.run("suites/").ret == pytest.ExitCode.TESTS_FAILED
    assert bench.cells()[0]["status"] == "failed"


def test_other_cells_are_unaffected_by_one_that_errs(bench: Bench) -> None:
    bench.fake.models = ("fake", "bad")
    bench.fake.fault["bad"] = "truncated"
    bench.models["models"].append({"name": "broken", "size": "0.5B", "served": {"Q4_K_M": "bad"}})
    result = bench.run("suites/")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=1, errors=1)
    assert [c["status"] for c in bench.cells()] == ["error", "passed"]


def test_nothing_measured_says_why_and_exits_5(bench: Bench) -> None:
    bench.config["openai"]["base_url"] = "http://127.0.0.1:9"
    result = bench.run("suites/")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    (cell,) = bench.cells()
    assert cell["reason"]["code"] == "connection_refused"
    result.stdout.fnmatch_lines(["*none was measured*"])


def test_failing_ordinary_test_keeps_exit_status_1(bench: Bench) -> None:
    bench.config["openai"]["base_url"] = "http://127.0.0.1:9"
    bench.write("suites/test_other.py", "def test_other():\n    assert 1 == 2\n")
    assert bench.run("suites/").ret == pytest.ExitCode.TESTS_FAILED


def test_missing_model_is_skipped_without_download_and_an_error_with(bench: Bench) -> None:
    bench.config["backend"] = "embedded"
    bench.models["models"] = [{"name": "tiny", "size": "1B", "files": {"Q4_K_M": "tiny.gguf"}}]
    result = bench.run("suites/", "--llmbench-no-download")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    (cell,) = bench.cells()
    assert (cell["status"], cell["reason"]["code"]) == ("skipped", "not_downloaded")
    assert len(list(bench.junit()["test_interactive[tiny-Q4_K_M]"].iter("skipped"))) == 1
    assert bench.run("suites/").ret == pytest.ExitCode.NO_TESTS_COLLECTED
    (cell,) = bench.cells()
    assert (cell["status"], cell["reason"]["code"]) == ("error", "model_missing")


def test_last_failed_runs_only_the_failed_cell_and_passes_once_relaxed(bench: Bench) -> None:
    bench.fake.models = ("fake", "other")
    bench.models["models"].append({"name": "other", "size": "2B", "served": {"Q4_K_M": "other"}})
    bench.models["models"][1]["thresholds"] = {"interactive": {"min_tokens_per_sec": 1e7}}
    bench.run("suites/").assert_outcomes(passed=1, failed=1)
    bench.models["models"][1]["thresholds"] = {}
    result = bench.run("suites/", "--lf", "-m", "interactive")
    result.assert_outcomes(passed=1)
    assert [c["model"] for c in bench.cells()] == ["other"]


def test_exitfirst_stops_after_the_first_failed_cell(bench: Bench) -> None:
    bench.models["models"].append({"name": "other", "size": "2B", "served": {"Q4_K_M": "fake"}})
    bench.config["thresholds"]["interactive"]["min_tokens_per_sec"] = 1e7
    assert bench.run("suites/", "-x").ret == pytest.ExitCode.TESTS_FAILED
    assert [c["model"] for c in bench.cells()] == ["tiny"]


def test_works_without_the_cache_provider(bench: Bench) -> None:
    assert bench.run("suites/", "-p", "no:cacheprovider").ret == pytest.ExitCode.OK


def test_quick_mode_stops_at_min_samples_and_selects_its_quantizations(bench: Bench) -> None:
    bench.models["models"][0]["served"]["Q8_0"] = "fake"
    bench.config["measurement"] = {"max_samples": 12, "target_half_width_percent": 1e-6}
    bench.run("suites/", "--llmbench-mode", "quick")
    (cell,) = bench.cells()
    assert cell["quantization"] == "Q4_K_M"
    expected = {"rejected": 0, "stop_reason": "max_samples", "output_tokens": 30}
    assert cell["sampling"].items() >= expected.items()
    assert cell["sampling"]["samples"] <= 9  # six, and outliers once more


def test_limits_of_model_and_variant_win(bench: Bench) -> None:
    bench.config["variants"] = [{"id": "a"}, {"id": "b", "thresholds": {"interactive": {"min_tokens_per_sec": 3}}}]
    bench.models["models"][0]["thresholds"] = {"interactive": {"min_tokens_per_sec": 5, "max_ttft_seconds": 9}}
    bench.run("suites/")
    limits = [{t["key"]: t["limit"] for t in c["thresholds"]} for c in bench.cells()]
    assert [c["variant"] for c in bench.cells()] == ["a", "b"]
    assert limits[0] == {"min_tokens_per_sec": 5, "max_time_to_first_token": 30, "max_ttft_seconds": 9}
    assert limits[1]["min_tokens_per_sec"] == 3


def test_log_file_and_output_folder_are_where_configured(bench: Bench) -> None:
    bench.config["logging"] = {"level": "DEBUG", "file": "bench.log"}
    bench.config["output"] = {"dir": "elsewhere", "formats": ["csv"], "include_logs": False}
    bench.run("suites/")
    (run,) = [path for path in (bench.path / "elsewhere").iterdir() if not path.is_symlink()]
    assert (run / "results.csv").is_file()
    assert not (run / "summary.md").exists()
    assert not (bench.path / "results").exists()
    assert bench.run("suites/", "--llmbench-output", "third").ret == pytest.ExitCode.OK
    assert (bench.path / "third" / "latest" / "cells.jsonl").is_file()


def test_unwritable_results_end_the_run_with_a_sentence(bench: Bench) -> None:
    bench.write("conftest.py", SWITCH + FULL_DISK)
    result = bench.run("suites/")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*cells.jsonl can not be written: No space left on device; free some space*"])
    assert "INTERNALERROR" not in result.stdout.str()
    assert len(bench.requests()) == 7  # what was measured before is kept


FULL_DISK = """
import pytest
from pytest_llmbench.errors import RecordError
from pytest_llmbench.runtime.run_folder import RunFolder

@pytest.fixture(autouse=True)
def full_disk(monkeypatch):
    def refuse(self, record):
        raise RecordError("cells.jsonl can not be written: No space left on device; free some space")
    monkeypatch.setattr(RunFolder, "append_cell", refuse)
"""


@pytest.mark.parametrize("is_wanted", [True, False])
def test_the_job_summary_is_written_though_another_report_fails(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, is_wanted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(bench.path / "page.md"))
    monkeypatch.setitem(WRITERS, "csv", lambda run: run.folder / "nowhere" / str(1 // 0))
    bench.config["output"]["formats"] = ["csv", "markdown"] if is_wanted else ["csv"]
    result = bench.run("suites/")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["*these reports can not be written: csv (ZeroDivisionError*; the records are kept"])
    assert (bench.path / "page.md").exists() == is_wanted
    assert "the job summary" not in caplog.text
