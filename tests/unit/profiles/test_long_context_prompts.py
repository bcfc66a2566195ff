"""Prompts that fill a context: of the length wanted by whatever tokenizer, with one fact that can be found."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from pytest_llmbench.errors import RequestError
from pytest_llmbench.profiles.context_prompts import Draft, Fact, LearnedCounter, PromptWriter, TokenizerCounter
from tests.servers.reader import pieces

Tokenizer = Callable[[str], int]


def words(text: str) -> int:
    return len(text.split())


def fours(text: str) -> int:
    """Four characters each, as of a tokenizer that knows no words."""
    return -(-len(text) // 4)


def characters(text: str) -> int:
    return len(text.encode())


def exactly(count: Tokenizer) -> TokenizerCounter:
    return TokenizerCounter(count, exact=True)


class TestFact:
    fact = Fact("blue locker", "48213")

    @pytest.mark.parametrize(
        "answer",
        [" 48213.", "48213", "The code of the blue locker is 48213, as was said.", "**48,213**", " 48213 and 7 more"],
    )
    def test_answered(self, answer: str) -> None:
        assert self.fact.is_answered_by(answer)

    @pytest.mark.parametrize(
        "answer", ["", "I do not know.", "482134", "4821", "148213", "12 lockers, 48213", "It is not 11111 but 48213"]
    )
    def test_not_answered(self, answer: str) -> None:
        assert not self.fact.is_answered_by(answer)


class TestDraft:
    def test_the_same_text_for_the_same_seed_but_for_its_beginning(self) -> None:
        first, again = Draft("512/0").text(40), Draft("512/0").text(40)
        assert first != again
        assert first.partition("] ")[2] == again.partition("] ")[2]

    def test_another_fact_and_other_sentences_for_another_seed(self) -> None:
        drafts = [Draft(f"512/{number}") for number in range(20)]
        assert len({draft.fact for draft in drafts}) == 20
        assert len({draft.place_percent for draft in drafts}) > 10
        texts = [draft.text(40).splitlines() for draft in drafts]
        assert all(set(first[4:-4]).isdisjoint(second[4:-4]) for first, second in pairwise(texts))

    @pytest.mark.parametrize("sentences", [1, 7, 300])
    def test_the_fact_stands_once_where_it_says_and_the_question_at_the_end(self, sentences: int) -> None:
        draft = Draft("x")
        text = draft.text(sentences)
        before, found, _ = text.partition(draft.fact.sentence)
        assert found
        assert text.count(draft.fact.code) == 1
        assert text.endswith(f"The code of the {draft.fact.holder} is")
        full_stops = before.count(".") - Draft("x").text(0).partition(draft.fact.sentence)[0].count(".")
        assert full_stops == round(sentences * draft.place_percent / 100)

    def test_no_sentence_comes_twice_and_a_pad_is_a_word(self) -> None:
        assert words(Draft("x").text(100, pads=7)) - words(Draft("x").text(100)) == 7
        sentences = Draft("x").text(60).split(". ")
        assert len(set(sentences)) == len(sentences)


class TestWriting:
    @pytest.mark.parametrize("count", [words, lambda text: len(pieces(text))])
    @pytest.mark.parametrize("tokens", [200, 487, 1000, 31_000])
    def test_of_exactly_the_length_wanted(self, count: Tokenizer, tokens: int) -> None:
        writer = PromptWriter(exactly(count))
        for number in range(3):
            prompt = writer.write(tokens, f"x/{number}")
            assert prompt.tokens == count(prompt.text) == tokens
            assert (prompt.length.expected, prompt.length.exact) == (tokens, True)

    @pytest.mark.parametrize("count", [fours, characters, lambda text: 2 * words(text)])
    def test_a_little_less_where_no_word_is_one_token(self, count: Tokenizer) -> None:
        prompt = PromptWriter(exactly(count)).write(4001, "x")
        assert prompt.tokens == count(prompt.text)
        assert 0.97 * 4001 <= prompt.tokens <= 4001

    def test_the_question_alone_is_too_long(self) -> None:
        with pytest.raises(RequestError, match="test_sizes") as caught:
            PromptWriter(exactly(words)).write(40, "x")
        assert caught.value.code == "prompt_too_short"

    def test_few_counts_are_asked_for(self) -> None:
        asked = []

        def count(text: str) -> int:
            asked.append(text)
            return len(pieces(text))

        writer = PromptWriter(exactly(count))
        for number in range(10):
            writer.write(4000, f"x/{number}")
        assert len(asked) <= 45


class TestCounters:
    def test_a_template_around_the_prompt_is_learned(self) -> None:
        counter = TokenizerCounter(words, exact=False)
        counter.learn("one two three", 15)
        assert counter.count("four five") == 14
        length = counter.length(14)
        assert (length.expected, length.exact) == (2, False)

    @pytest.mark.parametrize(("per_word", "around"), [(1.0, 0), (1.31, 25), (2.5, 7)])
    def test_tokens_per_word_are_learned(self, per_word: float, around: int) -> None:
        counter, draft = LearnedCounter(), Draft("x")
        for sentences in (3, 30):
            text = draft.text(sentences)
            counter.learn(text, round(around + per_word * words(text)))
        long = draft.text(2000)
        assert counter.count(long) == pytest.approx(around + per_word * words(long), rel=0.01)

    def test_the_last_answer_corrects_them(self) -> None:
        counter = LearnedCounter()
        for text, read in (("a " * 10, 20), ("a " * 100, 120), ("a " * 1000, 1500)):
            counter.learn(text, read)
        assert counter.count("a " * 1000) == 1500

    def test_a_miss_is_no_cut(self) -> None:
        length = LearnedCounter().length(1000)
        assert (length.expected, length.exact) == (900, False)
