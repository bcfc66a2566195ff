"""Blocking over simulated matrices, whose costs grow with size, bits and context: what it must never do."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import product
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmbench.core.blocking import Blocking, Candidate
from pytest_llmbench.core.blocking_evidence import nominal_bits, parameters
from pytest_llmbench.core.config import BlockingConfig
from pytest_llmbench.core.records import CellRecord, MemoryRecord, MetricValue, Reason, cell_from, to_line
from pytest_llmbench.core.thresholds import Limit, judge
from tests.unit.core.blocking_cases import RATE, TTFT, candidate, cell, limit

SIZES = ("135M", "500M", "1B", "1.05B", "3B", "7B", "8B", "13B", "30B", "70B")
QUANTIZATIONS = ("Q4_K_M", "Q4_0", "Q5_K_M", "Q6_K", "Q3_K_M", "Q2_K", "Q8_0", "F16")
CONTEXTS = (2048, 8192, 32768)
PROFILES = ("interactive", "batch")
# Sizes differ from their labels, and quantizations from their usual size, by so much.
LABEL_ERROR, BITS_ERROR = 0.03, 0.015


@dataclass(frozen=True)
class Costs:
    """One cell's true costs."""

    load_seconds: float
    memory_bytes: int
    decode_tokens_per_second: float
    ttft_seconds: float


class World:
    """A machine and a matrix; everything about it is drawn from ``random``."""

    def __init__(self, random: Random, *, exact: bool = False) -> None:
        self.exact = exact
        self.sizes = sorted(random.sample(SIZES, random.randint(2, 4)), key=SIZES.index)
        self.quantizations = sorted(random.sample(QUANTIZATIONS, random.randint(2, 6)), key=QUANTIZATIONS.index)
        self.contexts = sorted(random.sample(CONTEXTS, random.randint(1, 2)))
        self.bandwidth = 10 ** random.uniform(9, 12)
        self.compute = 10 ** random.uniform(10, 14)
        self.max_load_seconds = 10 ** random.uniform(-1, 2.5)
        self.capacity_bytes = 10 ** random.uniform(9, 11.5)
        self.overhead_bytes = random.uniform(0, 1e9)
        self.cache_bytes = random.choice([0, 1, 0.02, 0.1])
        self.truth = {size: self._error(random, LABEL_ERROR) for size in SIZES}
        self.mix = {names: self._error(random, BITS_ERROR) for names in product(SIZES, QUANTIZATIONS)}
        self.limits = {
            (size, profile): self._limits(random) for size, profile in product(self.sizes, (*PROFILES, "stress"))
        }

    def _error(self, random: Random, most: float) -> float:
        return 1.0 if self.exact else 1 + random.uniform(-most, most)

    @staticmethod
    def _limits(random: Random) -> tuple[Limit, ...]:
        limits = [limit(RATE, 10 ** random.uniform(-1, 3)), limit(TTFT, 10 ** random.uniform(-2, 2))]
        return tuple(random.sample(limits, random.randint(0, 2)))

    def candidates(self) -> list[Candidate]:
        """All cells in the order of the matrix, stress last."""
        return [
            candidate(
                f"m-{size}",
                quantization,
                variant=f"c{context}",
                context=context,
                profile=profile,
                limits=self.limits[size, profile],
            )
            for profiles in (PROFILES, ("stress",))
            for quantization, size, context, profile in product(self.quantizations, self.sizes, self.contexts, profiles)
        ]

    def costs(self, one: Candidate) -> Costs:
        count, bits = parameters(one.model_size), nominal_bits(one.quantization)
        context = one.settings["context_size"]
        assert count is not None
        assert bits is not None
        assert isinstance(context, int)
        count *= self.truth[one.model_size]
        weights = count * bits * self.mix[one.model_size, one.quantization] / 8
        cache = self.cache_bytes * context * count ** (2 / 3)
        tokens = 512 if one.profile == "interactive" else 2048
        return Costs(
            load_seconds=(weights + cache) / self.bandwidth,
            memory_bytes=round(self.overhead_bytes + weights + cache),
            decode_tokens_per_second=self.bandwidth / (weights + cache),
            ttft_seconds=tokens * (2 * count + bits) / self.compute,
        )

    def outcome(self, one: Candidate) -> CellRecord:
        """The record of a cell that is run."""
        costs = self.costs(one)
        same = {
            "nodeid": one.nodeid,
            "variant": one.variant,
            "settings": one.settings,
            "profile": one.profile,
            "rating": None,
        }
        reason = None
        if costs.load_seconds > self.max_load_seconds:
            reason = Reason(
                code="server_start_timeout", message="", evidence={"timeout_seconds": self.max_load_seconds}
            )
        elif costs.memory_bytes > self.capacity_bytes:
            reason = Reason(code="memory_exhausted", message="")
        if reason is not None:
            return cell(one.model, one.quantization, status="error", reason=reason, **same)
        metrics = {
            RATE: _measured(costs.decode_tokens_per_second, "tokens/s"),
            TTFT: _measured(costs.ttft_seconds, "s"),
        }
        results = judge(one.limits, metrics)
        status = "failed" if any(result.verdict == "fail" for result in results) else "passed"
        memory = MemoryRecord(observed_peak_bytes=costs.memory_bytes)
        return cell(one.model, one.quantization, status=status, thresholds=results, memory=memory, **same)


def _measured(value: float, unit: str) -> MetricValue:
    return MetricValue(value=value, unit=unit, n=6, ci_low=value * 0.999, ci_high=value * 1.001)


def run(world: World, order: list[Candidate], workers: int, **switches: bool) -> list[tuple[Candidate, Reason]]:
    """Run a matrix as so many workers would: a cell's outcome is known only once that many more have begun."""
    blocking = Blocking(BlockingConfig(**switches))
    pending: list[CellRecord] = []
    spared = []
    for one in order:
        if len(pending) >= workers:
            blocking.learn(pending.pop(0))
        reason = blocking.why(one, lambda: int(world.capacity_bytes))
        if reason is None:
            pending.append(world.outcome(one))
        else:
            spared.append((one, reason))
            blocking.learn(world.outcome(one).model_copy(update={"status": "blocked", "reason": reason}))
    return spared


def decisions(records: list[CellRecord], world: World, **switches: bool) -> dict[str, Reason | None]:
    blocking = Blocking(BlockingConfig(**switches))
    for record in records:
        blocking.learn(record)
    return {one.nodeid: blocking.why(one, lambda: int(world.capacity_bytes)) for one in world.candidates()}


seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=60)
@given(seeds, st.booleans(), st.integers(1, 4))
def test_nothing_that_would_pass_is_blocked(seed: int, shuffled: bool, workers: int) -> None:
    random = Random(seed)
    world = World(random)
    order = [one for one in world.candidates() if one.profile != "stress"]
    if shuffled:
        random.shuffle(order)
    for one, reason in run(world, order, workers, memory_trend=False):
        assert world.outcome(one).status != "passed", reason


@settings(max_examples=60)
@given(seeds, st.booleans(), st.integers(1, 4))
def test_nothing_that_would_fit_is_blocked_by_the_trend(
    seed: int,
    shuffled: bool,
    workers: int,
) -> None:
    random = Random(seed)
    world = World(random, exact=True)
    order = [one for one in world.candidates() if one.profile != "stress"]
    if shuffled:
        random.shuffle(order)
    for one, reason in run(world, order, workers, load=False, speed=False, quantization_path=False):
        assert world.costs(one).memory_bytes > world.capacity_bytes, reason


def test_the_simulation_reaches_every_rule() -> None:
    """Else the properties above would hold for rules that never block."""
    codes = set()
    for seed in range(40):
        world = World(Random(seed), exact=True)
        for switches in ({}, {"load": False, "speed": False, "quantization_path": False}):
            codes |= {reason.code for _, reason in run(world, world.candidates(), 1, **switches)}
    assert codes == {
        "blocked_by_load",
        "blocked_by_speed",
        "blocked_by_quantization_path",
        "blocked_by_memory_trend",
        "not_selected_for_stress",
    }


@settings(max_examples=60)
@given(seeds)
def test_the_order_of_the_evidence_does_not_matter(seed: int) -> None:
    random = Random(seed)
    world = World(random)
    records = [world.outcome(one) for one in world.candidates() if random.random() < 0.6]
    expected = decisions(records, world)
    for _ in range(2):
        random.shuffle(records)
        assert decisions(records, world) == expected
    for switches in ({"load": False, "speed": False}, {"stress_selection": False}):
        expected = decisions(records, world, **switches)
        assert decisions(records[::-1], world, **switches) == expected


@settings(max_examples=60)
@given(seeds)
def test_less_evidence_never_blocks_more(seed: int) -> None:
    random = Random(seed)
    world = World(random)
    records = [world.outcome(one) for one in world.candidates() if random.random() < 0.6]
    fewer = [record for record in records if random.random() < 0.7]
    rules = {"memory_trend": False, "stress_selection": False}
    everything = decisions(records, world, **rules)
    assert all(
        everything[name] is not None for name, why in decisions(fewer, world, **rules).items() if why is not None
    )


@settings(max_examples=60)
@given(seeds)
def test_records_that_were_written_and_read_teach_the_same(seed: int) -> None:
    random = Random(seed)
    world = World(random)
    records = [world.outcome(one) for one in world.candidates() if random.random() < 0.6]
    again = [cell_from(json.loads(to_line(record)), "a test") for record in records]
    assert decisions(again, world) == decisions(records, world)


@settings(max_examples=60)
@given(seeds)
def test_an_earlier_outcome_of_a_cell_leaves_no_trace(seed: int) -> None:
    random = Random(seed)
    world, other = World(random), World(random)
    records = [world.outcome(one) for one in world.candidates() if random.random() < 0.6]
    earlier = {one.nodeid: other.outcome(one) for one in other.candidates()}
    replaced = [earlier[record.nodeid] for record in records if record.nodeid in earlier]
    assert decisions([*replaced, *records], world) == decisions(records, world)
