"""Stress: continuous generation on the configuration that the results of the others select; runs last."""

from __future__ import annotations

import pytest

from pytest_llmbench import LLM


@pytest.mark.llmbench(profile="stress")
def test_stress(llm: LLM) -> None:
    llm.measure().check()
