"""Where the first sentence of a text ends."""

from __future__ import annotations

import re

# Signs that end a sentence with what closes it behind them, then white space or nothing; those of Chinese and Japanese,
# which no space follows; a line break. A run of signs is looked at once, from its beginning.
_MAYBE_END = re.compile(r"(?<![.!?…])(?P<signs>[.!?…]+)[\"'”’»)\]*_]*(?=\s|$)|(?P<wide>[。！？]+)|(?P<line>\n)")
_WORD_BEFORE = re.compile(r"[^\s\"'“‘«(\[]+$")
_INITIALS = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]")
_LONGEST_WORD = 16  # more than any abbreviation has
# Only what hardly ever ends a sentence.
_BEFORE_NAMES = "mr mrs ms dr prof rev hon st mt gen col capt lt sgt sen rep gov vs cf"
_BEFORE_NUMBERS = "no nos nr vol fig pp approx ca jan feb mar apr jun jul aug sep sept oct nov dec"
_OF_NAMES = frozenset(_BEFORE_NAMES.split())
_OF_NUMBERS = _OF_NAMES | frozenset(_BEFORE_NUMBERS.split())


def first_sentence_end(text: str) -> int | None:
    """How many characters of a text are its first sentence; None where none ends in it.

    A sentence has letters. It ends with ``.``, ``!``, ``?`` or ``…`` before white space or the text's end, or with a
    line break. A point within a number is no end, nor is one behind an abbreviation or an initial, nor a sign after
    which the text goes on in lower case ("Stop!" he said).
    """
    letter = next((place for place, character in enumerate(text) if character.isalpha()), len(text))
    for found in _MAYBE_END.finditer(text, letter):  # not "1." of a list, nor "..." before the first word
        if found["signs"] is None:
            return found.end()
        if _goes_on(text, found):
            continue
        return found.end("signs")
    return None


def _goes_on(text: str, found: re.Match[str]) -> bool:
    place = found.end()
    while text[place : place + 1] in {" ", "\t"}:
        place += 1
    after = text[place : place + 1]
    if after.islower():
        return True
    if found["signs"] != ".":
        return False
    word = _WORD_BEFORE.search(text, max(0, found.start() - _LONGEST_WORD), found.start())
    if word is None or word[0] == "I":
        return False
    known = _OF_NUMBERS if after.isdigit() else _OF_NAMES
    return word[0].lower() in known or _INITIALS.fullmatch(word[0]) is not None
