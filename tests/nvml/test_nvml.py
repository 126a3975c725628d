"""The agent's NVML through the unmodified nvidia-ml-py, on the stand-in card."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cotenant.agent.nvml import NVML, NVMLUnavailable
from cotenant.agent.readings import Memory, ProcessReading, Xid, islands
from tests.nvml.card import H200_RESERVED, H200_TOTAL, Card

A, B = "GPU-aaaaaaaa-0000-4000-8000-000000000001", "GPU-bbbbbbbb-0000-4000-8000-000000000002"
GIB = 1 << 30


@pytest.fixture
def nvml(card: Card, tmp_path: Path) -> Iterator[NVML]:
    assert card.lines()  # NVML has something to answer from
    numa = tmp_path / "sys/bus/pci/devices/0000:18:00.0"
    numa.mkdir(parents=True)
    (numa / "numa_node").write_text("1\n")
    session = NVML(tmp_path / "sys")
    yield session
    session.close()


def test_usable_memory_is_what_torch_calls_total(card: Card, nvml: NVML) -> None:
    card.gpu(A)

    memory = nvml.read().devices[0].memory

    assert memory == Memory(total=H200_TOTAL, reserved=H200_RESERVED, used=0)
    # torch.cuda.mem_get_info() on that card and driver: facts of 2026-11-21
    assert memory.total - memory.reserved == 150_109_880_320


def test_every_list_of_processes_counts_and_each_process_once(card: Card, nvml: NVML) -> None:
    card.gpu(A)
    card.process(A, 100, 5 * GIB)
    card.process(A, 200, 3 * GIB, "mps")
    card.add(f"process {A} 100 {5 * GIB} graphics")

    assert nvml.read().devices[0].processes == (ProcessReading(100, 5 * GIB), ProcessReading(200, 3 * GIB))


def test_bytes_nvml_does_not_tell_are_what_nobody_else_accounts_for(card: Card, nvml: NVML) -> None:
    card.gpu(A)
    card.process(A, 100, 5 * GIB)
    card.add(f"process {A} 200 ?{3 * GIB}")

    device = nvml.read().devices[0]

    assert device.processes[1] == ProcessReading(200, 3 * GIB, estimated=True)
    assert device.hidden == 0


def test_memory_of_unlisted_processes_is_hidden(card: Card, nvml: NVML) -> None:
    card.gpu(A)
    card.add("pidns pid:[1]")
    card.process(A, 100, 5 * GIB)

    device = nvml.read().devices[0]

    assert device.processes == ()
    assert device.hidden == 5 * GIB


def test_islands_come_from_the_links(card: Card, nvml: NVML) -> None:
    card.gpu(A), card.gpu(B), card.gpu("GPU-alone")
    card.add(*(f"link {uuid} {n} switch 00000000:0{n % 4 + 1}:00.0" for uuid in (A, B) for n in range(18)))

    reading = nvml.read()

    assert len(reading.devices[0].wiring.links) == 18
    assert islands(reading.devices) == {A: 0, B: 0}


def test_a_fabric_that_grants_no_peer_access_is_no_island(card: Card, nvml: NVML) -> None:
    card.gpu(A), card.gpu(B)
    card.add(*(f"link {uuid} 0 switch 00000000:01:00.0" for uuid in (A, B)), f"p2p {A} {B} 5")

    assert islands(nvml.read().devices) == {}


def test_numa_comes_from_sysfs(card: Card, nvml: NVML) -> None:
    card.gpu(A), card.gpu(B)

    assert [device.wiring.numa for device in nvml.read().devices] == [1, None]


def test_mig_and_ailments_are_read(card: Card, nvml: NVML) -> None:
    card.gpu(A, extra="mig=1"), card.gpu(B, extra="mig=-1")
    card.add(f"rows {A} 1 2 1 0", f"ecc {A} 7 3")

    one, other = nvml.read().devices

    assert (one.mig, other.mig) == (True, False)
    assert one.ailments.remap_pending
    assert not one.ailments.remap_failed
    assert one.ailments.uncorrected_ecc == 3


def test_an_xid_is_reported_once(card: Card, nvml: NVML) -> None:
    card.gpu(A), card.gpu(B)
    card.xid(A, 31)  # from before the agent began
    nvml.read()

    card.xid(B, 79)

    assert wait_for_xids(nvml) == (Xid(B, 79),)
    assert nvml.read().xids == ()


def test_a_lost_gpu_keeps_its_last_figures_and_the_others_go_on(card: Card, nvml: NVML) -> None:
    card.gpu(A), card.gpu(B)
    card.process(A, 100, 5 * GIB)
    nvml.read()

    card.add(f"error * {A} 15")
    card.process(B, 200, GIB)

    lost, well = nvml.read().devices
    assert (lost.error, lost.memory.used) == ("GPULost", 5 * GIB)
    assert (well.error, well.memory.used) == ("", GIB)


def test_an_unknown_error_of_one_gpu_is_said_of_it_and_passes(card: Card, nvml: NVML) -> None:
    card.gpu(A)
    nvml.read()

    card.add(f"error nvmlDeviceGetMemoryInfo_v2 {A} 999")
    assert nvml.read().devices[0].error == "NVMLError999"

    card.drop("error")
    assert nvml.read().devices[0].error == ""


def test_a_gpu_that_is_gone_from_the_bus_is_no_longer_in_the_reading(card: Card, nvml: NVML) -> None:
    card.gpu(A), card.gpu(B)
    nvml.read()

    card.drop(f"gpu {B}")

    assert [device.uuid for device in nvml.read().devices] == [A]


def test_a_reloaded_driver_is_asked_anew(card: Card, nvml: NVML) -> None:
    card.gpu(A)
    nvml.read()
    card.add("generation 2")

    with pytest.raises(NVMLUnavailable) as refused:
        nvml.read()
    again = nvml.read()

    assert refused.value.reason == "DriverReloaded"
    assert again.reloaded
    assert [device.uuid for device in again.devices] == [A]
    assert not nvml.read().reloaded


def test_an_error_that_ends_the_session_is_no_reload(card: Card, nvml: NVML) -> None:
    card.gpu(A)
    nvml.read()
    card.add("error nvmlDeviceGetCount_v2 * 999")
    with pytest.raises(NVMLUnavailable):
        nvml.read()

    card.drop("error")

    assert not nvml.read().reloaded


def test_a_gpu_in_slices_is_not_asked_for_its_processes(card: Card, nvml: NVML) -> None:
    card.gpu(A, extra="mig=1")
    card.add(f"error nvmlDeviceGetComputeRunningProcesses_v3 {A} 4")
    card.process(A, 100, GIB)

    device = nvml.read().devices[0]

    assert (device.mig, device.error, device.processes, device.hidden) == (True, "", (), 0)


def test_xids_are_heard_after_a_reload_too(card: Card, nvml: NVML) -> None:
    card.gpu(A)
    nvml.read()
    card.add("generation 2")
    with pytest.raises(NVMLUnavailable):
        nvml.read()
    nvml.read()

    card.xid(A, 48)

    assert wait_for_xids(nvml) == (Xid(A, 48),)


def test_a_driver_that_is_not_loaded_is_said_and_waited_for(card: Card, nvml: NVML) -> None:
    card.change(lambda _: ["driver none"])
    for _ in range(3):
        with pytest.raises(NVMLUnavailable) as refused:
            nvml.read()
        assert refused.value.reason == "DriverNotLoaded"

    card.change(lambda _: ["driver 595.91.07"])
    card.gpu(A)

    assert nvml.read().driver == "595.91.07"


def test_a_library_the_driver_outgrew_is_named(card: Card, nvml: NVML) -> None:
    card.gpu(A)
    card.add("error nvmlInit * 18")

    with pytest.raises(NVMLUnavailable, match="restart the pod") as refused:
        nvml.read()

    assert refused.value.reason == "LibraryMismatch"


def wait_for_xids(nvml: NVML) -> tuple[Xid, ...]:
    """What the event thread hears within two seconds."""
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        if xids := nvml.read().xids:
            return xids
        time.sleep(0.02)
    return ()
