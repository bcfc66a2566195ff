"""Long context: how large a context can be filled, how long that takes, and whether it is read."""

from __future__ import annotations

import pytest

from pytest_llmbench import LLM


@pytest.mark.llmbench(profile="long_context")
def test_long_context(llm: LLM) -> None:
    llm.measure().check()
