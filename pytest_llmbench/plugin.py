"""The pytest11 entry point, imported in every pytest run of the environment: options, and hardly anything else.

The suite's hooks are in :mod:`pytest_llmbench.suite`, which a benchmark folder switches on with one line in its root
``conftest.py``.
"""

from __future__ import annotations

import pytest

from pytest_llmbench.adapters.options import add_options


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register ``--llmbench-*`` and their ini keys."""
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a dry run where no suite is switched on: the tests that are there would run in earnest."""
    if config.option.llmbench_dry_run and not config.pluginmanager.hasplugin("pytest_llmbench.suite"):
        raise pytest.UsageError(
            "--llmbench-dry-run: no benchmark suite is switched on here, so the tests would run; go to the suite's "
            "folder, or make this one a suite: llmbench init"
        )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Here, because what is registered first comes last of those that come first: right before stepwise."""
    if (neighbours := config.pluginmanager.get_plugin("llmbench-neighbours")) is not None:
        neighbours.restore_order(items)
