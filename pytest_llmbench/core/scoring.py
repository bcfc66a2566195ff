"""Whether an answer is correct by a question's rule. Pure: the same rule and answer always give the same score.

Answers come from models, and rules of a user's own bank from that user: neither can make the scoring run long. Answers
are capped in length, regular expressions in time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn

from pydantic import TypeAdapter

from pytest_llmbench.core import scoring_text
from pytest_llmbench.core.questions import (
    AllOfScorer,
    ChoiceScorer,
    ContainsScorer,
    CountScorer,
    JsonSchemaScorer,
    NumberScorer,
    OnlyScorer,
    RegexScorer,
    Scorer,
    TextScorer,
)
from pytest_llmbench.core.scoring_choices import named_choice
from pytest_llmbench.core.scoring_numbers import as_fraction, final_number, numbers_in, readable

MOST_CHARACTERS = 20_000  # more than 4096 tokens make
REGEX_SECONDS = 1.0  # a pattern that does not run wild needs less than a thousandth of it

_FENCE = re.compile(r"```[\w+-]*[ \t]*\n(.*?)\n?[ \t]*```", re.DOTALL)
_CURRENCY_SIGNS = {"euro": "€", "eur": "€", "dollar": "$", "usd": "$", "pound": "£", "yen": "¥", "rupee": "₹"}
_ANY_CURRENCY = "$€£¥₹"


@dataclass(frozen=True, slots=True)
class Score:
    """``why``: what was found, or is missing, in a few words."""

    correct: bool
    why: str


def score(scorer: Scorer | Mapping[str, Any], answer: str) -> Score:
    """Score an answer.

    Args:
        scorer: as :mod:`~pytest_llmbench.core.questions` loads it, or as it stands in the file.
        answer: without reasoning that came apart from it.

    Raises:
        pydantic.ValidationError: a mapping that is no scorer.
    """
    if isinstance(scorer, Mapping):
        scorer = _adapter().validate_python(scorer)
    if not scoring_text.plain(answer).strip():
        return Score(False, "the answer is empty")
    if len(answer) > MOST_CHARACTERS:
        return Score(False, f"the answer has {len(answer)} characters, more than {MOST_CHARACTERS}")
    return _RULES[type(scorer)](scorer, answer)


@lru_cache(maxsize=1)
def _adapter() -> TypeAdapter[Scorer]:
    return TypeAdapter(Scorer)


def _number(scorer: NumberScorer, answer: str) -> Score:
    found = final_number(readable(answer))
    if found is None:
        return Score(False, "the answer holds no number")
    if found.after_or:
        return Score(False, f"the answer offers more than one number, {_told(found.value)} the last")
    off = abs(found.value - as_fraction(scorer.answer))
    if off <= as_fraction(scorer.tolerance):
        return Score(True, f"{_told(found.value)} is the number")
    return Score(False, f"{_told(found.value)} instead of {_told(as_fraction(scorer.answer))}")


def _told(value: Any) -> str:
    """A number as people write it, with at most ten digits."""
    return f"{float(value):.10g}"


def _choice(scorer: ChoiceScorer, answer: str) -> Score:
    named = named_choice(answer, scorer.choices)
    if named is None:
        return Score(False, f"the answer names none of {', '.join(scorer.choices)}, or more than one")
    return Score(
        named == scorer.answer, f"{named} is named" if named == scorer.answer else f"{named} instead of {scorer.answer}"
    )


def _text(scorer: TextScorer, answer: str) -> Score:
    given = scoring_text.normal(answer)
    given_bare = scoring_text.normal(scoring_text.without_lead_in(scoring_text.without_markup(answer)))
    if {given, given_bare} & {scoring_text.normal(text) for text in scorer.answers}:
        return Score(True, f"{given_bare!r} is an answer that was expected")
    return Score(False, f"{_short(given_bare)} instead of {' or '.join(map(repr, scorer.answers))}")


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}…")


def _contains(scorer: ContainsScorer, answer: str) -> Score:
    text = " ".join(scoring_text.without_markup(scoring_text.plain(answer)).casefold().split())
    missing = [phrase for phrase in scorer.all if not _occurs(phrase, text)]
    if missing:
        return Score(False, f"{missing[0]!r} does not occur")
    if scorer.any and not any(_occurs(phrase, text) for phrase in scorer.any):
        return Score(False, f"none of {', '.join(map(repr, scorer.any))} occurs")
    unwanted = next((phrase for phrase in scorer.none if _occurs(phrase, text)), None)
    if unwanted is not None:
        return Score(False, f"{unwanted!r} occurs")
    return Score(True, "every word is there that was asked for, and none that was not")


def _occurs(phrase: str, text: str) -> bool:
    """Whether words occur as words; those of a contraction (``can`` in ``can't``) and parts of a number do not."""
    words = [re.escape(word) for word in scoring_text.plain(phrase).casefold().split()]
    if not words:
        return False
    begin = r"(?<![\w'])(?<!\d[.,])" if words[0][0].isdigit() else r"(?<!\w)(?<!\w')"
    end = r"(?![\w]|[.,]\d)" if words[-1][-1].isdigit() else r"(?!\w|'(?!s\b)\w)"
    return re.search(begin + " ".join(words) + end, text) is not None


def _regex(scorer: RegexScorer, answer: str) -> Score:
    import regex

    try:
        matches = regex.fullmatch(scorer.pattern, answer.strip(), timeout=REGEX_SECONDS) is not None
    except TimeoutError:
        return Score(False, f"the pattern was not done with this answer within {REGEX_SECONDS:g} s; simplify it")
    return Score(matches, f"the answer {'matches' if matches else 'does not match'} the pattern")


def _json_schema(scorer: JsonSchemaScorer, answer: str) -> Score:
    text = answer.strip()
    fenced = _FENCE.fullmatch(text)
    return _valid_json(scorer, fenced[1] if fenced is not None else text)


def _valid_json(scorer: JsonSchemaScorer, text: str) -> Score:
    try:
        value = json.loads(
            text, object_pairs_hook=_no_key_twice, parse_constant=_no_constant, parse_float=_finite_float
        )
    except (ValueError, RecursionError) as exc:
        return Score(False, f"not JSON: {exc}")
    try:
        error = next(iter(_validator(json.dumps(scorer.json_schema)).iter_errors(value)), None)
    except (RecursionError, TimeoutError):
        return Score(False, "this JSON can not be checked against the schema within a bounded time")
    if error is None:
        return Score(True, "JSON as the schema asks for")
    where = ".".join(str(step) for step in error.absolute_path)
    return Score(False, f"{where}: {error.message[:200]}" if where else error.message[:200])


def _no_key_twice(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        msg = "a key stands twice in an object"
        raise ValueError(msg)
    return value


def _no_constant(name: str) -> NoReturn:
    msg = f"{name} is not JSON"
    raise ValueError(msg)


def _finite_float(text: str) -> float:
    value = float(text)
    if value in {float("inf"), float("-inf")}:
        msg = f"{text[:30]} is too large for a number"
        raise ValueError(msg)
    return value


@lru_cache(maxsize=256)
def _validator(schema: str) -> Any:
    """A validator that opens no address, and whose patterns run in bounded time."""
    import regex
    from jsonschema import Draft202012Validator, ValidationError, validators
    from referencing import Registry

    def pattern(_validator: Any, pattern: str, instance: Any, _schema: Any) -> Any:
        if isinstance(instance, str) and not regex.search(pattern, instance, timeout=REGEX_SECONDS):
            yield ValidationError(f"{_short(instance)} does not match {pattern!r}")

    kind: Any = validators.extend(Draft202012Validator, {"pattern": pattern})  # type: ignore[no-untyped-call]
    return kind(json.loads(schema), registry=Registry())


def _count(scorer: CountScorer, answer: str) -> Score:
    counters: dict[str, Callable[[str], list[str]]] = {
        "lines": scoring_text.lines,
        "words": scoring_text.words,
        "sentences": scoring_text.sentences,
    }
    count = len(counters[scorer.unit](answer))
    correct = scorer.min <= count and (scorer.max is None or count <= scorer.max)
    unit = scorer.unit if count != 1 else scorer.unit[:-1]
    if correct:
        return Score(True, f"{count} {unit}")
    if scorer.max is None:
        asked = f"at least {scorer.min}"
    elif scorer.min == scorer.max:
        asked = str(scorer.max)
    else:
        asked = f"{scorer.min} to {scorer.max}"
    return Score(False, f"{count} {unit} instead of {asked}")


def _all_of(scorer: AllOfScorer, answer: str) -> Score:
    scores = [score(part, answer) for part in scorer.parts]
    wrong = next((found for found in scores if not found.correct), None)
    return wrong or Score(True, "; ".join(found.why for found in scores))


def _only(scorer: OnlyScorer, answer: str) -> Score:
    inner, bare = scorer.scorer, answer.strip()
    if isinstance(inner, JsonSchemaScorer):
        return _valid_json(inner, bare)
    bare = scoring_text.plain(bare).removesuffix(".")
    found = score(inner, bare)
    if not found.correct:
        return found
    return found if _is_alone(inner, bare) else Score(False, "the answer has more than was asked for around it")


def _is_alone(scorer: NumberScorer | ChoiceScorer | TextScorer, answer: str) -> bool:
    given = " ".join(answer.casefold().split())
    if isinstance(scorer, ChoiceScorer):
        return given == scorer.answer.casefold()
    if isinstance(scorer, TextScorer):
        return given in {" ".join(scoring_text.plain(text).casefold().split()) for text in scorer.answers}
    numbers = numbers_in(answer)
    if len(numbers) != 1:
        return False
    unit = (scorer.unit or "").casefold()
    sign = _CURRENCY_SIGNS.get(unit.removesuffix("s"), "")
    before = answer[: numbers[0].begin].strip(" -–+").strip()
    after = answer[numbers[0].end :].casefold().strip()
    return before in {"", sign} and after in {"", unit, unit.removesuffix("s"), f"{unit}s" if unit else "", sign}


_RULES: dict[type, Callable[[Any, str], Score]] = {
    NumberScorer: _number,
    ChoiceScorer: _choice,
    TextScorer: _text,
    ContainsScorer: _contains,
    RegexScorer: _regex,
    JsonSchemaScorer: _json_schema,
    CountScorer: _count,
    AllOfScorer: _all_of,
    OnlyScorer: _only,
}
