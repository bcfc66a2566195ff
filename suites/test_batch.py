"""Batch: documents are summarised one after the other, for hours if need be."""

from __future__ import annotations

import pytest

from pytest_llmbench import LLM


@pytest.mark.llmbench(profile="batch")
def test_batch(llm: LLM) -> None:
    llm.measure().check()
