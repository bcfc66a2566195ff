"""Whether a measurement says the same when it is made twice.

The interactive profile measures a server, and measures it again; both runs are a pair. What counts is in how many pairs
the 95 % intervals of the two medians overlap, for the decode rate and for the time to first token, each by itself. A
run decides by the default stopping rule when it has enough samples, as a cell does; the short forms are left out.

``replay``: the replay server, which streams at a steady pace; a process of its own for each run. What differs is our
client and the machine. Bound: 19 of 20 pairs.

``engine``: the embedded engine, loaded three times for each run, the loads of a pair in turn (A1 B1 A2 B2 A3 B3), so
that what slowly changes in the machine meets both. A run's number is that over its loads, as with ``loads: 3``. Bound:
18 of 20 pairs. Here 20 pairs are 120 loads of some eight seconds each, at 70 tokens a second.

The spread between loads is the standard deviation of all the medians of a pair's loads, in percent of their mean; the
sum shows that of all loads of all pairs. Nobody else should use the machine meanwhile.

    python benchmarks/repeatability.py [--replay] [--engine] [--pairs 20] [--loads 3] [--tokens 48] [--threads N]
                                       [--model FILE]

Without ``--replay`` or ``--engine``, both. With another number of pairs the bounds are the same shares of it, rounded
up. Exit status: 0 within the bounds, 1 below, 2 where something could not be measured.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from pytest_llmbench.backends.base import StartRequest  # noqa: E402
from pytest_llmbench.backends.embedded import EmbeddedBackend  # noqa: E402
from pytest_llmbench.client.endpoint import Endpoint  # noqa: E402
from pytest_llmbench.core.cell import ServerSpec  # noqa: E402
from pytest_llmbench.core.config import MeasurementConfig  # noqa: E402
from pytest_llmbench.core.loads import between_load_spread_percent, over_loads  # noqa: E402
from pytest_llmbench.core.records import RequestRecord  # noqa: E402
from pytest_llmbench.core.settings import InteractiveSettings  # noqa: E402
from pytest_llmbench.core.statistics import Interval, StoppingRule  # noqa: E402
from pytest_llmbench.errors import LlmbenchError, RequestError  # noqa: E402
from pytest_llmbench.profiles.base import ProfileContext  # noqa: E402
from pytest_llmbench.profiles.interactive import InteractiveProfile  # noqa: E402
from pytest_llmbench.runtime.host import usable_cores  # noqa: E402
from pytest_llmbench.runtime.replay import ReplayServer  # noqa: E402
from pytest_llmbench.runtime.share import share_dir  # noqa: E402

MODEL = REPOSITORY / "models" / "135M" / "SmolLM2-135M-Instruct.Q4_1.gguf"
# How each is shown: name, factor.
METRICS = {"decode_tokens_per_second": ("decode, tokens/s", 1), "ttft_seconds": ("first token, ms", 1000)}
REPLAY_SHARE, ENGINE_SHARE = 19 / 20, 18 / 20
REPLAY_TTFT_MS, REPLAY_GAP_MS = 30.0, 5.0
CONTEXT_TOKENS = 1024


@dataclass(frozen=True)
class Part:
    """A kind of server to be measured again and again.

    Attributes:
        load: makes a new server, which is gone afterwards.
        loads: of one run.
        least_share: of the pairs that must overlap.
    """

    name: str
    load: Callable[[], AbstractContextManager[Endpoint]]
    loads: int
    least_share: float


@dataclass(frozen=True)
class Compared:
    """One metric of a pair: both runs' medians with their intervals, and the samples of all loads of both.

    ``loads`` are shared out in turn, the first to A.
    """

    loads: list[list[float]]

    @property
    def runs(self) -> tuple[tuple[float, Interval | None], tuple[float, Interval | None]]:
        return over_loads(self.loads[0::2]), over_loads(self.loads[1::2])

    @property
    def overlap(self) -> bool:
        (_, first), (_, second) = self.runs
        return first is not None and second is not None and first.low <= second.high and second.low <= first.high


def main() -> int:
    options = _options()
    both = options.replay == options.engine
    if (options.engine or both) and not options.model.exists():
        print(f"there is no {options.model}: name one with --model, or run pytest suites/ once", file=sys.stderr)
        return 2
    parts = []
    if options.replay or both:
        parts.append(Part("replay", _replay, 1, REPLAY_SHARE))
    if options.engine or both:
        parts.append(Part("engine", lambda: _engine(options.model, options.threads), options.loads, ENGINE_SHARE))
    try:
        problems = [problem for part in parts for problem in _measure(part, options.pairs, options.tokens)]
    except LlmbenchError as exc:
        print(f"could not be measured: {exc}", file=sys.stderr)
        return 2
    for problem in problems:
        print(f"below the bound: {problem}")
    return 1 if problems else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--replay", action="store_true", help="measure the replay server only")
    parser.add_argument("--engine", action="store_true", help="measure the embedded engine only")
    parser.add_argument("--pairs", type=_positive, default=20, help="of runs, for each kind of server")
    parser.add_argument("--loads", type=_positive, default=3, help="of the model in one run of the engine")
    parser.add_argument("--tokens", type=_positive, default=48, help="of each answer")
    parser.add_argument("--threads", type=_positive, default=usable_cores(), help="of the engine")
    parser.add_argument("--model", type=Path, default=MODEL, help="what the engine loads")
    return parser.parse_args()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        msg = f"{number} is less than 1"
        raise argparse.ArgumentTypeError(msg)
    return number


@contextmanager
def _replay() -> Iterator[Endpoint]:
    with ReplayServer(ttft_ms=REPLAY_TTFT_MS, gap_ms=REPLAY_GAP_MS) as server:
        yield Endpoint(base_url=server.url, protocol="openai_chat", model="replay")


@contextmanager
def _engine(model: Path, threads: int) -> Iterator[Endpoint]:
    spec = ServerSpec("embedded", "small", context_size=CONTEXT_TOKENS, threads=threads)
    with TemporaryDirectory(prefix="llmbench-repeatability-") as folder:
        server = EmbeddedBackend().start(StartRequest(spec, model, Path(folder) / "server"))
        try:
            yield server.endpoint
        finally:
            server.stop()


def _measure(part: Part, count: int, tokens: int) -> list[str]:
    """Measure all pairs of a part, and show them. Returns what is below its bound. Raises LlmbenchError."""
    print(f"\n{part.name}: {count} pairs of runs, loads of each: {part.loads}; medians with their 95 % intervals")
    print(f"{'pair':>4}  {'':18}{'first run':26}{'second run':26}{'overlap':>7}{'between loads':>15}")
    pairs = []
    for number in range(1, count + 1):
        found = [_measure_load(part, tokens) for _ in range(2 * part.loads)]
        pair = {metric: Compared([load[metric] for load in found]) for metric in METRICS}
        for metric, compared in pair.items():
            _show(number, metric, compared)
        pairs.append(pair)
    return [problem for metric in METRICS for problem in _sum_up(part, metric, [pair[metric] for pair in pairs])]


def _measure_load(part: Part, tokens: int) -> dict[str, list[float]]:
    """The samples of each metric, by the profile, on a new server. Raises LlmbenchError."""
    rule = MeasurementConfig()
    with part.load() as endpoint:
        context = ProfileContext(
            endpoint=endpoint,
            settings=InteractiveSettings(output_tokens=tokens, short_answers=0),
            rule=StoppingRule(
                min_samples=rule.min_samples,
                max_samples=rule.max_samples,
                target_half_width_percent=rule.target_half_width_percent,
                max_seconds=rule.max_seconds,
                limits={},
            ),
            nodeid=part.name,
            data_dirs=(share_dir("data"),),
            sink=_drop,
            on_failure=_as_it_is,
        )
        samples = InteractiveProfile().run(context).samples
    return {metric: samples[metric] for metric in METRICS}


def _drop(record: RequestRecord) -> None:
    """Records are not looked at."""


def _as_it_is(error: RequestError) -> LlmbenchError:
    return error


def _show(number: int, metric: str, compared: Compared) -> None:
    name, factor = METRICS[metric]
    first, second = (_described(factor, *run) for run in compared.runs)
    overlap = "yes" if compared.overlap else "NO"
    print(f"{number:>4}  {name:18}{first:26}{second:26}{overlap:>7}{_spread(compared.loads):>15}", flush=True)


def _described(factor: int, value: float, interval: Interval | None) -> str:
    bounds = f"[{factor * interval.low:.2f}, {factor * interval.high:.2f}]" if interval is not None else "no interval"
    return f"{factor * value:.2f} {bounds}"


def _spread(loads: list[list[float]]) -> str:
    percent = between_load_spread_percent(loads)
    return "–" if percent is None else f"{percent:.2f} %"


def _sum_up(part: Part, metric: str, pairs: list[Compared]) -> Iterator[str]:
    overlapping = sum(pair.overlap for pair in pairs)
    least = math.ceil(part.least_share * len(pairs))
    spread = _spread([load for pair in pairs for load in pair.loads])
    print(f"{part.name}, {METRICS[metric][0]}: {overlapping} of {len(pairs)} pairs overlap; {spread} between all loads")
    if overlapping < least:
        yield f"{part.name}, {METRICS[metric][0]}: {overlapping} of {len(pairs)} pairs overlap, {least} are wanted"


if __name__ == "__main__":
    sys.exit(main())
