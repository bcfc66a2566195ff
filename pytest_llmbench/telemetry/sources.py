"""Which sensors are read on this system."""

from __future__ import annotations

import sys

from pytest_llmbench.telemetry.base import Source
from pytest_llmbench.telemetry.nvml import NvidiaGpus
from pytest_llmbench.telemetry.rapl import Rapl
from pytest_llmbench.telemetry.server import ServerMemory, ServerProcesses
from pytest_llmbench.telemetry.system import PsutilSystem, System
from pytest_llmbench.telemetry.temperature import Temperature


def sources_here() -> list[Source]:
    """All there are, whether or not this machine has what they read: each says itself why it has nothing to tell."""
    server = ServerProcesses()
    system: Source = System() if sys.platform.startswith("linux") else PsutilSystem()
    return [server, system, Temperature(), Rapl(), NvidiaGpus(), ServerMemory(server)]
