"""Prompts that no cache has seen, of a length that the server itself counts.

A prompt's length in tokens is known only to the tokenizer that reads it (P38). Where the server takes token ids and
has a ``/tokenize``, a prompt is made of exactly as many as asked for. Where it takes only text, the text is fitted by
what the server counts in a few warm-up requests.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pytest_llmbench.client.control import post_json
from pytest_llmbench.client.endpoint import Endpoint
from pytest_llmbench.client.generation import Generation
from pytest_llmbench.core.records import RequestRecord
from pytest_llmbench.errors import RequestError

# Short words that nearly every tokenizer has as one token each, so that a text's length is known in advance.
_COMMON = (
    "about after again air all also another answer any are around ask away back because been before being below "
    "best better between big book both boy build but call came can car change city close cold come could country "
    "cut day did different does done door down each early earth eat end enough even ever every eye face family far "
    "father feel feet few find fire first fish five follow food form found four friend from gave girl give good "
    "great green ground group grow had half hand hard have head hear help her here high him his home horse hot "
    "hour house how hundred idea inch into its keep kind king know land large last late learn leave left less let "
    "letter life light like line list little live long look love low made make man many map mark may mean might "
    "mile money more morning most mother mountain move much music must name near need never new next night no "
    "north not note now number often old once one only open order other our over own page paper part people "
    "picture piece place plan plant play point power problem question quick rain ran read real red rest right "
    "river road rock room round rule run said same saw say school sea second see seem self sentence set she ship "
    "short should show side simple six sleep slow small snow some song soon sound south space stand star start "
    "state step still stop story street strong study such sun sure table take talk teach tell ten than that them "
    "then there these they thing think this those though thought three through time together told took top "
    "toward town travel tree true try turn two under until use very voice wait walk want war warm was watch water "
    "way week well went were west what wheel when where which while white who why will wind wood word work world "
    "would write year yes young"
)
_WORDS = _COMMON.split()
_NONCE_WORDS = 6  # of some 300: 10¹⁴ different beginnings
_TASK = "\n\nNow write a very long story in which all of these words occur, in this order."
_DEFAULT_TEXT = (
    "Write a long story about a lighthouse keeper who finds a message in a bottle. Describe the island, the weather, "
    "the keeper's days and what the message changes. Do not stop before the story has two thousand words."
)
_TOKENIZE_SECONDS = 30.0
_FIT_TRIES = 5


def nonce() -> str:
    """Text for the very start of a prompt, so that no prefix of it can come from a cache."""
    return f"[{secrets.randbelow(10**8):08d}] "


def words(text: str) -> int:
    """Words between white space: what a tokenizer makes of a text is hardly ever fewer tokens."""
    return len(text.split())


def count_tokens(endpoint: Endpoint, text: str) -> int | None:
    """How many tokens the server's own tokenizer makes of a text, with those it puts around each prompt.

    None where the server has no ``/tokenize``: nobody else's tokenizer is asked instead. On llama.cpp's
    ``/completion`` it is exactly the prompt count that comes with an answer.
    """
    answer = _tokenize(endpoint, text, special=True)
    if answer is None:
        return None
    tokens, count = answer.get("tokens"), answer.get("count")
    if isinstance(tokens, list):
        return len(tokens)
    return count if isinstance(count, int) and not isinstance(count, bool) and count >= 0 else None


@dataclass(frozen=True, slots=True)
class Prompts:
    """Fresh prompts of one length; iterating never asks a server, and never ends.

    Attributes:
        asked_tokens: the length wanted, None where any will do.
        expected_tokens: what the server should count; with ``at_least``, a lower bound.
        tolerance_tokens: by how much its count may differ: the beginnings differ, so do their tokens.
        notes: how close the length came.
        pieces: makes the next prompt.
    """

    expected_tokens: int
    pieces: Callable[[], str | tuple[int, ...]]
    asked_tokens: int | None = None
    tolerance_tokens: int = 0
    at_least: bool = False
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[str | tuple[int, ...]]:
        while True:
            yield self.pieces()

    def contradicts(self, record: RequestRecord) -> bool:
        """Whether the server read another number of tokens than it was sent (P09)."""
        read = record.prompt_tokens
        if record.prompt_truncated:
            return True
        if read is None:
            return False
        short = read < self.expected_tokens - self.tolerance_tokens
        return short or (not self.at_least and read > self.expected_tokens + self.tolerance_tokens)


def any_prompts() -> Prompts:
    """Prompts of no particular length that ask for a long answer."""
    return Prompts(words(_DEFAULT_TEXT) // 2, lambda: nonce() + _DEFAULT_TEXT, at_least=True)


def prompts_of(endpoint: Endpoint, tokens: int, ask: Callable[[Generation], RequestRecord]) -> Prompts:
    """Prompts of ``tokens`` tokens.

    Args:
        ask: sends a warm-up request; only used where the server takes no token ids.

    Raises:
        RequestError: ``prompt_truncated``: the server cuts prompts of that length; ``prompt_too_short``: what it puts
            around each prompt is longer already; or what a warm-up request failed of.
    """
    exact = _exact(endpoint, tokens) if endpoint.protocol in {"llama_cpp", "openai_completions"} else None
    return exact or _Fit(tokens, ask).prompts()


def _exact(endpoint: Endpoint, tokens: int) -> Prompts | None:
    """Prompts as token ids, None where the server does not tell them."""
    text = " ".join(_filler(tokens))
    plain, special = _token_ids(endpoint, text, special=False), _token_ids(endpoint, text, special=True)
    if not plain or special is None or len(plain) < tokens:
        return None
    # What the server puts before each prompt that is text (the token of the beginning), it does not put before ids.
    begin = tuple(special[: len(special) - len(plain)]) if special[len(special) - len(plain) :] == plain else ()
    known = sorted(set(plain))
    rest = tuple(plain)

    def make() -> tuple[int, ...]:
        fresh = tuple(secrets.choice(known) for _ in range(_NONCE_WORDS))
        return (begin + fresh + rest)[:tokens]

    return Prompts(tokens, make, asked_tokens=tokens, notes=(f"prompts are token ids, exactly {tokens} each",))


class _Fit:
    """Finds how many words of text make a prompt of the length wanted, by what the server counts."""

    def __init__(self, tokens: int, ask: Callable[[Generation], RequestRecord]) -> None:
        self._tokens = tokens
        self._ask = ask
        self._filler = _filler(tokens)

    def prompts(self) -> Prompts:
        """The prompts, as close as a few requests can tell. Raises RequestError; see :func:`prompts_of`."""
        size, best_size, best = max(_NONCE_WORDS, self._tokens - words(_TASK)), 0, 0
        seen: set[int] = set()
        for _ in range(_FIT_TRIES):
            count = self._count(size)
            if count is None:
                note = f"this server does not count prompt tokens; each prompt has {size + words(_TASK)} words"
                return self._made(size, size, at_least=True, note=note)
            if not best or abs(count - self._tokens) < abs(best - self._tokens):
                best_size, best = size, count
            seen.add(size)
            size = max(_NONCE_WORDS, size + self._tokens - count)
            if count == self._tokens or size in seen:
                break
        if best > self._tokens + _NONCE_WORDS and best_size == _NONCE_WORDS:
            raise RequestError(
                "prompt_too_short",
                f"this server makes {best} tokens of the shortest prompt; ask for --prompt-tokens {best} or more",
            )
        note = f"prompts are text fitted to {self._tokens} tokens; the server counted {best}"
        return self._made(best_size, best, at_least=False, note=note)

    def _made(self, size: int, expected: int, *, at_least: bool, note: str) -> Prompts:
        return Prompts(
            expected,
            lambda: self._text(size),
            asked_tokens=self._tokens,
            tolerance_tokens=_NONCE_WORDS,
            at_least=at_least,
            notes=(note,),
        )

    def _count(self, size: int) -> int | None:
        """How many tokens the server reads in a prompt of ``size`` words."""
        text = self._text(size)
        record = self._ask(Generation(max_tokens=4, prompt=text))
        if not record.ok and record.error != "empty_answer":
            raise RequestError(record.error or "failed", record.error_message or "a warm-up request failed")
        read, sent = record.prompt_tokens, words(text)
        if record.prompt_truncated or (read is not None and read < sent):
            raise RequestError(
                "prompt_truncated",
                f"the server read {read} tokens of a prompt of {sent} words: it cuts prompts; give it a larger context "
                "or ask for fewer --prompt-tokens",
                {"read_tokens": read, "sent_words": sent},
            )
        return read

    def _text(self, size: int) -> str:
        fresh = [secrets.choice(_WORDS) for _ in range(_NONCE_WORDS)]
        while len(self._filler) < size:
            self._filler = _filler(2 * size)
        return " ".join([*fresh, *self._filler[: size - _NONCE_WORDS]]) + _TASK


def _filler(count: int) -> list[str]:
    """The same words each time; without order, so that no tokenizer finds phrases in them."""
    return random.Random(0).choices(_WORDS, k=count)  # noqa: S311 -- no secret


def _token_ids(endpoint: Endpoint, text: str, *, special: bool) -> list[int] | None:
    answer = _tokenize(endpoint, text, special=special)
    tokens = answer.get("tokens") if answer is not None else None
    usable = isinstance(tokens, list) and all(isinstance(token, int) for token in tokens)
    return tokens if usable else None


def _tokenize(endpoint: Endpoint, text: str, *, special: bool) -> dict[str, Any] | None:
    """What the server's ``/tokenize`` says: llama.cpp's reads the first keys, vLLM's and SGLang's the others."""
    if endpoint.protocol.startswith("ollama"):
        return None
    body: dict[str, Any] = {"content": text, "add_special": special, "prompt": text, "add_special_tokens": special}
    if endpoint.model is not None:
        body["model"] = endpoint.model
    try:
        answer = post_json(endpoint, "/tokenize", body, _TOKENIZE_SECONDS)
    except RequestError:
        return None
    return answer if isinstance(answer, dict) else None
