"""A mistake in the configuration is one readable message and exit status 4, also under xdist."""

from __future__ import annotations

import pytest

from tests.plugin.bench import Bench

MISTAKES = {
    "unknown key": ("backend: openai\nunknown_key: 1\n", "configs/config.yaml:2: unknown_key: unknown key"),
    "misspelt key": (
        "measurment: {}\n",
        "configs/config.yaml:1: measurment: unknown key (did you mean 'measurement'?)",
    ),
    "negative threshold": (
        "thresholds:\n  interactive:\n    min_tokens_per_sec: -1\n",
        "configs/config.yaml:3: thresholds.interactive.min_tokens_per_sec: a limit can not be negative",
    ),
    "misspelt profile": (
        "profiles: [interactive, interactve]\n",
        "configs/config.yaml:1: profiles[1]: 'interactve' is no profile (did you mean 'interactive'?)",
    ),
    "syntax error": ("backend: [openai\n", "configs/config.yaml:1: not valid YAML"),
    "threshold without a metric": (
        "thresholds: {interactive: {max_variance_percnt: 3}}\n",
        "no metric of profile 'interactive' is judged by this key (did you mean 'max_variance_percent'?)",
    ),
    "misspelt backend": ("backend: embeded\n", "'embeded' is no backend (did you mean 'embedded'?)"),
    "backend misspelt": (
        "backend: olama\n",
        "'olama' is no backend (did you mean 'ollama'?); allowed: embedded, llama_cpp, ollama, openai",
    ),
    "address missing": (
        "backend: openai\n",
        "configs/config.yaml:1: openai.base_url: backend 'openai' needs the address",
    ),
    "climbing path": (
        "model_dir: ../elsewhere\n",
        "configs/config.yaml:1: model_dir: '../elsewhere' may not climb out",
    ),
    "climbing log": ("logging: {file: ../log}\n", "configs/config.yaml:1: logging.file: '../log' may not climb out"),
    "repeated variant": ("variants: [{id: a}, {id: a}]\n", "configs/config.yaml:1: variants[1].id: 'a' is used twice"),
    "settings of a profile": (
        "settings: {interactive: {output_token: 5}}\n",
        "configs/config.yaml:1: settings.interactive.output_token: unknown key (did you mean 'output_tokens'?)",
    ),
    "founding setting": (
        "thresholds: {stress: {duration: soon}}\n",
        "configs/config.yaml:1: settings.stress.duration: should be a valid number, not 'soon'",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_a_usage_error(bench: Bench, mistake: str) -> None:
    text, message = MISTAKES[mistake]
    bench.run("--version")  # writes the files, of which one is replaced
    bench.write("configs/config.yaml", text)
    result = bench.pytester.runpytest_inprocess("suites/")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    errors = result.stderr.str()
    assert message in errors
    assert len(errors.strip().splitlines()) == 1
    assert not (bench.path / "results").exists()


@pytest.mark.parametrize("mistake", ["unknown key", "negative threshold", "misspelt profile", "syntax error"])
def test_mistake_is_a_usage_error_under_xdist_too(bench: Bench, mistake: str) -> None:
    text, message = MISTAKES[mistake]
    bench.run("--version")
    bench.write("configs/config.yaml", text)
    result = bench.pytester.runpytest_subprocess("suites/", "-n", "2")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert message in result.stderr.str()
    assert "Traceback" not in result.stderr.str() + result.stdout.str()


def test_two_cells_with_one_id_are_refused(bench: Bench) -> None:
    bench.models["models"] = [
        {"name": "a:b", "size": "1B", "served": {"Q4_K_M": "fake"}},
        {"name": "a_b", "size": "1B", "served": {"Q4_K_M": "fake"}},
    ]
    result = bench.run("suites/")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "would have the id 'a_b-Q4_K_M'" in result.stderr.str()


def test_absent_file_that_was_named_is_refused(bench: Bench) -> None:
    result = bench.run("suites/", "--llmbench-config", "nowhere.yaml")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "nowhere.yaml: can not be read: No such file" in result.stderr.str()


def test_founding_configuration_is_read_as_it_stands_and_announced(bench: Bench) -> None:
    bench.run("--version")
    bench.write(
        "configs/config.yaml",
        f"""
backend: openai
openai: {{base_url: "{bench.fake.url}"}}
llama_cpp: {{server_path: "./llama-server", default_ctx_size: 8192, default_threads: null, gpu_layers: 0}}
test_mode: "full"
resume_from: null
profiles: [interactive, long_context, batch, quality, stress]
thresholds:
  interactive: {{min_tokens_per_sec: 2, max_time_to_first_token: 30, max_variance: null}}
  long_context: {{max_initial_load_time: 60, test_sizes: [4096, 8192, 16384, 32768]}}
  batch: {{max_variance: 20, num_documents: 30}}
  quality: {{min_math_score: 80, min_comprehension_score: 75, min_reasoning_score: 75, min_format_compliance: 90}}
  stress: {{duration: 30, max_temperature: 85, sample_interval: 30}}
settings: {{interactive: {{output_tokens: 60}}}}
limits: {{max_memory_gb: 14, max_load_time: 300, allow_swap: false}}
model_dir: "./models"
output: {{dir: "./results", formats: ["json", "csv", "html"], include_logs: true}}
logging: {{level: "INFO", file: "inference-tester.log"}}
""",
    )
    result = bench.pytester.runpytest_inprocess("suites/", "-q")
    assert result.ret == pytest.ExitCode.OK
    assert "not used yet" not in result.stdout.str()


def test_shipped_configuration_announces_nothing(bench: Bench) -> None:
    from pytest_llmbench.runtime.share import share_dir

    for name in ("config.yaml", "models.yaml"):
        bench.write(f"configs/{name}", (share_dir("configs") / name).read_text())
    result = bench.pytester.runpytest_inprocess("suites/", "--collect-only", "-q")
    assert "not used yet" not in result.stdout.str()
    result.stdout.fnmatch_lines(["*test_interactive?SmolLM2-135M-Instruct-Q4_1?"])


def test_ini_keys_stand_in_for_options(bench: Bench) -> None:
    bench.models["models"][0]["served"]["Q8_0"] = "fake"
    bench.write(
        "pytest.ini", "[pytest]\nllmbench_output = from_ini\nllmbench_mode = quick\nllmbench_no_download = true\n"
    )
    assert bench.run("suites/").ret == pytest.ExitCode.OK
    assert (bench.path / "from_ini" / "latest" / "cells.jsonl").is_file()
    result = bench.run("suites/", "--collect-only", "-q", "--llmbench-mode", "full")
    assert result.parseoutcomes() == {"tests": 2}


def test_wrong_mode_in_the_ini_file_is_refused(bench: Bench) -> None:
    bench.write("pytest.ini", "[pytest]\nllmbench_mode = fast\n")
    result = bench.run("suites/")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "'fast' is not allowed; allowed: quick, full" in result.stderr.str()


def test_climbing_path_in_the_ini_file_is_refused(bench: Bench) -> None:
    bench.write("pytest.ini", "[pytest]\nllmbench_output = ../elsewhere\n")
    result = bench.run("suites/")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "llmbench_output: '../elsewhere' may not climb out" in result.stderr.str()


def test_unusable_output_folder_is_refused(bench: Bench) -> None:
    result = bench.run("suites/", "--llmbench-output", "x" * 300)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "can not be written" in result.stderr.str()


def test_folder_in_place_of_a_file_is_refused(bench: Bench) -> None:
    bench.run("--version")
    (bench.path / "configs/models.yaml").unlink()
    (bench.path / "configs/models.yaml").mkdir()
    result = bench.pytester.runpytest_inprocess("suites/")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "configs/models.yaml: can not be read: Is a directory" in result.stderr.str()


def test_header_names_the_files_in_use(bench: Bench) -> None:
    bench.run("--version")
    (bench.path / "configs/config.yaml").unlink()
    result = bench.pytester.runpytest_inprocess("suites/", "--collect-only")
    profiles = "batch, interactive, long_context, quality, stress"
    line = f"llmbench: (built-in defaults) and configs/models.yaml: 0 combinations, profiles: {profiles}"
    assert line in result.stdout.lines
    assert any(
        "the matrix is empty: no model has a quantization of full_mode_quants" in li for li in result.stdout.lines
    )


def test_quantization_that_no_mode_selects_is_announced(bench: Bench) -> None:
    bench.models["models"][0]["served"]["q8_0"] = "fake"
    result = bench.run("suites/")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(
        ["llmbench: configs/models.yaml:*: models?0?.served.q8_0: in neither mode's quantizations*; never run"]
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [(None, "is no folder"), ("{", "not valid JSON"), ('[{"id": "a", "category": "c", "prompt": "p"}]', "a")],
    ids=["absent", "torn", "without a scorer"],
)
def test_own_questions_that_can_not_be_asked_are_found_before_anything_starts(
    bench: Bench, text: str | None, complaint: str
) -> None:
    bench.config["profiles"] = ["quality"]
    bench.config["settings"]["quality"] = {"questions_dir": "own"}
    if text is not None:
        bench.write("own/mine.json", text)
    result = bench.run("suites/")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert complaint in result.stderr.str()
    assert not (bench.path / "results").exists()
