"""Which of several choices an answer names: by itself, as a label, announced, or as the only one that is not denied."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pytest_llmbench.core.scoring_text import plain, without_markup

_ANNOUNCEMENT = (
    r"\b(?:answer|choice|option|solution)\b(?: \w+){0,3}?(?: is|:| would be)[\s:]*"
    r"|\bI (?:choose|pick|select)\b:?\s*|\\boxed\s*\{\s*"
)
_ARTICLES = r"(?:(?:option|choice|answer|letter|the)\s+)?"
_OPENING, _CLOSING = r"[\"'(\[]?", r"[\"')\]]?"
_DENIAL = re.compile(
    r"(?:\b(?:not|cannot|never|neither|nor|than|\w+n't|instead of)\s+(?:\w+\s+)?[\"'(\[]?)$", re.IGNORECASE
)
_DENIED_AFTER = re.compile(
    r"[\"')\]]?[.,]?\s+(?:is|are|was|would be|can|could)\s*(?:not\b|n't\b|\s*(?:wrong|incorrect|false|impossible)\b)",
    re.IGNORECASE,
)
# After a letter that is a choice; after an article or a pronoun, most other words come.
_AFTER_A_LABEL = {"and", "or", "is", "was", "because", "since", "as", "but", "not", "fits", "follows"}
_HEDGE = r"[\"')\]]?\s*(?:,|/|or\b|and\b|&)\s*(?:option\s+|maybe\s+|the\s+)?[\"'(\[]?"


def named_choice(answer: str, choices: Sequence[str]) -> str | None:
    """The choice that an answer names; None where it names none, or more than one."""
    text = without_markup(plain(answer)).strip()
    by_name = {plain(choice).casefold(): choice for choice in choices}
    bare = text.strip(" \t\n.,;:!\"'()[]{}<>*_$").casefold()
    if bare in by_name:
        return by_name[bare]
    names = "|".join(re.escape(name) for name in sorted(by_name, key=len, reverse=True))
    announced = _announced(text, names)
    if announced is not None:
        return by_name[announced] if announced else None
    labels = list(re.finditer(rf"(?im)^\s*{_OPENING}(?P<name>{names}){_CLOSING}[.):](?=\s|$)", text))
    if len(labels) == 1 and not _DENIED_AFTER.match(text, labels[0].end("name")):
        label = labels[0]["name"].casefold()
        if text.casefold().lstrip("([\"'").startswith(label):
            return by_name[label]
    mentioned = {name for name in by_name if _is_mentioned(name, text)}
    return by_name[mentioned.pop()] if len(mentioned) == 1 else None


def _announced(text: str, names: str) -> str | None:
    """The choice announced last, in lower case; empty where several are offered together, None where none is."""
    announcements = list(
        re.finditer(rf"(?i:{_ANNOUNCEMENT}){_ARTICLES}{_OPENING}(?P<name>(?i:{names}))(?![\w'])", text)
    )
    for found in reversed(announcements):
        name, after = found["name"], text[found.end() :]
        if _is_article(name, after):
            continue
        return "" if re.match(rf"{_HEDGE}(?:{names})(?!\w)", after, re.IGNORECASE) else name.casefold()
    return None


def _is_mentioned(name: str, text: str) -> bool:
    """Whether a choice is named as a word of its own and not denied; single letters count only as capitals."""
    letter = len(name) == 1
    for found in re.finditer(
        rf"(?<![\w'-]){re.escape(name.upper() if letter else name)}(?![\w'-])", text, 0 if letter else re.IGNORECASE
    ):
        after = text[found.end() :]
        if _is_article(found[0], after) or _DENIAL.search(text[: found.start()]) or _DENIED_AFTER.match(after):
            continue
        return True
    return False


def _is_article(word: str, after: str) -> bool:
    """Whether ``a`` or ``A`` begins a noun phrase, or ``I`` is who speaks."""
    if word not in {"a", "A", "i", "I"}:
        return False
    following = re.match(r"[ \t]+([a-z]+)", after)
    return following is not None and following[1] not in _AFTER_A_LABEL
