"""What a model's answer says, apart from how it is dressed: Unicode forms, Markdown, LaTeX, invisible characters."""

from __future__ import annotations

import re
import unicodedata

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_SUPERSCRIPT_RUN = re.compile("[⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_DRESS = str.maketrans({"“": '"', "”": '"', "„": '"', "‘": "'", "’": "'", "ʼ": "'", "‐": "-", "‑": "-", "−": "-"})
_LATEX = (
    (re.compile(r"\\(?:d|t)?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r" \1/\2 "),
    (re.compile(r"\\(?:text|mathrm|mathbf|textbf|mbox)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\(?:times|cdot)(?![a-zA-Z])"), "×"),
    (re.compile(r"\\(?:left|right)(?![a-zA-Z])|\\[()\[\]]|\{(?=,\})|(?<=\{,)\}"), ""),
    (re.compile(r"\{,(?=\d)"), ","),
    (re.compile(r"\\[,;: ]|~"), " "),
    (re.compile(r"\\([$%#&_])"), r"\1"),
)
_MARKUP = re.compile(r"\*\*|__|`|^[ \t]*#{1,6}[ \t]+|^[ \t]*>[ \t]+", re.MULTILINE)
_LEAD_IN = re.compile(
    r"^(?:so |thus,? |therefore,? )?(?:the )?(?:final |correct |right )?answer(?: is|:)[: ]*", re.IGNORECASE
)
_EDGES = ".,;:!?\"'()[]{}<>«»…*_`~|"
_LIST_MARK = re.compile(r"^\s*(?:[-*•+]|\d{1,3}[.)])\s+")


def plain(text: str) -> str:
    """One form for what Unicode has several of (NFKC), without characters that can not be seen.

    Superscripts become ``^2``, fractions such as ½ become `` 1/2``, so that neither runs into the digits before it.
    Letters of other scripts stay what they are, however much they resemble Latin ones.
    """
    text = _SUPERSCRIPT_RUN.sub(lambda run: "^" + run[0].translate(_SUPERSCRIPTS), text)
    text = "".join(_spelled(c) for c in text)
    text = unicodedata.normalize("NFKC", text).replace("\u2044", "/")
    return text.translate(_DRESS)


def _spelled(character: str) -> str:
    if character.isascii():
        return character
    if unicodedata.category(character) == "Cf":
        return ""
    if unicodedata.category(character) == "Nd":
        return str(unicodedata.decimal(character))
    if unicodedata.decomposition(character).startswith("<fraction>"):
        return f" {unicodedata.normalize('NFKC', character)}"
    return character


def without_markup(text: str) -> str:
    """Plain text without Markdown's emphasis, headings and quotes, and without the commonest LaTeX."""
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    return _MARKUP.sub("", text)


def without_thinking(text: str) -> str:
    """An answer without the reasoning that a model wrote into it, where its server did not take it apart (P06).

    Reasoning that does not end leaves no answer.
    """
    if "</think>" in text:
        return text.rpartition("</think>")[2]
    return "" if text.lstrip().startswith("<think>") else text


def normal(text: str) -> str:
    """For comparing whole answers: without case, articles, punctuation at the edges of words, and surplus space."""
    text = re.sub(r",(?!\d)|(?<!\d),|(?<=[^\W\d])-(?=[^\W\d])", " ", without_markup(plain(text)).casefold())
    words = [bare for word in text.split() if (bare := _bare(word))]
    if len(words) > 1:
        words = [
            word for i, word in enumerate(words) if word != "the" and not (word in {"a", "an"} and i + 1 < len(words))
        ]
    return " ".join(words)


def _bare(word: str) -> str:
    """A word without punctuation around it; the sign of a number stays."""
    word = word.strip(_EDGES)
    return word if re.match(r"-[\d.]", word) else word.strip("-–—" + _EDGES)


def without_lead_in(text: str) -> str:
    """An answer without ``The answer is`` before it."""
    return _LEAD_IN.sub("", text.strip())


def lines(text: str) -> list[str]:
    """Lines that hold more than white space."""
    return [line for line in text.splitlines() if line.strip()]


def words(text: str) -> list[str]:
    """Words: what stands between white space or dashes and holds a letter or digit; the marks of a list are none."""
    text = "\n".join(_LIST_MARK.sub("", line) for line in text.splitlines())
    return [word for word in re.split(r"\s+|—|(?<=\w)–(?=\w)", text) if any(c.isalnum() for c in word)]


# After these, a full stop ends no sentence.
_ABBREVIATION = re.compile(r"(?:\b(?:mr|mrs|ms|dr|prof|st|vs|approx|fig)|\be\.g|\bi\.e)\.$", re.IGNORECASE)
_LONGEST_ABBREVIATION = 10
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"')\]*_]*(?:\s+|$)")


def sentences(text: str) -> list[str]:
    """Sentences: each ends in ``.``, ``!``, ``?`` or ``…`` before white space, or with its paragraph or list item."""
    paragraphs, found = [""], []
    for line in text.translate(_DRESS).splitlines():
        if not line.strip() or _LIST_MARK.match(line):
            paragraphs.append("")
        paragraphs[-1] += f" {_LIST_MARK.sub('', line)}"
    for paragraph in paragraphs:
        begun: list[str] = []
        for piece in _SENTENCE_END.split(paragraph):
            begun += [piece] if words(piece) else []
            if begun and not _ABBREVIATION.search(piece[-_LONGEST_ABBREVIATION:]):
                found.append(" ".join(begun))
                begun = []
        if begun:
            found.append(" ".join(begun))
    return found
