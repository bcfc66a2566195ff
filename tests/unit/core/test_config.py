"""Configuration: what a user may write, and what is said about everything else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmbench.core.config import Config, Models, Section, check_base_url, check_inside
from pytest_llmbench.core.settings import FOUNDING_SETTINGS
from pytest_llmbench.core.validation import Loaded, keys_not_used_yet, resolve_path, split_settings, validate
from pytest_llmbench.core.yaml_source import YamlDocument, parse_yaml
from pytest_llmbench.errors import ConfigError

CONFIG_KEYS = (
    "backend, blocking, devices, embedded, limits, llama_cpp, logging, measurement, model_dir, ollama, openai, output, "
    "profiles, resume_from, settings, test_mode, thresholds, use_cases, variants"
)
MODEL_KEYS = "base_filename, files, name, repo, revision, served, size, source, thresholds"


def _config(text: str) -> Config:
    return validate(Config, parse_yaml(text, "configs/config.yaml"))


def _models(text: str) -> Models:
    return validate(Models, parse_yaml(text, "configs/models.yaml"))


def _refused_config(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        _config(text)
    return str(caught.value)


def _refused_models(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        _models(text)
    return str(caught.value)


# ---------------------------------------------------------------- what may be written


def test_an_empty_file_gives_the_founding_defaults() -> None:
    config = _config("# nothing\n")
    assert config == Config()
    assert config.backend == "embedded"
    assert config.test_mode == "full"
    assert config.profiles == ["interactive", "long_context", "batch", "quality", "stress"]
    assert config.measurement.model_dump() == {
        "min_samples": 6,
        "max_samples": 20,
        "target_half_width_percent": 5.0,
        "max_seconds": 1800.0,
        "loads": 1,
        "inconclusive": "pass",
        "calibrate": True,
        "telemetry": True,
        "overlap": "none",
    }


def test_the_example_of_the_design_is_accepted_as_it_stands() -> None:
    text = """
backend: embedded
embedded:  {default_ctx_size: 8192, default_threads: null, gpu_layers: 0}
llama_cpp: {server_path: ./llama-server, default_ctx_size: 8192, default_threads: null, gpu_layers: 0, extra_args: []}
ollama:    {base_url: "http://127.0.0.1:11434", start: false, chat_mode: auto, default_ctx_size: 8192}
openai:    {base_url: null, command: null, api_key_env: null, default_ctx_size: null}
test_mode: full
resume_from: null
profiles: [interactive, long_context, batch, quality, stress]
thresholds: {}
settings: {}
limits:    {max_memory_gb: null, max_load_time: 300, allow_swap: false}
measurement: {min_samples: 6, max_samples: 20, target_half_width_percent: 5, loads: 1, inconclusive: pass}
variants:  []
model_dir: ./models
output:    {dir: ./results, formats: [json, csv, html, markdown], include_logs: true}
logging:   {level: INFO, file: null}
"""
    assert _config(text) == Config()


def test_the_models_of_the_design_are_accepted_as_they_stand() -> None:
    models = _models(
        """
models:
  - name: Qwen2.5-7B-Instruct
    size: 7B
    repo: Qwen/Qwen2.5-7B-Instruct-GGUF
    base_filename: qwen2.5-7b-instruct
    files: {Q4_K_M: qwen2.5-7b-instruct-q4_k_m.gguf, Q8_0: [a-00001-of-00002.gguf, a-00002-of-00002.gguf]}
    served: {Q4_K_M: "qwen2.5:7b"}
    thresholds: {interactive: {min_tokens_per_sec: 5}}
  - {name: served-only, size: 8x7B, served: {Q4_0: "x:y"}}
"""
    )
    assert models.models[0].files["Q8_0"] == ["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"]
    assert models.models[1].files == {}
    assert models.quick_mode_quants == ["Q4_K_M", "Q5_K_M"]


SHA = "0123456789abcdef" * 4


def test_a_single_source_belongs_to_the_only_file() -> None:
    models = _models(
        f"models: [{{name: m, size: 1B, files: {{Q4_1: x.gguf}}, "
        f"source: {{wheel: a-b==1.0, member: p/x.gguf, sha256: {SHA}, size_bytes: 5}}}}]"
    )
    source = models.models[0].source["Q4_1"]
    assert (source.wheel, source.member, source.sha256, source.size_bytes) == ("a-b==1.0", "p/x.gguf", SHA, 5)


def test_several_files_have_a_source_each() -> None:
    models = _models(
        "models: [{name: m, size: 1B, files: {Q4_1: x, Q8_0: y}, source: {Q4_1: {path: /a/x}, Q8_0: {path: y}}}]"
    )
    assert {key: source.path for key, source in models.models[0].source.items()} == {"Q4_1": "/a/x", "Q8_0": "y"}


@pytest.mark.parametrize("word", ["off", "no", "false", "'off'"])
def test_chat_mode_off_is_a_word_though_yaml_reads_it_as_false(word: str) -> None:
    assert _config(f"ollama: {{chat_mode: {word}}}").ollama.chat_mode == "off"


def test_chat_mode_on_is_not_a_mode() -> None:
    assert _refused_config("ollama:\n  chat_mode: on\n") == (
        "configs/config.yaml:2: ollama.chat_mode: True is not allowed; allowed: 'auto', 'force' or 'off'"
    )


def test_as_many_samples_at_most_as_at_least_are_accepted() -> None:
    assert _config("measurement: {min_samples: 7, max_samples: 7}").measurement.max_samples == 7


# ---------------------------------------------------------------- what is said about the rest


def test_an_unknown_key_names_file_line_and_the_allowed_keys() -> None:
    assert _refused_config("# c\nunknown_key: 1\n") == (
        f"configs/config.yaml:2: unknown_key: unknown key; allowed: {CONFIG_KEYS}"
    )


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("profile", "profiles"),
        ("threshold", "thresholds"),
        ("setings", "settings"),
        ("test-mode", "test_mode"),
        ("Backend", "backend"),
    ],
)
def test_a_misspelt_key_names_the_one_that_was_meant(written: str, meant: str) -> None:
    assert _refused_config(f"model_dir: x\n{written}: [interactive]\n") == (
        f"configs/config.yaml:2: {written}: unknown key (did you mean {meant!r}?); allowed: {CONFIG_KEYS}"
    )


def test_a_misspelt_key_in_a_section_names_those_of_the_section() -> None:
    assert _refused_config("measurement:\n  min_sample: 6\n") == (
        "configs/config.yaml:2: measurement.min_sample: unknown key (did you mean 'min_samples'?); "
        "allowed: calibrate, inconclusive, loads, max_samples, max_seconds, min_samples, overlap, "
        "target_half_width_percent, telemetry"
    )


def test_a_misspelt_key_of_a_model_names_those_of_a_model() -> None:
    assert _refused_models("models:\n  - name: m\n    size: 1B\n    file: {Q4_0: x}\n    served: {Q4_0: x}\n") == (
        f"configs/models.yaml:4: models[0].file: unknown key (did you mean 'files'?); allowed: {MODEL_KEYS}"
    )


def test_a_misspelt_key_of_a_single_source_is_found_on_its_line() -> None:
    text = "models:\n  - name: m\n    size: 1B\n    files: {Q4_0: x}\n    source:\n      path: x\n      sha: 1\n"
    assert _refused_models(text) == (
        "configs/models.yaml:7: models[0].source.Q4_0.sha: unknown key (did you mean 'sha256'?); "
        "allowed: member, path, sha256, size_bytes, url, wheel, wheel_sha256"
    )


@pytest.mark.parametrize("key", ["str", "list[str]", '"[key]"'])
def test_an_unknown_key_that_is_called_like_a_type_is_named_too(key: str) -> None:
    assert _refused_config(f"# c\nembedded:\n  {key}: 1\n") == (
        f"configs/config.yaml:3: embedded.{key.strip(chr(34))}: unknown key; "
        "allowed: default_ctx_size, default_threads, gpu_layers"
    )


def test_an_unknown_key_of_two_lines_is_complained_about_in_one() -> None:
    assert _refused_config('"a\\nb": 1') == (rf"configs/config.yaml:1: a\nb: unknown key; allowed: {CONFIG_KEYS}")


def test_every_problem_has_its_own_line() -> None:
    lines = _refused_config("backend: 5\ntest_mode: fast\nembedded:\n  gpu_layers: -2\n").splitlines()
    assert lines == [
        "configs/config.yaml:1: backend: should be a valid string, not 5",
        "configs/config.yaml:4: embedded.gpu_layers: should be greater than or equal to -1, not -2",
        "configs/config.yaml:2: test_mode: 'fast' is not allowed; allowed: 'quick' or 'full'",
    ]


def test_a_misspelt_value_names_the_one_that_was_meant() -> None:
    assert _refused_config("logging: {level: DEBUGG}") == (
        "configs/config.yaml:1: logging.level: 'DEBUGG' is not allowed (did you mean 'DEBUG'?); "
        "allowed: 'DEBUG', 'INFO', 'WARNING' or 'ERROR'"
    )
    assert _refused_config("output:\n  formats:\n    - json\n    - htm\n") == (
        "configs/config.yaml:4: output.formats[1]: 'htm' is not allowed (did you mean 'html'?); "
        "allowed: 'json', 'csv', 'html' or 'markdown'"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "embedded:\n  default_ctx_size: '8192'",
            ":2: embedded.default_ctx_size: should be a valid integer, not '8192'",
        ),
        (
            "embedded:\n  default_ctx_size: 8192.0",
            ":2: embedded.default_ctx_size: should be a valid integer, not 8192.0",
        ),
        ("embedded:\n  default_ctx_size: true", ":2: embedded.default_ctx_size: should be a valid integer, not True"),
        ("output: {include_logs: 1}", ":1: output.include_logs: should be a valid boolean, not 1"),
        ("model_dir: 5", ":1: model_dir: should be a valid string, not 5"),
        ("profiles: interactive", ":1: profiles: should be a valid list, not 'interactive'"),
        ("profiles: [1]", ":1: profiles[0]: should be a valid string, not 1"),
        ("settings:\n  batch: null", ":2: settings.batch: must hold keys and values, not None"),
        ("backend: [a]", ":1: backend: should be a valid string"),
        ("limits: {max_load_time: .nan}", ":1: limits.max_load_time: should be a finite number, not nan"),
        ("limits: {max_load_time: 0}", ":1: limits.max_load_time: should be greater than 0, not 0"),
        ("variants: [{id: a b}]", ":1: variants[0].id: 'a b' is not allowed; write letters, digits and _ . + - only"),
        ("variants:\n  - threads: 1", ":2: variants[0].id: is required"),
        ("measurement: {min_samples: 5}", ":1: measurement.min_samples: should be greater than or equal to 6, not 5"),
    ],
)
def test_a_wrong_value_is_shown_with_what_it_should_be(text: str, message: str) -> None:
    assert _refused_config(text) == f"configs/config.yaml{message}"


def test_a_section_that_is_no_section_is_refused() -> None:
    refusal = _refused_config("embedded: 5")
    assert refusal.startswith("configs/config.yaml:1: embedded: must hold keys and values, not ")
    assert refusal.endswith(", not 5")


@pytest.mark.parametrize("where", ["llama_cpp: {server_path: %s}", "variants: [{id: v, server_path: %s}]"])
@pytest.mark.parametrize("path", ["''", "../llama-server", "a/../../b", '"a\\0b"'])
def test_a_program_lies_below_the_rootdir_or_is_named_in_full(where: str, path: str) -> None:
    refusal = _refused_config(where % path)
    assert "server_path: '" in refusal
    assert refusal.endswith("must be the name of a program on PATH, a path below the rootdir, or an absolute path")


@pytest.mark.parametrize("path", ["llama-server", "./llama-server", "build/bin/llama-server", "/opt/../x", "~/bin/x"])
def test_a_program_may_be_named(path: str) -> None:
    assert _config(f"llama_cpp: {{server_path: {path}}}").llama_cpp.server_path == path


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("''", "names no program; write for example: vllm serve {model} --host {host} --port {port}"),
        ("[]", "names no program"),
        ("['', a]", "names no program"),
        ('"serve \'x"', "can not be taken apart into words (no closing quotation); close the quotation, or write a "),
        ('["a", "b\\0"]', "holds a null character; remove it"),
    ],
)
def test_a_command_that_can_not_be_run_is_refused(command: str, words: str) -> None:
    refusal = _refused_config(f"openai:\n  command: {command}\n")
    assert refusal.startswith(f"configs/config.yaml:2: openai.command: {words}")


@pytest.mark.parametrize("name", ["''", "MY KEY", "sk-1234", "1KEY"])
def test_a_key_itself_is_not_taken_for_its_variable(name: str) -> None:
    assert _refused_config(f"openai: {{api_key_env: {name}}}").endswith(
        "is not allowed; write the name of an environment variable: letters, digits and _ only"
    )


def test_fewer_samples_at_most_than_at_least_are_refused() -> None:
    assert _refused_config("# c\nmeasurement:\n  min_samples: 10\n  max_samples: 9\n") == (
        "configs/config.yaml:2: measurement: max_samples (9) is below min_samples (10)"
    )


@pytest.mark.parametrize(("text", "kind"), [("[1]", "list"), ("5", "int"), ("word", "str")])
def test_a_file_that_holds_no_keys_is_refused(text: str, kind: str) -> None:
    assert _refused_config(text) == f"configs/config.yaml:1: must hold keys and values, not {kind}"


def test_a_syntax_error_is_refused_with_its_line() -> None:
    refusal = _refused_config("backend: embedded\n model_dir: x\n")
    assert refusal.startswith("configs/config.yaml:2: not valid YAML: ")


def test_a_key_written_twice_is_refused() -> None:
    assert _refused_config("model_dir: a\nbackend: embedded\nmodel_dir: b\n") == (
        "configs/config.yaml:3: model_dir: written twice (first on line 1); keep one"
    )


@pytest.mark.parametrize("key", ["1", "true", "null", "1.5", "2024-01-01"])
def test_a_key_that_is_no_text_is_refused(key: str) -> None:
    refusal = _refused_config(f"{key}: 2")
    assert refusal.startswith("configs/config.yaml:1: ")
    assert "Keys should be strings, not " in refusal


@pytest.mark.parametrize("value", ["0x" + "f" * 5000, "[" * 500 + "]" * 500, '"' + "x" * 5000 + '"'])
def test_a_huge_value_is_not_printed_in_full(value: str) -> None:
    refusal = _refused_config(f"test_mode: {value}")
    assert refusal.startswith("configs/config.yaml:1: test_mode: ")
    assert len(refusal) < 300


# ---------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    "where", ["openai: {base_url: '%s'}", "ollama: {base_url: '%s'}", "variants: [{id: v, base_url: '%s'}]"]
)
@pytest.mark.parametrize(
    "address", ["http://user:hunter2@host:1", "https://hunter2@host", "ftp://user:hunter2@host", "user:hunter2@host:80"]
)
def test_a_password_in_an_address_is_refused_and_not_repeated(where: str, address: str) -> None:
    refusal = _refused_config(where % address)
    assert re.match(
        r"configs/config\.yaml:1: (openai|ollama|variants\[0\])\.base_url: an address must not hold a pass", refusal
    )
    assert refusal.endswith("put the key into an environment variable and name it in api_key_env")
    assert "hunter2" not in refusal


@pytest.mark.parametrize(
    "address", ["", "127.0.0.1:8080", "localhost", "ftp://host", "http://", "http:///x", "http://h:0"]
)
def test_what_is_no_address_is_refused_with_an_example(address: str) -> None:
    with pytest.raises(ValueError, match=r"is not an address; write for example http://127\.0\.0\.1:8080"):
        check_base_url(address)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://h:99999", "Port out of range"),
        ("http://h:x", "Port could not be cast"),
        ("http://[::1", "Invalid IPv6"),
    ],
)
def test_an_impossible_port_or_host_is_refused(address: str, words: str) -> None:
    assert _refused_config(f"openai: {{base_url: '{address}'}}").startswith(
        f"configs/config.yaml:1: openai.base_url: {words}"
    )


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:8080", "https://host/api/v1", "http://[::1]:8080", "http://h/a@b"]
)
def test_an_address_is_kept_without_its_last_slash(address: str) -> None:
    assert _config(f"openai: {{base_url: '{address}/'}}").openai.base_url == address


# ---------------------------------------------------------------- models


def test_models_are_required() -> None:
    assert _refused_models("quick_mode_quants: []\n") == "configs/models.yaml:1: models: is required"
    assert _refused_models("models:\n  - files: {Q4_0: x}\n").splitlines() == [
        "configs/models.yaml:2: models[0].name: is required",
        "configs/models.yaml:2: models[0].size: is required",
    ]


@pytest.mark.parametrize("files", ["{Q4_0: x, Q8_0: y}", "{}", "null"])
def test_a_single_source_with_several_files_is_refused(files: str) -> None:
    refusal = _refused_models(
        f"models:\n  - name: m\n    size: 1B\n    files: {files}\n    served: {{Q4_0: x}}\n    source: {{path: x}}\n"
    )
    assert refusal.startswith("configs/models.yaml:2: models[0]: source: ")
    assert refusal.endswith("with several, write one source per quantization")


def test_a_source_for_a_quantization_without_a_file_is_refused() -> None:
    assert _refused_models("models: [{name: m, size: 1B, files: {Q4_K_M: x}, source: {Q4_K_S: {path: x}}}]") == (
        "configs/models.yaml:1: models[0]: source names 'Q4_K_S', which files does not (did you mean 'Q4_K_M'?)"
    )


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (f"{{sha256: {SHA}}}", "names no origin; write exactly one of wheel, url, path"),
        ("{path: x, url: 'http://h/x'}", "names url and path; write exactly one of wheel, url, path"),
        ("{wheel: a==1}", "wheel and member belong together: the wheel, and the path of the GGUF inside it"),
        ("{path: x, member: y}", "wheel and member belong together: the wheel, and the path of the GGUF inside it"),
    ],
)
def test_a_source_has_exactly_one_origin(source: str, words: str) -> None:
    assert _refused_models(f"models: [{{name: m, size: 1B, files: {{Q4_0: x}}, source: {source}}}]") == (
        f"configs/models.yaml:1: models[0].source.Q4_0: {words}"
    )


@pytest.mark.parametrize("wheel", ["a>=1", "a", "a==1;x", "-a==1", "../a==1", "a==1 b"])
def test_a_wheel_has_an_exact_version(wheel: str) -> None:
    refusal = _refused_models(
        f"models: [{{name: m, size: 1B, files: {{Q4_0: x}}, source: {{wheel: '{wheel}', member: x}}}}]"
    )
    assert refusal.startswith(
        f"configs/models.yaml:1: models[0].source.Q4_0.wheel: '{wheel}' is not allowed; write a name"
    )


@pytest.mark.parametrize("name", ["../x.gguf", "a/../../x", "/etc/passwd", "C:\\\\x", "", "a\\0b"])
@pytest.mark.parametrize("files", ['{Q4_0: "%s"}', '{Q4_0: [ok.gguf, "%s"]}'])
def test_a_file_stays_below_the_folder_of_models(name: str, files: str) -> None:
    refusal = _refused_models(f"models:\n  - name: m\n    size: 1B\n    files: {files % name}\n")
    assert refusal.startswith("configs/models.yaml:4: models[0].files: '")
    assert refusal.endswith("' must be a path inside model_dir")


@pytest.mark.parametrize("name", ["x.gguf", "sub/x.gguf", "..x", "a..b/c", "./x"])
def test_a_file_below_the_folder_is_accepted(name: str) -> None:
    check_inside(name, "model_dir")
    assert _models(f"models: [{{name: m, size: 1B, files: {{Q4_0: {name}}}}}]").models[0].files == {"Q4_0": name}


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("{name: m, size: 1B, files: {Q4_0: []}}", "models[0].files: a file name is empty"),
        ("{name: m, size: 1B}", "models[0]: has neither files nor served, so there is nothing to run; add one"),
        ("{name: m, size: 7 B, files: {Q4_0: x}}", "models[0].size: '7 B' is not a model size; write a number and K, "),
        ("{name: m, size: 7, files: {Q4_0: x}}", "models[0].size: should be a valid string, not 7"),
        (
            "{name: m, size: 1\N{KELVIN SIGN}, files: {Q4_0: x}}",
            "models[0].size: '1\N{KELVIN SIGN}' is not a model size",
        ),
        ("{name: m, size: %sx1B, files: {Q4_0: x}}" % ("9" * 400), "models[0].size: '999"),
        ("{name: '', size: 1B, files: {Q4_0: x}}", "models[0].name: string should have at least 1 character, not ''"),
        ("{name: m, size: 1B, files: {Q 4: x}}", "models[0].files.Q 4: 'Q 4' is not allowed; write letters, digits"),
        ("{name: m, size: 1B, files: {Q4_0: 5}}", "models[0].files.Q4_0: should be a valid string, not 5"),
        ("{name: m, size: 1B, files: {4: x}}", "models[0].files[4]: should be a valid string, not 4"),
        ("{name: m, size: 1B, files: {Q4_0: [1]}}", "models[0].files.Q4_0[0]: should be a valid string, not 1"),
        ("5", "models[0]: must hold keys and values, not 5"),
    ],
)
def test_a_model_that_can_not_be_run_is_refused(model: str, words: str) -> None:
    refusal = _refused_models(f"models:\n  - {model}\n")
    assert any(line.lower().startswith(f"configs/models.yaml:2: {words}".lower()) for line in refusal.splitlines())


def test_two_models_of_one_name_are_refused() -> None:
    text = "models:\n  - {name: m, size: 1B, files: {Q4_0: x}}\n  - {name: m, size: 2B, files: {Q4_0: y}}\n"
    assert _refused_models(text) == "configs/models.yaml:1: two models are named 'm'; names must differ"


# ---------------------------------------------------------------- paths, settings, keys without effect


def test_a_relative_path_lies_below_the_rootdir_and_an_absolute_one_stays(tmp_path: Path) -> None:
    document = parse_yaml("model_dir: x", "config.yaml")
    assert resolve_path("./models", tmp_path, document, ("model_dir",)) == tmp_path / "models"
    assert resolve_path(str(tmp_path / "a"), Path("elsewhere"), document, ("model_dir",)) == tmp_path / "a"


def test_a_path_may_start_at_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    document = parse_yaml("model_dir: ~/m", "config.yaml")
    assert resolve_path("~/m", Path("root"), document, ("model_dir",)) == tmp_path / "m"


@pytest.mark.parametrize("value", ["..", "../x", "a/../../x", "", "a\0b"])
def test_a_relative_path_may_not_climb_out(value: str) -> None:
    document = parse_yaml("backend: embedded\noutput:\n  dir: whatever\n", "config.yaml")
    with pytest.raises(ConfigError) as caught:
        resolve_path(value, Path("root"), document, ("output", "dir"))
    assert str(caught.value).startswith("config.yaml:3: output.dir: ")
    assert str(caught.value).endswith("may not climb out of root; write an absolute path to go elsewhere")


def _loaded(text: str) -> Loaded[Config]:
    document = parse_yaml(text, "config.yaml")
    return Loaded(validate(Config, document), document)


def test_settings_may_stand_among_the_thresholds_and_settings_win() -> None:
    config = _loaded(
        "thresholds:\n"
        "  batch: {num_documents: 5, max_variance: 10}\n"
        "  stress: {duration: 1, sample_interval: 2}\n"
        "settings:\n"
        "  stress: {duration: 3}\n"
        "  interactive: {output_tokens: 100}\n"
    )
    assert split_settings(config) == {
        "batch": {"num_documents": 5},
        "stress": {"duration": 3, "sample_interval": 2},
        "interactive": {"output_tokens": 100},
    }
    assert split_settings(_loaded("")) == {}


@pytest.mark.parametrize("profile", sorted(FOUNDING_SETTINGS))
def test_settings_of_the_founding_profiles_have_defaults_and_know_their_keys(profile: str) -> None:
    shape = FOUNDING_SETTINGS[profile]
    document = parse_yaml(f"# c\nsettings:\n  {profile}:\n    nonsense: 1\n", "config.yaml")
    assert validate(shape, document, ("settings", profile), {}) == shape()
    with pytest.raises(ConfigError) as caught:
        validate(shape, document, ("settings", profile), document.data["settings"][profile])
    assert str(caught.value) == (
        f"config.yaml:4: settings.{profile}.nonsense: unknown key; allowed: {', '.join(sorted(shape.model_fields))}"
    )


def test_a_wrong_setting_is_found_on_its_line() -> None:
    document = parse_yaml("settings:\n  long_context:\n    test_sizes:\n      - 4096\n      - 8\n", "config.yaml")
    with pytest.raises(ConfigError) as caught:
        validate(
            FOUNDING_SETTINGS["long_context"],
            document,
            ("settings", "long_context"),
            document.data["settings"]["long_context"],
        )
    assert str(caught.value) == (
        "config.yaml:5: settings.long_context.test_sizes[1]: should be greater than or equal to 16, not 8"
    )


class _Inner(Section):
    depth: int = 1


class _OwnSettings(Section):
    """A profile that a user registers may nest optional sections."""

    inner: _Inner | None = None
    table: dict[str, list[_Inner]] | None = None


@pytest.mark.parametrize(
    ("data", "key"), [({"inner": {"deph": 1}}, "inner.deph"), ({"table": {"a": [{}, {"deph": 1}]}}, "table.a[1].deph")]
)
def test_a_misspelt_key_deep_in_own_settings_names_the_one_that_was_meant(data: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(_OwnSettings, YamlDocument("config.yaml", None), ("settings", "mine"), data)
    assert str(caught.value) == (
        f"config.yaml:1: settings.mine.{key}: unknown key (did you mean 'depth'?); allowed: depth"
    )


def test_keys_without_effect_yet_are_named_where_they_are_written() -> None:
    config = _config(
        "resume_from: latest\nllama_cpp: {gpu_layers: 1}\nollama: {start: true}\nopenai: {command: a}\n"
        "limits: {allow_swap: true, max_load_time: 5}\nmeasurement: {loads: 2}\n"
        "variants: [{id: a}, {id: b, parallel: 2, threads: 2}]\nthresholds: {batch: {max_variance: 5}}\n"
    )
    assert list(keys_not_used_yet(config)) == [
        "variants[1].parallel",
    ]
    models = _models("models: [{name: m, size: 1B, repo: a/b, files: {Q4_0: x}, source: {Q4_0: {url: 'http://h/x'}}}]")
    assert list(keys_not_used_yet(models)) == []


def test_defaults_are_never_announced_as_without_effect() -> None:
    assert list(keys_not_used_yet(_config(""))) == []
    assert list(keys_not_used_yet(_config("embedded: {gpu_layers: 1}\nprofiles: [batch]"))) == []


# ---------------------------------------------------------------- anything at all


def _assert_model_or_complaint(model: type[Section], text: str) -> None:
    try:
        value = validate(model, parse_yaml(text, "f.yaml"))
    except ConfigError as exc:
        complaint = str(exc)
    else:
        assert isinstance(value, model)
        return
    for line in complaint.split("\n"):
        assert re.match(r"f\.yaml:[1-9]\d*: .", line), line
        assert line.isprintable()


KEYS = sorted(
    {
        *Config.model_fields,
        *Models.model_fields,
        *["name", "size", "files", "source", "served", "id", "ctx_size", "base_url", "chat_mode"],
    }
    | {
        *[
            "Q4_K_M",
            "path",
            "wheel",
            "member",
            "url",
            "interactive",
            "min_tokens_per_sec",
            "test_sizes",
            "min_samples",
            "max_samples",
        ]
    }
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.dates()
    | st.binary()
    | st.sampled_from(["embedded", "quick", "1B", "x.gguf", "../x", "http://h", "http://u:p@h", "a==1", 10**400])
)
nested = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | scalars, inner, max_size=4),
    max_leaves=12,
)
documents = st.dictionaries(st.sampled_from(KEYS), nested, max_size=4)
yaml_lines = st.lists(
    st.tuples(
        st.sampled_from(["", "  ", "    ", "  - ", "- ", "\t"]),
        st.sampled_from([*KEYS, "<<", "? ", "&a a", "*a", "!!bool x", "!!set {a}", '"a\\nb"', "str"])
        | st.text(max_size=5),
        st.sampled_from(
            ["", ":", ": ", ": &a ", ": *a", ": [", ": {", ": |", ": !!int ", ": 2024-99-99", ": off", " #"]
        ),
        st.text(max_size=5),
    ).map("".join),
    max_size=8,
).map("\n".join)


@pytest.mark.parametrize("model", [Config, Models])
@given(text=st.text() | yaml_lines)
def test_any_text_is_a_configuration_or_complained_about_line_by_line(model: type[Section], text: str) -> None:
    _assert_model_or_complaint(model, text)


@pytest.mark.parametrize("model", [Config, Models])
@given(data=documents)
def test_any_yaml_is_a_configuration_or_complained_about_line_by_line(
    model: type[Section], data: dict[str, Any]
) -> None:
    _assert_model_or_complaint(model, yaml.safe_dump(data, allow_unicode=True))


models_like = st.fixed_dictionaries(
    {
        "models": st.lists(
            st.fixed_dictionaries(
                {"name": st.text(), "size": st.text() | st.just("1B")},
                optional={
                    "files": st.dictionaries(
                        st.text(max_size=3) | st.just("Q4_0"), st.text() | st.lists(st.text()), max_size=2
                    ),
                    "source": st.dictionaries(
                        st.sampled_from(["path", "url", "wheel", "Q4_0", "str"]), nested, max_size=2
                    ),
                    "served": nested,
                    "thresholds": nested,
                },
            ),
            max_size=2,
        )
    }
)


@given(data=models_like)
def test_any_list_of_models_is_accepted_or_complained_about_line_by_line(data: dict[str, Any]) -> None:
    _assert_model_or_complaint(Models, yaml.safe_dump(data, allow_unicode=True))


# ---------------------------------------------------------------- devices


def test_devices_are_named_as_cuda_does() -> None:
    assert _config("devices: [0, '1,2', GPU-1a]\n").devices == ["0", "1,2", "GPU-1a"]
    assert _config("devices: cpu\n").devices == "cpu"
    assert Config().devices == "auto"


@pytest.mark.parametrize("written", ["gpu", "[]", "{a: 1}", "3", "[a b]", "['0,']", "null"])
def test_other_devices_are_refused_in_words(written: str) -> None:
    assert "write auto, cpu, or a list of GPUs" in _refused_config(f"devices: {written}\n")


def test_cpus_are_not_among_gpus() -> None:
    assert "auto and cpu stand alone" in _refused_config("devices: [0, cpu]\n")


def test_a_gpu_belongs_to_one_device() -> None:
    assert "'0' is listed twice" in _refused_config("devices: [0, '0,1']\n")
