"""What a GGUF header says of a model's layers, as far as memory depends on it.

The rules are those of llama.cpp (``src/llama-hparams.cpp``, ``src/models/*.cpp`` of release b11434): which layers cache
keys and values, for how many tokens, and which keep a state instead. An architecture that is not in the tables here is
said to be unknown; its layers are then read as full attention, the most that a layer caches.
"""

from __future__ import annotations

from dataclasses import dataclass

from pytest_llmbench.core.gguf import GgufHeader


@dataclass(frozen=True, slots=True)
class Layer:
    """One block of a model.

    Attributes:
        heads, kv_heads: of its attention; no kv_heads: it caches nothing.
        key_length, value_length: elements per head and token in the cache; no value_length: keys only (MLA).
        window_tokens: of a sliding window, None for full attention.
        state_elements: of its recurrent state, per sequence, in F32; 0 without one.
        feed_forward: width of its dense feed-forward part.
        experts: it has experts, in place of that or beside it.
    """

    heads: int = 0
    kv_heads: int = 0
    key_length: int = 0
    value_length: int = 0
    window_tokens: int | None = None
    state_elements: int = 0
    feed_forward: int = 0
    experts: bool = False


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A model's dimensions.

    Attributes:
        known: the architecture is in the tables, so the figures are not guesses.
        experts_used: per token; 0 for a dense model.
        expert_width: width of one expert.
        inner_width, convolution_width: of state-space layers; the latter 0 where both are the same.
        side_width: of what is carried beside the residual stream through all layers, such as embeddings per layer.
        vocabulary: tokens.
        merges: rules of a BPE tokenizer.
    """

    architecture: str
    known: bool
    layers: tuple[Layer, ...]
    embedding: int
    vocabulary: int
    merges: int
    experts: int
    experts_used: int
    expert_width: int
    inner_width: int
    convolution_width: int
    side_width: int


@dataclass(frozen=True, slots=True)
class _Windows:
    """Which layers of an architecture slide: ``period − 1`` of every ``period``, the full one last (or first).

    Attributes:
        default_tokens: the window where the header names none; None: then no layer slides.
    """

    period: int
    full_first: bool = False
    default_tokens: int | None = None


# Where the header holds no pattern, which is usual. From load_arch_hparams in llama.cpp's src/models/<name>.cpp.
_WINDOWS = {
    "afmoe": _Windows(4),
    "cohere2": _Windows(4),
    "cohere2moe": _Windows(4, full_first=True),
    "exaone4": _Windows(4, default_tokens=4096),
    "exaone-moe": _Windows(4, default_tokens=128),
    "gemma2": _Windows(2, default_tokens=4096),
    "gemma3": _Windows(6),
    "gemma3n": _Windows(5),
    "gpt-oss": _Windows(2),
    "laguna": _Windows(4, full_first=True),
    "llama4": _Windows(4, default_tokens=8192),
    "mellum": _Windows(4),
    "muse-glimmer": _Windows(4),
    "olmo2": _Windows(4),
    "plamo3": _Windows(8),
    "smallthinker": _Windows(4, full_first=True),
}
# These say in the header which layers slide.
_WINDOWS_IN_HEADER = frozenset({"gemma4", "granite_swa", "maple", "mimo2", "spark2_5", "step35"})

_RECURRENT = frozenset({"arwkv7", "mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7"})
# Hybrids in which a layer without key-value heads is recurrent.
_HYBRID_BY_HEADS = frozenset(
    {"granitehybrid", "jamba", "kimi-linear", "lfm2", "lfm2moe", "nemotron_h", "nemotron_h_moe", "plamo2"}
)
# Hybrids in which every n-th layer attends, four by default.
_HYBRID_BY_INTERVAL = frozenset({"qwen35", "qwen35moe", "qwen3next"})
_HYBRID_IN_EVERY_LAYER = frozenset({"falcon-h1"})

# Every layer attends to the whole context, whatever else the header says.
_FULL_ATTENTION_NAMES = """
    apertus arcee arctic baichuan bailingmoe bailingmoe2 bitnet bloom chameleon chatglm codeshell cogvlm
    command-r dbrx deci deepseek deepseek2 deepseek2-ocr dots1 ernie4_5 ernie4_5-moe exaone falcon gemma glm4
    glm4moe gpt2 gptj gptneox granite granitemoe grok grovemoe hunyuan-dense hunyuan-moe hunyuan_vl internlm2
    jais jais2 llama llama-embed maincoder minicpm minicpm3 minimax-m2 mistral3 mistral4 mpt nanbeige nemotron
    olmo olmoe openelm orion paddleocr pangu-embedded phi2 phi3 phimoe plamo plm qwen qwen2 qwen2moe qwen2vl
    qwen3 qwen3moe qwen3vl qwen3vlmoe refact seed_oss smollm3 stablelm starcoder starcoder2 xverse
"""
_FULL_ATTENTION = frozenset(_FULL_ATTENTION_NAMES.split())
# Encoders and diffusion models read everything at once and cache nothing.
_WITHOUT_CACHE_NAMES = """
    bert clef dream eurobert gemma-embedding jina-bert-v2 jina-bert-v3 llada llada-moe modern-bert neo-bert nomic-bert
    nomic-bert-moe rnd1
"""
_WITHOUT_CACHE = frozenset(_WITHOUT_CACHE_NAMES.split())
_KNOWN = (
    _FULL_ATTENTION
    | _WITHOUT_CACHE
    | set(_WINDOWS)
    | _WINDOWS_IN_HEADER
    | _RECURRENT
    | _HYBRID_BY_HEADS
    | _HYBRID_BY_INTERVAL
    | _HYBRID_IN_EVERY_LAYER
)
_MOST_LAYERS = 4096  # far more than any model has; a header may claim anything
_MOST_LOOPS = 64
_GEMMA3N_LAYERS_WITH_KV = 20  # src/models/gemma3n.cpp; the others read the caches of these
_EXAONE4_LAYERS_WITH_WINDOW = 64  # only the 32B slides


def shape_of(header: GgufHeader) -> ModelShape | None:
    """Read a model's shape, None where the header does not name layers and width as a model could have them."""
    count, embedding = header.block_count, header.number("embedding_length")
    if count is None or count > _MOST_LAYERS or not embedding or header.architecture is None:
        return None
    count -= min(header.number("nextn_predict_layers") or 0, count - 1)  # for speculative decoding; not loaded
    experts, used = header.number("expert_count") or 0, max(header.numbers("expert_used_count", count) or (0,))
    expert_width = max(header.numbers("expert_feed_forward_length", count) or (0,))
    widths = header.numbers("feed_forward_length", count) or (0,) * count
    if experts and not expert_width:
        expert_width = max(widths)
    merges = header.metadata.get("tokenizer.ggml.merges")
    scanned = header.architecture not in _HYBRID_BY_INTERVAL  # those have one fused operation instead
    inner = (header.number("ssm.inner_size") or 0) if scanned else 0
    groups = (header.number("ssm.group_count") or 0) if scanned else 0
    per_layer = header.number("embedding_length_per_layer_input") or 0
    return ModelShape(
        architecture=header.architecture,
        known=header.architecture in _KNOWN,
        layers=_layers(header, count, embedding, widths) * _loops(header),
        embedding=embedding,
        vocabulary=header.vocabulary_size or 0,
        merges=getattr(merges, "length", 0),
        experts=experts,
        experts_used=used,
        expert_width=expert_width,
        inner_width=inner,
        convolution_width=inner + 2 * groups * (header.number("ssm.state_size") or 0) if groups else 0,
        side_width=(header.number("altup.num_inputs") or 0) * embedding + 2 * per_layer * count,
    )


def _layers(header: GgufHeader, count: int, embedding: int, widths: tuple[int, ...]) -> tuple[Layer, ...]:
    heads = header.numbers("attention.head_count", count) or (0,) * count
    kv_heads = header.numbers("attention.head_count_kv", count) or heads
    windows = _window_of_layers(header, count)
    recurrent = _recurrent_layers(header, count, kv_heads, widths)
    state = _state_elements(header, embedding, max(heads, default=0))
    default_length = embedding // heads[0] if heads[0] else 0
    keys = header.number("attention.key_length") or default_length
    values = header.number("attention.value_length") or default_length
    keys_in_window = header.number("attention.key_length_swa") or keys
    values_in_window = header.number("attention.value_length_swa") or values
    keys_only = bool(header.number("attention.key_length_mla") and header.number("attention.value_length_mla"))
    with_cache = _layers_with_cache(header, count)
    experts = _layers_with_experts(header)
    layers = []
    for index in range(count):
        attends = index < with_cache and _attends(header.architecture or "", recurrent[index], widths[index])
        in_window = windows[index] is not None
        layers.append(
            Layer(
                heads=heads[index],
                kv_heads=kv_heads[index] if attends else 0,
                key_length=keys_in_window if in_window else keys,
                value_length=0 if keys_only else values_in_window if in_window else values,
                window_tokens=windows[index],
                state_elements=state if recurrent[index] else 0,
                feed_forward=widths[index],
                experts=index in experts,
            )
        )
    return tuple(layers)


def _loops(header: GgufHeader) -> int:
    """How often the layers are gone through, with a cache for each time: src/models/nanbeige.cpp."""
    return min(header.number("num_loops") or 1, _MOST_LOOPS) if header.architecture == "nanbeige" else 1


def _layers_with_experts(header: GgufHeader) -> frozenset[int]:
    """Numbers of the layers whose tensors are there once for each expert (``blk.3.ffn_down_exps.weight``)."""
    names = (tensor.name.split(".") for tensor in header.tensors if ".ffn_down_exps." in tensor.name)
    return frozenset(int(parts[1]) for parts in names if parts[1].isdecimal())


def _attends(architecture: str, recurrent: bool, width: int) -> bool:
    """Whether a layer attends at all: most hybrids' attend or recur, falcon-h1's do both, nemotron's one thing."""
    if architecture.startswith("nemotron_h"):
        return not recurrent and width == 0
    return not recurrent or architecture in _HYBRID_IN_EVERY_LAYER


def _layers_with_cache(header: GgufHeader, count: int) -> int:
    """How many layers, from the first on, have a cache of their own; later ones read those."""
    if header.architecture in _WITHOUT_CACHE:
        return 0
    if header.architecture == "gemma3n":
        return min(_GEMMA3N_LAYERS_WITH_KV, count)
    return count - min(header.number("attention.shared_kv_layers") or 0, count)


def _window_of_layers(header: GgufHeader, count: int) -> tuple[int | None, ...]:
    """Each layer's sliding window in tokens, None for full attention."""
    none: tuple[int | None, ...] = (None,) * count
    architecture = header.architecture or ""
    tokens = header.number("attention.sliding_window")
    if architecture == "lfm2":
        return (tokens,) * count if tokens else none
    rule = _WINDOWS.get(architecture)
    if rule is None and architecture not in _WINDOWS_IN_HEADER:
        return none
    if architecture == "exaone4" and count != _EXAONE4_LAYERS_WITH_WINDOW:
        return none
    if architecture == "llama4" and tokens != 0:
        tokens = 8192  # whatever the header says: src/models/llama4.cpp
    if architecture == "smallthinker" and tokens is not None:
        tokens = 4096  # likewise: src/models/smallthinker.cpp
    if tokens is None and rule is not None:
        tokens = rule.default_tokens
    if not tokens:
        return none
    pattern = header.metadata.get(f"{architecture}.attention.sliding_window_pattern")
    if isinstance(pattern, tuple):
        return tuple(tokens if index < len(pattern) and pattern[index] else None for index in range(count))
    if rule is None:
        return none
    period = pattern if isinstance(pattern, int) and not isinstance(pattern, bool) and pattern >= 0 else rule.period
    return tuple(tokens if _slides(index, period, full_first=rule.full_first) else None for index in range(count))


def _slides(index: int, period: int, *, full_first: bool) -> bool:
    if period == 0:
        return True
    return index % period != 0 if full_first else index % period < period - 1


def _recurrent_layers(
    header: GgufHeader, count: int, kv_heads: tuple[int, ...], widths: tuple[int, ...]
) -> tuple[bool, ...]:
    architecture = header.architecture or ""
    if architecture in _RECURRENT or architecture in _HYBRID_IN_EVERY_LAYER:
        return (True,) * count
    if architecture.startswith("nemotron_h"):
        return tuple(kv_heads[index] == 0 and widths[index] == 0 for index in range(count))
    if architecture in _HYBRID_BY_HEADS:
        return tuple(kv == 0 for kv in kv_heads)
    if architecture in _HYBRID_BY_INTERVAL:
        stated = header.metadata.get(f"{architecture}.attention.recurrent_layers")
        if isinstance(stated, tuple) and len(stated) >= count:
            return tuple(map(bool, stated[:count]))
        interval = header.number("full_attention_interval") or 4
        return tuple((index + 1) % interval != 0 for index in range(count))
    return (False,) * count


def _state_elements(header: GgufHeader, embedding: int, heads: int) -> int:
    """Elements of one layer's state for one sequence: ``n_embd_r() + n_embd_s()`` of llama-hparams.cpp."""
    wkv = header.number("wkv.head_size") or 0
    if wkv:
        shifts = header.number("token_shift_count")
        return (2 if shifts is None else shifts) * embedding + embedding * wkv
    short = header.number("shortconv.l_cache") or 0
    if short:
        return embedding * (short - 1)
    kernel = header.number("ssm.conv_kernel") or 0
    kda = header.number("kda.head_dim") or 0
    if kda:
        return 3 * (kernel - 1 if kernel else 3) * heads * kda + kda * kda * heads
    inner, state = header.number("ssm.inner_size") or 0, header.number("ssm.state_size") or 0
    groups = header.number("ssm.group_count") or 0
    return max(kernel - 1, 0) * (inner + 2 * groups * state) + state * inner
