"""What earlier runs make of a prediction."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmbench.core.correction import MAX_DOWNWARDS, MAX_UPWARDS, Correction, Observation, correction_for


def seen(ratio: float, predicted: int = 1000, backend: str = "embedded", model: str = "other") -> Observation:
    return Observation(backend, model, "Q4_K_M", predicted, round(predicted * ratio))


def learn(*observations: Observation, predicted: int = 1000) -> Correction | None:
    names = {"backend": "embedded", "model": "tiny", "quantization": "Q4_K_M"}
    return correction_for(observations, **names, predicted_bytes=predicted)


def test_nothing_was_seen() -> None:
    assert learn() is None


def test_median_of_similar_cells() -> None:
    assert learn(seen(1.02), seen(1.08), seen(1.05)) == Correction(pytest.approx(1.05), 3)  # type: ignore[arg-type]


def test_another_backend_teaches_nothing() -> None:
    assert learn(seen(1.1, backend="llama_cpp")) is None


@pytest.mark.parametrize(("predicted", "teaches"), [(499, False), (500, True), (2000, True), (2001, False)])
def test_only_cells_of_a_similar_size_teach(predicted: int, *, teaches: bool) -> None:
    assert (learn(seen(1.1, predicted)) is not None) == teaches


def test_the_same_model_counts_alone() -> None:
    correction = learn(seen(1.10), seen(1.04, model="tiny"), seen(1.10))
    assert correction is not None
    assert correction.factor == pytest.approx(1.04)
    assert correction.samples == 1


def test_another_quantization_is_not_the_same_model() -> None:
    other = Observation("embedded", "tiny", "Q8_0", 1000, 1100)
    correction = learn(other, seen(1.02), seen(1.04))
    assert correction is not None
    assert correction.factor == pytest.approx(1.04)
    assert correction.samples == 3


def test_nothing_predicted_teaches_nothing() -> None:
    assert learn(seen(1.1, 0), predicted=0) is None


@pytest.mark.parametrize(("ratio", "factor"), [(3.0, 1.15), (0.2, 0.97)])
def test_bounded(ratio: float, factor: float) -> None:
    assert learn(seen(ratio)) == Correction(factor, 1)


def test_only_the_newest_count() -> None:
    correction = learn(*[seen(1.1)] * 20, *[seen(1.0)] * 100)
    assert correction is not None
    assert correction.factor == pytest.approx(1.1)


@given(st.lists(st.builds(seen, st.floats(0, 50), st.integers(0, 10_000)), max_size=30), st.integers(1, 10_000))
def test_always_within_its_bounds(observations: list[Observation], predicted: int) -> None:
    correction = learn(*observations, predicted=predicted)
    assert correction is None or 1 - MAX_DOWNWARDS <= correction.factor <= 1 + MAX_UPWARDS
