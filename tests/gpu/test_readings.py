"""The agent's readings on a real card, beside what torch says. By hand: `pytest -m gpu tests/gpu/test_readings.py`."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from cotenant.agent.nvml import NVML, NVMLUnavailable
from cotenant.agent.readings import NodeReading, Remote, islands

pytestmark = pytest.mark.gpu
torch = pytest.importorskip("torch", reason="the figures are compared with torch's")
GIB = 1 << 30

HOLD = """
import sys, torch
block = torch.empty(1 << 30, dtype=torch.uint8, device="cuda:0")
torch.cuda.synchronize()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def nvml() -> Iterator[NVML]:
    session = NVML()
    try:
        session.read()
    except NVMLUnavailable as error:
        pytest.skip(f"no card here: {error}")
    yield session
    session.close()


def test_usable_memory_is_torchs_total_to_the_byte(nvml: NVML) -> None:
    for device in nvml.read().devices:
        _, total = torch.cuda.mem_get_info(device.index)
        print(f"{device.product}: total {device.memory.total}, reserved {device.memory.reserved}, torch {total}")

        assert device.memory.total - device.memory.reserved == total


def test_a_process_is_listed_with_its_bytes_and_gone_with_its_end(nvml: NVML) -> None:
    before = nvml.read().devices[0].memory.used
    holder = subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdin is not None
    assert holder.stdout.readline() == "ready\n"

    device = nvml.read().devices[0]
    mine = [process.used for process in device.processes if process.pid == holder.pid]
    print(f"used {before} -> {device.memory.used}, by the process {mine}, hidden {device.hidden}")
    holder.stdin.close()
    holder.wait()

    assert len(mine) == 1, "NVML lists nobody to a caller in a PID namespace of its own"
    assert GIB < mine[0] < 3 * GIB  # the block, and 0.5 GiB of context on an H200
    assert device.hidden < GIB // 2
    assert _seconds_until(nvml, lambda said: all(p.pid != holder.pid for p in said.devices[0].processes)) < 10


def test_cards_with_links_are_one_island(nvml: NVML) -> None:
    devices = nvml.read().devices
    linked = [device for device in devices if any(link.remote is not Remote.OTHER for link in device.wiring.links)]
    if len(linked) < 2:
        pytest.skip("needs two cards with NVLink")
    reading = nvml.read()
    print(islands(reading.devices), [device.wiring for device in reading.devices])

    assert set(islands(reading.devices).values()) == {0}
    assert torch.cuda.can_device_access_peer(linked[0].index, linked[1].index)


def _seconds_until(nvml: NVML, is_so: Callable[[NodeReading], bool]) -> float:
    begin = time.monotonic()
    while not is_so(nvml.read()) and time.monotonic() - begin < 10:
        time.sleep(0.1)
    return time.monotonic() - begin
