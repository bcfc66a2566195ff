"""Shapes whose every layer attends: dense, with mixtures of experts, with windows, over a compressed cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from tests.ggufs.layers import (
    Tensors,
    alternating_updates,
    attention,
    experts,
    feed_forward,
    latent_attention,
    norms,
    with_biases,
)
from tests.ggufs.shape import Shape
from tests.ggufs.writer import Value

AFTER = ("post_attention_norm", "post_ffw_norm")


def attention_keys(heads: int, kv_heads: int | list[int], *, head: int | None = None) -> dict[str, Value]:
    """Keys of attention; ``head`` where a head's width is not the embedding's share."""
    keys: dict[str, Value] = {"attention.head_count": heads, "attention.head_count_kv": kv_heads}
    if head is not None:
        keys |= {"attention.key_length": head, "attention.value_length": head}
    return keys | {"attention.layer_norm_rms_epsilon": 1e-5}


def dense(
    architecture: str,
    layers: int,
    embedding: int,
    heads: int,
    kv_heads: int,
    width: int,
    vocabulary: int,
    context: int,
    *,
    head: int | None = None,
    before: tuple[str, ...] = ("attn_norm", "ffn_norm"),
    extra_norms: tuple[str, ...] = (),
    head_norms: bool = False,
    biases: tuple[str, ...] = (),
    keys: Mapping[str, Value] | None = None,
    rotary_factors: bool = False,
    tied: bool = False,
    tokenizer: Literal["gpt2", "llama"] = "gpt2",
    merges: int = 0,
) -> Shape:
    """A dense transformer.

    Args:
        head: width of a head where the files say it.
        before: norms before attention and feed-forward part; ``extra_norms``: others of the residual stream's width.
        head_norms: whether queries and keys have a norm per head.
        biases: projections that have one.
        rotary_factors: whether there is a table of them, as in Llama 3.1.
    """
    width_of_head = head or embedding // heads

    def layer(index: int) -> Tensors:
        tensors = with_biases(attention(embedding, heads, kv_heads, width_of_head), *biases)
        if head_norms:
            tensors |= norms(width_of_head, "attn_q_norm", "attn_k_norm")
        return tensors | norms(embedding, *before, *extra_norms) | feed_forward(embedding, width)

    return Shape(
        architecture,
        layers,
        embedding,
        vocabulary,
        context,
        layer,
        {
            "feed_forward_length": width,
            **attention_keys(heads, kv_heads, head=head),
            **({"rope.dimension_count": width_of_head} if architecture == "llama" else {}),
            **(keys or {}),
        },
        tied=tied,
        beside={"rope_freqs.weight": (width_of_head // 2,)} if rotary_factors else {},
        tokenizer=tokenizer,
        merges=merges,
    )


def gemma(
    architecture: Literal["gemma2", "gemma3"],
    layers: int,
    embedding: int,
    heads: int,
    kv_heads: int,
    width: int,
    vocabulary: int,
    context: int,
    *,
    window: int,
) -> Shape:
    """Gemma 2, every other layer with a window of 4096 tokens, and 3, five of six layers with one of 1024."""
    second: dict[str, Value] = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    return dense(
        architecture,
        layers,
        embedding,
        heads,
        kv_heads,
        width,
        vocabulary,
        context,
        head=256,
        extra_norms=AFTER,
        head_norms=architecture == "gemma3",
        tied=True,
        tokenizer="llama",
        keys={"attention.sliding_window": window, **(second if architecture == "gemma2" else {})},
    )


def phi_3(
    layers: int,
    embedding: int,
    heads: int,
    kv_heads: int,
    width: int,
    vocabulary: int,
    context: int,
    *,
    long_context: bool = False,
    tokenizer: Literal["gpt2", "llama"] = "gpt2",
) -> Shape:
    """Phi 3: queries, keys and values in one matrix, gate and up in another; Phi 3.5 with two tables of factors."""
    head = embedding // heads
    tensors: Tensors = {
        **norms(embedding, "attn_norm", "ffn_norm"),
        "attn_qkv.weight": (embedding, (heads + 2 * kv_heads) * head),
        "attn_output.weight": (embedding, embedding),
        "ffn_up.weight": (embedding, 2 * width),
        "ffn_down.weight": (width, embedding),
    }
    factors: Tensors = {f"rope_factors_{name}.weight": (head // 2,) for name in ("long", "short")}
    return Shape(
        "phi3",
        layers,
        embedding,
        vocabulary,
        context,
        lambda index: tensors,
        {
            "feed_forward_length": width,
            **attention_keys(heads, kv_heads),
            "rope.dimension_count": head,
            **(
                {"rope.scaling.original_context_length": 4096, "attention.sliding_window": 262144}
                if long_context
                else {}
            ),
        },
        beside=factors if long_context else {},
        tokenizer=tokenizer,
    )


def mixture(
    architecture: str,
    layers: int,
    embedding: int,
    heads: int,
    kv_heads: int,
    width: int,
    vocabulary: int,
    context: int,
    *,
    count: int,
    used: int,
    head: int | None = None,
    head_norms: bool = False,
    keys: Mapping[str, Value],
    tokenizer: Literal["gpt2", "llama"] = "gpt2",
    merges: int = 0,
) -> Shape:
    """A transformer whose every feed-forward part is a mixture of ``count`` experts, ``used`` at a time."""
    width_of_head = head or embedding // heads
    tensors = attention(embedding, heads, kv_heads, width_of_head) | norms(embedding, "attn_norm", "ffn_norm")
    tensors |= experts(embedding, width, count)
    if head_norms:
        tensors |= norms(width_of_head, "attn_q_norm", "attn_k_norm")
    return Shape(
        architecture,
        layers,
        embedding,
        vocabulary,
        context,
        lambda index: tensors,
        {
            "feed_forward_length": width,
            **attention_keys(heads, kv_heads, head=head),
            "expert_count": count,
            "expert_used_count": used,
            **keys,
        },
        tokenizer=tokenizer,
        merges=merges,
    )


def gpt_oss() -> Shape:
    """Every other layer with a short window, learned sinks of attention, biases everywhere, experts in MXFP4."""
    tensors = with_biases(attention(2880, 64, 8, 64), "attn_q", "attn_k", "attn_v", "attn_output")
    names = ("ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
    tensors |= with_biases(experts(2880, 2880, 32), *names)
    tensors |= {"attn_sinks.weight": (64,), **norms(2880, "attn_norm", "post_attention_norm")}
    keys: dict[str, Value] = {
        "feed_forward_length": 2880,
        **attention_keys(64, 8, head=64),
        "attention.sliding_window": 128,
        "expert_count": 32,
        "expert_used_count": 4,
        "expert_feed_forward_length": 2880,
        "rope.freq_base": 150000.0,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 32.0,
        "rope.scaling.original_context_length": 4096,
    }
    return Shape("gpt-oss", 24, 2880, 201088, 131072, lambda index: tensors, keys, merges=446189)


def deepseek_2_lite() -> Shape:
    """Latent attention, one dense layer, then experts of which two are shared."""
    common = latent_attention(2048, 16, rank=512, nope=128, rope=64, value=128) | norms(2048, "ffn_norm")
    dense, sparse = feed_forward(2048, 10944), experts(2048, 1408, 64, shared=2 * 1408)
    keys: dict[str, Value] = {
        "feed_forward_length": 10944,
        **attention_keys(16, 1),
        "attention.key_length": 576,
        "attention.value_length": 512,
        "attention.key_length_mla": 192,
        "attention.value_length_mla": 128,
        "attention.kv_lora_rank": 512,
        "rope.dimension_count": 64,
        "leading_dense_block_count": 1,
        "expert_count": 64,
        "expert_used_count": 6,
        "expert_shared_count": 2,
        "expert_feed_forward_length": 1408,
    }
    return Shape(
        "deepseek2", 27, 2048, 102400, 163840, lambda index: common | (sparse if index else dense), keys, merges=99757
    )


def gemma_3n() -> Shape:
    """Four of five layers with a window, the last ten without keys and values of their own, embeddings per layer."""
    tensors = attention(2048, 8, 2, 256) | norms(256, "attn_q_norm", "attn_k_norm")
    tensors |= norms(2048, "attn_norm", "ffn_norm", *AFTER) | feed_forward(2048, 8192) | alternating_updates(2048, 256)
    beside: Tensors = {
        "altup_proj.weight": (2048, 2048, 3),
        "altup_unembd_proj.weight": (2048, 2048, 3),
        "per_layer_token_embd.weight": (256 * 30, 262144),
        "per_layer_model_proj.weight": (2048, 256 * 30),
        "per_layer_proj_norm.weight": (256,),
    }
    keys: dict[str, Value] = {
        "feed_forward_length": 8192,
        **attention_keys(8, 2, head=256),
        "attention.sliding_window": 512,
        "attention.sliding_window_pattern": [index % 5 != 4 for index in range(30)],
        "attention.shared_kv_layers": 10,
        "embedding_length_per_layer_input": 256,
        "altup.active_idx": 0,
        "altup.num_inputs": 4,
    }
    return Shape(
        "gemma3n", 30, 2048, 262144, 32768, lambda index: tensors, keys, tied=True, beside=beside, tokenizer="llama"
    )
