"""Quality: questions with known answers, so that quantizations can be compared by what they get wrong."""

from __future__ import annotations

import pytest

from pytest_llmbench import LLM


@pytest.mark.llmbench(profile="quality")
def test_quality(llm: LLM) -> None:
    llm.measure().check()
