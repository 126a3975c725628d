"""One simulated GPU: processes and their bytes. Nothing else decides whether memory is there."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.sim.products import Product


class OutOfDeviceMemoryError(Exception):
    """cudaMalloc failed: the bytes were not there."""

    def __init__(self, card: Card, wanted: int) -> None:
        super().__init__(f"{card.uuid}: {wanted} bytes wanted, {card.free} free")
        self.card = card
        self.wanted = wanted


@dataclass(slots=True)
class Process:
    """What one process uses on one card."""

    pid: int
    command: str
    used: int = 0
    """Bytes."""
    pod: str = ""
    """`namespace/name`; empty outside pods."""
    tenant: bool = False
    """It belongs to an engine pod of ours."""


@dataclass(slots=True)
class Card:
    """One GPU of one node."""

    uuid: str
    index: int
    product: Product
    island: int | None = None
    numa: int = 0
    health: str = "Healthy"
    lost: bool = False
    """Fallen off the bus: nobody sees it any more."""
    processes: dict[int, Process] = field(default_factory=dict)

    @property
    def usable(self) -> int:
        """T: what CUDA calls total."""
        return self.product.usable

    @property
    def used(self) -> int:
        """Bytes of all processes."""
        return sum(process.used for process in self.processes.values())

    @property
    def free(self) -> int:
        """What cudaMemGetInfo calls free."""
        return self.usable - self.used

    def open(self, process: Process) -> Process:
        """A process opens the card; it uses nothing yet."""
        return self.processes.setdefault(process.pid, process)

    def take(self, pid: int, amount: int) -> None:
        """Allocate, or raise OutOfDeviceMemoryError and change nothing."""
        if amount > self.free:
            raise OutOfDeviceMemoryError(self, amount)
        self.processes[pid].used += amount

    def give(self, pid: int, amount: int) -> None:
        """Give bytes back."""
        process = self.processes[pid]
        process.used -= min(amount, process.used)

    def end(self, pid: int) -> int:
        """The process is gone, and its bytes with it; how many they were."""
        process = self.processes.pop(pid, None)
        return process.used if process else 0
