"""Model × quantization × variant × profile → items, with ids and in an order that are promises."""

from __future__ import annotations

import pytest

from tests.plugin.bench import SUITE, Bench


def collected(result: pytest.RunResult) -> list[str]:
    return [line.partition("[")[2].removesuffix("]") for line in result.stdout.lines if "::" in line]


def test_ids_and_order(bench: Bench) -> None:
    quantizations = ["Q8_0", "Q2_K", "Q4_K_M", "F16", "BF16", "Q5_K_M", "Q3_K_M", "Q6_K"]
    bench.models = {
        "models": [
            {"name": "big one", "size": "7B", "served": dict.fromkeys(quantizations, "fake")},
            {"name": "small", "size": "1.5B", "served": {"Q4_K_M": "fake", "Q8_0": "fake"}},
        ],
        "full_mode_quants": quantizations,
    }
    bench.config["variants"] = [{"id": "z"}, {"id": "a"}]
    expected = [
        f"{model}-{quantization}-{variant}"
        for quantization in ["Q4_K_M", "Q5_K_M", "Q6_K", "Q3_K_M", "Q2_K", "Q8_0", "BF16", "F16"]
        for model in ["small", "big_one"]
        if model == "big_one" or quantization in {"Q4_K_M", "Q8_0"}
        for variant in ["z", "a"]
    ]
    assert collected(bench.run("suites/", "--collect-only", "-q")) == expected


def test_cells_of_a_server_follow_each_other_across_files_and_stress_is_last(bench: Bench) -> None:
    bench.models["models"][0]["served"]["Q8_0"] = "fake"
    bench.write("suites/test_again.py", SUITE.replace("test_interactive", "test_again"))
    bench.write("suites/test_ordinary.py", "def test_a(): pass\ndef test_b(): pass\n")
    bench.write("suites/test_0.py", "def test_first(): pass\n")
    result = bench.run("suites/", "--collect-only", "-q")
    assert [line.partition("/")[2] for line in result.stdout.lines if "::" in line] == [
        "test_0.py::test_first",
        "test_again.py::test_again[tiny-Q4_K_M]",
        "test_interactive.py::test_interactive[tiny-Q4_K_M]",
        "test_again.py::test_again[tiny-Q8_0]",
        "test_interactive.py::test_interactive[tiny-Q8_0]",
        "test_ordinary.py::test_a",
        "test_ordinary.py::test_b",
    ]


def test_selection_by_keyword_and_marker(bench: Bench) -> None:
    bench.models["models"][0]["served"]["Q8_0"] = "fake"
    assert collected(bench.run("suites/", "--collect-only", "-q", "-k", "Q8_0")) == ["tiny-Q8_0"]
    assert len(collected(bench.run("suites/", "--collect-only", "-q", "-m", "interactive"))) == 2
    assert len(collected(bench.run("suites/", "--collect-only", "-q", "-m", "llmbench"))) == 2
    result = bench.run("suites/", "--collect-only", "-q", "-m", "stress")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    assert bench.run("suites/test_interactive.py::test_interactive[tiny-Q8_0]").ret == pytest.ExitCode.OK


def test_profiles_not_enabled_are_not_collected(bench: Bench) -> None:
    bench.write("suites/test_batch.py", SUITE.replace("interactive", "batch"))
    result = bench.run("suites/", "--collect-only", "-q")
    assert collected(result) == ["tiny-Q4_K_M"]
    result.assert_outcomes()
    bench.config["profiles"] = ["batch", "interactive"]
    assert collected(bench.run("suites/", "--collect-only", "-q")) == ["tiny-Q4_K_M"] * 2
    bench.config["profiles"] = []
    assert bench.run("suites/").ret == pytest.ExitCode.NO_TESTS_COLLECTED


def test_empty_matrix_collects_nothing(bench: Bench) -> None:
    bench.models["models"] = []
    assert bench.run("suites/").ret == pytest.ExitCode.NO_TESTS_COLLECTED


def test_misspelt_profile_in_a_marker_is_an_error_with_the_nearest_name(bench: Bench) -> None:
    bench.write("suites/test_interactive.py", SUITE.replace('"interactive"', '"interactiv"'))
    result = bench.run("suites/")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*no such profile (did you mean 'interactive'?)*"])


def test_markers_are_listed(bench: Bench) -> None:
    result = bench.run("--markers")
    text = result.stdout.str()
    for name in ("llmbench(profile)", "interactive", "long_context", "agentic", "ladder", "tuning"):
        assert f"@pytest.mark.{name}:" in text


@pytest.mark.parametrize("plugin", ["no:cacheprovider", "no:xdist", "no:benchmark", "no:timeout"])
def test_collects_without_a_neighbour(bench: Bench, plugin: str) -> None:
    assert collected(bench.run("suites/", "--collect-only", "-q", "-p", plugin)) == ["tiny-Q4_K_M"]
