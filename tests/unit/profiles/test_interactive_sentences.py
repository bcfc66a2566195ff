"""Where the first sentence ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmbench.profiles.sentences import first_sentence_end


@pytest.mark.parametrize(
    ("sentence", "rest"),
    [
        ("It was dark.", " Nobody came."),
        ("It was dark!", ""),
        ("Was it dark?", "\tYes."),
        ("She waited…", " Then the light went on."),
        ("She waited...", " Then the light went on."),
        ("What?!", " She ran."),
        ('"It is dark.', '" Nobody heard her.'),
        ("It was *dark.", "* Nobody came."),
        ("It cost 3.5 crowns.", " She paid."),
        ("Version 2.0.1 was better.", " So they said."),
        ("Dr. Grey and Mrs. Green met J. R. Brown.", " It rained."),
        ("Fig. 3 and no. 5 show it, e.g. the waves vs. the wind.", " So it is."),
        ("It was I.", " Nobody else."),
        ("No.", " She would not go."),
        ("1. The key.", " 2. The boat."),
        ('"Stop!" he said.', " She did."),
        ("He left at noon etc. as ever.", " She stayed."),
        ("... and so it began.", " It was dark."),
        ("\n\n  It was dark.", " Nobody came."),
        ("The Lighthouse\n", "It was dark."),
        ("See www.example.org for it.", " Or do not."),
        ("天が暗い。", "誰も来ない。"),
        ("Ärger gab es überall.", " Überall."),
    ],
)
def test_a_first_sentence(sentence: str, rest: str) -> None:
    assert first_sentence_end(sentence + rest) == len(sentence)


@pytest.mark.parametrize(
    "text", ["", "It was dark", "It cost 3.5", "Mr. Grey and", "  \n\n", "...", "1. 2. 3.", "e.g. this", "word0 word1 "]
)
def test_no_sentence(text: str) -> None:
    assert first_sentence_end(text) is None


@given(st.text(alphabet='abI .!?…\n"3Mr', max_size=40))
def test_it_ends_with_a_sign_and_has_letters(text: str) -> None:
    end = first_sentence_end(text)
    if end is None:
        assert "\n" not in text.lstrip('\n .!?…"3')
    else:
        assert text[end - 1] in ".!?…\n"
        assert any(map(str.isalpha, text[:end]))


@given(st.text(max_size=60), st.text(max_size=60))
def test_it_is_the_same_however_the_text_goes_on(first: str, more: str) -> None:
    text = first + " Q" + more  # behind white space, and not in lower case, nothing changes what was before
    end = first_sentence_end(first + " Q")
    if end is not None and end <= len(first):
        assert first_sentence_end(text) == end
