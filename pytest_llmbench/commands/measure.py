"""``llmbench measure``: load a running server, keep every request, say what they show."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from filelock import Timeout

from pytest_llmbench.client.exchange import Deadlines
from pytest_llmbench.client.generation import Generation
from pytest_llmbench.client.load import Arrivals, ClosedLoop, ConstantRate, PoissonRate, run_load, send
from pytest_llmbench.client.prompts import Prompts, any_prompts, prompts_of
from pytest_llmbench.client.timings import ServerTimes, was_reloaded
from pytest_llmbench.commands.summary import (
    LoadSummary,
    PromptLengths,
    Totals,
    gap_spread,
    nearest_rank,
    read_requests,
    spread_of,
    values_needed,
)
from pytest_llmbench.commands.tables import print_summary
from pytest_llmbench.commands.target import Target, find_target
from pytest_llmbench.core.records import RequestRecord, to_line
from pytest_llmbench.errors import ConfigError, RecordError, RequestError, readable
from pytest_llmbench.reports.plain import plain
from pytest_llmbench.runtime import host
from pytest_llmbench.runtime.run_folder import new_run_id, utc_now

WARMUP_TOKENS = 32
INTERRUPTED = 130
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True)
class Load:
    """What was asked for on the command line, checked."""

    url: str
    streams: int
    requests: int
    tokens: int
    prompt_tokens: int | None
    rate: float | None
    arrivals: Literal["constant", "poisson"]
    seed: int
    timeout_seconds: float | None

    @classmethod
    def of(cls, options: argparse.Namespace) -> Load:
        """Raises ConfigError for options that contradict each other."""
        if options.rate is None:
            for name in ("arrivals", "seed"):
                if getattr(options, name) is not None:
                    raise ConfigError(f"--{name} says how requests arrive at a rate; give --rate, or leave it out")
        elif options.streams is not None:
            raise ConfigError("--streams and --rate contradict each other: at a rate, requests wait for no stream")
        if options.seed is not None and options.arrivals != "poisson":
            raise ConfigError("--seed is for --arrivals poisson; a constant rate has no chance in it")
        return cls(
            url=options.url,
            streams=options.streams or 1,
            requests=options.requests,
            tokens=options.tokens,
            prompt_tokens=options.prompt_tokens,
            rate=options.rate,
            arrivals=options.arrivals or "constant",
            seed=options.seed or 0,
            timeout_seconds=options.timeout,
        )

    @property
    def schedule(self) -> Arrivals:
        """When requests leave."""
        if self.rate is None:
            return ClosedLoop(self.streams)
        return PoissonRate(self.rate, self.seed) if self.arrivals == "poisson" else ConstantRate(self.rate)

    @property
    def deadlines(self) -> Deadlines:
        """How long a request may take."""
        limit, usual = self.timeout_seconds, Deadlines()
        if limit is None:
            return usual
        return Deadlines(
            min(limit, usual.connect), min(limit, usual.first_token), min(limit, usual.gap), min(limit, usual.whole)
        )

    @property
    def one_at_a_time(self) -> bool:
        """Whether no request waits for another, so that a server's queue is in none of its times."""
        return self.rate is None and self.streams == 1

    def in_words(self) -> str:
        """For a person who waits."""
        if self.rate is not None:
            return f"{self.requests} requests, {self.rate:g} a second ({self.arrivals})"
        return f"{self.requests} requests, {min(self.streams, self.requests)} at a time"


class Log:
    """Judges each request and writes it down at once, so that ``requests.jsonl`` is whole whatever happens next.

    Attributes:
        warmup: the request before the first that counts.
    """

    def __init__(self, path: Path, load: Load) -> None:
        self.path = path
        self.warmup: RequestRecord | None = None
        self._load = load
        self._prompts = any_prompts()
        if path.exists() or path.with_name("summary.json").exists():
            raise ConfigError(f"{path.parent} holds a load already; choose another --output")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("xb", buffering=0)  # nothing may be left in a buffer that a full disk refuses
        except OSError as exc:
            raise _not_written(path, exc) from exc

    def close(self) -> None:
        """No more requests follow."""
        self._file.close()

    def expect(self, prompts: Prompts) -> None:
        """What prompts follow."""
        self._prompts = prompts

    def before(self, record: RequestRecord) -> None:
        """Write down a request that does not count."""
        self._write(record)

    def sample(self, record: RequestRecord) -> None:
        """Judge a request and write it down."""
        self._write(self._judged(record))

    def judged_warmup(self, record: RequestRecord) -> RequestRecord:
        """Write down the warm-up; what would be wrong with a request that counts is wrong with it, too."""
        self.warmup = judged = self._judged(record)
        self._write(judged)
        return judged

    def _judged(self, record: RequestRecord) -> RequestRecord:
        """The record, with its doubts; a request whose prompt was cut has failed (P09)."""
        if not record.ok:
            return record
        if self._prompts.contradicts(record):
            least = "at least " if self._prompts.at_least else ""
            message = (
                f"the server read {record.prompt_tokens} tokens of a prompt of {least}{self._prompts.expected_tokens}: "
                "it cuts or changes prompts; give it a larger context"
            )
            changes = {"ok": False, "error": "prompt_truncated", "error_message": message, "usable": False}
            return record.model_copy(update={**changes, "flags": [*record.flags, "prompt_truncated"]})
        doubts = list(self._doubts(record))
        if not doubts:
            return record
        usable = "another_model_answered" not in doubts
        return record.model_copy(update={"flags": [*record.flags, *doubts], "usable": usable})

    def _doubts(self, record: RequestRecord) -> Iterator[str]:
        tokens = record.output_tokens
        if record.cached_tokens:
            yield "prompt_cache_hit"
        if tokens is None:
            yield "tokens_not_counted"
        if record.phase == "sample" and (
            tokens < self._load.tokens if tokens is not None else record.finish_reason != "length"
        ):
            yield "short_answer"
        if self.warmup is None:
            return
        if self.warmup.response_model is not None and record.response_model != self.warmup.response_model:
            yield "another_model_answered"
        # Elsewhere a load time holds the wait in the server's queue.
        warm_load_seconds = ServerTimes.of(self.warmup.server_timings).load_seconds
        if self._load.one_at_a_time and was_reloaded(record.server_timings, warm_load_seconds):
            yield "model_reloaded"

    def _write(self, record: RequestRecord) -> None:
        data = memoryview(to_line(record).encode("ascii") + b"\n")
        try:
            while data:
                data = data[self._file.write(data) or 0 :]
        except OSError as exc:
            raise _not_written(self.path, exc) from exc


def run(options: argparse.Namespace) -> int:
    """Run the command. Raises LlmbenchError for what makes it impossible."""
    load = Load.of(options)
    folder = options.output or Path("results") / f"measure-{new_run_id()}"
    target = find_target(options.url, options.protocol, options.model, options.api_key_env)
    log = Log(folder / "requests.jsonl", load)
    started_at, problem = utc_now(), None
    with ExitStack() as stack:
        stack.callback(log.close)
        notes = [*_missing(target), *_claim_machine(target, stack)]
        prompts = _warm_up(target, load, log)
        notes += prompts.notes
        tell(f"{load.in_words()}, {load.tokens} tokens each, to {target.endpoint.base_url} ({target.endpoint.model})")
        generations = (
            Generation(load.tokens, prompt, demand_length=True)
            for prompt, _ in zip(prompts, range(load.requests), strict=False)
        )
        interrupted = False
        try:
            run_load(target.endpoint, generations, load.schedule, log.sample, deadlines=load.deadlines)
        except KeyboardInterrupt:
            interrupted = True
        except RecordError as exc:  # the disk is full; what is on it counts
            interrupted, problem = True, exc
    summary = _summarise(target, load, log.path, prompts, notes=notes, started_at=started_at, interrupted=interrupted)
    if options.json:
        sys.stdout.write(summary.model_dump_json(indent=2) + "\n")
    else:
        print_summary(summary, log.path)
    if problem is not None:
        with suppress(RecordError):
            _write_summary(folder / "summary.json", summary)
        raise problem
    _write_summary(folder / "summary.json", summary)
    if interrupted:
        return INTERRUPTED
    return 1 if summary.failed else 0


def tell(message: str) -> None:
    """Say something to a person who waits; never to a script that reads the output."""
    sys.stderr.write(f"llmbench: {plain(message)}\n")
    sys.stderr.flush()


def _missing(target: Target) -> list[str]:
    """What the server can not do, as far as it matters to a load."""
    return [note for note in target.endpoint.capabilities.missing_notes() if "its memory" not in note]


def _claim_machine(target: Target, stack: ExitStack) -> list[str]:
    """Let no run on this machine measure meanwhile, where the server may be on it (P20)."""
    if urlsplit(target.endpoint.base_url).hostname not in _LOOPBACK:
        return []
    lock = host.device_lock()
    try:
        stack.enter_context(lock.acquire(timeout=0))
    except Timeout:
        note = "another benchmark was measuring on this machine when this one began; both disturb each other"
        tell(note)
        return [note]
    return []


def _warm_up(target: Target, load: Load, log: Log) -> Prompts:
    """Find prompts of the right length, and let the server answer one of them. Raises RequestError when it does not."""
    endpoint, index = target.endpoint, 0

    def ask(generation: Generation) -> RequestRecord:
        nonlocal index
        record = send(endpoint, generation, index=index, phase="warmup", deadlines=load.deadlines)
        index += 1
        return record

    def ask_before(generation: Generation) -> RequestRecord:
        record = ask(generation)
        log.before(record)
        return record

    prompts = any_prompts() if load.prompt_tokens is None else prompts_of(endpoint, load.prompt_tokens, ask_before)
    log.expect(prompts)
    tokens = min(WARMUP_TOKENS, load.tokens)
    warmup = log.judged_warmup(ask(Generation(tokens, next(iter(prompts)), demand_length=True)))
    thinks = warmup.error == "empty_answer" and bool(warmup.reasoning)  # too short to think to an end
    if not warmup.ok and not thinks:
        message = f"the warm-up request failed: {warmup.error_message}"
        raise RequestError(warmup.error or "failed", message)
    return prompts


def _summarise(
    target: Target, load: Load, path: Path, prompts: Prompts, *, notes: list[str], started_at: str, interrupted: bool
) -> LoadSummary:
    totals = Totals.of(read_requests(path))
    duration, all_counted = totals.duration_seconds, totals.counted == totals.succeeded > 0
    lags = sorted(totals.lags_ms)
    per_token = [1e3 / rate for rate in totals.rates]
    hardware = host.describe_hardware()
    client = {"hardware": hardware, "host": host.fingerprint(hardware), "software": host.describe_software()}
    return LoadSummary(
        started_at=started_at,
        load={
            "streams": load.streams if load.rate is None else None,
            "requests": load.requests,
            "tokens": load.tokens,
            "prompt_tokens": load.prompt_tokens,
            "rate_per_second": load.rate,
            "arrivals": "closed loop" if load.rate is None else load.arrivals,
            "seed": load.seed if load.rate is not None and load.arrivals == "poisson" else None,
            "timeout_seconds": load.timeout_seconds,
        },
        server={
            "url": target.endpoint.base_url,
            "kind": target.kind,
            "version": target.version,
            "protocol": target.endpoint.protocol,
            "model": target.endpoint.model,
        },
        client={**client, "clock": host.describe_clock()},
        interrupted=interrupted,
        finished=totals.finished,
        succeeded=totals.succeeded,
        failed=totals.finished - totals.succeeded,
        failures=totals.failed,
        duration_seconds=duration,
        ttft_seconds=spread_of(totals.ttft, "s"),
        ttft_from_schedule_seconds=spread_of(totals.from_schedule, "s"),
        time_to_first_reasoning_seconds=spread_of(totals.reasoning, "s"),
        decode_tokens_per_second=spread_of(totals.rates, "tokens/s", percentiles=False),
        time_per_output_token_ms=spread_of(per_token, "ms"),
        chunk_gap_ms=gap_spread(totals.gaps_us),
        output_tokens=totals.output_tokens,
        output_tokens_per_second=totals.output_tokens / duration if all_counted and duration else None,
        requests_per_second=totals.succeeded / duration if duration else None,
        tokens_per_chunk=totals.output_tokens / totals.chunks if totals.chunks else None,
        prompt_tokens=PromptLengths(
            asked=load.prompt_tokens,
            expected=prompts.expected_tokens,
            at_least=prompts.at_least,
            counted_min=totals.prompt_min,
            counted_max=totals.prompt_max,
        ),
        client_lag_p99_ms=nearest_rank(lags, 0.99) if len(lags) >= values_needed(0.99) else None,
        client_lag_max_ms=max(lags, default=0.0),
        retries=totals.retries,
        flags=dict(sorted(totals.flags.items())),
        doubts=totals.doubts(),
        notes=notes,
    )


def _write_summary(path: Path, summary: LoadSummary) -> None:
    """In one step. Raises RecordError when the disk refuses."""
    temporary = path.with_name(".summary.json.partial")
    try:
        temporary.write_text(summary.model_dump_json(indent=2) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as exc:
        raise _not_written(path, exc) from exc


def _not_written(path: Path, exc: OSError) -> RecordError:
    return RecordError(
        readable(f"{path} can not be written: {exc.strerror}; free some space or choose another --output")
    )
