"""What one cell's outcome makes pointless: a larger load, a larger model, the end of a quantization path."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest

from pytest_llmbench.core.blocking import Blocking
from pytest_llmbench.core.blocking_evidence import (
    is_larger_model,
    is_larger_quantization,
    is_mixture,
    nominal_bits,
    rough_bits,
)
from pytest_llmbench.core.config import BlockingConfig
from pytest_llmbench.core.records import CellRecord, cell_from
from tests.unit.core.blocking_cases import (
    AT_LEAST_TWO,
    RATE,
    TTFT,
    broken,
    candidate,
    cell,
    limit,
    result,
    slow,
    why,
)

TIMEOUT = "server_start_timeout"
NO_LOAD_MEMORY = "llama_model_load: error loading model: unable to allocate CPU buffer"


class TestLoad:
    @pytest.mark.parametrize(
        ("code", "evidence"),
        [
            (TIMEOUT, {"timeout_seconds": 300.0}),
            (TIMEOUT, {"timeout_seconds": 300.0, "remembered": True}),
            ("memory_exhausted", {}),
            ("server_start_failed", {"exit_status": -9, "out_of_memory": True}),
            ("server_died", {"exit_status": -9, "out_of_memory": True}),
            ("server_start_failed", {"exit_status": -9}),
            ("server_start_failed", {"exit_status": 1, "log_tail": f"loading\n{NO_LOAD_MEMORY}\nexiting"}),
            ("server_start_failed", {"exit_status": 1, "log_tail": "ggml_backend: failed to allocate buffer"}),
            ("server_start_failed", {"exit_status": 1, "log_tail": "CUDA error: out of memory"}),
            ("server_start_failed", {"exit_status": -6, "log_tail": "what():  std::bad_alloc"}),
            ("server_died", {"exit_status": 1, "log_tail": "allocating 9 MiB on device 0: cudaMalloc failed: x"}),
            ("server_start_failed", {"exit_status": 1, "log_tail": "vk::Device: ErrorOutOfDeviceMemory"}),
            ("server_start_failed", {"exit_status": 1, "log_tail": "mmap: Cannot allocate memory"}),
        ],
    )
    def test_what_failed_for_its_size_blocks_what_is_larger(self, code: str, evidence: dict[str, Any]) -> None:
        reason = why(candidate(quantization="Q8_0"), broken(code, evidence))
        assert reason is not None
        assert reason.code == "blocked_by_load"
        assert reason.evidence["cell"] == broken(code).nodeid
        assert reason.evidence["code"] == code

    @pytest.mark.parametrize(
        ("code", "evidence"),
        [
            ("engine_missing", {}),
            ("bad_model_file", {}),
            ("wrong_quantization", {}),
            ("wrong_model_name", {}),
            ("worker_crashed", {}),
            ("unexpected_error", {"log_tail": NO_LOAD_MEMORY}),
            ("server_start_failed", {}),
            ("server_start_failed", {"exit_status": 1, "log_tail": "error: invalid argument --flag"}),
            ("server_died", {"exit_status": -11, "log_tail": "segmentation fault"}),
            # Somebody else killed it: the kernel counts no kill.
            ("server_died", {"exit_status": -9, "out_of_memory": False, "log_tail": "slot released"}),
            # The server goes on after these.
            ("server_start_failed", {"exit_status": 1, "log_tail": "failed to allocate 9 MiB of pinned memory"}),
            ("server_start_failed", {"exit_status": 1, "log_tail": "failed to mlock: Cannot allocate memory"}),
        ],
    )
    def test_what_failed_otherwise_blocks_nothing(self, code: str, evidence: dict[str, Any]) -> None:
        assert why(candidate(quantization="Q8_0", context=8192), broken(code, evidence)) is None

    def test_a_line_without_harm_does_not_hide_the_others(self) -> None:
        log = f"failed to allocate 9 MiB of pinned memory\n{NO_LOAD_MEMORY}"
        assert why(candidate(quantization="Q8_0"), broken("server_start_failed", {"log_tail": log})) is not None

    @pytest.mark.parametrize("status", ["skipped", "blocked", "invalid", "passed", "failed"])
    def test_only_an_error_is_evidence(self, status: str) -> None:
        assert why(candidate(quantization="Q8_0"), broken(TIMEOUT, status=status)) is None

    @pytest.mark.parametrize(
        ("changes", "blocked"),
        [
            ({"quantization": "Q5_K_M"}, True),
            ({"quantization": "Q8_0"}, True),
            ({"quantization": "F16"}, True),
            ({"context": 8192}, True),
            ({"context": 4097}, True),
            ({"quantization": "Q8_0", "context": 8192}, True),
            ({"profile": "batch", "context": 8192}, True),
            ({"variant": "long", "context": 8192}, True),
            ({}, False),
            ({"profile": "batch"}, False),
            ({"quantization": "Q3_K_M"}, False),
            ({"quantization": "Q3_K_M", "context": 8192}, False),
            ({"quantization": "Q8_0", "context": 4095}, False),
            ({"quantization": "Q4_1"}, False),  # about as large: it depends on the model which is larger
            ({"quantization": "mystery"}, False),
            ({"quantization": "mystery", "context": 8192}, False),
            ({"quantization": "Q8_0", "context": None}, False),
            ({"model": "other", "quantization": "Q8_0"}, False),
            ({"backend": "llama_cpp", "quantization": "Q8_0"}, False),
            ({"host": "another", "quantization": "Q8_0"}, False),
            ({"settings": {"context_size": 4096, "threads": 2}, "quantization": "Q8_0"}, False),
            ({"settings": {"context_size": 4096}, "quantization": "Q8_0"}, False),
        ],
    )
    def test_what_a_failed_load_blocks(self, changes: dict[str, Any], *, blocked: bool) -> None:
        assert (why(candidate(**changes), broken(TIMEOUT)) is not None) == blocked

    def test_a_context_that_the_server_chooses_is_compared_with_the_like(self) -> None:
        failed = broken(TIMEOUT, settings={"threads": 4})
        assert why(candidate(settings={"threads": 4}, quantization="Q8_0"), failed) is not None
        assert why(candidate(settings={"threads": 4}), failed) is None
        assert why(candidate(quantization="Q8_0"), failed) is None

    def test_an_unknown_quantization_is_compared_with_itself(self) -> None:
        failed = broken(TIMEOUT, quantization="mystery")
        assert why(candidate(quantization="mystery", context=8192), failed) is not None
        assert why(candidate(quantization="F32", context=8192), failed) is None

    def test_what_the_server_calls_the_model_does_not_count(self) -> None:
        failed = broken(TIMEOUT, settings={"context_size": 4096, "model_name": "tiny:q4"})
        larger = candidate(settings={"context_size": 4096, "model_name": "tiny:q8"}, quantization="Q8_0")
        assert why(larger, failed) is not None

    def test_it_says_what_happened_what_that_means_and_what_to_do(self) -> None:
        reason = why(candidate(quantization="Q8_0"), broken(TIMEOUT, {"timeout_seconds": 300.0}))
        assert reason is not None
        assert reason.message == (
            "tiny Q4_K_M with a context of 4096 tokens was not ready in 300 s (limits.max_load_time); tiny Q8_0 with a "
            "context of 4096 tokens needs more; run it all the same with --llmbench-no-blocking"
        )
        assert reason.evidence == {
            "rule": "load",
            "cell": "test_interactive[tiny-Q4_K_M-4096]",
            "quantization": "Q4_K_M",
            "code": TIMEOUT,
            "timeout_seconds": 300.0,
            "context_size": 4096,
        }

    def test_it_says_that_memory_ran_out(self) -> None:
        reason = why(candidate(quantization="Q8_0"), broken("memory_exhausted"))
        assert reason is not None
        assert "took more memory than there is" in reason.message

    def test_the_largest_that_failed_is_named(self) -> None:
        failed = [broken(TIMEOUT, quantization=name) for name in ("Q3_K_M", "Q5_K_M", "Q4_K_M")]
        failed += [broken(TIMEOUT, quantization="Q5_K_M", context=2048)]
        reason = why(candidate(quantization="Q8_0"), *failed)
        assert reason is not None
        assert reason.evidence["cell"] == "test_interactive[tiny-Q5_K_M-4096]"

    def test_a_later_outcome_of_the_cell_replaces_the_first(self) -> None:
        assert why(candidate(quantization="Q8_0"), broken(TIMEOUT), cell()) is None
        assert why(candidate(quantization="Q8_0"), cell(), broken(TIMEOUT)) is not None

    def test_it_can_be_switched_off(self) -> None:
        assert why(candidate(quantization="Q8_0"), broken(TIMEOUT), load=False) is None


class TestSpeed:
    def test_a_larger_model_is_no_faster(self) -> None:
        reason = why(candidate("tiny-7B"), slow())
        assert reason is not None
        assert reason.code == "blocked_by_speed"
        assert reason.message == (
            "tiny-1B Q4_K_M had decode_tokens_per_second 1.2 tokens/s (95 % interval 1.1 tokens/s to 1.3 "
            "tokens/s) where at least 2.0 tokens/s is wanted (min_tokens_per_sec); tiny-7B is larger and will do no "
            "better; run it all the same with --llmbench-no-blocking"
        )
        assert reason.evidence == {
            "rule": "speed",
            "cell": "test_interactive[tiny-1B-Q4_K_M-4096]",
            "metric": RATE,
            "observed": 1.2,
            "ci_low": 1.1,
            "ci_high": 1.3,
            "key": "min_tokens_per_sec",
            "limit": 2.0,
        }

    @pytest.mark.parametrize(
        "changes",
        [
            {"model": "tiny-1B"},
            {"model": "tiny-500M"},
            {"model": "tiny-1.05B"},  # a label is rounded
            {"model": "tiny-8x7B"},
            {"model": "tiny-7B", "model_size": "unknown"},
            {"model": "tiny-30B-A3B", "model_size": "30B"},
            {"quantization": "Q8_0"},
            {"backend": "llama_cpp"},
            {"variant": "long"},
            {"profile": "batch"},
            {"host": "another"},
            {"context": 8192},
            {"limits": ()},
            {"limits": [limit("variance_percent", 20)]},
            {"limits": [limit(TTFT, 1)]},
            {"limits": [limit(RATE, 1.3)]},  # more relaxed: the interval reaches it
            {"limits": [limit(RATE, 0.5)]},
            {"limits": [limit(RATE, 0.5, side="max")]},
            {"limits": [limit("prefill_tokens_per_second", 100)]},
        ],
    )
    def test_what_is_not_blocked(self, changes: dict[str, Any]) -> None:
        assert why(candidate(**{"model": "tiny-7B", **changes}), slow()) is None

    @pytest.mark.parametrize(
        "changes",
        [
            {"thresholds": [result(AT_LEAST_TWO, 1.2, 1.1, 1.3, verdict="inconclusive")]},
            {"thresholds": [result(AT_LEAST_TWO, 1.2, 1.1, 1.3, verdict="pass")]},
            {"thresholds": []},
            {"status": "passed"},
            {"status": "error"},
            {"status": "skipped"},
            {"status": "invalid"},
            {"status": "blocked"},
            {"flags": ["client_late"]},
            {"flags": ["imprecise", "server_timing_mismatch"]},
            {"model": "tiny-8x1B"},
            {"model": "tiny-1B", "model_size": "unknown"},
            {"model": "tiny-3B-A1B", "model_size": "3B"},
        ],
    )
    def test_what_is_no_evidence(self, changes: dict[str, Any]) -> None:
        assert why(candidate("tiny-70B"), slow(**changes)) is None

    def test_an_interval_that_is_missing_is_no_evidence(self) -> None:
        missing = result(AT_LEAST_TWO, 1.2, 1.1, 1.3).model_copy(update={"ci_high": None})
        assert why(candidate("tiny-7B"), slow(thresholds=[missing])) is None

    def test_an_imprecise_interval_is_compared_as_wide_as_it_is(self) -> None:
        assert why(candidate("tiny-7B"), slow(flags=["imprecise"])) is not None

    def test_a_limit_on_the_wrong_side_says_nothing(self) -> None:
        too_fast = limit(RATE, 20, side="max")
        assert why(candidate("tiny-7B", limits=[too_fast]), slow(thresholds=[result(too_fast, 30, 29, 31)])) is None

    @pytest.mark.parametrize(
        ("metric", "bound", "observed", "low", "high"),
        [
            (TTFT, 30, 45, 44, 46),
            (RATE, 2, 1.2, 1.1, 1.3),
            ("time_per_output_token_ms", 50, 80, 79, 81),
            ("prefill_tokens_per_second", 100, 50, 49, 51),
        ],
    )
    def test_every_metric_that_gets_no_better(
        self, metric: str, bound: float, observed: float, low: float, high: float
    ) -> None:
        judged = limit(metric, bound)
        seen = slow(thresholds=[result(judged, observed, low, high)])
        assert why(candidate("tiny-7B", limits=[judged]), seen) is not None
        assert why(candidate("tiny-7B", limits=[limit(metric, observed)]), seen) is None

    def test_variance_says_nothing(self) -> None:
        uneven = limit("variance_percent", 20)
        assert why(candidate("tiny-7B", limits=[uneven]), slow(thresholds=[result(uneven, 30, 29, 31)])) is None

    def test_a_metric_that_is_not_known_says_nothing(self) -> None:
        judged = limit(TTFT, 30)
        seen = result(judged, 45, 44, 46).model_copy(update={"metric": "from_a_later_version"})
        assert why(candidate("tiny-7B", limits=[judged]), slow(thresholds=[seen])) is None

    def test_another_key_for_the_same_metric_is_the_same_limit(self) -> None:
        assert why(candidate("tiny-7B", limits=[limit(RATE, 3)]), slow()) is not None

    def test_the_closest_smaller_model_is_named(self) -> None:
        seen = [slow("a-1B"), slow("tiny-3B"), slow("other-3B"), slow("a-13B")]
        reason = why(candidate("tiny-7B"), *seen)
        assert reason is not None
        assert reason.evidence["cell"] == "test_interactive[other-3B-Q4_K_M-4096]"

    def test_a_closer_one_that_meets_the_limit_does_not_hide_another(self) -> None:
        fast = slow("tiny-3B", thresholds=[result(limit(RATE, 10), 5, 4.9, 5.1)])
        reason = why(candidate("tiny-7B"), slow("tiny-1B"), fast)
        assert reason is not None
        assert reason.evidence["cell"] == "test_interactive[tiny-1B-Q4_K_M-4096]"

    def test_a_later_outcome_of_the_cell_replaces_the_first(self) -> None:
        assert why(candidate("tiny-7B"), slow(), cell("tiny-1B")) is None

    def test_what_was_asked_of_the_server_before_is_forgotten(self) -> None:
        again = slow(settings={"threads": 8}, nodeid=slow().nodeid)
        assert why(candidate("tiny-7B"), slow(), again) is None
        assert why(candidate("tiny-7B", settings={"threads": 8}), slow(), again) is not None

    def test_it_can_be_switched_off(self) -> None:
        assert why(candidate("tiny-7B"), slow(), speed=False) is None


class TestQuantizationPath:
    PATH = ("Q4_K_M", "Q5_K_M", "Q6_K")

    def slow_in(self, *quantizations: str, **changes: Any) -> list[CellRecord]:
        return [slow("tiny-7B", name, **changes) for name in quantizations]

    @pytest.mark.parametrize("path", [PATH, ("Q4_0", "Q5_1", "Q6_K"), ("q4_k_m", "q5_0", "q6_k"), ("Q2_K", *PATH)])
    def test_q4_q5_and_q6_block_q8(self, path: tuple[str, ...]) -> None:
        reason = why(candidate("tiny-7B", "Q8_0"), *self.slow_in(*path))
        assert reason is not None
        assert reason.code == "blocked_by_quantization_path"

    def test_it_names_all_three(self) -> None:
        reason = why(candidate("tiny-7B", "Q8_0"), *self.slow_in(*self.PATH))
        assert reason is not None
        assert reason.message == (
            "tiny-7B Q6_K had decode_tokens_per_second 1.2 tokens/s (95 % interval 1.1 tokens/s to 1.3 "
            "tokens/s) where at least 2.0 tokens/s is wanted (min_tokens_per_sec), and Q4_K_M and Q5_K_M missed it "
            "too; Q8_0 will do no better; run it all the same with --llmbench-no-blocking"
        )
        assert reason.evidence["rule"] == "quantization_path"
        assert [reason.evidence[f"cell_{family}"] for family in ("q4", "q5", "q6")] == [
            f"test_interactive[tiny-7B-{name}-4096]" for name in self.PATH
        ]

    @pytest.mark.parametrize(("metric", "limit_value", "blocks"), [(RATE, 2.0, True), (TTFT, 30.0, False)])
    def test_only_what_is_bound_by_reading_weights(self, metric: str, limit_value: float, blocks: bool) -> None:
        of = limit(metric, limit_value)
        far = {RATE: (1.2, 1.1, 1.3), TTFT: (45.0, 44.0, 46.0)}[metric]
        seen = [cell("tiny-7B", name, status="failed", thresholds=[result(of, *far)]) for name in self.PATH]
        assert (why(candidate("tiny-7B", "Q8_0", limits=[of]), *seen) is not None) == blocks
        assert why(candidate("tiny-13B", "Q6_K", limits=[of]), *seen) is not None  # it is of speed in any case

    def test_of_several_in_a_family_always_the_same_is_named(self) -> None:
        seen = self.slow_in("Q4_K_S", "Q4_0", "Q4_K_M", "Q5_K_S", "Q5_0", "Q6_K")
        q8 = candidate("tiny-7B", "Q8_0")
        reason = why(q8, *seen)
        assert reason is not None
        assert reason == why(q8, *reversed(seen))

    @pytest.mark.parametrize("missing", PATH)
    def test_two_of_them_block_nothing(self, missing: str) -> None:
        path = [name for name in self.PATH if name != missing]
        assert (
            why(candidate("tiny-7B", "Q8_0"), *self.slow_in(*path, "Q2_K", "Q3_K_M", "IQ4_NL", "Q40", "Q50", "Q60"))
            is None
        )

    def test_q2_and_q3_block_nothing(self) -> None:
        seen = self.slow_in("Q2_K", "Q3_K_M")
        for name in (*self.PATH, "Q8_0"):
            for profile in ("interactive", "batch"):
                assert why(candidate("tiny-7B", name, profile=profile), *seen) is None

    @pytest.mark.parametrize(
        "changes",
        [
            {"model": "other-7B"},
            {"quantization": "F16"},
            {"quantization": "Q80"},
            {"quantization": "Q6_K_L"},
            {"backend": "llama_cpp"},
            {"variant": "long"},
            {"profile": "batch"},
            {"host": "another"},
            {"context": 8192},
            {"limits": [limit(TTFT, 1)]},
            {"limits": [limit(RATE, 1.3)]},
        ],
    )
    def test_what_is_not_blocked(self, changes: dict[str, Any]) -> None:
        q8 = candidate(**{"model": "tiny-7B", "quantization": "Q8_0", **changes})
        assert why(q8, *self.slow_in(*self.PATH)) is None

    def test_all_three_must_miss_one_and_the_same_limit(self) -> None:
        late = limit(TTFT, 30)
        seen = [*self.slow_in("Q4_K_M", "Q5_K_M"), slow("tiny-7B", "Q6_K", thresholds=[result(late, 45, 44, 46)])]
        assert why(candidate("tiny-7B", "Q8_0", limits=[AT_LEAST_TWO, late]), *seen) is None

    @pytest.mark.parametrize(
        "changes",
        [
            {"status": "error"},
            {"flags": ["client_late"]},
            {"thresholds": [result(AT_LEAST_TWO, 1.2, 1.1, 1.3, verdict="inconclusive")]},
            {"thresholds": [result(limit("variance_percent", 20), 30, 29, 31)]},
        ],
    )
    def test_what_is_no_evidence(self, changes: dict[str, Any]) -> None:
        seen = [*self.slow_in("Q4_K_M", "Q5_K_M"), slow("tiny-7B", "Q6_K", **changes)]
        assert why(candidate("tiny-7B", "Q8_0", limits=[AT_LEAST_TWO, limit("variance_percent", 20)]), *seen) is None

    def test_a_later_outcome_of_the_cell_replaces_the_first(self) -> None:
        assert why(candidate("tiny-7B", "Q8_0"), *self.slow_in(*self.PATH), cell("tiny-7B", "Q6_K")) is None

    def test_it_can_be_switched_off(self) -> None:
        seen = self.slow_in(*self.PATH)
        assert why(candidate("tiny-7B", "Q8_0"), *seen, quantization_path=False) is None


def test_sizes_of_quantizations_by_name() -> None:
    assert nominal_bits("F16") == 16
    assert nominal_bits("q8_0") == pytest.approx(8.5, rel=0.01)
    assert nominal_bits("Q4_1") == 5
    assert nominal_bits("mystery") is None
    assert nominal_bits("Q3_K_L") is None
    assert [rough_bits(name) for name in ("int4", "UD-Q5_K_XL", "mystery", "F16")] == [4, 5, 16, 16]
    order = ("Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "F16", "F32")
    assert all(is_larger_quantization(b, a) and not is_larger_quantization(a, b) for a, b in pairwise(order))


@pytest.mark.parametrize(
    ("model", "size", "mixture"),
    [
        ("Mixtral", "8x7B", True),
        ("Mixtral-8x7B", "47B", True),
        ("Qwen3-30B-A3B", "30B", True),
        ("Qwen3-30B-A3B-Instruct", "30B", True),
        ("Llama-3.1-8B", "8B", False),
        ("LLaMA3B", "3B", False),
    ],
)
def test_mixtures_of_experts(model: str, size: str, *, mixture: bool) -> None:
    assert is_mixture(model, size) == mixture


def test_a_record_that_went_through_a_file_teaches_the_same() -> None:
    seen = broken(TIMEOUT, {"timeout_seconds": 300.0})
    again = cell_from(seen.model_dump(mode="json"), "a test")
    assert why(candidate(quantization="Q8_0"), again) == why(candidate(quantization="Q8_0"), seen)


def test_a_memory_that_has_no_prediction_is_not_asked_for() -> None:
    blocking = Blocking(BlockingConfig())
    blocking.learn(slow())

    def asked() -> int:
        pytest.fail("nothing was to be asked")

    assert blocking.why(candidate("tiny-7B", "Q8_0"), asked) is None


def test_a_question_looks_at_few_of_many_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: of 10,000 records only those of the same quantization, variant and profile are compared."""
    blocking = Blocking(BlockingConfig())
    names = [f"Q{bits}_{kind}" for bits in range(100) for kind in range(10)]
    records = [slow(f"tiny-{size}B", name) for name in names for size in range(1, 11)]
    random.Random(1).shuffle(records)
    for record in records:
        blocking.learn(record)
    compared = []

    def counted(size: str, than: str) -> bool:
        compared.append(than)
        return is_larger_model(size, than)

    monkeypatch.setattr("pytest_llmbench.core.blocking_rules.is_larger_model", counted)
    assert blocking.why(candidate("tiny-70B", "Q7_7"), lambda: None) is not None
    assert len(compared) == 10
