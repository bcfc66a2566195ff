"""The machine of a drifting server: its sensors, and a batch that is measured on it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from pytest_llmbench.client.endpoint import LLAMA_CPP, Capabilities, Endpoint
from pytest_llmbench.core.records import RequestRecord, TelemetryRecord
from pytest_llmbench.core.settings import BatchSettings
from pytest_llmbench.core.statistics import StoppingRule
from pytest_llmbench.errors import LlmbenchError, RequestError, ServerError
from pytest_llmbench.profiles.base import Measurement, ProfileContext
from pytest_llmbench.profiles.batch import BatchProfile
from tests.servers.drifting import DriftingServer

DATA = Path(__file__).parents[2] / "data"
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


def measure_batch(
    server: DriftingServer,
    filed: list[RequestRecord] | None = None,
    *,
    documents: int = 30,
    tokens: int = 16,
    chat: bool = False,
    blind: bool = False,
    data: Sequence[Path] = (DATA,),
) -> Measurement:
    """Run the batch profile on a drifting server.

    Args:
        filed: takes the records.
        chat: over OpenAI's chat, of a server that can not ignore the end of sequence.
        blind: whether the server's memory can not be read.

    Raises:
        LlmbenchError: as the profile does.
    """
    records = [] if filed is None else filed

    def explain(error: RequestError) -> LlmbenchError:
        deadline = time.monotonic() + 2
        while server.alive and error.code in {"connection_lost", "connection_refused"} and time.monotonic() < deadline:
            time.sleep(0.01)
        return error if server.alive else ServerError("server_died", "it died")

    endpoint = Endpoint(
        base_url=server.url,
        protocol="openai_chat" if chat else "llama_cpp",
        capabilities=Capabilities() if chat else LLAMA_CPP,
    )
    return BatchProfile().run(
        ProfileContext(
            endpoint=endpoint,
            settings=BatchSettings(num_documents=documents, output_tokens=tokens),
            rule=StoppingRule(6, 20, 5.0, 60.0, {}),
            nodeid="test_batch[drifting]",
            data_dirs=data,
            sink=records.append,
            on_failure=explain,
            telemetry=Machine(server, blind),
        )
    )
