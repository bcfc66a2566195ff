"""Prompts: fresh at the start, of the length the server counts, and never counted with somebody else's tokenizer."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest

from pytest_llmbench.client.endpoint import Endpoint, ProtocolName
from pytest_llmbench.client.generation import Generation
from pytest_llmbench.client.prompts import Prompts, any_prompts, count_tokens, nonce, prompts_of, words
from pytest_llmbench.core.records import RequestRecord
from pytest_llmbench.errors import RequestError
from tests.unit.backends.routes import Routes

BEGIN = 1


def llama_tokenize(body: dict[str, Any]) -> tuple[int, Any]:
    """One token a word, and one for the beginning where it is asked for."""
    ids = [sum(map(ord, word)) for word in body["content"].split()]
    return 200, {"tokens": [BEGIN, *ids] if body.get("add_special") else ids}


def vllm_tokenize(body: dict[str, Any]) -> tuple[int, Any]:
    count = len(body["prompt"].split()) + body["add_special_tokens"]
    return 200, {"count": count, "max_model_len": 4096, "tokens": list(range(count))}


def record(prompt_tokens: int | None, **changes: Any) -> RequestRecord:
    fields: dict[str, Any] = {
        "cell": None,
        "index": 0,
        "phase": "warmup",
        "ok": True,
        "protocol": "x",
        "t_send_ns": 0,
        "t_end_ns": 1,
        "prompt_tokens": prompt_tokens,
    }
    return RequestRecord(**{**fields, **changes})


def endpoint(url: str, protocol: ProtocolName = "llama_cpp") -> Endpoint:
    return Endpoint(url, protocol, "m")


class TestCounting:
    def test_llama_cpp_counts_the_beginning_too(self) -> None:
        with Routes({"POST /tokenize": llama_tokenize}) as server:
            assert count_tokens(endpoint(server.url), "one two three") == 4

    def test_vllm(self) -> None:
        with Routes({"POST /tokenize": vllm_tokenize}) as server:
            assert count_tokens(endpoint(server.url, "openai_chat"), "one two three") == 4
            assert server.requests[0][2]["model"] == "m"

    def test_a_count_without_tokens(self) -> None:
        with Routes({"POST /tokenize": (200, {"count": 7})}) as server:
            assert count_tokens(endpoint(server.url), "x") == 7

    @pytest.mark.parametrize("answer", [(404, {}), (500, {}), (200, []), (200, {"count": -1}), (200, {"count": True})])
    def test_no_tokenizer_is_no_guess(self, answer: tuple[int, Any]) -> None:
        with Routes({"POST /tokenize": answer}) as server:
            assert count_tokens(endpoint(server.url), "one two three") is None

    def test_a_server_that_is_gone(self) -> None:
        with Routes({}) as server:
            url = server.url
        assert count_tokens(endpoint(url), "x") is None

    def test_ollama_has_none_and_is_not_asked(self) -> None:
        with Routes({"POST /tokenize": llama_tokenize}) as server:
            assert count_tokens(endpoint(server.url, "ollama_chat"), "x") is None
            assert server.requests == []

    def test_words(self) -> None:
        assert [words(""), words(" \n"), words("one two\nthree ")] == [0, 0, 3]


class TestFreshness:
    def test_nonces_differ_and_look_alike(self) -> None:
        nonces = {nonce() for _ in range(50)}
        assert len(nonces) > 45
        assert {len(one) for one in nonces} == {11}

    def test_prompts_of_any_length_begin_differently(self) -> None:
        first, second = islice(any_prompts(), 2)
        assert isinstance(first, str)
        assert isinstance(second, str)
        assert first[:11] != second[:11]
        assert first[11:] == second[11:]


def never(_: Generation) -> RequestRecord:
    pytest.fail("no warm-up is needed where the server takes token ids")


class TestExact:
    @pytest.mark.parametrize("tokens", [1, 5, 64, 3000])
    @pytest.mark.parametrize("protocol", ["llama_cpp", "openai_completions"])
    def test_exactly_as_many_ids(self, tokens: int, protocol: ProtocolName) -> None:
        with Routes({"POST /tokenize": llama_tokenize}) as server:
            prompts = prompts_of(endpoint(server.url, protocol), tokens, never)
            asked = len(server.requests)
            made = list(islice(prompts, 20))
            assert len(server.requests) == asked  # nobody is asked while something may be timed
        assert {len(prompt) for prompt in made} == {tokens}
        assert all(isinstance(prompt, tuple) and prompt[0] == BEGIN for prompt in made)
        assert (prompts.asked_tokens, prompts.expected_tokens, prompts.tolerance_tokens) == (tokens, tokens, 0)
        if tokens > 5:
            assert len({prompt[1:7] for prompt in made}) == 20
            assert len({prompt[7:] for prompt in made}) == 1

    def test_a_server_that_counts_but_tells_no_ids_is_fitted(self) -> None:
        with Routes({"POST /tokenize": (200, {"count": 7})}) as server:
            prompts = prompts_of(endpoint(server.url), 100, Reader().ask)
        assert prompts.expected_tokens == 100
        assert "fitted" in prompts.notes[0]


class Reader:
    """Reads prompts as a server would: ``before`` tokens around each, ``per_word`` for a word, at most ``most``."""

    def __init__(self, before: int = 11, per_word: float = 1.0, most: int = 10**9, *, tells: bool = True) -> None:
        self.before = before
        self.per_word = per_word
        self.most = most
        self.tells = tells
        self.requests = 0

    def count(self, prompt: str | tuple[int, ...] | None) -> int:
        assert isinstance(prompt, str)
        return min(self.most, self.before + round(self.per_word * len(prompt.split())))

    def ask(self, generation: Generation) -> RequestRecord:
        self.requests += 1
        return record(self.count(generation.prompt) if self.tells else None)


class TestFitted:
    def made(self, reader: Reader, tokens: int) -> Prompts:
        return prompts_of(endpoint("http://127.0.0.1:9", "openai_chat"), tokens, reader.ask)

    @pytest.mark.parametrize("tokens", [40, 512, 20_000])
    def test_one_token_a_word(self, tokens: int) -> None:
        reader = Reader()
        prompts = self.made(reader, tokens)
        assert {reader.count(prompt) for prompt in islice(prompts, 5)} == {tokens}
        assert reader.requests == 2
        assert prompts.notes == (f"prompts are text fitted to {tokens} tokens; the server counted {tokens}",)

    @pytest.mark.parametrize("per_word", [1.15, 1.4])
    def test_more_tokens_than_words(self, per_word: float) -> None:
        reader = Reader(per_word=per_word)
        prompts = self.made(reader, 1000)
        assert reader.requests <= 5
        assert abs(reader.count(next(iter(prompts))) - 1000) <= 15
        assert prompts.expected_tokens == reader.count(next(iter(prompts)))

    def test_prompts_begin_differently(self) -> None:
        first, second = islice(self.made(Reader(), 100), 2)
        assert isinstance(first, str)
        assert isinstance(second, str)
        assert first.split()[:6] != second.split()[:6]
        assert first.split()[6:] == second.split()[6:]

    def test_a_server_that_cuts(self) -> None:
        with pytest.raises(RequestError, match="it cuts prompts") as raised:
            self.made(Reader(most=2048), 4000)
        assert raised.value.code == "prompt_truncated"
        assert raised.value.evidence["read_tokens"] == 2048

    def test_a_template_longer_than_the_prompt(self) -> None:
        with pytest.raises(RequestError, match="--prompt-tokens 122 or more") as raised:
            self.made(Reader(before=100), 50)
        assert raised.value.code == "prompt_too_short"

    def test_a_server_that_does_not_count(self) -> None:
        prompts = self.made(Reader(tells=False), 100)
        assert prompts.at_least
        assert words(str(next(iter(prompts)))) == 100
        assert "does not count" in prompts.notes[0]

    def test_an_answer_that_fails(self) -> None:
        def ask(_: Generation) -> RequestRecord:
            return record(None, ok=False, error="server_busy", error_message="come back later")

        with pytest.raises(RequestError, match="come back later") as raised:
            prompts_of(endpoint("http://127.0.0.1:9", "openai_chat"), 100, ask)
        assert raised.value.code == "server_busy"

    def test_an_empty_answer_counts_all_the_same(self) -> None:
        reader = Reader()

        def ask(generation: Generation) -> RequestRecord:
            return reader.ask(generation).model_copy(update={"ok": False, "error": "empty_answer"})

        assert prompts_of(endpoint("http://127.0.0.1:9", "openai_chat"), 100, ask).expected_tokens == 100


class TestContradiction:
    """P09: what was read is not what was sent."""

    @pytest.mark.parametrize(("read", "contradicts"), [(99, True), (100, False), (101, True), (None, False)])
    def test_exact(self, read: int | None, contradicts: bool) -> None:
        assert Prompts(100, str).contradicts(record(read)) is contradicts

    @pytest.mark.parametrize(("read", "contradicts"), [(93, True), (94, False), (106, False), (107, True)])
    def test_fitted(self, read: int, contradicts: bool) -> None:
        assert Prompts(100, str, tolerance_tokens=6).contradicts(record(read)) is contradicts

    @pytest.mark.parametrize(("read", "contradicts"), [(99, True), (100, False), (500, False)])
    def test_at_least(self, read: int, contradicts: bool) -> None:
        assert Prompts(100, str, at_least=True).contradicts(record(read)) is contradicts

    def test_the_server_says_so(self) -> None:
        assert Prompts(100, str).contradicts(record(100, prompt_truncated=True))
