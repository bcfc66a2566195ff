"""Switches a folder on as a benchmark suite. PYTEST_DONT_REWRITE

One line in the root ``conftest.py``::

    pytest_plugins = ["pytest_llmbench.suite"]

Hooks only, each a line or two into ``adapters``; nothing here runs in a folder without that line.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import pytest

from pytest_llmbench import hookspecs
from pytest_llmbench.adapters import baseline, collection, plan, results, setup, signals, workers
from pytest_llmbench.adapters.fixtures import cell, llm, release_before, server
from pytest_llmbench.adapters.live import Live
from pytest_llmbench.adapters.neighbours import Neighbours
from pytest_llmbench.adapters.recorder import Recorder
from pytest_llmbench.adapters.state import SUITE_KEY
from pytest_llmbench.adapters.workers import WORKER_PIDS_KEY
from pytest_llmbench.errors import ConfigError

__all__ = ["cell", "llm", "server"]


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(hookspecs)


@pytest.hookimpl(tryfirst=True)  # before xdist's, which decides there whether to distribute
def pytest_cmdline_main(config: pytest.Config) -> None:
    plan.keep_in_this_process(config)


@pytest.hookimpl(trylast=True)  # after the conftest files, whose profiles and backends are asked for
def pytest_configure(config: pytest.Config) -> None:
    if config.pluginmanager.is_blocked("llmbench"):
        collection.register_markers(config, [])
        return
    if not config.pluginmanager.hasplugin("llmbench"):
        raise pytest.UsageError(
            "this suite needs pytest-llmbench's options: plugin autoloading is off, add -p llmbench"
        )
    workers.refuse_what_can_not_be_reported(config)
    workers.settle_in(config)
    try:
        suite = config.stash[SUITE_KEY] = setup.build_suite(config)
    except ConfigError as exc:
        raise pytest.UsageError(str(exc)) from exc
    collection.register_markers(config, list(suite.profiles))
    config.pluginmanager.register(Neighbours(suite), "llmbench-neighbours")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(config, suite), "llmbench-recorder")
        config.pluginmanager.register(Live(config, suite), "llmbench-live")
        config.add_cleanup(suite.folder.close)
    pids = config.stash[WORKER_PIDS_KEY] = set()
    config.add_cleanup(setup.configure_logging(suite))
    config.add_cleanup(suite.watches.end)
    config.add_cleanup(suite.sensing.end)
    config.add_cleanup(suite.let_go)
    config.add_cleanup(signals.end_in_order_on_signals(lambda: tuple(pids)))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if (suite := metafunc.config.stash.get(SUITE_KEY, None)) is not None:
        collection.generate(metafunc, suite)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if SUITE_KEY not in config.stash:
        collection.switch_off(config, items)


@pytest.hookimpl(tryfirst=True)  # before xdist's, which tells the controller what was collected
def pytest_collection_finish(session: pytest.Session) -> None:
    baseline.count_comparisons(session.config, [item.nodeid for item in session.items])
    workers.tell_groups(session.config, session.items)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    suite = session.config.stash.get(SUITE_KEY, None)
    return plan.instead_of_tests(session, suite) if suite is not None else None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if (suite := item.config.stash.get(SUITE_KEY, None)) is not None:
        results.begin(item, suite)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if (suite := item.config.stash.get(SUITE_KEY, None)) is not None:
        results.annotate(item, call, report, suite)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable(config: pytest.Config) -> Generator[None, Any, Any]:
    return workers.sendable((yield)) if SUITE_KEY in config.stash else (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, None, None]:
    try:  # while the fixtures still hold the device
        if (suite := item.config.stash.get(SUITE_KEY, None)) is not None:
            release_before(item, nextitem, suite)
    finally:
        yield


def pytest_sessionfinish(session: pytest.Session) -> None:
    if (suite := session.config.stash.get(SUITE_KEY, None)) is not None:
        suite.let_go()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    if (suite := node.config.stash.get(SUITE_KEY, None)) is not None:
        workers.instruct(node, suite)
        baseline.ship(node, suite)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    return setup.count_devices(config)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    suite = config.stash.get(SUITE_KEY, None)
    return workers.scheduler(config, log, suite) if suite is not None else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: Sequence[str]) -> None:
    baseline.count_comparisons(node.config, ids)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodeready(node: Any) -> None:
    if (pid := workers.pid_on_this_host(node)) is not None:
        node.config.stash.get(WORKER_PIDS_KEY, set()).add(pid)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: Any) -> None:
    # Its pid may be somebody else's soon.
    node.config.stash.get(WORKER_PIDS_KEY, set()).discard(workers.pid_on_this_host(node))
    if error is not None and SUITE_KEY in node.config.stash:
        workers.clean_up_after(node)
