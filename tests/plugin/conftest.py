"""A benchmark suite against the fast fake server, run with pytester."""

from __future__ import annotations

import gc
from collections.abc import Iterator

# pytester forgets modules that a run inside this process was the first to import. Some of these do not survive a second
# import; the others would be imported again by each run (that of hypothesis, by its own plugin, takes 150 ms).
import hypothesis  # noqa: F401
import matplotlib.axes
import matplotlib.backends.backend_svg
import matplotlib.figure
import matplotlib.ticker  # noqa: F401
import numpy  # noqa: F401, ICN001
import ollama  # noqa: F401
import pytest
import requests  # noqa: F401
import rich._emoji_codes
import rich.console
import rich.table  # noqa: F401
import scipy.special
import scipy.stats  # noqa: F401
import uvloop  # noqa: F401

import pytest_llmbench.reports.plan
import pytest_llmbench.reports.terminal
import pytest_llmbench.telemetry.sources
import pytest_llmbench.telemetry.summary  # noqa: F401
from tests.plugin.bench import Bench
from tests.servers.fake_openai import FakeOpenAI


@pytest.fixture(scope="module", autouse=True)
def collected() -> Iterator[None]:
    """A run of pytest leaves some megabytes of cycles, and our client keeps starting the collector's count anew."""
    yield
    gc.collect()


@pytest.fixture
def fake() -> Iterator[FakeOpenAI]:
    with FakeOpenAI() as server:
        yield server


@pytest.fixture
def bench(pytester: pytest.Pytester, fake: FakeOpenAI) -> Bench:
    return Bench(pytester, fake)
