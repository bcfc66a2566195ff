"""What each protocol is asked, and what a server that can not do it is not."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_llmbench.client.endpoint import LLAMA_CPP, Capabilities, Endpoint, ProtocolName
from pytest_llmbench.client.generation import PATHS, Generation
from pytest_llmbench.errors import RequestError
from tests.servers.faulty import OLLAMA, OPENAI, PROTOCOLS

URL = "http://127.0.0.1:8080"
USAGE = {"include_usage": True}
HI = ({"role": "user", "content": "Hi"},)
NOTHING = Capabilities()
KEY = "sk-not-to-be-told"


def body(
    protocol: ProtocolName,
    generation: Generation | None = None,
    capabilities: Capabilities = NOTHING,
    **extra: Any,
) -> dict[str, Any]:
    endpoint = Endpoint(URL, protocol, "tiny", capabilities=capabilities, extra=extra)
    return (generation or Generation(max_tokens=4, prompt="Once")).payload(endpoint)[2]


@pytest.mark.parametrize(
    ("protocol", "path", "expected"),
    [
        ("llama_cpp", "/completion", {"prompt": "Once", "n_predict": 4, "temperature": 0.0}),
        (
            "openai_completions",
            "/v1/completions",
            {"model": "tiny", "prompt": "Once", "max_tokens": 4, "stream_options": USAGE, "temperature": 0.0},
        ),
        (
            "openai_chat",
            "/v1/chat/completions",
            {
                "model": "tiny",
                "messages": [{"role": "user", "content": "Once"}],
                "max_tokens": 4,
                "stream_options": USAGE,
                "temperature": 0.0,
            },
        ),
        (
            "ollama_generate",
            "/api/generate",
            {"model": "tiny", "prompt": "Once", "options": {"num_predict": 4, "temperature": 0.0}},
        ),
        (
            "ollama_chat",
            "/api/chat",
            {
                "model": "tiny",
                "messages": [{"role": "user", "content": "Once"}],
                "options": {"num_predict": 4, "temperature": 0.0},
            },
        ),
    ],
)
def test_a_greedy_completion(protocol: ProtocolName, path: str, expected: dict[str, Any]) -> None:
    asked = Generation(max_tokens=4, prompt="Once").payload(Endpoint(URL, protocol, "tiny"))
    assert asked == (protocol, path, {"stream": True, **expected})


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_messages_are_asked_of_the_protocol_that_chats(protocol: ProtocolName) -> None:
    chat, path, asked = Generation(max_tokens=4, messages=HI).payload(Endpoint(URL, protocol, "tiny"))
    assert chat == ("ollama_chat" if protocol in OLLAMA else "openai_chat")
    assert path == PATHS[chat]
    assert asked["messages"] == [{"role": "user", "content": "Hi"}]
    assert asked["model"] == "tiny"


@pytest.mark.parametrize("protocol", ["llama_cpp", "openai_completions"])
def test_token_ids_are_sent_as_they_are(protocol: ProtocolName) -> None:
    assert body(protocol, Generation(max_tokens=4, prompt=(1, 2, 3)))["prompt"] == [1, 2, 3]


@pytest.mark.parametrize("protocol", ["openai_chat", *OLLAMA])
def test_token_ids_are_refused_where_only_text_is_taken(protocol: ProtocolName) -> None:
    with pytest.raises(RequestError, match="text") as caught:
        body(protocol, Generation(max_tokens=4, prompt=(1, 2, 3)))
    assert caught.value.code == "prompt_not_supported"


def test_length_and_cache_are_asked_for_where_the_server_knows_them() -> None:
    for protocol in ("llama_cpp", *OPENAI):
        asked = body(protocol, Generation(max_tokens=4, prompt="Once", demand_length=True), LLAMA_CPP)
        assert (asked["ignore_eos"], asked["cache_prompt"]) == (True, False)


def test_a_cache_may_be_used_where_that_is_wanted() -> None:
    for protocol in ("llama_cpp", *OPENAI):
        assert body(protocol, Generation(max_tokens=4, prompt="Once", reuse_cache=True), LLAMA_CPP)["cache_prompt"]


def test_length_is_not_asked_for_unless_demanded() -> None:
    assert "ignore_eos" not in body("llama_cpp", capabilities=LLAMA_CPP)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_the_server_does_not_know_is_not_asked(protocol: ProtocolName) -> None:
    asked = body(protocol, Generation(max_tokens=4, prompt="Once", demand_length=True, reuse_cache=True))
    assert {"ignore_eos", "cache_prompt", "seed"}.isdisjoint(asked)


@pytest.mark.parametrize("protocol", OPENAI)
def test_no_model_is_named_where_none_is_known(protocol: ProtocolName) -> None:
    assert "model" not in Generation(max_tokens=4, prompt="Once").payload(Endpoint(URL, protocol))[2]


@pytest.mark.parametrize("protocol", PROTOCOLS)
class TestSampling:
    def sampling(self, protocol: ProtocolName, generation: Generation) -> dict[str, Any]:
        asked = body(protocol, generation)
        found: dict[str, Any] = asked["options"] if protocol in OLLAMA else asked
        return {name: found[name] for name in ("temperature", "seed") if name in found}

    def test_a_given_seed_is_sent(self, protocol: ProtocolName) -> None:
        generation = Generation(max_tokens=4, prompt="Once", temperature=0.8, seed=7)
        assert self.sampling(protocol, generation) == {"temperature": 0.8, "seed": 7}

    def test_without_a_seed_each_request_gets_one_of_its_own(self, protocol: ProtocolName) -> None:
        generation = Generation(max_tokens=4, prompt="Once", temperature=0.8)
        seeds = {self.sampling(protocol, generation)["seed"] for _ in range(5)}
        assert len(seeds) > 1
        assert all(0 <= seed < 2**31 for seed in seeds)

    def test_greedy_needs_no_seed(self, protocol: ProtocolName) -> None:
        assert self.sampling(protocol, Generation(max_tokens=4, prompt="Once", seed=7)) == {"temperature": 0.0}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_extra_fields_are_carried_but_never_switch_streaming_off(protocol: ProtocolName) -> None:
    asked = body(protocol, keep_alive="5m", stream=False)
    assert asked["keep_alive"] == "5m"
    assert asked["stream"] is True


@pytest.mark.parametrize("protocol", OLLAMA)
def test_ollama_s_runner_options_are_kept_beside_those_of_the_request(protocol: ProtocolName) -> None:
    options = {"num_ctx": 4096, "num_predict": 9}
    asked = body(protocol, options=options)
    assert asked["options"] == {"num_ctx": 4096, "num_predict": 4, "temperature": 0.0}
    assert options == {"num_ctx": 4096, "num_predict": 9}  # P12: the next request must say the same


def test_the_key_is_not_shown() -> None:
    assert KEY not in repr(Endpoint(URL, "llama_cpp", api_key=KEY))


def test_a_changed_copy_keeps_the_rest() -> None:
    endpoint = Endpoint(URL, "llama_cpp", api_key=KEY, capabilities=LLAMA_CPP)
    assert endpoint.replace(model="tiny") == Endpoint(URL, "llama_cpp", "tiny", KEY, LLAMA_CPP)


def test_each_missing_ability_is_said_once() -> None:
    everything = Capabilities(
        exact_prompts=True,
        ignores_end_of_sequence=True,
        controls_cache=True,
        server_timings=True,
        tokenizer=True,
        memory=True,
    )
    assert everything.missing_notes() == ()
    assert len(set(Capabilities().missing_notes())) == 6
    (note,) = Capabilities(True, True, True, True, True).missing_notes()
    assert "memory" in note
