"""The pytest11 entry point, imported in every pytest run of the environment: options only, and nothing else.

The suite's hooks are in :mod:`pytest_llmbench.suite`, which a benchmark folder switches on with one line in its root
``conftest.py``.
"""

from __future__ import annotations

import pytest

from pytest_llmbench.adapters.options import add_options


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register ``--llmbench-*`` and their ini keys."""
    add_options(parser)
