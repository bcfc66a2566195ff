"""The machine of a drifting server: its sensors, and what profiles measure on it."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from pytest_llmbench.client.endpoint import LLAMA_CPP, Capabilities, Endpoint
from pytest_llmbench.core.records import RequestRecord, TelemetryRecord
from pytest_llmbench.core.settings import BatchSettings, StressSettings
from pytest_llmbench.core.statistics import StoppingRule
from pytest_llmbench.errors import LlmbenchError, RequestError, ServerError
from pytest_llmbench.profiles.base import Disturbance, Measurement, ProfileContext
from pytest_llmbench.profiles.batch import BatchProfile
from tests.servers.drifting import DriftingServer

DATA = Path(__file__).parents[2] / "data"
OF_THE_DYING = {"connection_refused", "connection_lost", "stream_truncated", "unreachable"}
DYING_SECONDS = 2.0
_COOL, _HOT = (62.0, 3000.0, 0.0), (95.0, 2400.0, 1.0)  # degrees Celsius, MHz, throttle events


@dataclass
class Machine:
    """Sensors of a machine with a drifting server: its real memory, and the heat that is planted.

    Attributes:
        taken: all readings so far.
        blind: whether the server's memory can not be read.
    """

    server: DriftingServer
    blind: bool = False
    taken: list[TelemetryRecord] = field(default_factory=list)

    @property
    def why_not(self) -> Mapping[str, str]:
        return {"server_rss_bytes": "it is blind"} if self.blind else {}

    def now(self) -> TelemetryRecord:
        """Read all sensors."""
        celsius, megahertz, throttled = _HOT if self.server.is_hot else _COOL
        values = {
            "cpu_temperature_celsius": celsius,
            "cpu_frequency_mhz": megahertz,
            "throttle_events_total": throttled,
        }
        if not self.blind and self.server.alive:
            values["server_rss_bytes"] = float(psutil.Process(self.server.pid).memory_info().rss)
        self.taken.append(TelemetryRecord(cell=None, t_ns=time.perf_counter_ns(), values=values))
        return self.taken[-1]

    def between(self, begin_ns: int, end_ns: int) -> Sequence[TelemetryRecord]:
        """What was read in a span of time."""
        return [one for one in self.taken if begin_ns <= one.t_ns <= end_ns]


class Stood:
    """Something stood still."""

    sentence = "the machine stood still for 3 s"


def context_on(
    server: DriftingServer,
    settings: BatchSettings | StressSettings,
    filed: list[RequestRecord] | None = None,
    *,
    chat: bool = False,
    blind: bool = False,
    data: Sequence[Path] = (DATA,),
    still: Collection[int] = (),
) -> ProfileContext:
    """What a profile may use of a drifting server.

    Args:
        filed: takes the records.
        chat: over OpenAI's chat, of a server that can not ignore the end of sequence.
        blind: whether the server's memory can not be read.
        data: where the documents are looked for.
        still: requests during which something stood still, by number.
    """
    records = [] if filed is None else filed

    def file(record: RequestRecord) -> None:
        records.append(record)

    def explain(error: RequestError) -> LlmbenchError:
        deadline = time.monotonic() + DYING_SECONDS
        while server.alive and error.code in OF_THE_DYING and time.monotonic() < deadline:
            time.sleep(0.01)
        return error if server.alive else ServerError("server_died", "it died")

    def disturbance(_begin_ns: int, _end_ns: int) -> Disturbance | None:
        return Stood() if context.next_index - 1 in still else None

    endpoint = Endpoint(
        base_url=server.url,
        protocol="openai_chat" if chat else "llama_cpp",
        capabilities=Capabilities() if chat else LLAMA_CPP,
    )
    context = ProfileContext(
        endpoint=endpoint,
        settings=settings,
        rule=StoppingRule(6, 20, 5.0, 60.0, {}),
        nodeid="test_drifting",
        data_dirs=data,
        sink=file,
        on_failure=explain,
        telemetry=Machine(server, blind),
        disturbance=disturbance,
    )
    return context


def measure_batch(
    server: DriftingServer,
    filed: list[RequestRecord] | None = None,
    *,
    documents: int = 30,
    tokens: int = 16,
    **how: Any,
) -> Measurement:
    """Run the batch profile on a drifting server; see :func:`context_on`. Raises LlmbenchError as the profile does."""
    settings = BatchSettings(num_documents=documents, output_tokens=tokens)
    return BatchProfile().run(context_on(server, settings, filed, **how))
