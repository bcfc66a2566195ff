"""Well-known models' shapes, as their published configurations have them.

    write_shape(path, SHAPES["llama-3.1-8b"], "Q4_K_M")

Metadata is as in the published files: with a key only where theirs have it, and no pattern of sliding windows where
llama.cpp knows it by the architecture.
"""

from __future__ import annotations

from tests.ggufs.attention_models import AFTER, deepseek_2_lite, dense, gemma, gemma_3n, gpt_oss, mixture, phi_3
from tests.ggufs.layers import Ssm, mamba, mamba_2
from tests.ggufs.shape import Shape, write_shape
from tests.ggufs.state_models import falcon_h1, granite_4_tiny, jamba_mini, lfm_2, qwen_3_next, recurrent

__all__ = ["SHAPES", "Shape", "write_shape"]

_QKV = ("attn_q", "attn_k", "attn_v")

SHAPES: dict[str, Shape] = {
    "llama-3.1-8b": dense("llama", 32, 4096, 32, 8, 14336, 128256, 131072, rotary_factors=True, merges=280147),
    "llama-3.1-70b": dense("llama", 80, 8192, 64, 8, 28672, 128256, 131072, rotary_factors=True, merges=280147),
    "llama-3.2-1b": dense(
        "llama", 16, 2048, 32, 8, 8192, 128256, 131072, head=64, rotary_factors=True, tied=True, merges=280147
    ),
    "llama-3.2-3b": dense(
        "llama", 28, 3072, 24, 8, 8192, 128256, 131072, head=128, rotary_factors=True, tied=True, merges=280147
    ),
    "llama-2-7b": dense("llama", 32, 4096, 32, 32, 11008, 32000, 4096, tokenizer="llama"),
    "llama-2-13b": dense("llama", 40, 5120, 40, 40, 13824, 32000, 4096, tokenizer="llama"),
    "mistral-7b": dense("llama", 32, 4096, 32, 8, 14336, 32768, 32768, tokenizer="llama"),
    "qwen2.5-1.5b": dense("qwen2", 28, 1536, 12, 2, 8960, 151936, 32768, biases=_QKV, tied=True, merges=151387),
    "qwen2.5-7b": dense("qwen2", 28, 3584, 28, 4, 18944, 152064, 32768, biases=_QKV, merges=151387),
    "gemma-2-9b": gemma("gemma2", 42, 3584, 16, 8, 14336, 256000, 8192, window=4096),
    "gemma-3-4b": gemma("gemma3", 34, 2560, 8, 4, 10240, 262144, 131072, window=1024),
    "gemma-3-12b": gemma("gemma3", 48, 3840, 16, 8, 15360, 262144, 131072, window=1024),
    "olmo-2-7b": dense(
        "olmo2",
        32,
        4096,
        32,
        32,
        11008,
        100352,
        4096,
        before=(),
        extra_norms=(*AFTER, "attn_q_norm", "attn_k_norm"),
        merges=100000,
    ),
    "command-r-35b": dense(
        "command-r",
        40,
        8192,
        64,
        64,
        22528,
        256000,
        131072,
        before=("attn_norm",),
        tied=True,
        merges=253333,
        keys={"attention.layer_norm_epsilon": 1e-5, "logit_scale": 0.0625},
    ),
    "phi-3.5-mini": phi_3(32, 3072, 32, 32, 8192, 32064, 131072, long_context=True, tokenizer="llama"),
    "phi-4-14b": phi_3(40, 5120, 40, 10, 17920, 100352, 16384),
    "mixtral-8x7b": mixture(
        "llama",
        32,
        4096,
        32,
        8,
        14336,
        32000,
        32768,
        count=8,
        used=2,
        tokenizer="llama",
        keys={"rope.dimension_count": 128},
    ),
    "qwen3-30b-a3b": mixture(
        "qwen3moe",
        48,
        2048,
        32,
        4,
        768,
        151936,
        40960,
        head=128,
        head_norms=True,
        count=128,
        used=8,
        merges=151387,
        keys={"feed_forward_length": 6144, "expert_feed_forward_length": 768},
    ),
    "gpt-oss-20b": gpt_oss(),
    "deepseek-v2-lite": deepseek_2_lite(),
    "gemma-3n-e2b": gemma_3n(),
    "mamba-2.8b": recurrent("mamba", 64, 2560, 50280, 1048576, Ssm(5120, 16, 160), mamba, tied=True, merges=50009),
    "falcon-mamba-7b": recurrent(
        "mamba", 64, 4096, 65024, 1048576, Ssm(8192, 16, 256), mamba, merges=64784, keys={"ssm.dt_b_c_rms": True}
    ),
    "codestral-mamba-7b": recurrent(
        "mamba2", 64, 4096, 32768, 262144, Ssm(8192, 128, 128, 8), mamba_2, tokenizer="llama"
    ),
    "granite-4-h-tiny": granite_4_tiny(),
    "jamba-1.5-mini": jamba_mini(),
    "qwen3-next-80b-a3b": qwen_3_next(),
    "lfm2-1.2b": lfm_2(),
    "falcon-h1-7b": falcon_h1(),
}
