"""Islands and health."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.agent.readings import (
    APPLICATION_XIDS,
    Ailments,
    DeviceReading,
    Link,
    Memory,
    Remote,
    Wiring,
    health,
    is_fatal,
    islands,
)

SWITCHES = ("0000:01:00.0", "0000:02:00.0")


def gpu(index: int, *links: Link, refused: frozenset[str] = frozenset()) -> DeviceReading:
    wiring = Wiring(bus=f"0000:{index + 16:02x}:00.0", links=links, nvlink_refused=refused)
    return DeviceReading(f"GPU-{index}", index, "NVIDIA H200", Memory(100, 1, 0), wiring=wiring)


def to_switch(*buses: str) -> tuple[Link, ...]:
    return tuple(Link(number, Remote.SWITCH, bus) for number, bus in enumerate(buses))


def to_gpu(index: int) -> Link:
    return Link(0, Remote.GPU, f"0000:{index + 16:02x}:00.0")


def test_a_gpu_without_links_is_in_no_island() -> None:
    assert islands((gpu(0), gpu(1))) == {}


def test_gpus_on_the_same_switches_are_one_island() -> None:
    assert islands((gpu(0, *to_switch(*SWITCHES)), gpu(1, *to_switch(*SWITCHES)), gpu(2))) == {"GPU-0": 0, "GPU-1": 0}


def test_switches_the_driver_does_not_name_still_join() -> None:
    assert islands((gpu(0, *to_switch("")), gpu(1, *to_switch("")))) == {"GPU-0": 0, "GPU-1": 0}


def test_gpus_on_different_switches_are_apart() -> None:
    assert islands((gpu(0, *to_switch(SWITCHES[0])), gpu(1, *to_switch(SWITCHES[1])))) == {}


def test_bridged_pairs_are_an_island_each() -> None:
    devices = (gpu(0, to_gpu(1)), gpu(1, to_gpu(0)), gpu(2, to_gpu(3)), gpu(3, to_gpu(2)))

    assert islands(devices) == {"GPU-0": 0, "GPU-1": 0, "GPU-2": 1, "GPU-3": 1}


def test_a_chain_of_links_is_one_island() -> None:
    assert set(islands((gpu(0, to_gpu(1)), gpu(1), gpu(2, to_gpu(1)))).values()) == {0}


def test_links_the_driver_grants_no_peer_access_over_do_not_join() -> None:
    assert islands((gpu(0, to_gpu(1), refused=frozenset({"GPU-1"})), gpu(1, to_gpu(0)))) == {}


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=12), st.randoms(use_true_random=False))
def test_islands_do_not_depend_on_the_order(pairs: list[tuple[int, int]], chance: object) -> None:
    devices = [gpu(i, *(to_gpu(b) for a, b in pairs if a == i and b != i)) for i in range(8)]
    shuffled = list(devices)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]

    assert islands(tuple(devices)) == islands(tuple(shuffled))


@pytest.mark.parametrize("xid", [13, 31, 43, 45, 68, 94])
def test_what_an_application_did_does_not_condemn_the_gpu(xid: int) -> None:
    assert not is_fatal(xid)


@pytest.mark.parametrize("xid", [48, 64, 74, 79, 95, 119, 120, 140, 9999])
def test_hardware_and_unknown_xids_condemn_it(xid: int) -> None:
    assert is_fatal(xid)
    assert xid not in APPLICATION_XIDS


def test_the_xid_is_the_reason_that_is_said() -> None:
    lost = DeviceReading("GPU-0", 0, "", Memory(1, 0, 0), error="GPULost")

    assert health(lost, 79) == "Unhealthy/XID79"
    assert health(lost, None) == "Unhealthy/GPULost"
    assert health(DeviceReading("GPU-0", 0, "", Memory(1, 0, 0), ailments=Ailments(remap_failed=True)), None) == (
        "Unhealthy/RowRemapFailed"
    )
    # A row that waits for the next reset to be remapped does not stop the GPU.
    assert (
        health(DeviceReading("GPU-0", 0, "", Memory(1, 0, 0), ailments=Ailments(remap_pending=True)), None) == "Healthy"
    )
