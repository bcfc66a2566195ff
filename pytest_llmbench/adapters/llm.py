"""What a test holds in its hand: ``llm``, its replies, and the measurement of its cell."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pytest_llmbench.adapters.baseline import compare_cell
from pytest_llmbench.adapters.cell_run import CellRun
from pytest_llmbench.adapters.measuring import Measuring
from pytest_llmbench.adapters.state import Suite
from pytest_llmbench.backends.base import RunningServer
from pytest_llmbench.client.generation import Generation
from pytest_llmbench.client.load import send
from pytest_llmbench.core.ratings import interpret, rate
from pytest_llmbench.core.records import RequestRecord
from pytest_llmbench.core.thresholds import Limit, Verdict, judge, known_keys
from pytest_llmbench.core.yaml_source import nearest
from pytest_llmbench.errors import LlmbenchError, RequestError
from pytest_llmbench.profiles.base import ABORTED

# A connection is refused or broken some moments before the process behind it is gone.
_DYING_SECONDS = 0.5
_OF_THE_DYING = {"connection_refused", "connection_lost", "stream_truncated", "unreachable"}


@dataclass(frozen=True, slots=True, repr=False)
class Reply:
    """One answer, timed as every other request."""

    record: RequestRecord

    def __repr__(self) -> str:
        return f"Reply({self.text[:60]!r}{'…' if len(self.text) > 60 else ''})"

    @property
    def text(self) -> str:
        """The answer, without reasoning."""
        return self.record.output

    @property
    def reasoning(self) -> str:
        """What the model thought aloud before it answered, often empty."""
        return self.record.reasoning

    @property
    def ttft_seconds(self) -> float:
        """Time to first token."""
        return math.nan if self.record.ttft_seconds is None else self.record.ttft_seconds

    @property
    def decode_tokens_per_second(self) -> float | None:
        """Decode rate; None where the server did not count its tokens or gave only one."""
        return self.record.decode_tokens_per_second

    def json(self) -> Any:
        """The answer as JSON; a Markdown code fence around it is taken off.

        Raises:
            ValueError: it is not JSON; the message shows how it begins.
        """
        __tracebackhide__ = True
        text = self.text.strip()
        if text.startswith("```"):
            text = text.partition("\n")[2].rpartition("```")[0]
        try:
            return json.loads(text)
        except ValueError as exc:
            raise ValueError(f"the answer is not JSON ({exc}); it begins {self.text[:80]!r}") from None


class LLM:
    """A model on a running server, as one cell of the matrix."""

    def __init__(self, suite: Suite, run: CellRun) -> None:
        self.cell = run.cell
        self._suite = suite
        self._run = run
        self._limits: tuple[Limit, ...] = suite.limits(run.cell)

    def __repr__(self) -> str:
        return f"LLM({self.cell.id})"

    def chat(self, prompt: str | Sequence[dict[str, str]], *, max_tokens: int = 512, temperature: float = 0.0) -> Reply:
        """Ask through the model's chat template.

        Args:
            prompt: a user message, or a list of ``{"role": …, "content": …}``.

        Raises:
            RequestError: no complete answer came.
        """
        messages = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else tuple(prompt)
        return self._ask(Generation(max_tokens=max_tokens, messages=messages, temperature=temperature))

    def complete(self, prompt: str, *, max_tokens: int = 512, temperature: float = 0.0) -> Reply:
        """Let the model continue a text, without a chat template where the server allows that.

        Raises:
            RequestError: no complete answer came.
        """
        return self._ask(Generation(max_tokens=max_tokens, prompt=prompt, temperature=temperature))

    def threshold(self, key: str) -> float:
        """The limit in force for this cell; one that is switched off is infinitely far away.

        Raises:
            KeyError: the profile has no such threshold.
        """
        __tracebackhide__ = True
        for limit in self._limits:
            if limit.key == key:
                return limit.value
        keys = known_keys(self.cell.profile, self._suite.profiles.emitted(self.cell.profile))
        if key not in keys:
            allowed = ", ".join(sorted(keys))
            raise KeyError(
                f"profile {self.cell.profile!r} has no threshold {key!r}{nearest(key, keys)}; it has {allowed}"
            )
        return math.inf if keys[key].side == "max" else -math.inf

    @property
    def _server(self) -> RunningServer:
        """The server now: a cell that is measured over several loads has several."""
        assert self._run.server is not None  # noqa: S101 -- the fixture has provided it
        return self._run.server

    def measure(self) -> Verdict:
        """Run the cell's profile and judge what it measured.

        Raises:
            CellError: it could not be measured, or the measurement can not be trusted.
        """
        suite, run = self._suite, self._run
        run.measuring = True
        measurement = Measuring(suite, run, self._limits, self._file, self._explain_failure).measure()
        results = tuple(judge(self._limits, measurement.metrics))
        subject = f"{self.cell.id} {self.cell.profile}"
        run.measurement = measurement
        ended_early = next((note for note in measurement.notes if note.startswith(ABORTED)), None)
        compared = compare_cell(suite, run, measurement)
        run.verdict = Verdict(
            subject,
            results,
            suite.config.measurement.inconclusive == "fail",
            ended_early,
            tuple(compared.metrics) if compared is not None else (),
        )
        if compared is not None:
            measurement.notes.extend(f"beside the baseline: {note}" for note in compared.notes)
        run.rating = rate(results) if ended_early is None else "failed"
        run.interpretation = interpret(measurement.metrics, self.cell.profile)
        run.measuring = False
        return run.verdict

    def _ask(self, generation: Generation) -> Reply:
        record = send(self._server.endpoint, generation, cell=self._run.nodeid, index=self._run.sent_requests)
        self._file(record)
        if not record.ok:
            raise self._explain_failure(
                RequestError(record.error or "failed", record.error_message or "request failed")
            )
        return Reply(record)

    def _file(self, record: RequestRecord) -> None:
        self._run.sent_requests += 1
        self._run.answered_requests += record.ok
        if record.output_tokens is None and record.ok:
            self._run.answered_tokens = None
        elif self._run.answered_tokens is not None:
            self._run.answered_tokens += record.output_tokens or 0
        self._suite.file_line("requests", record)
        self._suite.on_request(record)

    def _explain_failure(self, error: RequestError) -> LlmbenchError:
        """A failed request, or the death of the server that explains it."""
        ours = self._server.info.pid is not None
        deadline = time.monotonic() + (_DYING_SECONDS if ours and error.code in _OF_THE_DYING else 0.0)
        while self._server.alive and time.monotonic() < deadline:
            time.sleep(0.02)
        if self._server.alive:
            return error
        return self._server.death()
