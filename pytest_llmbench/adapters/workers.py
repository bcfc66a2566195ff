"""xdist: what a worker is told, and how workers and controller end together."""

from __future__ import annotations

import os
from typing import Any

import pytest

from pytest_llmbench.adapters.setup import Suite
from pytest_llmbench.runtime.lifeline import die_with_parent

WORKER_PIDS_KEY = pytest.StashKey[set[int]]()


def instruct(node: Any, suite: Suite) -> None:
    """Controller: tell a worker which run it belongs to and who started it."""
    node.workerinput["llmbench_run_id"] = suite.folder.run_id
    node.workerinput["llmbench_controller_pid"] = os.getpid()


def settle_in(config: pytest.Config) -> None:
    """Worker: end when a killed controller ends. Only a worker it forked itself; a remote one has another parent."""
    workerinput = getattr(config, "workerinput", None)
    if workerinput is not None and workerinput["llmbench_controller_pid"] == os.getppid():
        die_with_parent(os.getppid())


def remember(node: Any, pids: set[int]) -> None:
    """Controller: note the pid of a worker on this host that is ready."""
    spec, info = node.gateway.spec, getattr(node, "workerinfo", None)
    if spec.popen and isinstance(info, dict) and isinstance(info.get("pid"), int):
        pids.add(info["pid"])


def forget(node: Any, pids: set[int]) -> None:
    """Controller: a worker has ended; its pid may be somebody else's soon."""
    info = getattr(node, "workerinfo", None)
    if isinstance(info, dict):
        pids.discard(info.get("pid", -1))
