"""Shapes with layers that keep a state of constant size, alone or besides attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from tests.ggufs.attention_models import attention_keys
from tests.ggufs.layers import (
    Ssm,
    Tensors,
    attention,
    experts,
    feed_forward,
    gated_delta,
    mamba,
    mamba_2,
    norms,
    short_convolution,
)
from tests.ggufs.shape import Shape
from tests.ggufs.writer import Value


def recurrent(
    architecture: str,
    layers: int,
    embedding: int,
    vocabulary: int,
    context: int,
    ssm: Ssm,
    layer: Callable[[int, Ssm], Tensors],
    *,
    tied: bool = False,
    keys: Mapping[str, Value] | None = None,
    tokenizer: Literal["gpt2", "llama"] = "gpt2",
    merges: int = 0,
) -> Shape:
    """Layers of state-space parts only."""
    tensors = layer(embedding, ssm)
    own: dict[str, Value] = {
        "feed_forward_length": 0,
        "attention.head_count": 0,
        "attention.layer_norm_rms_epsilon": 1e-5,
        **ssm.metadata(),
        **(keys or {}),
    }
    return Shape(
        architecture,
        layers,
        embedding,
        vocabulary,
        context,
        lambda index: tensors,
        own,
        tied=tied,
        tokenizer=tokenizer,
        merges=merges,
    )


def granite_4_tiny() -> Shape:
    """Nine layers of Mamba 2 to one of attention, experts in each."""
    ssm, attending = Ssm(3072, 128, 48, 1), {5, 15, 25, 35}
    common = norms(1536, "attn_norm", "ffn_norm") | experts(1536, 512, 64, shared=1024)
    kinds = mamba_2(1536, ssm) | common, attention(1536, 12, 4, 128) | common
    keys: dict[str, Value] = {
        "feed_forward_length": 512,
        **attention_keys(12, [4 if index in attending else 0 for index in range(40)]),
        "rope.dimension_count": 128,
        "rope.scaling.finetuned": False,
        "expert_count": 64,
        "expert_used_count": 6,
        "expert_shared_feed_forward_length": 1024,
        **ssm.metadata(),
    }
    return Shape(
        "granitehybrid",
        40,
        1536,
        100352,
        1048576,
        lambda index: kinds[index in attending],
        keys,
        tied=True,
        merges=100000,
    )


def jamba_mini() -> Shape:
    """Seven layers of Mamba to one of attention, experts in every other layer."""
    ssm = Ssm(8192, 16, 256)
    inner = norms(256, "ssm_dt_norm") | norms(16, "ssm_b_norm", "ssm_c_norm")
    kinds = mamba(4096, ssm) | inner, attention(4096, 32, 8, 128)
    parts = feed_forward(4096, 14336), experts(4096, 14336, 16)
    keys: dict[str, Value] = {
        "feed_forward_length": 14336,
        **attention_keys(32, [8 if index % 8 == 4 else 0 for index in range(32)]),
        "expert_count": 16,
        "expert_used_count": 2,
        **ssm.metadata(),
    }
    return Shape(
        "jamba",
        32,
        4096,
        65536,
        262144,
        lambda index: kinds[index % 8 == 4] | norms(4096, "attn_norm", "ffn_norm") | parts[index % 2],
        keys,
        tokenizer="llama",
    )


def qwen_3_next() -> Shape:
    """Three layers of gated delta rule to one of gated attention, 512 experts and a shared one in each."""
    ssm = Ssm(4096, 128, 32, 16)
    common = norms(2048, "attn_norm", "post_attention_norm", "ffn_gate_inp_shexp") | experts(2048, 512, 512, shared=512)
    gated = attention(2048, 16, 2, 256, query_factor=2) | norms(256, "attn_q_norm", "attn_k_norm")
    kinds = gated_delta(2048, ssm) | common, gated | common
    keys: dict[str, Value] = {
        "feed_forward_length": 5120,
        **attention_keys(16, 2, head=256),
        "rope.dimension_count": 64,
        "expert_count": 512,
        "expert_used_count": 10,
        "expert_feed_forward_length": 512,
        "expert_shared_feed_forward_length": 512,
        **ssm.metadata(),
    }
    return Shape("qwen3next", 48, 2048, 151936, 262144, lambda index: kinds[index % 4 == 3], keys, merges=151387)


def lfm_2() -> Shape:
    """Ten layers of short convolutions, six of attention."""
    attending = {2, 5, 8, 10, 12, 14}
    common = norms(2048, "attn_norm", "ffn_norm") | feed_forward(2048, 8192)
    attends = attention(2048, 32, 8, 64) | norms(64, "attn_q_norm", "attn_k_norm")
    kinds = short_convolution(2048, 3) | common, attends | common
    keys: dict[str, Value] = {
        "feed_forward_length": 8192,
        **attention_keys(32, [8 if index in attending else 0 for index in range(16)]),
        "shortconv.l_cache": 3,
    }
    return Shape(
        "lfm2",
        16,
        2048,
        65536,
        128000,
        lambda index: kinds[index in attending],
        keys,
        tied=True,
        last_norm="token_embd_norm.weight",
        merges=63683,
    )


def falcon_h1() -> Shape:
    """Attention and Mamba 2 side by side in every layer."""
    ssm = Ssm(3072, 256, 24, 1)
    tensors = mamba_2(3072, ssm, norm=False) | attention(3072, 12, 2, 128) | feed_forward(3072, 12288)
    tensors |= {"ffn_norm": (3072,)}  # written without the usual ending
    keys: dict[str, Value] = {
        "feed_forward_length": 12288,
        **attention_keys(12, 2, head=128),
        "rope.freq_base": 1e11,
        **ssm.metadata(),
    }
    return Shape("falcon-h1", 44, 3072, 130048, 262144, lambda index: tensors, keys, merges=129792)
