"""The shipped questions, and what the tests of their answers read out of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

from pytest_llmbench.core.questions import (
    AllOfScorer,
    ChoiceScorer,
    ContainsScorer,
    NumberScorer,
    Question,
    TextScorer,
    load_questions,
)

FILE = Path(__file__).parents[3] / "data" / "quality_tests.json"
BANK = load_questions(FILE.read_text("utf-8"), FILE.name)
QUESTIONS: Mapping[str, Question] = {question.id: question for question in BANK.questions}

# "One" is left out: "one kg" and "one third" name no figure to calculate with.
_WORDS = {
    **{word: i for i, word in enumerate(["two", "three", "four", "five", "six", "seven"], 2)},
    "half": 2,
    "third": 3,
    "quarter": 4,
}
_FIGURE = re.compile(rf"\d+(?:\.\d+)?|\b(?:{'|'.join(_WORDS)})\b", re.IGNORECASE)
_FORM = re.compile(r"\s(?:Work it out|Answer with|If the passage does not say)\b.*", re.DOTALL)


def ids(category: str) -> list[str]:
    """The questions of a category, in order."""
    return [question.id for question in BANK.questions if question.category == category]


def without_form(prompt: str) -> str:
    """A prompt without the sentences that say in which form to answer."""
    return _FORM.sub("", prompt)


def figures(text: str) -> list[Fraction]:
    """The numbers of a text in order, in digits or in words; of half, third and quarter the divisor."""
    return [Fraction(_WORDS.get(found.lower(), found)) for found in _FIGURE.findall(text)]


def answer(question: Question) -> str | Fraction:
    """The one right answer, of questions that have one.

    Raises:
        AssertionError: the scorer accepts several.
    """
    scorer = question.scorer
    if isinstance(scorer, AllOfScorer):
        scorer = scorer.parts[0]
    if isinstance(scorer, NumberScorer):
        assert scorer.tolerance == 0
        return Fraction(str(scorer.answer))
    if isinstance(scorer, ChoiceScorer):
        return scorer.answer
    if isinstance(scorer, TextScorer):
        return scorer.answers[0]
    assert isinstance(scorer, ContainsScorer)
    assert len(scorer.all) == 1
    assert not scorer.any
    return scorer.all[0]
