"""The only module that talks to NVML (nvidia-ml-py): one session with the driver, read again and again.

A session ends when the driver says so (reloaded, not loaded, library too old); the next reading opens another one.
What fails on one GPU is said of that GPU, with its last figures.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pynvml

from cotenant.agent.readings import (
    LOST,
    Ailments,
    DeviceReading,
    Link,
    Memory,
    NodeReading,
    ProcessReading,
    Remote,
    Wiring,
    Xid,
)
from cotenant.errors import CotenantError

log = logging.getLogger(__name__)

_ENDED = {
    pynvml.NVML_ERROR_UNINITIALIZED: "DriverReloaded",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "DriverNotLoaded",
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "LibraryNotFound",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "LibraryMismatch",
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: "DriverTooOld",
}
"""Errors that are about the driver and not about one GPU: the session is over. The reason to publish."""
_UNLOADED = (pynvml.NVML_ERROR_UNINITIALIZED, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
"""Those after which the driver was loaded anew when it answers again."""

_LOST = (
    pynvml.NVML_ERROR_GPU_IS_LOST,
    pynvml.NVML_ERROR_RESET_REQUIRED,
    pynvml.NVML_ERROR_NOT_FOUND,
    pynvml.NVML_ERROR_GPU_NOT_FOUND,
)
_NO_ANSWER = (pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
_P2P_NVLINK = 2
"""NVML_P2P_CAPS_INDEX_NVLINK."""
SLOW_EVERY = 15
"""Readings between two looks at what seldom changes: wiring, MIG mode, ECC."""


class NVMLUnavailable(CotenantError):
    """NVML gives no reading of this node; `reason` is the condition's."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(slots=True)
class _Device:
    """A GPU of the open session: its handle and what was last read of it."""

    handle: Any
    last: DeviceReading


class NVML:
    """Readings of this node's GPUs. Not for use by two threads at once (its event thread is its own)."""

    def __init__(self, sys: Path = Path("/sys")) -> None:
        self._sys = sys
        self._driver = ""
        self._driver_was_read = False
        self._count = 0
        self._by_index: dict[int, _Device] = {}
        self._events: _Events | None = None
        self._xids: queue.SimpleQueue[Xid] = queue.SimpleQueue()
        self._readings = 0
        self._is_open = False
        self._was_unloaded = False

    def read(self) -> NodeReading:
        """All GPUs now; NVMLUnavailable when the driver does not answer. A GPU that fails is in the reading, with
        its error."""
        try:
            if not self._is_open:
                self._open()
            count = pynvml.nvmlDeviceGetCount()
            if self._by_index and count != self._count:
                self.close()  # indices may mean other GPUs now
                self._open()
            self._count = count
            devices = tuple(self._read(index) for index in range(count))
        except pynvml.NVMLError as error:
            self.close()
            self._was_unloaded |= error.value in _UNLOADED
            reason = _ENDED.get(error.value, "NVMLError")
            raise NVMLUnavailable(reason, f"NVML: {error}{_ADVICE.get(error.value, '')}") from error
        self._readings += 1
        reloaded, self._was_unloaded = self._was_unloaded and self._driver_was_read, False
        self._driver_was_read = True
        xids = []
        while not self._xids.empty():
            xids.append(self._xids.get())
        return NodeReading(tuple(d for d in devices if d is not None), self._driver, tuple(xids), reloaded)

    def close(self) -> None:
        """End the session; open handles would keep the driver from being reloaded."""
        if not self._is_open:
            return
        self._is_open = False
        if self._events is not None:
            self._events.stop()
        self._events = None
        self._by_index.clear()
        try:
            pynvml.nvmlShutdown()
        except pynvml.NVMLError as error:
            log.debug("nvmlShutdown: %s", error)

    # ------------------------------------------------------------------------------------------------------ inside
    def _open(self) -> None:
        pynvml.nvmlInit()
        self._is_open = True
        self._readings = 0
        self._driver = pynvml.nvmlSystemGetDriverVersion()
        self._events = _Events(self._xids)

    def _read(self, index: int) -> DeviceReading | None:
        """One GPU; None for one that cannot even say its UUID."""
        device = self._by_index.get(index)
        try:
            if device is None:
                device = self._by_index[index] = self._meet(index)
            device.last = self._fresh(device)
        except pynvml.NVMLError as error:
            if error.value in _ENDED:
                raise
            if device is None:
                log.warning("GPU %d says nothing of itself: %s", index, error)
                return None
            why = LOST if error.value in _LOST else f"NVMLError{error.value}"
            device.last = replace(device.last, error=why)
        return device.last

    def _meet(self, index: int) -> _Device:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        uuid = pynvml.nvmlDeviceGetUUID(handle)
        assert self._events is not None
        self._events.watch(handle)
        last = DeviceReading(uuid=uuid, index=index, product=pynvml.nvmlDeviceGetName(handle), memory=_memory(handle))
        return _Device(handle, last)

    def _fresh(self, device: _Device) -> DeviceReading:
        fresh = replace(device.last, error="")
        if not device.last.wiring.bus or self._readings % SLOW_EVERY == 0:
            mig = (_ask(pynvml.nvmlDeviceGetMigMode, device.handle) or (0, 0))[0]
            ailments = _ailments(device.handle)
            fresh = replace(fresh, mig=bool(mig), wiring=self._wiring(device), ailments=ailments)
        before = _memory(device.handle)
        # With MIG on, processes belong to the slices, and asking for the whole GPU's needs root.
        listed = {} if fresh.mig else _processes(device.handle)
        memory = _memory(device.handle)
        # Engines allocate while this reads: what is hidden was so before and after.
        rest = max(0, min(before.used, memory.used) - sum(used for used in listed.values() if used is not None))
        unknown = sum(1 for used in listed.values() if used is None)
        processes = tuple(
            ProcessReading(pid, used) if used is not None else ProcessReading(pid, rest // unknown, estimated=True)
            for pid, used in sorted(listed.items())
        )
        return replace(fresh, memory=memory, processes=processes, hidden=0 if unknown or fresh.mig else rest)

    def _wiring(self, device: _Device) -> Wiring:
        handle = device.handle
        bus = _bus(pynvml.nvmlDeviceGetPciInfo(handle))
        others = [(d.last.uuid, d.handle) for d in self._by_index.values() if d is not device]
        granted = {uuid: _ask(pynvml.nvmlDeviceGetP2PStatus, handle, other, _P2P_NVLINK) for uuid, other in others}
        refused = {uuid for uuid, status in granted.items() if status not in (None, pynvml.NVML_P2P_STATUS_OK)}
        links = _links(handle)
        return Wiring(bus=bus, numa=self._numa(bus), links=links, nvlink_refused=frozenset(refused))

    def _numa(self, bus: str) -> int | None:
        """From sysfs: nvmlDeviceGetNumaNodeId is not supported on an H200. The kernel says -1 where it does not
        know."""
        domain, _, rest = bus.partition(":")
        try:
            node = int((self._sys / "bus/pci/devices" / f"{domain[-4:]}:{rest}" / "numa_node").read_text())
        except (OSError, ValueError):
            return None
        return node if node >= 0 else None


_ADVICE = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "; the agent's pod needs the nvidia RuntimeClass and the utility capability",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "; the driver is newer than this container's library: restart the pod",
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: "; the driver is too old, 525 or newer is needed",
}


def _ask(question: Callable[..., Any], *arguments: Any) -> Any:
    """The answer, or None where the GPU does not support the question."""
    try:
        return question(*arguments)
    except pynvml.NVMLError as error:
        if error.value in _NO_ANSWER or error.value == pynvml.NVML_ERROR_INVALID_ARGUMENT:
            return None
        raise


def _memory(handle: Any) -> Memory:
    info = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    return Memory(total=info.total, reserved=info.reserved, used=info.used)


def _processes(handle: Any) -> dict[int, int | None]:
    """Bytes by pid. A process may be in more than one list (compute and graphics, a client of MPS): its bytes count
    once."""
    found: dict[int, int | None] = {}
    lists = (
        pynvml.nvmlDeviceGetComputeRunningProcesses,
        pynvml.nvmlDeviceGetMPSComputeRunningProcesses,
        pynvml.nvmlDeviceGetGraphicsRunningProcesses,
    )
    for listing in lists:
        for process in _ask(listing, handle) or []:
            known = found.get(process.pid)
            used = process.usedGpuMemory
            found[process.pid] = used if known is None else max(known, used or 0)
    return found


def _ailments(handle: Any) -> Ailments:
    ecc = _ask(
        pynvml.nvmlDeviceGetTotalEccErrors, handle, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
    )
    rows = _ask(pynvml.nvmlDeviceGetRemappedRows, handle) or (0, 0, 0, 0)
    return Ailments(uncorrected_ecc=ecc, remap_pending=bool(rows[2]), remap_failed=bool(rows[3]))


def _links(handle: Any) -> tuple[Link, ...]:
    remotes = {pynvml.NVML_NVLINK_DEVICE_TYPE_GPU: Remote.GPU, pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH: Remote.SWITCH}
    links = []
    for number in range(pynvml.NVML_NVLINK_MAX_LINKS):
        state = _ask(pynvml.nvmlDeviceGetNvLinkState, handle, number)
        if state is None:
            break  # no such link: it has no more
        if not state:
            continue
        kind = _ask(pynvml.nvmlDeviceGetNvLinkRemoteDeviceType, handle, number)
        remote = _ask(pynvml.nvmlDeviceGetNvLinkRemotePciInfo, handle, number)
        links.append(Link(number, remotes.get(kind, Remote.OTHER), _bus(remote) if remote is not None else ""))
    return tuple(links)


def _bus(pci: Any) -> str:
    """A PCI address in one spelling; '' for the zeros that stand for "not told"."""
    text: str = pci.busId.decode() if isinstance(pci.busId, bytes) else pci.busId
    return text.lower() if text.strip("0:.") else ""


class _Events:
    """The driver's Xids, waited for in one thread."""

    def __init__(self, out: queue.SimpleQueue[Xid]) -> None:
        self._set = pynvml.nvmlEventSetCreate()
        self._out = out
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._wait, name="nvml-events", daemon=True)
        self._thread.start()

    def watch(self, handle: Any) -> None:
        """Report this GPU's Xids from now on."""
        types = _ask(pynvml.nvmlDeviceGetSupportedEventTypes, handle) or 0
        if types & pynvml.nvmlEventTypeXidCriticalError:
            _ask(pynvml.nvmlDeviceRegisterEvents, handle, pynvml.nvmlEventTypeXidCriticalError, self._set)

    def stop(self) -> None:
        """End the thread, then free the set."""
        self._stopping.set()
        self._thread.join(timeout=5)
        if not self._thread.is_alive():
            pynvml.nvmlEventSetFree(self._set)

    def _wait(self) -> None:
        while not self._stopping.is_set():
            try:
                event = pynvml.nvmlEventSetWait(self._set, 500)
                if event.eventType == pynvml.nvmlEventTypeXidCriticalError:
                    self._out.put(Xid(pynvml.nvmlDeviceGetUUID(event.device), int(event.eventData)))
            except pynvml.NVMLError as error:
                if error.value != pynvml.NVML_ERROR_TIMEOUT:
                    # Said by every call, so the reading says it too and ends the session; here only: do not spin.
                    log.debug("waiting for events: %s", error)
                    self._stopping.wait(1)
