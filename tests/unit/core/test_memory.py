"""Predictions against sizes that llama.cpp (b11434) itself reported for files of these shapes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmbench.core.gguf import GgufArray, GgufHeader, Tensor, read_header
from pytest_llmbench.core.memory import (
    CACHE_ELEMENT_BYTES,
    MIB,
    ServingSettings,
    estimate_from_size,
    estimate_memory,
)
from pytest_llmbench.core.model_shape import shape_of
from tests.ggufs.shapes import SHAPES, write_shape

F16, Q8 = "f16", "q8_0"
# Shape, context, slots, one cache for all, cache type, flash attention → MiB of KV cache, compute, output, state.
ENGINE_SAYS = [
    ("llama-3.1-8b", 131072, 1, False, F16, True, 16384.0, 252.02, 0.49, 0.0),
    ("llama-3.1-8b", 8192, 4, False, F16, True, 1024.0, 126.02, 1.96, 0.0),
    ("llama-3.1-8b", 8192, 4, True, F16, True, 1024.0, 132.02, 1.96, 0.0),
    ("llama-3.1-8b", 8192, 1, False, F16, False, 1024.0, 580.01, 0.49, 0.0),
    ("llama-3.1-8b", 8192, 1, False, Q8, True, 544.0, 132.1, 0.49, 0.0),
    ("llama-3.1-8b", 5000, 3, False, F16, True, 672.0, 126.01, 1.47, 0.0),
    ("llama-3.1-70b", 131072, 1, False, F16, True, 40960.0, 376.02, 0.49, 0.0),
    ("llama-3.1-70b", 32768, 4, False, F16, True, 10240.0, 256.02, 1.96, 0.0),
    ("phi-3.5-mini", 131072, 1, False, F16, True, 49152.0, 206.02, 0.12, 0.0),  # its window is not used
    ("gemma-2-9b", 8192, 1, False, F16, True, 2100.0, 131.53, 0.98, 0.0),
    ("gemma-2-9b", 8192, 4, True, F16, True, 2688.0, 135.03, 3.91, 0.0),
    ("gemma-3-4b", 131072, 1, False, F16, True, 2734.0, 214.53, 1.0, 0.0),
    ("gemma-3-4b", 8192, 4, False, F16, True, 856.0, 88.53, 4.0, 0.0),
    ("gemma-3-4b", 8192, 4, True, F16, True, 682.0, 97.53, 4.0, 0.0),
    ("gemma-3-4b", 8192, 1, False, F16, False, 334.0, 184.02, 1.0, 0.0),
    ("gemma-3n-e2b", 8192, 4, False, F16, True, 192.0, 117.03, 4.0, 0.0),
    ("mixtral-8x7b", 8192, 4, True, F16, True, 1024.0, 216.02, 0.49, 0.0),
    ("qwen3-30b-a3b", 32768, 1, False, F16, True, 3072.0, 120.02, 0.58, 0.0),
    ("gpt-oss-20b", 131072, 1, False, F16, True, 3090.0, 224.4, 0.77, 0.0),
    ("gpt-oss-20b", 8192, 1, False, F16, False, 210.0, 1089.64, 0.77, 0.0),
    ("deepseek-v2-lite", 131072, 1, False, F16, True, 3888.0, 212.14, 0.39, 0.0),
    ("deepseek-v2-lite", 8192, 1, False, Q8, True, 129.09, 92.14, 0.39, 0.0),
    ("mamba-2.8b", 131072, 1, False, F16, True, 0.0, 75.38, 0.19, 23.75),
    ("mamba-2.8b", 8192, 4, False, F16, True, 0.0, 76.49, 0.77, 95.0),
    ("codestral-mamba-7b", 4096, 1, False, F16, True, 0.0, 132.38, 0.12, 263.5),
    ("jamba-1.5-mini", 131072, 1, False, F16, True, 2048.0, 336.02, 0.25, 16.62),
    ("qwen3-next-80b-a3b", 8192, 1, False, F16, True, 192.0, 98.02, 0.58, 75.38),
    ("granite-4-h-tiny", 8192, 1, False, F16, True, 64.0, 59.02, 0.38, 55.37),
    ("lfm2-1.2b", 8192, 4, False, F16, True, 96.0, 70.02, 1.0, 0.62),
    ("falcon-h1-7b", 131072, 1, False, F16, True, 5632.0, 230.02, 0.5, 133.8),
]
LAYERS = 2


@pytest.fixture(scope="module")
def headers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, GgufHeader]:
    folder = tmp_path_factory.mktemp("shapes")
    found = {}
    for name in dict.fromkeys(row[0] for row in ENGINE_SAYS):
        quantization = "MXFP4_MOE" if name.startswith("gpt-oss") else "Q4_K_M"
        found[name] = read_header(write_shape(folder / name, SHAPES[name], quantization, vocabulary="none"))
    return found


@pytest.mark.parametrize("row", ENGINE_SAYS, ids=lambda row: "-".join(map(str, row[:6])))
def test_engine_says_the_same(headers: dict[str, GgufHeader], row: tuple[object, ...]) -> None:
    name, context, parallel, unified, cache, flash, kv, compute, output, state = row
    settings = ServingSettings(
        int(str(context)),
        parallel=int(str(parallel)),
        unified_kv=bool(unified),
        cache_type_k=str(cache),
        cache_type_v=str(cache),
        flash_attention=bool(flash),
    )
    parts = estimate_memory(headers[str(name)], settings).parts
    assert parts.kv_bytes / MIB == pytest.approx(kv, abs=0.011)
    assert parts.recurrent_bytes / MIB == pytest.approx(state, abs=0.011)
    assert parts.output_bytes / MIB == pytest.approx(output, abs=0.006)
    assert parts.compute_bytes / MIB == pytest.approx(compute, rel=0.05)
    assert parts.weights_bytes == headers[str(name)].tensor_bytes


def test_all_of_these_are_known(headers: dict[str, GgufHeader]) -> None:
    for name, header in headers.items():
        shape = shape_of(header)
        assert shape is not None, name
        assert shape.known, name


def layers_of(architecture: str, count: int = LAYERS, **keys: Any) -> GgufHeader:
    metadata: dict[str, Any] = {"general.architecture": architecture, f"{architecture}.block_count": count}
    plain = {"embedding_length": 512, "attention.head_count": 8, "feed_forward_length": 1024, **keys}
    metadata |= {f"{architecture}.{name.replace('__', '.')}": value for name, value in plain.items()}
    tensors = (Tensor("token_embd.weight", (512, 1000), "F16", 1_024_000),)
    return GgufHeader(3, metadata, tensors, 1_030_000, 6000)


def with_blocks(header: GgufHeader, blocks: int, size_bytes: int = 1_000_000_000) -> GgufHeader:
    """The same with one large matrix per block, and nothing else."""
    matrices = (Tensor(f"blk.{index}.attn_q.weight", (512, 512), "F16", size_bytes) for index in range(blocks))
    return replace(header, tensors=tuple(matrices))


def windows_of(header: GgufHeader) -> list[int | None]:
    shape = shape_of(header)
    assert shape is not None
    return [layer.window_tokens for layer in shape.layers]


@pytest.mark.parametrize(
    ("architecture", "keys", "expected"),
    [
        ("llama", {"attention__sliding_window": 4096}, [None] * 8),  # the engine does not look at it
        ("phi3", {"attention__sliding_window": 4096}, [None] * 8),
        ("gemma2", {}, [4096, None] * 4),
        ("gemma3", {}, [None] * 8),  # without a window in the header nothing slides
        ("gemma3", {"attention__sliding_window": 512}, [512] * 5 + [None] + [512] * 2),
        ("gpt-oss", {"attention__sliding_window": 128}, [128, None] * 4),
        ("cohere2moe", {"attention__sliding_window": 64}, [None, 64, 64, 64] * 2),
        ("llama4", {"attention__sliding_window": 100}, [8192, 8192, 8192, None] * 2),
        ("llama4", {"attention__sliding_window": 0}, [None] * 8),
        ("exaone4", {"attention__sliding_window": 4096}, [None] * 8),
        ("lfm2", {"attention__sliding_window": 64}, [64] * 8),
        ("lfm2moe", {"attention__sliding_window": 64}, [None] * 8),
        ("smallthinker", {}, [None] * 8),
        ("smallthinker", {"attention__sliding_window": 64}, [None, 4096, 4096, 4096] * 2),
        (
            "gemma4",
            {"attention__sliding_window": 64, "attention__sliding_window_pattern": (True, False) * 4},
            [64, None] * 4,
        ),
        ("gemma2", {"attention__sliding_window": 64, "attention__sliding_window_pattern": 4}, [64, 64, 64, None] * 2),
        ("gemma2", {"attention__sliding_window": 64, "attention__sliding_window_pattern": 0}, [64] * 8),
        ("gemma4", {"attention__sliding_window": 64}, [None] * 8),
        (
            "gemma4",
            {"attention__sliding_window": 64, "attention__sliding_window_pattern": (True,)},
            [64] + [None] * 7,  # layers beyond the pattern attend to everything
        ),
        ("gemma2", {"attention__sliding_window": 64, "attention__sliding_window_pattern": -1}, [64, None] * 4),
        ("gemma2", {"attention__sliding_window": 64, "attention__sliding_window_pattern": True}, [64, None] * 4),
        ("gemma3n", {"attention__sliding_window": 64}, [64] * 4 + [None] + [64] * 3),
        ("exaone-moe", {}, [128, 128, 128, None] * 2),
        ("plamo3", {"attention__sliding_window": 64}, [64] * 7 + [None]),
        *[
            (name, {"attention__sliding_window": 64}, [64, 64, 64, None] * 2)
            for name in ("afmoe", "cohere2", "mellum", "muse-glimmer", "olmo2")
        ],
        ("laguna", {"attention__sliding_window": 64}, [None, 64, 64, 64] * 2),
        ("smallthinker", {"attention__sliding_window": 4096}, [None, 4096, 4096, 4096] * 2),
    ],
)
def test_which_layers_slide(architecture: str, keys: dict[str, Any], expected: list[int | None]) -> None:
    assert windows_of(layers_of(architecture, 8, **keys)) == expected


def test_the_large_exaone_slides() -> None:
    assert windows_of(layers_of("exaone4", 64)) == [4096, 4096, 4096, None] * 16


def test_sliding_layers_may_have_other_heads() -> None:
    lengths = {"key_length": 32, "value_length": 24, "key_length_swa": 16, "value_length_swa": 8}
    keys: dict[str, Any] = {f"attention__{name}": length for name, length in lengths.items()}
    header = layers_of("gemma4", **keys, attention__sliding_window=64, attention__sliding_window_pattern=(True, False))
    shape = shape_of(header)
    assert shape is not None
    assert [(layer.key_length, layer.value_length) for layer in shape.layers] == [(16, 8), (32, 24)]


def test_recurrent_layers_by_interval_or_as_stated() -> None:
    def recurrent(**keys: Any) -> list[bool]:
        shape = shape_of(layers_of("qwen3next", 4, ssm__inner_size=64, ssm__state_size=8, ssm__conv_kernel=4, **keys))
        assert shape is not None
        return [layer.state_elements > 0 for layer in shape.layers]

    assert recurrent() == [True, True, True, False]
    assert recurrent(full_attention_interval=2) == [True, False, True, False]
    assert recurrent(attention__recurrent_layers=(0, 1, 0, 0)) == [False, True, False, False]
    assert recurrent(attention__recurrent_layers=(0, 1)) == [True, True, True, False]  # too short to be believed


def test_linear_attention_has_one_operation_and_no_scan(headers: dict[str, GgufHeader]) -> None:
    shape = shape_of(headers["qwen3-next-80b-a3b"])
    assert shape is not None
    assert shape.inner_width == shape.convolution_width == 0


def test_each_layer_of_nemotron_does_one_thing() -> None:
    header = layers_of(
        "nemotron_h",
        4,
        attention__head_count_kv=(0, 0, 2, 2),
        feed_forward_length=(0, 1024, 0, 1024),
        ssm__inner_size=64,
        ssm__state_size=8,
        ssm__conv_kernel=4,
    )
    shape = shape_of(header)
    assert shape is not None
    assert [(layer.kv_heads, layer.state_elements > 0, layer.feed_forward) for layer in shape.layers] == [
        (0, True, 0),
        (0, False, 1024),
        (2, False, 0),
        (0, False, 1024),  # what has a feed-forward part does not attend, whatever its heads
    ]


def test_layers_that_share_a_cache_have_none() -> None:
    shape = shape_of(layers_of("gemma4", 4, attention__shared_kv_layers=3))
    assert shape is not None
    assert [layer.kv_heads > 0 for layer in shape.layers] == [True, False, False, False]


@pytest.mark.parametrize(("predicting", "left"), [(1, 3), (9, 1)])
def test_layers_for_speculative_decoding_are_not_loaded(predicting: int, left: int) -> None:
    shape = shape_of(layers_of("glm4moe", 4, nextn_predict_layers=predicting))
    assert shape is not None
    assert len(shape.layers) == left


def test_more_layers_than_a_model_has_are_no_shape() -> None:
    assert shape_of(layers_of("llama", 4096)) is not None
    assert shape_of(layers_of("llama", 4097)) is None


@pytest.mark.parametrize(
    ("keys", "elements"),
    [
        ({"wkv__head_size": 64}, 2 * 512 + 512 * 64),
        ({"wkv__head_size": 64, "token_shift_count": 1}, 512 + 512 * 64),
        ({"shortconv__l_cache": 3}, 512 * 2),
        ({"kda__head_dim": 16, "ssm__conv_kernel": 4}, 3 * 3 * 8 * 16 + 16 * 16 * 8),
        ({"kda__head_dim": 16}, 3 * 3 * 8 * 16 + 16 * 16 * 8),
        ({"ssm__inner_size": 64, "ssm__state_size": 8}, 8 * 64),
        ({"ssm__inner_size": 64, "ssm__state_size": 8, "ssm__conv_kernel": 4, "ssm__group_count": 2}, 3 * 96 + 512),
    ],
)
def test_elements_of_a_state(keys: dict[str, Any], elements: int) -> None:
    shape = shape_of(layers_of("mamba", **keys))
    assert shape is not None
    assert [layer.state_elements for layer in shape.layers] == [elements] * LAYERS


@pytest.mark.parametrize(
    ("cache", "block_bytes"),  # of 32 elements: ggml/src/ggml-common.h
    [
        *[("f32", 128), ("f16", 64), ("bf16", 64), ("q8_0", 34), ("q5_1", 24)],
        *[("q5_0", 22), ("q4_1", 20), ("q4_0", 18), ("iq4_nl", 18)],
    ],
)
def test_cache_by_its_type(cache: str, block_bytes: int) -> None:
    elements = LAYERS * 256 * 8 * 64  # of keys; as many of values
    keys = estimate_memory(layers_of("llama"), ServingSettings(256, cache_type_k=cache)).parts.kv_bytes
    assert keys == elements // 32 * (block_bytes + 64)
    values = estimate_memory(layers_of("llama"), ServingSettings(256, cache_type_v=cache)).parts.kv_bytes
    assert values == keys


def test_transposed_values_are_as_wide_as_the_widest_layer() -> None:
    header = layers_of("openelm", attention__head_count_kv=(8, 2))
    keys = 256 * 64 * 2 * (8 + 2)
    assert estimate_memory(header, ServingSettings(256)).parts.kv_bytes == 2 * keys
    transposed = estimate_memory(header, ServingSettings(256, flash_attention=False)).parts.kv_bytes
    assert transposed == keys + 256 * 64 * 2 * (8 + 8)


def test_states_of_all_slots_are_alive_at_once(headers: dict[str, GgufHeader]) -> None:
    header = headers["codestral-mamba-7b"]
    shape = shape_of(header)
    assert shape is not None
    one, many = (estimate_memory(header, ServingSettings(4096, parallel=slots)).parts for slots in (1, 16))
    assert many.compute_bytes - one.compute_bytes == 4 * 15 * shape.layers[0].state_elements


def test_logits_of_all_slots_need_room() -> None:
    header = layers_of("llama", vocab_size=1_000_000)
    parts = estimate_memory(header, ServingSettings(256, parallel=64, ubatch_tokens=1)).parts
    assert parts.compute_bytes > parts.output_bytes == 4 * 64 * 1_000_000


def test_unknown_architecture_gets_bounds() -> None:
    known, unknown = layers_of("llama"), layers_of("something-new")
    settings = ServingSettings(4096)
    exact, bounds = estimate_memory(known, settings), estimate_memory(unknown, settings)
    assert exact.exact
    assert exact.notes == ()
    assert not bounds.exact
    assert bounds.least.total_bytes < exact.total_bytes < bounds.most.total_bytes
    assert "something-new" in bounds.notes[0]
    parts = bounds.parts
    assert bounds.least.total_bytes == parts.weights_bytes + parts.output_bytes + parts.overhead_bytes
    assert parts.compute_bytes == 2 * exact.parts.compute_bytes
    assert parts.kv_bytes == exact.parts.kv_bytes


def test_header_without_layers_gets_bounds() -> None:
    tensors = (Tensor("a", (1000,), "F32", 4_000_000_000),)
    estimate = estimate_memory(GgufHeader(3, {}, tensors, 4_000_000_100, 100), ServingSettings(4096))
    assert 4_000_000_000 < estimate.least.total_bytes < estimate.most.total_bytes == pytest.approx(4_800_000_000)
    assert estimate.method == "header"


def test_layers_that_are_gone_through_again_cache_again() -> None:
    once, twice = (
        estimate_memory(layers_of("nanbeige", 4, num_loops=loops), ServingSettings(4096)).parts for loops in (1, 2)
    )
    assert twice.kv_bytes == 2 * once.kv_bytes
    assert twice.weights_bytes == once.weights_bytes


def test_encoders_cache_nothing() -> None:
    estimate = estimate_memory(layers_of("bert"), ServingSettings(4096))
    assert estimate.exact
    assert estimate.parts.kv_bytes == 0


def test_founding_rule_without_a_header() -> None:
    estimate = estimate_from_size(1_000_000)
    assert estimate.total_bytes == 1_200_000
    assert estimate.method == "file_size"


def test_founding_rule_is_far_too_low_for_a_long_context(headers: dict[str, GgufHeader]) -> None:
    header = headers["llama-3.1-8b"]
    truth = estimate_memory(header, ServingSettings(131072)).total_bytes
    assert truth / estimate_from_size(header.size_bytes).total_bytes > 3.5


@pytest.mark.parametrize(
    ("engine", "per_token_bytes", "per_merge_bytes"), [("llama_cpp", 180, 140), ("embedded", 220, 217)]
)
def test_tokenizer_is_part_of_the_overhead(engine: str, per_token_bytes: int, per_merge_bytes: int) -> None:
    def overhead(tokens: int, merges: int) -> int:
        header = layers_of("llama")
        lists = {"tokens": tokens, "merges": merges}
        metadata = {f"tokenizer.ggml.{name}": GgufArray("string", length) for name, length in lists.items()}
        header = replace(header, metadata={**header.metadata, **metadata})
        return estimate_memory(header, ServingSettings(4096, engine=engine)).parts.overhead_bytes

    assert overhead(128_000, 0) - overhead(0, 0) == 128_000 * per_token_bytes
    assert overhead(0, 280_000) - overhead(0, 0) == 280_000 * per_merge_bytes


def test_each_engine_has_its_overhead(headers: dict[str, GgufHeader]) -> None:
    def overhead(engine: str) -> int:
        settings = ServingSettings(4096, engine=engine)
        return estimate_memory(headers["llama-3.1-8b"], settings).parts.overhead_bytes

    assert overhead("embedded") > overhead("llama_cpp") == overhead("one of a user's")


class TestRepacking:
    TYPES = (("Q4_K", 8), ("Q4_0", 8))

    def repacked(self, *tensors: Tensor) -> int:
        header = replace(layers_of("llama"), tensors=tensors)
        return estimate_memory(header, ServingSettings(256, repacked_types=self.TYPES)).parts.repacked_bytes

    def test_matrices_of_the_right_type_are_copied(self) -> None:
        output = Tensor("output.weight", (512, 1000), "Q4_K", 100)
        assert self.repacked(output, Tensor("blk.0.attn_q.weight", (512, 64), "Q4_K", 7)) == 107
        assert self.repacked(output, Tensor("blk.0.attn_q.weight", (512, 64), "Q6_K", 7)) == 100

    def test_too_few_rows_are_not(self) -> None:
        assert self.repacked(Tensor("blk.0.attn_q.weight", (512, 63), "Q4_K", 7)) == 0

    def test_experts_are_and_other_stacks_are_not(self) -> None:
        assert self.repacked(Tensor("blk.0.ffn_up_exps.weight", (512, 64, 8), "Q4_K", 7)) == 7
        assert self.repacked(Tensor("blk.0.attn_v_b.weight", (512, 64, 8), "Q4_K", 7)) == 0

    def test_the_embedding_is_only_where_it_is_the_output_too(self) -> None:
        embedding = Tensor("token_embd.weight", (512, 1000), "Q4_K", 5)
        assert self.repacked(embedding) == 5
        assert self.repacked(embedding, Tensor("output.weight", (512, 1000), "Q6_K", 9)) == 0

    def test_what_is_copied_can_be_dropped(self, headers: dict[str, GgufHeader]) -> None:
        estimate = estimate_memory(headers["llama-3.1-8b"], ServingSettings(4096, repacked_types=self.TYPES))
        assert estimate.reclaimable_bytes == estimate.parts.repacked_bytes > 3_000_000_000


class TestDevices:
    def test_all_layers_on_the_gpu(self, headers: dict[str, GgufHeader]) -> None:
        header = headers["llama-3.1-8b"]
        estimate = estimate_memory(header, ServingSettings(8192, gpu_layers=-1, device="gpu"))
        embedding = next(t.size_bytes for t in header.tensors if t.name == "token_embd.weight")
        rotary = sum(t.size_bytes for t in header.tensors if t.name.startswith("rope"))
        assert estimate.host.weights_bytes == embedding + rotary
        assert estimate.host.kv_bytes == 0
        assert estimate.device.kv_bytes == 1024 * MIB
        assert estimate.device.overhead_bytes == 450 * MIB
        assert estimate.host.compute_bytes == 512 * (2 * 8192 + 32)  # masks and positions; the rest is computed there
        assert estimate.device.compute_bytes > 100 * MIB
        assert estimate.parts.weights_bytes == header.tensor_bytes

    def test_a_part_of_the_layers(self, headers: dict[str, GgufHeader]) -> None:
        estimate = estimate_memory(headers["llama-3.1-8b"], ServingSettings(8192, gpu_layers=9, device="gpu"))
        assert estimate.device.kv_bytes == 8 * 32 * MIB  # the output layer is the ninth
        assert estimate.host.kv_bytes == 24 * 32 * MIB
        assert estimate.host.compute_bytes > 100 * MIB

    def test_states_go_with_their_layers(self, headers: dict[str, GgufHeader]) -> None:
        for layers, share in ((-1, 1.0), (33, 0.5), (0, 0.0)):
            settings = ServingSettings(8192, gpu_layers=layers, device="gpu")
            estimate = estimate_memory(headers["mamba-2.8b"], settings)  # 64 blocks and the output
            assert estimate.device.recurrent_bytes == 23.75 * MIB * share
            assert estimate.host.recurrent_bytes == 23.75 * MIB * (1 - share)

    def test_no_layer_on_the_gpu_takes_nothing_of_it(self, headers: dict[str, GgufHeader]) -> None:
        estimate = estimate_memory(headers["llama-3.1-8b"], ServingSettings(8192, device="gpu"))
        assert estimate.device.total_bytes == 0
        assert estimate == estimate_memory(headers["llama-3.1-8b"], ServingSettings(8192))

    def test_more_layers_than_there_are(self, headers: dict[str, GgufHeader]) -> None:
        header = headers["llama-3.1-8b"]
        most = estimate_memory(header, ServingSettings(8192, gpu_layers=-1, device="gpu"))
        assert estimate_memory(header, ServingSettings(8192, gpu_layers=999, device="gpu")) == most

    def test_without_a_gpu_layers_stay(self, headers: dict[str, GgufHeader]) -> None:
        header = headers["llama-3.1-8b"]
        asked = estimate_memory(header, ServingSettings(8192, gpu_layers=-1, device="cpu"))
        assert asked == estimate_memory(header, ServingSettings(8192))

    def test_unified_memory_is_all_the_hosts(self, headers: dict[str, GgufHeader]) -> None:
        estimate = estimate_memory(headers["llama-3.1-8b"], ServingSettings(8192, gpu_layers=-1, device="unified"))
        assert estimate.device.total_bytes == 0
        assert estimate.host.kv_bytes == 1024 * MIB

    def test_a_tied_embedding_is_on_both(self) -> None:
        estimate = estimate_memory(layers_of("llama"), ServingSettings(256, gpu_layers=-1, device="gpu"))
        assert estimate.host.weights_bytes == estimate.device.weights_bytes == 1_024_000


contexts = st.integers(0, 1 << 20)
settings_of_any_kind = st.builds(
    ServingSettings,
    context_tokens=contexts,
    parallel=st.integers(1, 64),
    unified_kv=st.booleans(),
    ubatch_tokens=st.integers(1, 4096),
    cache_type_k=st.sampled_from(sorted(CACHE_ELEMENT_BYTES)),
    cache_type_v=st.sampled_from(sorted(CACHE_ELEMENT_BYTES)),
    flash_attention=st.booleans(),
    gpu_layers=st.integers(-1, 200),
    device=st.sampled_from(["cpu", "gpu", "unified"]),
)
values = st.one_of(
    st.integers(-(2**63), 2**64),
    st.floats(),
    st.booleans(),
    st.text(max_size=4),
    st.lists(st.integers(0, 2**40), max_size=5).map(tuple),
    st.builds(GgufArray, st.just("uint32"), st.integers(0, 2**40)),
)
KEYS = """block_count embedding_length context_length feed_forward_length expert_count expert_used_count
    expert_feed_forward_length attention.head_count attention.head_count_kv attention.key_length attention.value_length
    attention.sliding_window attention.sliding_window_pattern attention.key_length_mla attention.value_length_mla
    ssm.inner_size ssm.state_size ssm.conv_kernel ssm.group_count wkv.head_size kda.head_dim shortconv.l_cache
    full_attention_interval attention.recurrent_layers attention.shared_kv_layers nextn_predict_layers vocab_size"""
names = st.sampled_from(KEYS.split())


@given(
    st.sampled_from(["llama", "gemma3", "qwen3next", "nemotron_h", "mamba", "falcon-h1", "lfm2", "gemma3n", "odd"]),
    st.dictionaries(names, values, max_size=12),
    st.integers(1, 40),
    settings_of_any_kind,
)
def test_no_header_breaks_it(architecture: str, keys: dict[str, Any], count: int, settings: ServingSettings) -> None:
    plain = {"block_count": count, "embedding_length": 64, **keys}
    metadata = {f"{architecture}.{name}": value for name, value in plain.items()} | {
        "general.architecture": architecture
    }
    header = GgufHeader(3, metadata, (Tensor("blk.0.x", (4,), "F32", 16),), 100, 50)
    estimate = estimate_memory(header, settings)
    assert 0 < estimate.least.total_bytes <= estimate.most.total_bytes
    assert estimate.total_bytes >= 16


@given(settings_of_any_kind, contexts)
def test_more_context_never_needs_less(settings: ServingSettings, other: int) -> None:
    header = layers_of("gemma3", 6, attention__sliding_window=64)
    less, more = sorted((settings.context_tokens, other))
    small = estimate_memory(header, replace(settings, context_tokens=less))
    large = estimate_memory(header, replace(settings, context_tokens=more))
    assert small.total_bytes <= large.total_bytes
