"""The number that an answer ends in: digits in the notations people use, words, fractions; and what is not it (P37).

The text is cut into tokens once, from left to right, so that time grows with its length. Tokens that look like numbers
and are something else (dates, times, versions, names such as ``x2``) are tokens of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from pytest_llmbench.core.scoring_text import plain, without_markup

_MOST_DIGITS = 40
_MOST_ZEROS = 30
_LONGEST_LABEL = 40

_MONTH = (
    r"(?:January|February|March|April|May|June|July|August|September|October|November|December"
    r"|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\b\.?"
)
_NO_NUMBER = (
    rf"(?<![\w.])\d{{1,2}}(?:st|nd|rd|th)?\.? (?:of )?{_MONTH}(?:,? \d{{4}}\b)?"
    rf"|\b{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?\b(?:,? \d{{4}}\b)?(?![.,]?\d)"
    r"|(?<![\w.])\d{4}-\d{2}-\d{2}\b|(?<![\w.])\d{1,2}(?P<between>[./-])\d{1,2}(?P=between)(?:\d{4}|\d{2})\b(?![./-]?\d)"
    r"|(?<![\w.])\d{1,2}:\d{2}(?::\d{2})?\b"
    r"|(?<![\w.])\d{1,3}(?:\.\d{1,3}){3,}\b|\bv\d+(?:\.\d+)+"
)
# Digits with what people put between thousands: comma (also the Indian way), full stop, apostrophe, underscore, space.
# A single comma or full stop before three digits is a comma between thousands and a decimal point: the bank is English.
_DIGITS = (
    r"(?:[1-9]\d{0,2}(?:,\d{3})+(?!,?\d)(?:\.\d+)?|[1-9]\d?(?:,\d{2})+,\d{3}(?!,?\d)(?:\.\d+)?"
    r"|[1-9]\d{0,2}(?:\.\d{3}){2,}(?!\.?\d)(?:,\d+)?|[1-9]\d{0,2}(?:\.\d{3})+,\d+(?!,?\d)"
    r"|[1-9]\d{0,2}(?:'\d{3})+(?!'?\d)(?:[.,]\d+)?|[1-9]\d{0,2}(?:_\d{3})+(?!_?\d)"
    r"|(?<!\d )[1-9]\d{0,2}(?: \d{3})+(?! ?\d)(?:[.,]\d+)?"
    r"|\d+\.\d+|(?<!\d,)\d+,\d+(?!,?\d)|\d+|\.\d+)"
)
_POWER = (
    r"\s?[×x*·]\s?10\s?\^\s?\{?(?P<of_ten>[-+]?\d{1,5})\}?|[eE](?P<scientific>[-+]?\d{1,5})(?![\w.])"
    r"|\s?\^\s?\{?(?P<power>-?\d{1,5})\}?"
)
_TOKEN = re.compile(
    rf"(?P<other>{_NO_NUMBER})"
    rf"|(?P<number>(?<![\w^])(?:(?P<whole>\d+)\s(?=\d+/\d))?(?P<digits>{_DIGITS})"
    rf"(?:\s?/\s?(?P<below>\d[\d.,]*\d|\d)(?![/\d])|{_POWER})?)(?:[.,][-–—]+)?"
    r"(?P<ending>(?:st|nd|rd|th|k)\b)?"
    r"|(?P<word>[^\W\d_]+(?:'[^\W\d_]+)?|\w+)"
    r"|(?P<sign>(?<![\w)\]}%])[-–](?=[$€£¥₹] ?[\d.]|[\d.]))"
    r"|(?P<symbol>\S)"
)

_TO_NINETEEN = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_SMALL = {word: value for value, word in enumerate(_TO_NINETEEN.split())}
_SMALL |= {word: 20 + 10 * i for i, word in enumerate(_TENS.split())}
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "dozen": 12}
_PARTS = {"half": 2, "halves": 2, "third": 3, "thirds": 3, "quarter": 4, "quarters": 4, "fifth": 5, "fifths": 5}
_CURRENCIES = frozenset("$€£¥₹")
_DENIALS = {"not", "never", "cannot"}
_DENIAL_FILLERS = {"be", "equal", "exactly", "simply", "just", "the", "of", "to", "is", "a"}
_REFERENCES = {
    "step",
    "steps",
    "question",
    "equation",
    "part",
    "example",
    "figure",
    "line",
    "option",
    "problem",
    "case",
}

_BARE_BEFORE = re.compile(r"(?:.*[:=])?\W*(?:\b[A-Z]{3}\b\W*)?")
_BARE_AFTER = re.compile(r"\W*(?:\b[^\W\d_]+\b\W*){0,2}")
_BOXED = re.compile(r"\\boxed\s*\{")
_BOX_END = re.compile(r"\}\s*(?!\d)")
_ANNOUNCEMENT = re.compile(r"\banswer\b(?: \w+){0,3}?(?: is| would be|:|=)[\s:=]*", re.IGNORECASE)
_CLAUSE_END = re.compile(r"[.!?;](?=\s|$)|\n|\(|,(?=\s)|\b(?:because|since)\b", re.IGNORECASE)
_SECOND_THOUGHT = re.compile(r"\b(?:wait|actually|correction|mistake|sorry)\b", re.IGNORECASE)
_REMARK = re.compile(
    r"(?:\n|[.!])\s*(?:note|explanation|reason|reasoning|remark|check|verification|working|hope|i hope|let me know)\b",
    re.IGNORECASE,
)
_REASON = re.compile(r"[\s%€$£¥.]*(?!(?:but|and|so)\b)[^\W\d_]*[\s,]*(?P<reason>\b(?:because|since)\b)", re.IGNORECASE)


@dataclass(frozen=True)
class FoundNumber:
    """A number in a text.

    Attributes:
        begin, end: where it stands, in characters, sign and currency not included.
        weak: it is the answer only where there is no other: in brackets, an ordinal, a lone ``one``, a reference.
        denied: the text says that it is not this: ``not 12``.
        after_or: it is the second of two that are offered: ``12 or 42``.
    """

    value: Fraction
    begin: int
    end: int
    weak: bool = False
    denied: bool = False
    after_or: bool = False


@dataclass
class _Token:
    kind: str
    text: str
    begin: int
    end: int
    value: Fraction | None = None
    weak: bool = False


def readable(text: str) -> str:
    """The form of an answer that positions in this module refer to."""
    return without_markup(plain(text))


def numbers_in(text: str) -> list[FoundNumber]:
    """All numbers of a text in the form of :func:`readable`, in order."""
    tokens = _with_words_as_numbers(_without_labels(list(_tokens(text)), text))
    found: list[FoundNumber] = []
    depth = end = 0
    for i, token in enumerate(tokens):
        if "\n" in text[end : token.begin]:
            depth = 0  # a bracket that was not closed on its line is none
        end = token.end
        depth = max(0, depth + (token.text in {"(", "["}) - (token.text in {")", "]"}))
        if token.value is None:
            continue
        before = _before(tokens, i)
        value = -token.value if _is_negative(tokens, i) else token.value
        weak = token.weak or depth > 0 or (bool(before) and before[0].text.lower() in _REFERENCES)
        found.append(FoundNumber(value, token.begin, token.end, weak, _is_denied(before), _is_second(before)))
    return found


def as_fraction(value: float) -> Fraction:
    """A decimal number as it is written: 0.1 is a tenth, not the nearest binary number."""
    return Fraction(repr(value))


def final_number(text: str) -> FoundNumber | None:
    """The number that a text in the form of :func:`readable` ends in, None for one without a number.

    A last line with nothing but a number says it; else what is boxed or announced as the answer; else it is the last
    number, without remarks that follow it.
    """
    numbers = [number for number in numbers_in(text) if not number.denied]
    announced = _on_a_bare_last_line(text, numbers) or _announced(text, numbers)
    if announced is not None:
        return announced
    end = _end_without_remarks(text, numbers)
    numbers = [number for number in numbers if number.begin < end]
    strong = [number for number in numbers if not number.weak]
    if strong:
        return strong[-1]
    return numbers[-1] if numbers else None


def _on_a_bare_last_line(text: str, numbers: list[FoundNumber]) -> FoundNumber | None:
    """The number of a last line that says nothing else: behind nothing, ``Total:`` or ``x =``, and a unit after it."""
    begin = text.rstrip().rfind("\n") + 1
    there = [number for number in numbers if number.begin >= begin and not number.weak]
    if len(there) != 1 or not _BARE_BEFORE.fullmatch(text, begin, there[0].begin):
        return None
    return there[0] if _BARE_AFTER.fullmatch(text, there[0].end) else None


def _announced(text: str, numbers: list[FoundNumber]) -> FoundNumber | None:
    """The number in the last box, or in the clause after the last ``answer is``: after its last ``=``, or the first."""
    boxed = list(_BOXED.finditer(text))
    markers = boxed or list(_ANNOUNCEMENT.finditer(text))
    if not markers:
        return None
    begin = markers[-1].end()
    clause_end = _BOX_END.search(text, begin) if boxed else _CLAUSE_END.search(text, begin)
    end = clause_end.start() if clause_end is not None else len(text)
    if not boxed and _SECOND_THOUGHT.search(text, end):
        return None
    within = [number for number in numbers if begin <= number.begin < end]
    if not within:
        return None
    if any(number.after_or for number in within):
        return within[-1]
    after_equals = [number for number in within if number.begin > text.rfind("=", begin, end)]
    return after_equals[-1] if "=" in text[begin:end] and after_equals else within[0]


def _end_without_remarks(text: str, numbers: list[FoundNumber]) -> int:
    """Where a remark begins that ends the text after the answer, or its reason: ``42, because …``; else the end."""
    if not numbers:
        return len(text)
    first_line = text.find("\n")
    for remark in _REMARK.finditer(text, numbers[0].end):
        after_a_bare_line = first_line >= 0 and not text[first_line : remark.start()].strip()
        if after_a_bare_line or "\n" not in text[remark.end() :].rstrip():
            return remark.start()
    reason = _REASON.match(text, numbers[0].end)
    return reason.start("reason") if reason is not None else len(text)


def _tokens(text: str) -> Iterator[_Token]:
    for match in _TOKEN.finditer(text):
        if match["number"] is not None:
            value = _value(match)
            begin, end = match.span("number")
            if value is None:
                yield _Token("other", match[0], begin, end)
            else:
                ordinal = match["ending"] is not None and match["ending"] != "k"
                value = value * 1000 if match["ending"] == "k" else value
                yield _Token("number", match[0], begin, match.end(), value, ordinal)
        else:
            kind = next(name for name in ("other", "word", "sign", "symbol") if match[name] is not None)
            yield _Token(kind, match[0], *match.span())


def _value(match: re.Match[str]) -> Fraction | None:
    """What digits mean; None for what is too long, or divided by zero."""
    digits = match["digits"]
    if len(match["number"]) > _MOST_DIGITS:
        return None
    value = Fraction(_decimal(digits))
    if match["below"] is not None:
        below = Fraction(_decimal(match["below"]))
        if not below:
            return None
        value /= below
        return value + int(match["whole"]) if match["whole"] is not None else value
    power = match["power"]
    exponent = int(power or match["of_ten"] or match["scientific"] or 0)
    if abs(exponent) > _MOST_ZEROS or (power and not value and exponent < 0):
        return None
    return value**exponent if power else value * Fraction(10) ** exponent


def _decimal(digits: str) -> str:
    """Digits without what stands between thousands, and with a decimal point."""
    digits = re.sub(r"[ '_]", "", digits)
    if "," in digits and "." in digits:
        decimal = max(",.", key=digits.rfind)
        return digits.replace("," if decimal == "." else ".", "").replace(",", ".")
    if digits.count(".") > 1 or re.fullmatch(r"[1-9]\d{0,2}(?:,\d{2,3})*,\d{3}", digits):
        return digits.replace(".", "").replace(",", "")
    return digits.replace(",", ".")


def _without_labels(tokens: list[_Token], text: str) -> list[_Token]:
    """Take out what numbers lines: ``Step 2:``, and ``1.``, ``2.`` … where they count from one."""
    kept: list[_Token] = []
    labels = 0
    for i, token in enumerate(tokens):
        if token.value is None:
            kept.append(token)
            continue
        line_start = text.rfind("\n", 0, token.begin) + 1
        before = text[max(line_start, token.begin - _LONGEST_LABEL) : token.begin].strip(" \t*-•#").lower()
        after = text[token.end : token.end + 2]
        if before in _REFERENCES and after[:1] in {":", ".", ")", "-", "–"}:
            continue
        if before == "" and re.match(r"[.)] ", after) and token.value == labels + 1 and i + 2 < len(tokens):
            labels += 1
        else:
            kept.append(token)
    return kept


def _with_words_as_numbers(tokens: list[_Token]) -> list[_Token]:
    """Put numbers in words together: ``three hundred and five``, ``1.2 million``, ``two and a half``."""
    done: list[_Token] = []
    i = 0
    while i < len(tokens):
        value, after = _number_in_words(tokens, i)
        if value is None or after == i:
            done.append(tokens[i])
            i += 1
            continue
        first, last = tokens[i], tokens[after - 1]
        lone = after == i + 1 and first.text.lower() == "one"
        done.append(_Token("number", "", first.begin, last.end, value, lone or first.weak))
        i = after
    return done


def _number_in_words(tokens: list[_Token], i: int) -> tuple[Fraction | None, int]:
    """The number that begins at a token, and the token after it; None where none begins there.

    Hundreds, tens and units add up to a group, a group is multiplied by its scale, groups add up.
    """
    total, group, smallest, begun = Fraction(0), None, None, False
    start = i
    while i < len(tokens):
        token, text = tokens[i], tokens[i].text.lower()
        if token.kind == "number" and not begun:
            group = token.value
        elif text in _SMALL and (group is None or _may_follow(group, _SMALL[text])):
            group = (group or Fraction(0)) + _SMALL[text]
        elif text == "hundred" and group is not None and 0 < group < 100:
            group *= 100
        elif text in {"a", "an"} and not begun and _text(tokens, i + 1) in {"hundred", *_SCALES}:
            group = Fraction(1)
        elif text in _SCALES and group is not None and (smallest is None or _SCALES[text] < smallest):
            smallest = _SCALES[text]
            total, group = total + group * smallest, None
        elif begun and text == "and" and [_text(tokens, i + n) for n in (1, 2)] == ["a", "half"]:
            return total + (group or 0) + Fraction(1, 2), i + 3
        elif begun and text in _PARTS and tokens[start].kind == "word" and group is not None:
            return group / _PARTS[text], i + 1
        elif begun and text in {"and", "-"} and _goes_on(tokens, i + 1, group, text):
            i += 1
            continue
        else:
            break
        begun = True
        i += 1
        if token.kind == "number" and _text(tokens, i) not in {*_SCALES, "hundred", "and"}:
            break
    return (total + (group or 0), i) if begun else (None, i)


def _may_follow(group: Fraction, value: int) -> bool:
    """Whether a unit or a ten goes on with a number in words: after hundreds, or a unit after twenty, thirty, …"""
    if group % 100 == 0:
        return group > 0 and value > 0
    return group % 10 == 0 and 20 <= group % 100 <= 90 and 1 <= value <= 9


def _goes_on(tokens: list[_Token], i: int, group: Fraction | None, joint: str) -> bool:
    """Whether a joint between words of a number is one: ``and`` after hundreds or a scale, a hyphen within tens."""
    value = _SMALL.get(_text(tokens, i))
    if value is None:
        return False
    if joint == "and":
        return group is None or group % 100 == 0
    return group is not None and group % 100 != 0 and _may_follow(group, value)


def _text(tokens: list[_Token], i: int) -> str:
    return tokens[i].text.lower() if i < len(tokens) else ""


def _is_negative(tokens: list[_Token], i: int) -> bool:
    """Whether a sign, or minus or negative in a word, stands before a number; ``10 minus 3`` is a subtraction."""
    i -= 1
    if i >= 0 and tokens[i].text in _CURRENCIES:
        i -= 1
    if i < 0:
        return False
    if tokens[i].kind == "sign":
        return True
    return tokens[i].text.lower() in {"minus", "negative"} and (i == 0 or tokens[i - 1].value is None)


def _before(tokens: list[_Token], i: int) -> list[_Token]:
    """What stands before a number, nearest first; its sign and currency left out."""
    before = tokens[max(0, i - 8) : i][::-1]
    return [token for token in before if token.kind != "sign" and token.text not in _CURRENCIES]


def _is_denied(before: list[_Token]) -> bool:
    """Whether the words before a number say that it is not this one: ``not``, ``rather than``, ``instead of``."""
    words = [token.text.lower() for token in before]
    for i, word in enumerate(words):
        if word in _DENIALS or word.endswith("n't"):
            return True
        if word == "than":
            return words[i + 1 : i + 2] in (["rather"], ["other"])
        if word == "instead":
            return words[i - 1 : i] == ["of"]
        if word not in _DENIAL_FILLERS:
            return False
    return False


def _is_second(before: list[_Token]) -> bool:
    """Whether a number is offered beside another one: ``12 or 42``."""
    return bool(before) and before[0].text.lower() == "or" and any(token.value is not None for token in before[1:4])
