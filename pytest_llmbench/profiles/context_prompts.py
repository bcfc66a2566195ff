"""Prompts that fill a context: readable text with one planted fact, of a length in tokens that the server counts.

The text is written from templates, so that any amount of it can be had; it only has to be read. Prompts of one size
differ from each other in every sentence, in the fact and in its place, and begin with a nonce.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from pytest_llmbench.client.prompts import nonce, words
from pytest_llmbench.errors import RequestError
from pytest_llmbench.profiles.base import PromptTokens

NEXT_TURN = "And then?"

_CHOICES = {
    "person": "the baker|the captain|the carpenter|the clerk|the cook|the doctor|the ferryman|the gardener|the guard|"
    "the hunter|the miller|the musician|the painter|the postman|the printer|the sailor|the schoolteacher|the shepherd|"
    "the smith|the tailor|the traveller|the watchmaker|the weaver|an old farmer|a young student|a tired soldier",
    "place": "the harbour|the market|the mill|the old bridge|the station|the town hall|the orchard|the lighthouse|"
    "the library|the church|the inn|the forest|the river|the workshop|the square|the school|the quarry|the garden",
    "thing": "a basket of apples|a bundle of letters|a broken clock|a wooden ladder|a bag of flour|a lamp|a map|"
    "a pair of boots|a bottle of ink|a roll of cloth|a small drum|a fishing net|a jar of honey|a heavy coat|"
    "a box of nails|a kettle|a violin|a loaf of bread|a sack of coal|a book about birds",
    "time": "In the morning|Before noon|Later that day|In the evening|After the rain|A week later|On the next day|"
    "In the spring|At the end of summer|When the bell rang|During the storm|After a long silence|On market day",
    "remark": "nobody asked why|the wind had turned by then|it took longer than expected|the dogs did not bark|"
    "the others only smiled|that was the custom there|the road was still wet|everybody talked about it for days|"
    "there was not much time left|the price had gone up again|the children wanted to see it, too",
    "holder": "locker|cabinet|chest|gate|safe|drawer|trunk|cellar door",
    "colour": "blue|red|green|white|black|yellow|grey|brown|orange|purple",
}
_WORDS = {slot: choices.split("|") for slot, choices in _CHOICES.items()}
_TEMPLATES = (
    "{time} {person} walked from {place} to {place2} and carried {thing}.",
    "{time} {person} sold {thing} to {person2} near {place}.",
    "{time} {person} met {person2} at {place}, and {remark}.",
    "{Person} had left {thing} at {place}, but {remark}.",
    "{Person} asked {person2} for {thing}, because {remark}.",
    "{Person} waited at {place} until {person2} came back from {place2}.",
    "{time} somebody found {thing} behind {place}, and {person} took it home.",
    "It was said at {place} that {person} and {person2} no longer spoke, though {remark}.",
    "{time} {person} repaired {thing} for {person2} and asked for nothing.",
    "From {place} one could see {place2}, where {person} was looking for {thing}.",
)

_HEAD = "This is a part of a long chronicle. Read all of it; a question follows at the end.\n\nIt was{pads} late.\n\n"
_TAIL = (
    "\n\nQuestion: What is the code of the {holder}? Begin with the code, then tell at length what else happened."
    "\nAnswer: The code of the {holder} is"
)
_SENTENCES_IN_A_PARAGRAPH = 6
_MOST_PADS = 40  # more than any of the sentences has tokens
_FIT_TRIES = 10
_FIRST_GUESS_TOKENS = 18.0  # of one sentence
_PLACES_PERCENT = (5.0, 95.0)


@dataclass(frozen=True, slots=True)
class Fact:
    """What is planted in a text and asked for at its end."""

    holder: str
    code: str

    @property
    def sentence(self) -> str:
        """As it stands in the text."""
        return f"The code of the {self.holder} is {self.code}."

    def is_answered_by(self, answer: str) -> bool:
        """Whether the first number in an answer is the code."""
        number = re.search(r"\d[\d,]*", answer)
        return number is not None and number[0].replace(",", "") == self.code


@dataclass(frozen=True, slots=True)
class LongPrompt:
    """A prompt for one request.

    Attributes:
        tokens: as it was counted before it was sent.
        place_percent: where the fact stands, in percent of the sentences before it.
    """

    text: str
    fact: Fact
    place_percent: float
    tokens: int
    length: PromptTokens

    def continued(self, answer: str) -> str:
        """The same conversation after the answer, with one more turn."""
        return f"{self.text}{answer}\n\nQuestion: {NEXT_TURN}\nAnswer:"


class Counter(Protocol):
    """Counts the tokens of a text before it is sent."""

    @property
    def slack(self) -> float:
        """By how large a part of a context its counts may be wrong."""
        ...

    def count(self, text: str) -> int:
        """Tokens that the server should find in a prompt, with what it puts around it. Raises LlmbenchError."""
        ...

    def length(self, tokens: int) -> PromptTokens:
        """What contradicts a count, when the server tells how many it has read."""
        ...

    def learn(self, text: str, read: int) -> None:
        """Take in how many tokens the server has found in a text."""
        ...


@dataclass
class TokenizerCounter:
    """The server's own tokenizer counts.

    Attributes:
        counted: asks it; raises LlmbenchError.
        exact: nothing is put around a prompt; else a chat template is, and how long it is has to be learned.
    """

    counted: Callable[[str], int]
    exact: bool
    around: int = 0

    @property
    def slack(self) -> float:
        """See :class:`Counter`; a template's last token may merge with the text's first."""
        return 0.0 if self.exact else 0.005

    def count(self, text: str) -> int:
        """See :class:`Counter`."""
        return self.counted(text) + self.around

    def length(self, tokens: int) -> PromptTokens:
        """See :class:`Counter`."""
        return PromptTokens(tokens - self.around, self.exact)

    def learn(self, text: str, read: int) -> None:
        """See :class:`Counter`."""
        if not self.exact:
            self.around = max(0, read - self.counted(text))


@dataclass
class LearnedCounter:
    """Where no tokenizer can be asked: what the server counted in earlier prompts says how many tokens a word has."""

    slack: float = 0.02
    seen: list[tuple[int, int]] = field(default_factory=list)

    def count(self, text: str) -> int:
        """See :class:`Counter`."""
        around, per_word = self._line()
        return round(around + per_word * words(text))

    def length(self, tokens: int) -> PromptTokens:
        """Nine tenths of what is expected: a miss is corrected, a prompt that was cut is another thing."""
        return PromptTokens(tokens * 9 // 10, exact=False)

    def learn(self, text: str, read: int) -> None:
        """See :class:`Counter`."""
        self.seen.append((words(text), read))

    def _line(self) -> tuple[float, float]:
        """Tokens around a prompt, and per word of it: through the shortest text and the last."""
        first, last = min(self.seen), self.seen[-1]
        if last[0] == first[0]:
            return 0.0, last[1] / last[0]
        per_word = (last[1] - first[1]) / (last[0] - first[0])
        return first[1] - per_word * first[0], per_word


class PromptWriter:
    """Writes prompts of wanted lengths, each with other sentences and another fact."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._sentence_tokens = _FIRST_GUESS_TOKENS

    def write(self, tokens: int, seed: str) -> LongPrompt:
        """A prompt of ``tokens`` tokens by the counter; a few fewer where no text of that length is found.

        Args:
            seed: of the sentences, the fact and its place; the nonce is another each time.

        Raises:
            RequestError: ``prompt_too_short``: the question alone is longer.
        """
        draft, best = Draft(seed), None
        sentences, pads = max(1, int(tokens / self._sentence_tokens)), 0
        for _ in range(_FIT_TRIES):
            text = draft.text(sentences, pads)
            count = self._counter.count(text)
            missing = tokens - count
            if missing >= 0 and (best is None or count > best.tokens):
                best = LongPrompt(text, draft.fact, draft.place_percent, count, self._counter.length(count))
            if not missing:
                break
            if 0 <= pads + missing <= _MOST_PADS:
                pads += missing
                continue
            self._sentence_tokens = max(1.0, count / (sentences + 1))
            # Rounded down, so that what is left over can be padded.
            step, pads = int((missing + pads) // self._sentence_tokens), 0
            sentences = max(1, sentences + (step or (1 if missing > 0 else -1)))
        if best is None:
            raise RequestError(
                "prompt_too_short",
                f"a question and a text around it do not fit into {tokens} tokens; ask for larger contexts "
                "(settings.long_context.test_sizes)",
                {"tokens": tokens},
            )
        return best


class Draft:
    """Endless text with a fact in it, the same for the same seed."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)  # noqa: S311 -- no secret
        holder = f"{self._random.choice(_WORDS['colour'])} {self._random.choice(_WORDS['holder'])}"
        self.fact = Fact(holder, str(self._random.randrange(10_000, 100_000)))
        self.place_percent = round(self._random.uniform(*_PLACES_PERCENT), 1)
        self._nonce = nonce()
        self._sentences: list[str] = []

    def text(self, sentences: int, pads: int = 0) -> str:
        """The prompt with so many sentences, and so many words that only make it longer, about a token each."""
        while len(self._sentences) < sentences:
            self._sentences.append(self._sentence())
        place = round(self.place_percent / 100 * sentences)
        story = [*self._sentences[:place], self.fact.sentence, *self._sentences[place:sentences]]
        paragraphs = [
            " ".join(story[begin : begin + _SENTENCES_IN_A_PARAGRAPH])
            for begin in range(0, len(story), _SENTENCES_IN_A_PARAGRAPH)
        ]
        head, tail = _HEAD.format(pads=" very" * pads), _TAIL.format(holder=self.fact.holder)
        return f"{self._nonce}{head}" + "\n".join(paragraphs) + tail

    def _sentence(self) -> str:
        person, person2 = self._random.sample(_WORDS["person"], 2)
        place, place2 = self._random.sample(_WORDS["place"], 2)
        thing, time, remark = (self._random.choice(_WORDS[slot]) for slot in ("thing", "time", "remark"))
        template = self._random.choice(_TEMPLATES)
        return template.format(
            person=person,
            Person=person.capitalize(),
            person2=person2,
            place=place,
            place2=place2,
            thing=thing,
            time=time,
            remark=remark,
        )
