"""What fits, and what would make it fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmbench.core.fitting import Room, largest_context, required_bytes, verdict, ways_to_fit
from pytest_llmbench.core.gguf import GgufHeader, read_header
from pytest_llmbench.core.memory import ServingSettings, estimate_memory
from tests.ggufs.shapes import SHAPES, write_shape

GB = 1_000_000_000
AT_128K = ServingSettings(131072)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> GgufHeader:
    return header_of("llama-3.1-8b", tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="module")
def mamba(tmp_path_factory: pytest.TempPathFactory) -> GgufHeader:
    return header_of("mamba-2.8b", tmp_path_factory.mktemp("shapes"))


def header_of(name: str, folder: Path) -> GgufHeader:
    return read_header(write_shape(folder / name, SHAPES[name], "Q4_K_M", vocabulary="none"))


def unknown(header: GgufHeader) -> GgufHeader:
    metadata = {key.replace("llama.", "newest."): value for key, value in header.metadata.items()}
    return replace(header, metadata={**metadata, "general.architecture": "newest"})


def test_fits_exactly_or_not_by_a_byte(llama: GgufHeader) -> None:
    estimate = estimate_memory(llama, AT_128K)
    assert verdict(estimate, Room(estimate.total_bytes)) == "fits"
    assert verdict(estimate, Room(estimate.total_bytes - 1)) == "does_not_fit"


def test_what_can_be_dropped_need_not_be_there(llama: GgufHeader) -> None:
    estimate = estimate_memory(llama, replace(AT_128K, repacked_types=(("Q4_K", 8),)))
    assert estimate.reclaimable_bytes > 3 * GB
    assert required_bytes(estimate.total_bytes, estimate) == estimate.total_bytes - estimate.reclaimable_bytes
    assert verdict(estimate, Room(estimate.total_bytes - estimate.reclaimable_bytes)) == "fits"


def test_a_correction_moves_the_verdict(llama: GgufHeader) -> None:
    estimate = estimate_memory(llama, AT_128K)
    room = Room(int(estimate.total_bytes * 1.05))
    assert verdict(estimate, room) == "fits"
    assert verdict(estimate, room, factor=1.1) == "does_not_fit"


def test_between_the_bounds_nobody_knows(llama: GgufHeader) -> None:
    estimate = estimate_memory(unknown(llama), AT_128K)
    assert verdict(estimate, Room(estimate.low_bytes)) == "uncertain"
    assert verdict(estimate, Room(estimate.low_bytes - 1)) == "does_not_fit"
    assert verdict(estimate, Room(estimate.high_bytes)) == "fits"


def test_either_memory_can_be_too_small(llama: GgufHeader) -> None:
    estimate = estimate_memory(llama, replace(AT_128K, gpu_layers=16, device="gpu"))
    host, device = estimate.host.total_bytes, estimate.device.total_bytes
    assert verdict(estimate, Room(host, device)) == "fits"
    assert verdict(estimate, Room(host - 1, device)) == "does_not_fit"
    assert verdict(estimate, Room(host, device - 1)) == "does_not_fit"


@settings(max_examples=30, deadline=None)
@given(gigabytes=st.integers(5, 24))
def test_largest_context_is_the_largest(llama: GgufHeader, gigabytes: int) -> None:
    room = Room(gigabytes * GB)
    largest = largest_context(llama, AT_128K, room)

    def outcome(tokens: int) -> str:
        return verdict(estimate_memory(llama, replace(AT_128K, context_tokens=tokens)), room)

    assert largest == 0 or outcome(largest) == "fits"
    assert largest == 131072 or outcome(largest + 256) == "does_not_fit"


def test_largest_context_ends_where_training_did(llama: GgufHeader) -> None:
    assert largest_context(llama, AT_128K, Room(10**15)) == 131072
    assert largest_context(llama, replace(AT_128K, parallel=4), Room(10**15)) == 4 * 131072


def test_no_context_fits(llama: GgufHeader) -> None:
    assert largest_context(llama, AT_128K, Room(2 * GB)) == 0


def test_ways_to_fit_do_fit(llama: GgufHeader) -> None:
    room = Room(14 * GB)
    ways = ways_to_fit(llama, AT_128K, room)
    assert [way.change for way in ways][:2] == ["KV cache q4_0", f"context {largest_context(llama, AT_128K, room)}"]
    assert all(way.total_bytes <= room.host_bytes for way in ways)


def test_a_smaller_quantization_is_a_way_where_weights_are_too_big(llama: GgufHeader) -> None:
    ways = ways_to_fit(llama, ServingSettings(4096), Room(5 * GB))
    assert [(way.change, way.about) for way in ways] == [("quantization Q3_K_M", True)]


def test_two_changes_where_none_alone_does(llama: GgufHeader) -> None:
    (way,) = ways_to_fit(llama, replace(AT_128K, parallel=64), Room(int(6.7 * GB)), quantization="?")
    assert way.change.startswith("KV cache q8_0 and context ")


def test_nothing_helps(llama: GgufHeader) -> None:
    assert ways_to_fit(llama, AT_128K, Room(GB)) == ()


def test_a_recurrent_model_has_no_cache_to_shrink(mamba: GgufHeader) -> None:
    assert ways_to_fit(mamba, ServingSettings(4096), Room(GB), quantization="?") == ()


def test_fewer_layers_for_a_small_gpu(llama: GgufHeader) -> None:
    settings_ = ServingSettings(8192, gpu_layers=-1, device="gpu")
    ways = ways_to_fit(llama, settings_, Room(30 * GB, 4 * GB))
    (layers,) = [way for way in ways if "layers" in way.change]
    count = int(layers.change.split()[0])
    assert 0 < count < 33
    assert layers.change == f"{count} of 33 layers on the GPU"
    assert verdict(estimate_memory(llama, replace(settings_, gpu_layers=count)), Room(30 * GB, 4 * GB)) == "fits"
    more = estimate_memory(llama, replace(settings_, gpu_layers=count + 1))
    assert verdict(more, Room(30 * GB, 4 * GB)) == "does_not_fit"
