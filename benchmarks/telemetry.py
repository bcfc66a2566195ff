"""What watching costs: the sampler by source, the probe, and whether a server becomes slower for it.

Without options the sampler runs at two samples a second, as in a cell, with its records written to a file, and follows
this process; then the probe of responsiveness runs alone. Shown is the time on a core that each took, in percent of one
core. Bounds: 0.5 % for the sampler, 0.2 % for the probe.

With ``--engine`` the embedded engine is asked for the same number of tokens again and again, in pairs: one request with
the sampler at work on the engine's process, one without, which of them first changing from pair to pair. Shown are the
decode rates and the median of the ratios (on / off) with its 95 % interval. Bound: the median within 0.5 % of 1. On a
machine where others work the interval says whether that means anything.

    python benchmarks/telemetry.py [--seconds 30] [--engine] [--pairs 20] [--tokens 200] [--model FILE]

Exit status: 0 within the bounds, 1 beyond, 2 where there is no model.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from pytest_llmbench.backends.base import StartRequest  # noqa: E402
from pytest_llmbench.backends.embedded import EmbeddedBackend  # noqa: E402
from pytest_llmbench.client.endpoint import Endpoint  # noqa: E402
from pytest_llmbench.client.generation import Generation  # noqa: E402
from pytest_llmbench.client.load import send  # noqa: E402
from pytest_llmbench.core.cell import ServerSpec  # noqa: E402
from pytest_llmbench.core.records import TelemetryRecord, to_line  # noqa: E402
from pytest_llmbench.core.statistics import median, median_interval  # noqa: E402
from pytest_llmbench.telemetry.responsiveness import Responsiveness  # noqa: E402
from pytest_llmbench.telemetry.sampler import Sampler  # noqa: E402
from pytest_llmbench.telemetry.sources import sources_here  # noqa: E402

MODEL = REPOSITORY / "models" / "135M" / "SmolLM2-135M-Instruct.Q4_1.gguf"
MAX_SAMPLER_PERCENT, MAX_PROBE_PERCENT, MAX_DIFFERENCE_PERCENT = 0.5, 0.2, 0.5
SETTLING_SECONDS = 0.2
CONTEXT_TOKENS = 2048
QUANTILES = {"median": 0.5, "p95": 0.95, "most": 1.0}


def main() -> int:
    options = _options()
    if options.engine and not options.model.exists():
        print(f"there is no {options.model}: name one with --model, or run pytest suites/ once", file=sys.stderr)
        return 2
    with (
        TemporaryDirectory(prefix="llmbench-telemetry-") as folder,
        (Path(folder) / "telemetry.jsonl").open("w") as file,
    ):

        def sink(record: TelemetryRecord) -> None:
            file.write(to_line(record) + "\n")
            file.flush()

        problems = [*_sampler_cost(sink, options.seconds), *_probe_cost(options.seconds)]
        if options.engine:
            problems += _engine(sink, Path(folder), options)
    for problem in problems:
        print(f"beyond the bound: {problem}")
    return 1 if problems else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=30.0, help="how long the sampler, and then the probe, runs")
    parser.add_argument("--engine", action="store_true", help="compare the embedded engine's rate with and without")
    parser.add_argument("--pairs", type=int, default=20, help="of requests to the engine; six at least for an interval")
    parser.add_argument("--tokens", type=int, default=200, help="of each answer of the engine")
    parser.add_argument("--model", type=Path, default=MODEL, help="what the engine loads")
    return parser.parse_args()


@contextmanager
def _sampling(sink: Callable[[TelemetryRecord], None]) -> Iterator[Sampler]:
    sampler = Sampler(sources_here(), sink)
    sampler.start()
    try:
        yield sampler
    finally:
        sampler.stop()


def _sampler_cost(sink: Callable[[TelemetryRecord], None], seconds: float) -> Iterator[str]:
    with _sampling(sink) as sampler:
        sampler.facts()  # what is opened once is not part of it
        before, before_all = dict(sampler.costs_seconds), sampler.cost_seconds
        sampler.begin_cell("benchmark", os.getpid())
        time.sleep(seconds)
        sampler.end_cell()
        samples = len(sampler.between(0, time.perf_counter_ns()))
        percent = {name: 100 * (cost - before[name]) / seconds for name, cost in sampler.costs_seconds.items()}
        whole = 100 * (sampler.cost_seconds - before_all) / seconds
        print(f"sampler: {samples} samples in {seconds:g} s, percent of one core")
        for name, share in sorted(percent.items(), key=lambda item: -item[1]):
            print(f"  {name:16}{share:8.4f}")
        print(f"  {'together':16}{whole:8.4f}")
        for name, reason in sampler.why_not.items():
            print(f"  not available: {name}: {reason}")
    if whole > MAX_SAMPLER_PERCENT:
        yield f"the sampler took {whole:.2f} % of a core, {MAX_SAMPLER_PERCENT} % are allowed"


def _probe_cost(seconds: float) -> Iterator[str]:
    probe = Responsiveness()
    probe.start()
    time.sleep(seconds)
    delays = sorted(probe.stop())
    percent = 100 * probe.cost_seconds / seconds
    late = ", ".join(f"{name} {delays[int(share * (len(delays) - 1))]:.2f}" for name, share in QUANTILES.items())
    print(f"probe: {len(delays)} times in {seconds:g} s, {percent:.4f} percent of one core; delays in ms: {late}")
    if percent > MAX_PROBE_PERCENT:
        yield f"the probe took {percent:.2f} % of a core, {MAX_PROBE_PERCENT} % are allowed"


def _engine(sink: Callable[[TelemetryRecord], None], folder: Path, options: argparse.Namespace) -> Iterator[str]:
    spec = ServerSpec("embedded", "small", context_size=CONTEXT_TOKENS)
    server = EmbeddedBackend().start(StartRequest(spec, options.model, folder / "server"))
    try:
        with _sampling(sink) as sampler:
            rates = _rates(server.endpoint, server.info.pid, sampler, options)
    finally:
        server.stop()
    ratios = [on / off for on, off in rates]
    interval = median_interval(ratios)
    bounds = f"[{interval.low:.4f}, {interval.high:.4f}]" if interval is not None else "no interval: too few pairs"
    on, off = (median([pair[which] for pair in rates]) for which in (0, 1))
    print(f"engine: {len(rates)} pairs of {options.tokens} tokens, median rates {on:.2f} tokens/s on, {off:.2f} off")
    print(f"  on / off: median {median(ratios):.4f}, 95 % {bounds}")
    difference = 100 * abs(median(ratios) - 1)
    if difference >= MAX_DIFFERENCE_PERCENT:
        yield f"the decode rate differs by {difference:.2f} %, less than {MAX_DIFFERENCE_PERCENT} % is wanted"


def _rates(
    endpoint: Endpoint, pid: int | None, sampler: Sampler, options: argparse.Namespace
) -> list[tuple[float, float]]:
    """Decode rates in tokens/s of each pair, with the sampler and without."""
    _ask(endpoint, options.tokens)
    rates = []
    for number in range(options.pairs):
        pair = {}
        for is_on in (True, False) if number % 2 == 0 else (False, True):
            if is_on:
                sampler.begin_cell("benchmark", pid)
            else:
                sampler.end_cell()
            time.sleep(SETTLING_SECONDS)
            pair[is_on] = _ask(endpoint, options.tokens)
        rates.append((pair[True], pair[False]))
    sampler.end_cell()
    return rates


def _ask(endpoint: Endpoint, tokens: int) -> float:
    prompt = f"{secrets.token_hex(8)}. Once upon a time there was a machine that"
    record = send(endpoint, Generation(max_tokens=tokens, prompt=prompt, demand_length=True))
    if record.decode_tokens_per_second is None:
        raise SystemExit(f"the engine did not answer: {record.error_message}")
    return record.decode_tokens_per_second


if __name__ == "__main__":
    sys.exit(main())
