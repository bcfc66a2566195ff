"""Interactive use: a story is continued while one watches it appear."""

from __future__ import annotations

import pytest

from pytest_llmbench import LLM


@pytest.mark.llmbench(profile="interactive")
def test_interactive(llm: LLM) -> None:
    llm.measure().check()
