"""Tensors of a layer by its kind: name within the layer → dimensions, the length of a row first.

Widths are in elements: ``embedding`` of the residual stream, ``head`` of one attention head, ``feed_forward`` of the
hidden part (of one expert, where there are experts).
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.ggufs.writer import Dims

Tensors = dict[str, Dims]


def norms(embedding: int, *names: str) -> Tensors:
    """Vectors of weights as wide as the residual stream."""
    return {f"{name}.weight": (embedding,) for name in names}


def attention(embedding: int, heads: int, kv_heads: int, head: int, *, query_factor: int = 1) -> Tensors:
    """Projections of multi-head or grouped attention.

    Args:
        query_factor: 2 where the query's projection also yields a gate.
    """
    return {
        "attn_q.weight": (embedding, heads * head * query_factor),
        "attn_k.weight": (embedding, kv_heads * head),
        "attn_v.weight": (embedding, kv_heads * head),
        "attn_output.weight": (heads * head, embedding),
    }


def with_biases(tensors: Tensors, *names: str) -> Tensors:
    """The tensors, and a bias for each of the named: one value per row, and per expert."""
    return {**tensors, **{f"{name}.bias": tensors[f"{name}.weight"][1:] for name in names}}


def feed_forward(embedding: int, width: int) -> Tensors:
    """A gated feed-forward part, without its norm."""
    return {
        "ffn_gate.weight": (embedding, width),
        "ffn_up.weight": (embedding, width),
        "ffn_down.weight": (width, embedding),
    }


def experts(embedding: int, width: int, count: int, *, shared: int = 0) -> Tensors:
    """A mixture of experts with its router, without its norm.

    Args:
        shared: width of the experts that every token goes through, together.
    """
    tensors: Tensors = {
        "ffn_gate_inp.weight": (embedding, count),
        "ffn_gate_exps.weight": (embedding, width, count),
        "ffn_up_exps.weight": (embedding, width, count),
        "ffn_down_exps.weight": (width, embedding, count),
    }
    if shared:
        tensors |= {name.replace(".", "_shexp."): dims for name, dims in feed_forward(embedding, shared).items()}
    return tensors


def latent_attention(embedding: int, heads: int, *, rank: int, nope: int, rope: int, value: int) -> Tensors:
    """DeepSeek's attention over a compressed cache, without compressed queries.

    Args:
        rank: width of what is cached, besides the ``rope`` part.
        nope: width of a head's key without position; ``rope`` of its part with position.
        value: width of a head's value.
    """
    return {
        **norms(embedding, "attn_norm"),
        "attn_q.weight": (embedding, heads * (nope + rope)),
        "attn_kv_a_mqa.weight": (embedding, rank + rope),
        "attn_kv_a_norm.weight": (rank,),
        "attn_k_b.weight": (nope, rank, heads),
        "attn_v_b.weight": (rank, value, heads),
        "attn_output.weight": (heads * value, embedding),
    }


@dataclass(frozen=True, slots=True)
class Ssm:
    """A state-space part.

    Attributes:
        inner: width within.
        state: values of state per channel (Mamba) or per channel of a head (Mamba 2).
        rank: rank of the time step's projection (Mamba), number of heads (Mamba 2).
        groups: that share their projections (Mamba 2).
        kernel: tokens that the convolution sees.
    """

    inner: int
    state: int
    rank: int
    groups: int = 0
    kernel: int = 4

    def metadata(self) -> dict[str, int]:
        """Keys below the architecture."""
        keys = {"conv_kernel": self.kernel, "inner_size": self.inner, "state_size": self.state}
        keys["time_step_rank"] = self.rank
        if self.groups:
            keys["group_count"] = self.groups
        return {f"ssm.{key}": value for key, value in keys.items()}


def mamba(embedding: int, ssm: Ssm) -> Tensors:
    """The first Mamba's layer."""
    return {
        **norms(embedding, "attn_norm"),
        "ssm_in.weight": (embedding, 2 * ssm.inner),
        "ssm_conv1d.weight": (ssm.kernel, ssm.inner),
        "ssm_conv1d.bias": (ssm.inner,),
        "ssm_x.weight": (ssm.inner, ssm.rank + 2 * ssm.state),
        "ssm_dt.weight": (ssm.rank, ssm.inner),
        "ssm_dt.bias": (ssm.inner,),
        "ssm_a": (ssm.state, ssm.inner),
        "ssm_d": (ssm.inner,),
        "ssm_out.weight": (ssm.inner, embedding),
    }


def mamba_2(embedding: int, ssm: Ssm, *, norm: bool = True) -> Tensors:
    """The second Mamba's layer; ``norm``: of the gated result, in groups."""
    convolved = ssm.inner + 2 * ssm.groups * ssm.state
    tensors: Tensors = {
        **norms(embedding, "attn_norm"),
        "ssm_in.weight": (embedding, ssm.inner + convolved + ssm.rank),
        "ssm_conv1d.weight": (ssm.kernel, convolved),
        "ssm_conv1d.bias": (convolved,),
        "ssm_dt.bias": (ssm.rank,),
        "ssm_a": (1, ssm.rank),
        "ssm_d": (1, ssm.rank),
        "ssm_out.weight": (ssm.inner, embedding),
    }
    return {**tensors, "ssm_norm.weight": (ssm.inner // ssm.groups, ssm.groups)} if norm else tensors


def gated_delta(embedding: int, ssm: Ssm) -> Tensors:
    """Qwen 3 Next's linear attention: ``groups`` heads of keys, ``rank`` heads of values, each ``state`` wide."""
    keys, values = ssm.groups * ssm.state, ssm.inner
    return {
        **norms(embedding, "attn_norm"),
        "attn_qkv.weight": (embedding, 2 * keys + values),
        "attn_gate.weight": (embedding, values),
        "ssm_conv1d.weight": (ssm.kernel, 2 * keys + values),
        "ssm_dt.bias": (ssm.rank,),
        "ssm_a": (ssm.rank,),
        "ssm_ba.weight": (embedding, 2 * ssm.rank),
        "ssm_norm.weight": (ssm.state,),
        "ssm_out.weight": (values, embedding),
    }


def short_convolution(embedding: int, kernel: int) -> Tensors:
    """LFM2's gated convolution over a few tokens."""
    return {
        **norms(embedding, "attn_norm"),
        "shortconv.conv.weight": (kernel, embedding),
        "shortconv.in_proj.weight": (embedding, 3 * embedding),
        "shortconv.out_proj.weight": (embedding, embedding),
    }


def alternating_updates(embedding: int, per_layer: int) -> Tensors:
    """Gemma 3n's extras: four streams that are updated by turns, embeddings per layer, and a low-rank branch."""
    streams, rank = 4, 64
    return {
        "inp_gate.weight": (embedding, per_layer),
        "proj.weight": (per_layer, embedding),
        "altup_correct_coef.weight": (streams, streams),
        "altup_predict_coef.weight": (streams, streams**2),
        "altup_router.weight": (embedding, streams),
        "laurel_l.weight": (embedding, rank),
        "laurel_r.weight": (rank, embedding),
        **norms(embedding, "post_norm", "altup_correct_scale", "altup_router_norm", "laurel_post_norm"),
    }
