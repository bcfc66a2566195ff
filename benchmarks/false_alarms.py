"""Whether the comparison of two runs tells a change from chance.

A run is the interactive profile over several loads of a server, by the default stopping rule, as a cell measures; the
short forms are left out. Two runs are compared with the arithmetic of ``llmbench compare``: what it compares of the
profile, adjusted after Holm.

Without ``--engine``, the replay server is measured, a new process for each load. Its loads differ by chance, as those
of real servers do: each has a pace of its own, from a lognormal distribution (``--spread``: 2 %), the same ones every
time. A round compares three runs with the one it begins with: of the same server, and of servers whose rate is 10 % and
5 % lower. Bounds, for 40 rounds:

- of the unchanged runs, at most 2 are called changed, in whatever metric and direction; limit 3 %, seven loads;
- 10 % are found in 38; limit 5 %, which is the default, five loads;
- 5 % are found in 30; limit 3 %, seven loads, which is what a verdict that lacks some asks for at this spread.

With ``--engine``, the embedded engine is, with a given model, three loads a run, one run after the other. None of five
pairs of unchanged runs may be called changed at a limit of 5 %, and one thread has to be found slower than two.

    python benchmarks/false_alarms.py [--rounds 40 | --quick] [--loads N] [--spread 2]
    python benchmarks/false_alarms.py --engine MODEL.gguf [--pairs 5] [--loads 3]

``--quick`` is five rounds. With another number of rounds, the bounds are the same shares of it, rounded in favour.
Nobody else should use the machine meanwhile. Exit status: 0 within the bounds, 1 beyond, 2 where something could not be
measured.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from pytest_llmbench.backends.base import StartRequest  # noqa: E402
from pytest_llmbench.backends.embedded import EmbeddedBackend  # noqa: E402
from pytest_llmbench.client.endpoint import Endpoint  # noqa: E402
from pytest_llmbench.core.baseline import COMPARED  # noqa: E402
from pytest_llmbench.core.cell import ServerSpec  # noqa: E402
from pytest_llmbench.core.comparison import holm  # noqa: E402
from pytest_llmbench.core.config import MeasurementConfig  # noqa: E402
from pytest_llmbench.core.records import MetricComparison, RequestRecord  # noqa: E402
from pytest_llmbench.core.regression import Loads, between_loads, contrast, judge, needed_loads  # noqa: E402
from pytest_llmbench.core.settings import InteractiveSettings  # noqa: E402
from pytest_llmbench.core.statistics import StoppingRule  # noqa: E402
from pytest_llmbench.errors import LlmbenchError, RequestError  # noqa: E402
from pytest_llmbench.profiles.base import ProfileContext  # noqa: E402
from pytest_llmbench.profiles.interactive import InteractiveProfile  # noqa: E402
from pytest_llmbench.runtime.replay import ReplayServer  # noqa: E402
from pytest_llmbench.runtime.share import share_dir  # noqa: E402

if TYPE_CHECKING:
    from numpy.random import Generator

Run = dict[str, list[list[float]]]  # of each metric, samples by load
Load = Callable[[], AbstractContextManager[Endpoint]]  # starts a server, which is gone afterwards

ENGINE_LOADS = 3
REPLAY_TTFT_MS, REPLAY_GAP_MS, REPLAY_TOKENS = 20.0, 2.0, 24
ENGINE_TOKENS, CONTEXT_TOKENS = 48, 1024
ENGINE_LIMIT_PERCENT = 5.0
QUICK_ROUNDS = 5
CHANGES = {"regressed", "improved"}


@dataclass(frozen=True)
class Planted:
    """A server beside that of the first run.

    Attributes:
        slower_percent: by how much its rate is lower.
        loads: of it and of the first run.
        of_forty: at least so many have to be found; of unchanged ones at most so many may be called changed.
    """

    name: str
    slower_percent: float
    limit_percent: float
    loads: int
    of_forty: int

    def is_hit(self, found: Sequence[MetricComparison]) -> bool:
        """Whether a comparison found it; of an unchanged one, whether it was called changed."""
        return any(one.verdict in (CHANGES if not self.slower_percent else {"regressed"}) for one in found)

    def problem(self, hits: int, rounds: int) -> str | None:
        """What is beyond the bound."""
        if not self.slower_percent:
            most = math.ceil(self.of_forty * rounds / 40)
            return None if hits <= most else f"{self.name}: {hits} of {rounds} called changed, {most} are allowed"
        least = math.floor(self.of_forty * rounds / 40)
        return None if hits >= least else f"{self.name}: {hits} of {rounds} found, {least} are wanted"


PLANTED = (
    Planted("unchanged", slower_percent=0, limit_percent=3, loads=7, of_forty=2),
    Planted("10 % slower", slower_percent=10, limit_percent=5, loads=5, of_forty=38),
    Planted("5 % slower", slower_percent=5, limit_percent=3, loads=7, of_forty=30),
)


def main() -> int:
    options = _options()
    started = time.monotonic()
    try:
        if options.engine is not None:
            problems = _engine_part(options.engine, options.pairs, options.loads or ENGINE_LOADS)
        else:
            rounds = QUICK_ROUNDS if options.quick else options.rounds
            planted = [replace(one, loads=options.loads or one.loads) for one in PLANTED]
            problems = _replay_part(rounds, planted, options.spread / 100)
    except LlmbenchError as exc:
        print(f"could not be measured: {exc}", file=sys.stderr)
        return 2
    print(f"{(time.monotonic() - started) / 60:.1f} minutes")
    for problem in problems:
        print(f"beyond the bound: {problem}")
    return 1 if problems else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=_positive, default=40, help="of the replay server")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds")
    parser.add_argument("--loads", type=_positive, help=f"of every run (default: as above; engine: {ENGINE_LOADS})")
    parser.add_argument("--spread", type=float, default=2.0, metavar="PERCENT", help="between loads of replay servers")
    parser.add_argument("--engine", type=Path, metavar="MODEL", help="measure the embedded engine instead")
    parser.add_argument("--pairs", type=_positive, default=5, help="of unchanged runs of the engine")
    options = parser.parse_args()
    if options.engine is not None and not options.engine.exists():
        parser.error(f"there is no {options.engine}: name a model file, or run pytest suites/ once to get one")
    if not 0 <= options.spread <= 50:
        parser.error("--spread is between 0 and 50")
    return options


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        msg = f"{number} is less than 1"
        raise argparse.ArgumentTypeError(msg)
    return number


def _replay_part(rounds: int, planted: Sequence[Planted], log_sd: float) -> list[str]:
    """Measure and compare all rounds, and show them. Returns what is beyond its bound. Raises LlmbenchError."""
    import numpy as np

    random = np.random.default_rng(0)
    print(f"replay server: {rounds} rounds, planted spread between loads {100 * log_sd:g} %")
    hits = dict.fromkeys(planted, 0)
    groups: list[Loads] = []
    for number in range(1, rounds + 1):
        first = _measure(partial(_replay, random, log_sd, 0), max(one.loads for one in planted), REPLAY_TOKENS)
        groups.append(first["decode_tokens_per_second"])
        for one in planted:
            run = _measure(partial(_replay, random, log_sd, one.slower_percent), one.loads, REPLAY_TOKENS)
            groups.append(run["decode_tokens_per_second"])
            found = _compare({name: samples[: one.loads] for name, samples in first.items()}, run, one.limit_percent)
            hits[one] += one.is_hit(found)
            _show(f"{number:>3}  {one.name}", found)
    for one, count in hits.items():
        word = "found" if one.slower_percent else "called changed"
        print(f"{one.name}, {one.loads} loads, limit {one.limit_percent:g} %: {count} of {rounds} {word}")
    _show_spread(groups)
    return [problem for one, count in hits.items() if (problem := one.problem(count, rounds)) is not None]


def _show_spread(groups: list[Loads]) -> None:
    spread = between_loads(groups)
    if spread is not None:
        print(f"decode rate: {100 * spread.log_sd:.2f} % between loads as measured; with two metrics, that asks for")
        for limit in (3, 5, 10):
            print(f"  {needed_loads(spread, limit, 2)} loads for a limit of {limit} %")


def _engine_part(model: Path, pairs: int, loads: int) -> list[str]:
    """Measure and compare all pairs, and one thread with two. As :func:`_replay_part`."""
    print(f"embedded engine, {model.name}: {pairs} pairs of runs, {loads} loads in each")
    groups: list[Loads] = []
    changed = 0
    first: Run = {}
    for number in range(1, pairs + 1):
        first, second = (_measure(partial(_engine, model, 2), loads, ENGINE_TOKENS) for _ in range(2))
        groups += [first["decode_tokens_per_second"], second["decode_tokens_per_second"]]
        found = _compare(first, second, ENGINE_LIMIT_PERCENT)
        changed += any(one.verdict in CHANGES for one in found)
        _show(f"{number:>3}  unchanged", found)
    slower = _compare(first, _measure(partial(_engine, model, 1), loads, ENGINE_TOKENS), ENGINE_LIMIT_PERCENT)
    _show("     one thread", slower)
    _show_spread(groups)
    problems = [f"unchanged: {changed} of {pairs} called changed"] if changed else []
    if not any(one.verdict == "regressed" for one in slower):
        problems.append("one thread instead of two was not found")
    return problems


@contextmanager
def _replay(random: Generator, log_sd: float, slower_percent: float) -> Iterator[Endpoint]:
    """A load of the replay server, at a pace of its own."""
    stretch = math.exp(log_sd * float(random.normal())) / (1 - slower_percent / 100)
    with ReplayServer(ttft_ms=REPLAY_TTFT_MS * stretch, gap_ms=REPLAY_GAP_MS * stretch) as server:
        yield Endpoint(base_url=server.url, protocol="openai_chat", model="replay")


@contextmanager
def _engine(model: Path, threads: int) -> Iterator[Endpoint]:
    spec = ServerSpec("embedded", "small", context_size=CONTEXT_TOKENS, threads=threads)
    with TemporaryDirectory(prefix="llmbench-false-alarms-") as folder:
        server = EmbeddedBackend().start(StartRequest(spec, model, Path(folder) / "server"))
        try:
            yield server.endpoint
        finally:
            server.stop()


def _measure(load: Load, loads: int, tokens: int) -> Run:
    """A run: the samples of each metric by load, by the profile. Raises LlmbenchError."""
    found = [_measure_load(load, tokens) for _ in range(loads)]
    return {metric: [samples[metric] for samples in found] for metric in COMPARED["interactive"] if metric in found[0]}


def _measure_load(load: Load, tokens: int) -> dict[str, list[float]]:
    rule = MeasurementConfig()
    with load() as endpoint:
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
            nodeid="false-alarms",
            data_dirs=(share_dir("data"),),
            sink=_drop,
            on_failure=_as_it_is,
        )
        return InteractiveProfile().run(context).samples


def _drop(record: RequestRecord) -> None:
    """Records are not looked at."""


def _as_it_is(error: RequestError) -> LlmbenchError:
    return error


def _compare(first: Run, second: Run, limit_percent: float) -> list[MetricComparison]:
    contrasts = [contrast(metric, first[metric], second[metric]) for metric in first]
    adjusted = holm([one.p_value for one in contrasts if one.p_value is not None])
    return [judge(one, limit_percent, p, len(contrasts)) for one, p in zip(contrasts, adjusted, strict=True)]


def _show(what: str, found: Sequence[MetricComparison]) -> None:
    parts = [
        f"{one.metric} {100 * ((one.ratio or 1) - 1):+.1f} % (p {one.p_value or 0:.3f}) {one.verdict}" for one in found
    ]
    print(f"{what:18} {'; '.join(parts)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
