"""The matrix: which cells there are, in which order, and which server each needs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmbench.core.cell import Cell, ServerSpec, parse_model_size
from pytest_llmbench.core.config import Config, Models, Section
from pytest_llmbench.core.matrix import (
    Matrix,
    backend_kind,
    build_matrix,
    check_backends,
    check_variants,
    kind_named,
    require_base_urls,
    server_spec,
)
from pytest_llmbench.core.validation import Loaded, SectionT, validate
from pytest_llmbench.core.yaml_source import YamlDocument, parse_yaml
from pytest_llmbench.errors import ConfigError

FOUNDING_ORDER = ["Q4_K_M", "Q5_K_M", "Q6_K", "Q3_K_M", "Q2_K", "Q8_0"]
ALL_QUANTIZATIONS = [*FOUNDING_ORDER, "BF16", "F16", "IQ4_NL", "Q4_1"]


def _load(model: type[SectionT], text: str) -> Loaded[SectionT]:
    document = parse_yaml(text, "models.yaml" if issubclass(model, Models) else "config.yaml")
    return Loaded(validate(model, document), document)


def _given(model: type[SectionT], data: dict[str, Any]) -> Loaded[SectionT]:
    return Loaded(model.model_validate(data), YamlDocument("f.yaml", data))


def _matrix(models: str, config: str = "", mode: str = "full") -> Matrix:
    return build_matrix(_load(Config, config), _load(Models, models), mode)


def _ids(matrix: Matrix) -> list[str]:
    return [combination.id for combination in matrix.combinations]


TWO_MODELS = """
models:
  - {name: big, size: 7B, files: {Q8_0: b8.gguf, Q4_K_M: [b4-1.gguf, b4-2.gguf], Q6_K: b6.gguf}}
  - {name: small, size: 500M, files: {Q4_K_M: s4.gguf, Q8_0: s8.gguf}, served: {Q4_K_M: "small:500m", Q2_K: "small:q2"}}
"""


def test_quantization_comes_first_then_model_size() -> None:
    assert _ids(_matrix(TWO_MODELS)) == ["small-Q4_K_M", "big-Q4_K_M", "big-Q6_K", "small-Q8_0", "big-Q8_0"]


def test_variants_come_as_listed_within_a_model() -> None:
    matrix = _matrix(TWO_MODELS + "full_mode_quants: [Q4_K_M]\n", "variants: [{id: zeta}, {id: alpha}]")
    assert _ids(matrix) == ["small-Q4_K_M-zeta", "small-Q4_K_M-alpha", "big-Q4_K_M-zeta", "big-Q4_K_M-alpha"]
    assert [combination.rank for combination in matrix.combinations] == [0, 1, 2, 3]


def test_models_of_one_size_come_as_listed() -> None:
    models = "models: [{name: b, size: 1B, files: {Q8_0: x}}, {name: a, size: 1000M, files: {Q8_0: x}}]"
    assert _ids(_matrix(models)) == ["b-Q8_0", "a-Q8_0"]


def test_the_mode_chooses_the_quantizations() -> None:
    assert _ids(_matrix(TWO_MODELS, mode="quick")) == ["small-Q4_K_M", "big-Q4_K_M"]
    assert _ids(_matrix(TWO_MODELS + "quick_mode_quants: [Q6_K]\n", mode="quick")) == ["big-Q6_K"]
    assert _ids(_matrix(TWO_MODELS + "full_mode_quants: []\n")) == []


def test_a_server_that_brings_its_own_models_runs_what_is_served_too() -> None:
    config = "backend: openai\nopenai: {base_url: 'http://127.0.0.1:1'}\n"
    assert "small-Q2_K" in _ids(_matrix(TWO_MODELS, config))
    assert "small-Q2_K" not in _ids(_matrix(TWO_MODELS))


def test_a_variant_with_another_backend_runs_what_that_backend_can() -> None:
    config = "variants: [{id: own}, {id: remote, backend: openai, base_url: 'http://127.0.0.1:1'}]"
    ids = _ids(_matrix(TWO_MODELS + "full_mode_quants: [Q2_K, Q4_K_M]\n", config))
    assert ids == [
        "small-Q4_K_M-own",
        "small-Q4_K_M-remote",
        "big-Q4_K_M-own",
        "small-Q2_K-remote",
    ]


def test_cells_lead_back_to_their_combination() -> None:
    matrix = _matrix(TWO_MODELS, "variants: [{id: v}]")
    cells = matrix.cells("interactive")
    assert cells[0] == Cell("small", "Q4_K_M", "interactive", "v")
    assert [cell.id for cell in cells] == _ids(matrix)
    assert [matrix.of(cell) for cell in cells] == list(matrix.combinations)
    with pytest.raises(KeyError):
        matrix.of(Cell("small", "Q4_K_M", "interactive"))


def test_cells_without_variants_lead_back_too() -> None:
    matrix = _matrix(TWO_MODELS)
    assert [matrix.of(cell) for cell in matrix.cells("batch")] == list(matrix.combinations)


def test_two_models_that_would_share_an_id_are_refused_with_the_line_of_the_later() -> None:
    models = "models:\n  - {name: a b, size: 1B, files: {Q8_0: x}}\n  - {name: a:b, size: 2B, files: {Q8_0: x}}\n"
    with pytest.raises(ConfigError) as caught:
        _matrix(models)
    assert str(caught.value) == (
        "models.yaml:3: models[1].name: 'a:b' Q8_0 would have the id 'a_b-Q8_0', as 'a b' Q8_0 has; rename one"
    )


def test_two_variants_of_one_id_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        _matrix(TWO_MODELS, "variants:\n  - id: v\n  - id: v\n    threads: 2\n")
    assert str(caught.value) == "config.yaml:3: variants[1].id: 'v' is used twice; ids must differ"


sizes = st.sampled_from(["135M", "500M", "1B", "1000M", "1.5B", "7B", "8x7B"])
models_data = st.lists(
    st.tuples(sizes, st.lists(st.sampled_from(ALL_QUANTIZATIONS), min_size=1, unique=True)), max_size=5
).map(
    lambda rows: {
        "models": [
            {"name": f"m{i}", "size": size, "files": dict.fromkeys(quantizations, "x.gguf")}
            for i, (size, quantizations) in enumerate(rows)
        ],
        "full_mode_quants": ALL_QUANTIZATIONS,
    }
)


@given(models_data, st.lists(st.sampled_from("zyxab"), unique=True))
def test_the_order_is_as_documented_and_nothing_is_lost(data: dict[str, Any], variants: list[str]) -> None:
    config = _given(Config, {"variants": [{"id": variant} for variant in variants]})
    combinations = build_matrix(config, _given(Models, data), "full").combinations
    keys = [
        (
            ALL_QUANTIZATIONS.index(c.quantization),  # founding order, then by name: the list is written that way
            parse_model_size(c.model.size),
            int(c.model.name[1:]),
            variants.index(c.variant.id) if c.variant else 0,
        )
        for c in combinations
    ]
    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys) == sum(len(m["files"]) for m in data["models"]) * max(1, len(variants))
    assert [c.rank for c in combinations] == list(range(len(combinations)))


def test_a_variant_may_choose_the_backend() -> None:
    config = _load(Config, "variants: [{id: a}, {id: b, backend: openai}]").value
    assert backend_kind(config, None) == "embedded"
    assert [backend_kind(config, variant) for variant in config.variants] == ["embedded", "openai"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("backend: embeded", "config.yaml:1: backend: 'embeded' is no backend (did you mean 'embedded'?); allowed: "),
        ("backend: xyz", "config.yaml:1: backend: 'xyz' is no backend; allowed: "),
        (
            "variants:\n  - id: a\n  - id: b\n    backend: opnai\n",
            "config.yaml:4: variants[1].backend: 'opnai' is no backend (did you mean 'openai'?); allowed: ",
        ),
    ],
)
def test_a_backend_that_is_not_there_is_refused_with_the_nearest(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_backends(_load(Config, text), ["openai", "embedded"])
    assert str(caught.value) == message + "embedded, openai"


def test_registered_backends_are_accepted_wherever_written() -> None:
    config = _load(Config, "backend: mine\nvariants: [{id: a, backend: openai}, {id: b}]")
    check_backends(config, ["mine", "openai"])  # raises when it does not know one of them
    with pytest.raises(ConfigError, match="'mine' is no backend"):
        check_backends(config, ["openai"])


def _spec(config: str, models: str = TWO_MODELS, position: int = 0) -> ServerSpec:
    loaded = _load(Config, config)
    matrix = build_matrix(loaded, _load(Models, models), "full")
    return server_spec(loaded.value, matrix.combinations[position])


def test_an_embedded_server_takes_its_section_of_the_configuration() -> None:
    spec = _spec("embedded: {default_ctx_size: 2048, default_threads: 3, gpu_layers: 5}\nlimits: {max_load_time: 7}\n")
    assert spec == ServerSpec(
        "embedded",
        "small_Q4_K_M",
        model_file="500M/s4.gguf",
        context_size=2048,
        threads=3,
        gpu_layers=5,
        max_load_seconds=7.0,
    )
    assert spec.label == "small_Q4_K_M"


def test_a_model_in_shards_is_loaded_by_its_first() -> None:
    assert _spec("", position=1).model_file == "7B/b4-1.gguf"


def test_a_variant_replaces_the_defaults_even_by_zero() -> None:
    spec = _spec(
        "embedded: {default_threads: 3, gpu_layers: 5}\n"
        "variants: [{id: v.1, ctx_size: 1024, threads: 8, gpu_layers: 0, cache_type_k: q8_0, cache_type_v: q4_0}]"
    )
    assert (spec.context_size, spec.threads, spec.gpu_layers) == (1024, 8, 0)
    assert (spec.cache_type_k, spec.cache_type_v) == ("q8_0", "q4_0")
    assert spec.label == "small_Q4_K_M_v.1"


def test_a_running_server_is_asked_for_the_name_it_serves() -> None:
    config = "backend: openai\nopenai: {base_url: 'http://127.0.0.1:8080/', api_key_env: KEY, default_ctx_size: 4096}\n"
    spec = _spec(config)
    assert spec == ServerSpec(
        "openai",
        "small_Q4_K_M",
        model_name="small:500m",
        context_size=4096,
        base_url="http://127.0.0.1:8080",
        api_key_env="KEY",
    )
    assert _spec(config, position=1).model_name == "small:q2"


def test_a_variant_may_name_another_running_server() -> None:
    config = (
        "backend: openai\nopenai: {base_url: 'http://127.0.0.1:1'}\n"
        "variants: [{id: v, base_url: 'http://127.0.0.1:2', ctx_size: 512}]"
    )
    assert (_spec(config).base_url, _spec(config).context_size) == ("http://127.0.0.1:2", 512)


def test_a_running_server_needs_an_address() -> None:
    config = _load(Config, "# c\nbackend: openai\nopenai:\n  api_key_env: KEY\n")
    matrix = build_matrix(config, _load(Models, TWO_MODELS), "full")
    with pytest.raises(ConfigError) as caught:
        require_base_urls(config, matrix)
    assert str(caught.value) == (
        "config.yaml:3: openai.base_url: backend 'openai' needs the address of a running server, for example "
        "http://127.0.0.1:8080, or the command that starts one (openai.command)"
    )


@pytest.mark.parametrize(
    "text",
    [
        "backend: embedded",
        "backend: openai\nopenai: {base_url: 'http://127.0.0.1:1'}",
        "variants: [{id: v, backend: openai, base_url: 'http://127.0.0.1:1'}, {id: w}]",
        "backend: openai\nopenai: {command: 'serve --port={port}'}",
        "backend: openai\nopenai: {command: serve, base_url: 'http://127.0.0.1:1'}",
        "backend: ollama",
    ],
)
def test_no_address_is_asked_for_where_none_is_missing(text: str) -> None:
    config = _load(Config, text)
    matrix = build_matrix(config, _load(Models, TWO_MODELS), "full")
    assert matrix.combinations
    require_base_urls(config, matrix)


def test_sections_of_the_configuration_are_frozen() -> None:
    config: Section = _load(Config, "").value
    with pytest.raises(ValueError, match="frozen"):
        config.backend = "other"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("{id: a, threads: 1}", "config.yaml:3: variants[0].threads: backend 'openai' can not be told this"),
        ("{id: a, cache_type_k: q8_0}", "variants[0].cache_type_k: backend 'openai' can not be told this"),
        ("{id: a, gpu_layers: 0}", "variants[0].gpu_layers: backend 'openai' can not be told this"),
        (
            "{id: a, backend: embedded, base_url: 'http://127.0.0.1:1'}",
            "can not be told this, it reads cache_type_k, cache_type_v, ctx_size, gpu_layers, threads; leave it out",
        ),
        (
            "{id: a, backend: embedded, server_path: x}",
            "variants[0].server_path: backend 'embedded' can not be told this",
        ),
        ("{id: a, server_path: x}", "variants[0].server_path: backend 'openai' can not be told this"),
        ("{id: a, backend: ollama, extra_args: []}", "variants[0].extra_args: backend 'ollama' can not be told this"),
        ("{id: a, backend: mine, base_url: 'http://h'}", "variants[0].base_url: backend 'mine' can not be told this"),
    ],
)
def test_a_variants_key_that_its_backend_does_not_read_is_refused(variant: str, message: str) -> None:
    text = f"backend: openai\nopenai: {{base_url: 'http://127.0.0.1:1'}}\nvariants: [{variant}]\n"
    with pytest.raises(ConfigError) as caught:
        check_variants(_load(Config, text))
    assert message in str(caught.value)


def test_a_registered_backend_that_starts_its_server_gets_its_own_file_and_settings() -> None:
    config = _load(Config, "backend: mine\nembedded: {default_ctx_size: 2048}\nvariants: [{id: v, threads: 3}]\n")
    matrix = build_matrix(config, _load(Models, TWO_MODELS), "full", serving=["openai", "remote"])
    specs = [server_spec(config.value, c, ["openai", "remote"]) for c in matrix.combinations]
    assert [spec.model_file for spec in specs[:2]] == ["500M/s4.gguf", "7B/b4-1.gguf"]
    assert {(spec.kind, spec.context_size, spec.threads) for spec in specs} == {("mine", 2048, 3)}
    assert len(set(specs)) == len(specs)


def test_a_model_without_a_served_name_is_no_cell_of_a_running_server() -> None:
    config = "backend: openai\nopenai: {base_url: 'http://127.0.0.1:1'}\n"
    assert _ids(_matrix(TWO_MODELS, config)) == ["small-Q4_K_M", "small-Q2_K"]


ALL_KEYS = {
    "ctx_size": 512,
    "gpu_layers": 1,
    "threads": 2,
    "cache_type_k": "q8_0",
    "cache_type_v": "q8_0",
    "server_path": "x",
    "extra_args": ["-x"],
    "base_url": "http://h",
}


@pytest.mark.parametrize("kind", ["embedded", "llama_cpp", "ollama", "openai", "mine", "remote"])
def test_what_a_variant_may_say_changes_the_server(kind: str) -> None:
    """And whatever would not is refused."""
    serving = ["openai", "remote"]
    models = _load(Models, TWO_MODELS)

    def spec(extra: dict[str, Any]) -> ServerSpec:
        config = _given(Config, {"backend": kind, "variants": [{"id": "v", **extra}]})
        check_variants(config, serving)
        matrix = build_matrix(config, models, "full", serving)
        return server_spec(config.value, matrix.combinations[0], serving)

    accepted = set()
    for key, value in ALL_KEYS.items():
        try:
            changed = spec({key: value})
        except ConfigError:
            continue
        accepted.add(key)
        assert changed != spec({}), key
    assert accepted == kind_named(kind, serving).variant_keys


def test_a_llama_server_takes_its_section_of_the_configuration() -> None:
    spec = _spec(
        "backend: llama_cpp\nembedded: {default_ctx_size: 1024}\n"
        "llama_cpp: {server_path: bin/llama-server, default_ctx_size: 2048, default_threads: 3, gpu_layers: -1, "
        "extra_args: [--flash-attn, 'on']}\n"
    )
    assert spec == ServerSpec(
        "llama_cpp",
        "small_Q4_K_M",
        model_file="500M/s4.gguf",
        context_size=2048,
        threads=3,
        gpu_layers=-1,
        server_path="bin/llama-server",
        extra_args=("--flash-attn", "on"),
    )


def test_two_builds_are_two_variants() -> None:
    config = _load(
        Config,
        "backend: llama_cpp\nllama_cpp: {extra_args: [-a]}\n"
        "variants: [{id: old, server_path: a}, {id: new, server_path: b, extra_args: []}]",
    )
    check_variants(config)
    matrix = build_matrix(config, _load(Models, TWO_MODELS), "full")
    specs = [server_spec(config.value, combination) for combination in matrix.combinations[:2]]
    assert [(spec.server_path, spec.extra_args) for spec in specs] == [("a", ("-a",)), ("b", ())]


def test_ollama_prefers_the_name_it_serves_and_imports_what_it_does_not() -> None:
    config = _load(Config, "backend: ollama\nollama: {base_url: 'http://h:1', start: true, chat_mode: force}\n")
    matrix = build_matrix(config, _load(Models, TWO_MODELS), "full")
    assert _ids(matrix) == ["small-Q4_K_M", "big-Q4_K_M", "big-Q6_K", "small-Q2_K", "small-Q8_0", "big-Q8_0"]
    by_id = {combination.id: server_spec(config.value, combination) for combination in matrix.combinations}
    assert by_id["small-Q4_K_M"] == ServerSpec(
        "ollama",
        "small_Q4_K_M",
        model_name="small:500m",
        context_size=8192,
        base_url="http://h:1",
        start_server=True,
        chat_mode="force",
    )
    imported = by_id["small-Q8_0"]
    assert (imported.model_name, imported.model_file) == ("llmbench-small_q8_0", "500M/s8.gguf")


def test_an_imported_model_has_a_name_that_ollama_takes_and_one_name_for_all_variants() -> None:
    def names(model: str) -> set[str | None]:
        models = _given(Models, {"models": [{"name": model, "size": "1B", "files": {"Q8_0": "x"}}]})
        config = _load(Config, "backend: ollama\nvariants: [{id: a}, {id: b, threads: 1}]")
        matrix = build_matrix(config, models, "full")
        return {server_spec(config.value, combination).model_name for combination in matrix.combinations}

    assert names("A+B c/d") == {"llmbench-a_b_c_d_q8_0"}
    long, other = names("x" * 200), names("x" * 201)
    assert long != other
    assert len(long) == len(other) == 1
    assert {len(name or "") for name in long | other} == {80}


def test_a_command_is_taken_apart_into_words() -> None:
    words = "vllm serve {model} --port {port} --opts '{\"a\": 1}'"
    spec = _spec(f"backend: openai\nopenai: {{api_key_env: KEY, command: {json.dumps(words)}}}")
    assert spec.command == ("vllm", "serve", "{model}", "--port", "{port}", "--opts", '{"a": 1}')
    assert spec.base_url is None
    assert _spec("backend: openai\nopenai: {command: [a b, '{port}']}").command == ("a b", "{port}")


def test_a_command_must_take_the_port_that_is_chosen() -> None:
    config = _load(Config, "# c\nbackend: openai\nopenai:\n  command: serve {model}\n")
    matrix = build_matrix(config, _load(Models, TWO_MODELS), "full")
    with pytest.raises(ConfigError) as caught:
        require_base_urls(config, matrix)
    assert str(caught.value) == (
        "config.yaml:4: openai.command: the command must take the port that is chosen for it: write {port} where it "
        "belongs, or set base_url"
    )


@pytest.mark.parametrize(
    ("config", "needed", "size"),
    [
        ("embedded: {default_ctx_size: 2048}", None, 2048),
        ("embedded: {default_ctx_size: 2048}", 1000, 2048),
        ("embedded: {default_ctx_size: 2048}", 4000, 4000),
        ("variants: [{id: v, ctx_size: 512}]", 300, 512),
        ("variants: [{id: v, ctx_size: 512}]", 600, 600),
        ("backend: llama_cpp", 9000, 9000),
        ("backend: ollama", 9000, 9000),
        ("backend: openai\nopenai: {base_url: 'http://h'}", None, None),
        ("backend: openai\nopenai: {base_url: 'http://h'}", 700, 700),
        ("backend: openai\nopenai: {base_url: 'http://h', default_ctx_size: 4096}", 700, 4096),
    ],
)
def test_the_context_is_what_is_configured_or_what_a_profile_needs_if_more(
    config: str, needed: int | None, size: int | None
) -> None:
    loaded = _load(Config, config)
    combination = build_matrix(loaded, _load(Models, TWO_MODELS), "full").combinations[0]
    assert server_spec(loaded.value, combination, needed_context=needed).context_size == size


# ---------------------------------------------------------------- files of several models


def test_two_models_whose_different_files_would_lie_in_one_place_are_refused() -> None:
    """Else the server of one would serve the cells of both."""
    entry = "  - {{name: {0}, size: 1B, files: {{Q8_0: x.gguf}}, source: {{path: {0}/x.gguf}}}}\n"
    with pytest.raises(ConfigError) as caught:
        _matrix("models:\n" + entry.format("a") + entry.format("b"))
    assert str(caught.value) == (
        "models.yaml:3: models[1].files.Q8_0: 'b' would keep its file in 1B/x.gguf, as 'a' does, whose file comes from "
        "elsewhere; give one of them another file name, or a folder: <folder>/<file name>"
    )


@pytest.mark.parametrize(
    "second",
    [
        "{name: b, size: 1B, files: {Q8_0: x.gguf}, source: {path: a/x.gguf}}",  # the same file under two names
        "{name: b, size: 2B, files: {Q8_0: x.gguf}, source: {path: b/x.gguf}}",
        "{name: b, size: 1B, files: {Q8_0: b/x.gguf}, source: {path: b/x.gguf}}",
    ],
)
def test_other_files_may_have_the_same_name(second: str) -> None:
    first = "{name: a, size: 1B, files: {Q8_0: x.gguf}, source: {path: a/x.gguf}}"
    assert len(_matrix(f"models:\n  - {first}\n  - {second}\n").combinations) == 2
