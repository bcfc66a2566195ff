"""The shipped questions as a whole: complete, balanced, different, short enough, and scored by rules that hold."""

from __future__ import annotations

import json
import re
from collections import Counter
from fractions import Fraction
from itertools import combinations

import pytest

from pytest_llmbench.core.questions import CATEGORIES, ChoiceScorer, ContainsScorer, NumberScorer
from pytest_llmbench.core.scoring import score

from .bank import BANK, FILE, QUESTIONS, answer, ids

ANSWERED = [i for category in ("math", "comprehension", "reasoning") for i in ids(category)]
ALIKE = 0.3  # of the runs of three words in the shorter one; the two that are closest share 0.22


def test_version_and_license() -> None:
    assert re.fullmatch(r"\d+\.\d+", BANK.version)
    assert BANK.license == "Apache-2.0"


def test_the_full_set_is_balanced() -> None:
    assert Counter(question.category for question in BANK.part("full")) == dict.fromkeys(CATEGORIES, 32)


def test_the_quick_set_is_the_founding_mix() -> None:
    quick = Counter(question.category for question in BANK.part("quick"))
    assert quick == {"math": 4, "comprehension": 3, "reasoning": 3, "format": 3}


def test_ids_are_sorted_and_name_their_category() -> None:
    found = list(QUESTIONS)
    assert found == sorted(found)
    assert found == [f"{category}-{n:03}" for category in sorted(CATEGORIES) for n in range(1, 33)]


def test_the_file_has_no_key_that_the_loader_would_not_know_of() -> None:
    raw = json.loads(FILE.read_text("utf-8"))
    assert set(raw) == {"version", "license", "questions"}
    assert {question["id"] for question in raw["questions"] if "check" in question} == set(ids("comprehension"))


@pytest.mark.parametrize("identifier", QUESTIONS)
def test_a_question_is_clean_text_and_explained(identifier: str) -> None:
    question = QUESTIONS[identifier]
    for text in (question.prompt, question.explain):
        assert text == text.strip()
        assert not re.search(r"  |[\t\r\u200b\u00a0]", text)
        assert not re.search("[‘’“”]", text)
    assert question.explain


def _instructions() -> set[str]:
    """Sentences that several prompts share: how to answer."""
    counts = Counter(sentence for question in BANK.questions for sentence in set(_sentences(question.prompt)))
    return {sentence for sentence, times in counts.items() if times > 2}


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.?!])\s+|\n+", text)


def test_no_two_questions_are_nearly_alike() -> None:
    shared = _instructions()
    runs = {}
    for question in BANK.questions:
        own = " ".join(sentence for sentence in _sentences(question.prompt) if sentence not in shared)
        words = re.findall(r"\w+", own.lower())
        runs[question.id] = set(zip(words, words[1:], words[2:], strict=False))
    alike = {
        (a, b): len(runs[a] & runs[b]) / min(len(runs[a]), len(runs[b])) for a, b in combinations(runs, 2) if runs[a]
    }
    assert {pair: share for pair, share in alike.items() if share > ALIKE} == {}


def test_a_quick_question_and_its_answer_fit_into_2048_tokens() -> None:
    """A token is at least one byte, so this holds for every tokenizer; 512 are left to the chat template."""
    longest = max(len(question.prompt.encode()) for question in BANK.part("quick"))
    assert longest + 128 + 512 <= 2048


def test_every_prompt_fits_into_1024_tokens() -> None:
    assert max(len(question.prompt.encode()) for question in BANK.questions) <= 1024


@pytest.mark.parametrize("identifier", QUESTIONS)
def test_an_answer_to_nothing_is_wrong(identifier: str) -> None:
    replies = ["", "I can not answer this.", "yes", "7 or 8, red or green, A or B", QUESTIONS[identifier].prompt]
    assert [reply for reply in replies if score(QUESTIONS[identifier].scorer, reply).correct] == []


def _written(found: str | Fraction) -> str:
    return found if isinstance(found, str) else f"{float(found):g}"


@pytest.mark.parametrize("identifier", ANSWERED)
def test_the_right_answer_is_right_however_it_is_dressed(identifier: str) -> None:
    right = _written(answer(QUESTIONS[identifier]))
    dressed = [right, f"{right}.", f"**{right}**", f"\n{right}\n"]
    assert [reply for reply in dressed if not score(QUESTIONS[identifier].scorer, reply).correct] == []


@pytest.mark.parametrize("identifier", ANSWERED)
def test_every_other_candidate_is_wrong(identifier: str) -> None:
    scorer = QUESTIONS[identifier].scorer
    right = answer(QUESTIONS[identifier])
    if isinstance(scorer, NumberScorer):
        assert isinstance(right, Fraction)
        wrong = [
            _written(other) for other in (right + 1, right - 1, right * 10, right / 10, -right, right + Fraction(1, 2))
        ]
    elif isinstance(scorer, ChoiceScorer):
        wrong = [choice for choice in scorer.choices if choice != right]
    elif isinstance(scorer, ContainsScorer) and scorer.none:
        wrong = [*scorer.none, *(f"{right} or {other}" for other in scorer.none)]
    else:
        wrong = ["father", "seven"]
    assert [reply for reply in wrong if score(scorer, reply).correct] == []


@pytest.mark.parametrize("identifier", ids("math"))
def test_working_may_stand_before_the_result(identifier: str) -> None:
    right = _written(answer(QUESTIONS[identifier]))
    worked = [
        f"12 · 3 = 36\n36 + 1 = 37\n{right}",
        f"I add, then I take off 5.\n\n**{right}**",
        f"Total: {right} euros",
    ]
    assert [reply for reply in worked if not score(QUESTIONS[identifier].scorer, reply).correct] == []
