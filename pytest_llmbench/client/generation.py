"""What is asked of a model, and how each protocol writes it down."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from pytest_llmbench.client.endpoint import Endpoint, ProtocolName
from pytest_llmbench.errors import RequestError

PATHS: dict[ProtocolName, str] = {
    "llama_cpp": "/completion",
    "openai_chat": "/v1/chat/completions",
    "openai_completions": "/v1/completions",
    "ollama_generate": "/api/generate",
    "ollama_chat": "/api/chat",
}


@dataclass(frozen=True, slots=True)
class Generation:
    """A prompt to continue, or chat messages. Greedy unless a temperature is given; then the seed is sent and recorded.

    Attributes:
        prompt: text, or token ids where the server takes them.
        demand_length: ask the server to go on to ``max_tokens``, where it can.
        reuse_cache: let the server answer from what it still has of an earlier prompt; else, where it can be told, not.
    """

    max_tokens: int
    prompt: str | tuple[int, ...] | None = None
    messages: tuple[dict[str, str], ...] | None = None
    demand_length: bool = False
    reuse_cache: bool = False
    temperature: float = 0.0
    seed: int | None = None

    def payload(self, endpoint: Endpoint) -> tuple[ProtocolName, str, dict[str, Any]]:
        """Protocol, path and JSON body for an endpoint.

        Raises:
            RequestError: ``prompt_not_supported``: token ids for a server that takes only text.
        """
        protocol = endpoint.chat_protocol if self.messages is not None else endpoint.protocol
        if isinstance(self.prompt, tuple) and protocol not in {"llama_cpp", "openai_completions"}:
            raise RequestError("prompt_not_supported", f"{protocol} takes text, not token ids; give the prompt as text")
        body = self._ollama(endpoint, protocol) if protocol.startswith("ollama") else self._openai(endpoint, protocol)
        return protocol, PATHS[protocol], body

    def _openai(self, endpoint: Endpoint, protocol: ProtocolName) -> dict[str, Any]:
        body: dict[str, Any] = {**endpoint.extra, "stream": True, **self._sampling()}
        if self.demand_length and endpoint.capabilities.ignores_end_of_sequence:
            body["ignore_eos"] = True
        if endpoint.capabilities.controls_cache:
            body["cache_prompt"] = self.reuse_cache
        if protocol == "llama_cpp":
            return {**body, "prompt": self._prompt(), "n_predict": self.max_tokens}
        body |= {"max_tokens": self.max_tokens, "stream_options": {"include_usage": True}}
        if endpoint.model is not None:
            body["model"] = endpoint.model
        if protocol == "openai_completions":
            return {**body, "prompt": self._prompt()}
        return {**body, "messages": self._messages()}

    def _ollama(self, endpoint: Endpoint, protocol: ProtocolName) -> dict[str, Any]:
        options = {**endpoint.extra.get("options", {}), "num_predict": self.max_tokens, **self._sampling()}
        body = {**endpoint.extra, "model": endpoint.model, "stream": True, "options": options}
        if protocol == "ollama_chat":
            return {**body, "messages": self._messages()}
        return {**body, "prompt": self._prompt()}

    def _sampling(self) -> dict[str, Any]:
        if not self.temperature:
            return {"temperature": 0.0}
        return {
            "temperature": self.temperature,
            "seed": secrets.randbelow(2**31) if self.seed is None else self.seed,
        }

    def _prompt(self) -> str | list[int]:
        return list(self.prompt) if isinstance(self.prompt, tuple) else self.prompt or ""

    def _messages(self) -> list[dict[str, str]]:
        if self.messages is not None:
            return list(self.messages)
        return [{"role": "user", "content": self.prompt if isinstance(self.prompt, str) else ""}]
