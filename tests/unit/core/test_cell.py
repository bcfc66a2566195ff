"""Cells: their names, sizes and order, and what two cells may share."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmbench.core.cell import Cell, ServerSpec, cell_id, parse_model_size, quantization_rank, safe_name

ALLOWED = re.compile(r"[A-Za-z0-9_.+-]*")


def test_a_cell_is_named_model_quantization_variant() -> None:
    assert Cell("Qwen2.5-7B", "Q4_K_M", "interactive").id == "Qwen2.5-7B-Q4_K_M"
    assert Cell("Qwen2.5-7B", "Q4_K_M", "interactive", "kv-q8").id == "Qwen2.5-7B-Q4_K_M-kv-q8"


def test_what_an_id_may_not_hold_becomes_an_underscore() -> None:
    assert cell_id("org/model:7b [x]", "Q4_0", None) == "org_model_7b__x_-Q4_0"
    assert safe_name("größe\n\ud800") == "gr__e__"


@given(st.text(), st.text(), st.none() | st.text())
def test_ids_hold_only_what_is_allowed_and_never_change(model: str, quantization: str, variant: str | None) -> None:
    identifier = cell_id(model, quantization, variant)
    assert ALLOWED.fullmatch(identifier)
    assert identifier == cell_id(model, quantization, variant)
    assert identifier == safe_name(identifier)
    parts = (model, quantization) if variant is None else (model, quantization, variant)
    assert len(identifier) == sum(map(len, parts)) + len(parts) - 1


@pytest.mark.parametrize(
    ("label", "parameters"),
    [("135M", 135e6), ("1.5B", 1.5e9), ("8x7B", 56e9), ("700k", 700e3), ("2T", 2e12), ("0.5b", 0.5e9)],
)
def test_model_sizes_are_numbers_of_parameters(label: str, parameters: float) -> None:
    assert parse_model_size(label) == pytest.approx(parameters)


@pytest.mark.parametrize(
    "label",
    [
        *("", "7", "B", "7 B", "7G", "1.B", ".5B", "-1B", "x7B", "8x", "1e3M", "7B\n"),
        *("1\N{KELVIN SIGN}", "\N{ARABIC-INDIC DIGIT ONE}B", "9" * 400 + "x1B", "9" * 5000 + "B"),
    ],
)
def test_other_labels_are_refused_with_examples(label: str) -> None:
    with pytest.raises(ValueError, match="is not a model size; write a number and K, M, B or T, for example 135M"):
        parse_model_size(label)


@given(st.text(alphabet="0123456789.xXkmbtKMBT\N{KELVIN SIGN}\N{LATIN SMALL LETTER LONG S}"))
def test_any_label_is_a_finite_size_or_refused(label: str) -> None:
    try:
        size = parse_model_size(label)
    except ValueError as exc:
        refusal = str(exc)
    else:
        assert 0 <= size < float("inf")
        return
    assert refusal.startswith(f"{label!r} is not a model size")


def test_quantizations_come_in_the_founding_order_then_by_name() -> None:
    names = ["Q8_0", "F16", "Q2_K", "IQ4_NL", "Q3_K_M", "Q6_K", "Q4_1", "Q5_K_M", "Q4_K_M", "BF16"]
    assert sorted(names, key=quantization_rank) == [
        *("Q4_K_M", "Q5_K_M", "Q6_K", "Q3_K_M", "Q2_K", "Q8_0"),
        *("BF16", "F16", "IQ4_NL", "Q4_1"),
    ]


def test_servers_that_differ_in_their_label_only_are_shared() -> None:
    one = ServerSpec("embedded", "a", model_file="1B/x.gguf", context_size=4096)
    assert one == ServerSpec("embedded", "b", model_file="1B/x.gguf", context_size=4096)
    assert hash(one) == hash(ServerSpec("embedded", "b", model_file="1B/x.gguf", context_size=4096))
    assert one != ServerSpec("embedded", "a", model_file="1B/x.gguf", context_size=8192)


def test_a_server_is_recorded_with_what_was_asked_for() -> None:
    spec = ServerSpec("embedded", "label", model_file="1B/x.gguf", gpu_layers=0, cache_type_k="q8_0")
    assert spec.as_args() == {"gpu_layers": 0, "cache_type_k": "q8_0"}  # the file is recorded as it was found


def test_a_server_record_names_the_variable_of_a_key_not_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_KEY", "sk-secret")
    args = ServerSpec("openai", "label", base_url="http://127.0.0.1:1", api_key_env="LLM_KEY").as_args()
    assert args["api_key_env"] == "LLM_KEY"
    assert "sk-secret" not in str(args)
