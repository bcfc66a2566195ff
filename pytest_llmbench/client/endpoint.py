"""Where a server listens, what it speaks and what it can do."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

ProtocolName = Literal["llama_cpp", "openai_chat", "openai_completions", "ollama_generate", "ollama_chat"]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a kind of server can do; profiles adapt to what it can not, and say so in a record's ``notes``.

    Attributes:
        exact_prompts: takes token ids, so that a prompt has exactly the length asked for.
        ignores_end_of_sequence: honours ``ignore_eos``, so that an answer has exactly the length asked for.
        controls_cache: honours ``cache_prompt``, so that no prompt is answered from a cache.
        server_timings: tells its own times, to be compared with the client's.
        tokenizer: counts tokens for us (``/tokenize``).
        memory: its processes are ours or its API tells its size, so that its memory can be known.
    """

    exact_prompts: bool = False
    ignores_end_of_sequence: bool = False
    controls_cache: bool = False
    server_timings: bool = False
    tokenizer: bool = False
    memory: bool = False

    def missing_notes(self) -> tuple[str, ...]:
        """One sentence per ability that is missing, with what is done instead."""
        sentences = {
            "exact_prompts": "takes no token ids; prompts are text, their length is what the server counted",
            "ignores_end_of_sequence": "has no ignore_eos; the length of each answer is checked instead",
            "controls_cache": "may cache prompts; a fresh nonce at the start of each prevents a hit",
            "server_timings": "does not tell its own times; only the client's clock speaks here",
            "tokenizer": "does not count tokens on request; only counts that come with an answer are used",
            "memory": "is not ours to look into; its memory is not known",
        }
        return tuple(f"this server {text}" for name, text in sentences.items() if not getattr(self, name))


# llama.cpp's server, whoever started it.
LLAMA_CPP = Capabilities(
    exact_prompts=True, ignores_end_of_sequence=True, controls_cache=True, server_timings=True, tokenizer=True
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server as requests see it.

    Attributes:
        base_url: scheme, host and port, perhaps a path before ``/v1`` or ``/api``.
        protocol: what performance is measured with: llama.cpp's own where it is spoken (no chat template, exact
            length), else what the server has.
        model: the name requests carry.
        extra: fields every request carries, the same each time: a changed runner option would reload an Ollama model.
        signed: the name with which the first answer was signed, when it was found to be the right model's.
    """

    base_url: str
    protocol: ProtocolName
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    capabilities: Capabilities = Capabilities()
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    signed: str | None = None

    @property
    def chat_protocol(self) -> ProtocolName:
        """The protocol for messages with roles."""
        return "ollama_chat" if self.protocol.startswith("ollama") else "openai_chat"

    def replace(self, **changes: Any) -> Endpoint:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)
