"""The example of the founding design, fed in as records: what is recommended is what it says there.

Its numbers are those of its example output (``Recommendation Generator``). What it does not give is chosen to agree
with its words: "good quality" is 88 % of the questions, "very stable" a variance of 3 %, "good" interactive use a
variance of 15 % where 20 are allowed, and a larger quantization of Phi takes more than the 8 GB of the smaller. Its
8 tokens/s are "acceptable but slower", which they are where 7 are wanted; by the founding limit of 2 they would be
excellent. Memory is that of a machine of which 14 GB may be used.
"""

from __future__ import annotations

import pytest

from pytest_llmbench.core.recommend import recommend, use_cases_of
from pytest_llmbench.core.recommendations import Recommendations
from pytest_llmbench.core.records import CellRecord, MemoryRecord
from tests.unit.core.recommend_cases import GB, cell, named, of, places, too_large

LLAMA, PHI, QWEN = "Llama-3.2-7B", "Phi-3.5-mini", "Qwen2.5-3B"
LIMITS = {"min_tokens_per_sec": 7.0}


def memory(gigabytes: float) -> MemoryRecord:
    return MemoryRecord(observed_peak_bytes=int(gigabytes * GB), available_bytes=14 * GB)


def interactive(
    model: str, quantization: str, rate: float, ttft: float, variance: float, gigabytes: float
) -> CellRecord:
    return cell(
        "interactive",
        model,
        quantization,
        LIMITS,
        memory=memory(gigabytes),
        decode_tokens_per_second=rate,
        ttft_seconds=ttft,
        variance_percent=variance,
        peak_memory_gb=gigabytes,
    )


def long_context(model: str, quantization: str, seconds: float, gigabytes: float) -> CellRecord:
    return cell(
        "long_context",
        model,
        quantization,
        memory=memory(gigabytes),
        context_load_seconds=seconds,
        largest_usable_context_tokens=32768,
        recall_percent=100,
        peak_memory_gb=gigabytes,
    )


def batch(model: str, quantization: str, per_hour: float, variance: float, gigabytes: float) -> CellRecord:
    return cell(
        "batch",
        model,
        quantization,
        documents_per_hour=per_hour,
        variance_percent=variance,
        peak_memory_gb=gigabytes,
    )


def quality(model: str, quantization: str, math: float, whole: float) -> CellRecord:
    return cell("quality", model, quantization, math_score_percent=math, quality_score_percent=whole)


@pytest.fixture(scope="module")
def found() -> Recommendations:
    records = [
        interactive(LLAMA, "Q4_K_M", 18, 2, 8, 5.8),
        interactive(PHI, "Q6_K", 22, 1.5, 15, 9),
        interactive(QWEN, "Q8_0", 8, 2.5, 8, 4.1),
        interactive(PHI, "Q4_K_M", 15, 2, 8, 8),
        long_context(PHI, "Q4_K_M", 25, 9),
        long_context(LLAMA, "Q4_K_M", 45, 12),
        batch(QWEN, "Q4_K_M", 45, 3, 3),
        batch(LLAMA, "Q4_K_M", 30, 8, 5.8),
        batch(PHI, "Q4_K_M", 28, 8, 8),
        quality(LLAMA, "Q4_K_M", 82, 88),
        quality(PHI, "Q6_K", 95, 95),
        quality(PHI, "Q4_K_M", 88, 91),
        quality(QWEN, "Q4_K_M", 60, 78),
        quality(QWEN, "Q2_K", 55, 60),
        *(
            too_large(profile, "Llama-2-13B", quantization, needed)
            for profile in ("interactive", "long_context", "batch", "quality")
            for quantization, needed in (("Q4_K_M", 14.8), ("Q5_K_M", 16.0), ("Q6_K", 17.5), ("Q8_0", 21.0))
        ),
    ]
    return recommend(records, use_cases_of({}))


def test_interactive_storytelling(found: Recommendations) -> None:
    advice = of(found, "interactive")
    # The founding example lists three; the fourth, between them, is its overall best, with the 15 tokens/s it says.
    # It serves within 5 % as well as the first, which stands before it because it takes less memory.
    assert places(advice) == [
        ("✓", f"{LLAMA} Q4_K_M", "excellent"),
        ("✓", f"{PHI} Q4_K_M", "excellent"),
        ("✓", f"{PHI} Q6_K", "good"),
        ("⚠", f"{QWEN} Q8_0", "acceptable"),
    ]
    assert advice.answer.startswith(f"{LLAMA} Q4_K_M: excellent, 18 tokens/s, first token after 2 s")
    assert "8.0 tokens/s [7.8, 8.2]" in " ".join(named(advice, f"{QWEN} Q8_0").reasons)
    assert any(f"{LLAMA} Q4_K_M is put before {PHI} Q4_K_M (8 GB" in remark for remark in advice.remarks)
    assert any(f"{PHI} Q6_K answers better" in remark for remark in advice.remarks)


def test_long_context(found: Recommendations) -> None:
    advice = of(found, "long_context")
    # 45 s of 60 are "good" by the founding scale (+25 %); what makes it borderline is the 12 GB, as it says too.
    assert places(advice) == [("✓", f"{PHI} Q4_K_M", "excellent"), ("⚠", f"{LLAMA} Q4_K_M", "good")]
    assert "takes most of the memory: 12.0 GB of the 14.0 GB that may be used" in advice.ranked[1].reasons
    # "✗ Any 13B model": it is told apart from what was measured and is not fit.
    assert (
        "Llama-2-13B, 4 quantizations (Q4_K_M to Q8_0) do not fit: at least 14.8 GB needed, 14.0 GB may be used"
        in advice.excluded
    )


def test_document_processing(found: Recommendations) -> None:
    advice = of(found, "documents")
    # The third is not in its list: it is slower than the second, and takes more memory.
    assert [one[:2] for one in places(advice)] == [
        ("✓", f"{QWEN} Q4_K_M"),
        ("✓", f"{LLAMA} Q4_K_M"),
        ("✓", f"{PHI} Q4_K_M"),
    ]
    assert "45 documents/h" in advice.answer


def test_accuracy_critical_work(found: Recommendations) -> None:
    advice = of(found, "accuracy")
    assert places(advice)[0][:2] == ("✓", f"{PHI} Q6_K")
    assert places(advice)[1][:2] == ("⚠", f"{PHI} Q4_K_M")
    assert named(advice, f"{QWEN} Q2_K").mark == "✗"
    assert "60 % of the questions right [58, 62] where at least 70 % is wanted" in " ".join(
        named(advice, f"{QWEN} Q2_K").reasons
    )


def test_overall(found: Recommendations) -> None:
    advice = of(found, "overall")
    # The only other that was measured in everything has less to spare in all but interactive use.
    assert places(advice)[0][1] == f"{PHI} Q4_K_M"
    assert f"{PHI} Q4_K_M" in found.headline
