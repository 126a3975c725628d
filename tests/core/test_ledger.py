"""The ledger over random histories: starts it lets in never pass the GPU, and nothing it says is negative."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import pytest

from cotenant.core.ledger import Account, accounts, context
from cotenant.core.share import GIB, SCALE, Bytes
from cotenant.core.snapshot import Allocation, Device, Ended, Pod, Stranger, TenantReading

STEPS = 40


@dataclass
class GPU:
    """One device, its pods and what really happens on it."""

    chance: random.Random
    strangers_come: bool
    pods: dict[str, Pod] = field(default_factory=dict)
    used: dict[str, int] = field(default_factory=dict)
    serial: int = 0
    device: Device = field(init=False)

    def __post_init__(self) -> None:
        total = self.chance.choice((16, 24, 80, 141)) * GIB
        self.device = Device("g", "n", 0, "NVIDIA", total, reserved=self.chance.randrange(GIB))

    @property
    def account(self) -> Account:
        return accounts({"g": self.device}, tuple(self.pods.values()))["g"]

    def read(self) -> None:
        """The agent looks again."""
        readings = tuple(TenantReading("default", name, used) for name, used in sorted(self.used.items()))
        listed = sum(self.used.values()) + sum(stranger.used for stranger in self.device.strangers)
        self.device = replace(self.device, tenants=readings, used=listed)

    def start(self) -> bool:
        """One more engine, where the ledger has room for its share and its overrun; whether it was let in."""
        before = self.account
        asked = Bytes(self.chance.randrange(1, self.device.usable)).utilization(self.device.usable)
        share, overrun = asked.of(self.device.usable), self.chance.randrange(4 * GIB)
        headroom = self.chance.choice((0, 500, 1000))
        after = replace(before, headroom=max(before.headroom, headroom))
        promisable = after.device.usable - after.reserved - after.promised - after.strangers
        room = share <= promisable and share + overrun <= before.free_use
        if not room or before.free_now() < share + context(1):
            return False
        self.serial += 1
        name = f"m-{self.serial}"
        given = Allocation("n", ("g",), share, str(asked), headroom=headroom, overrun=overrun)
        self.pods[name] = Pod("default", name, name, "p", "u", "m", self.serial, 1.0, given, phase="Running", node="n")
        self.used[name] = 0
        return True

    def step(self) -> None:
        """Something happens: an engine starts, grows, ends or leaves, a stranger comes or goes, the agent looks."""
        name = self.chance.choice([*self.pods, ""])
        match self.chance.randrange(7):
            case 0 | 1:
                if self.start():
                    self.check_room()
            case 2 if name:
                given = self.pods[name].allocation
                assert given is not None
                self.used[name] = self.chance.randrange(given.bytes + given.overrun + 1)
            case 3 if name:
                self.pods[name] = replace(self.pods[name], ended=Ended(1, "Error", "", 1.0), phase="Failed")
                self.used.pop(name, None)
            case 4 if name:
                self.pods.pop(name)
                self.used.pop(name, None)
            case 5 if self.strangers_come:
                free = max(0, self.device.total - self.device.used)
                taken = self.chance.randrange(free + 1)
                self.device = replace(self.device, strangers=(Stranger(7, "python3", taken),) if taken else ())
            case _:
                self.read()

    def check(self) -> None:
        """What holds whatever happens."""
        account = self.account
        told = (
            account.promised, account.expected, account.reserved, account.strangers, account.unexplained,
            account.free_use, account.free_now(),
        )  # fmt: skip
        assert min(told) >= 0
        assert account.expected >= account.promised
        assert account.reserved == self.device.usable * account.headroom // SCALE
        assert not account.over()
        if not self.strangers_come:
            self.check_room()

    def check_room(self) -> None:
        """What holds after every start, and always where nobody else uses the GPU."""
        account = self.account
        assert account.promised + account.reserved + account.strangers <= self.device.usable
        assert account.expected + account.strangers <= self.device.usable


def history(seed: int) -> int:
    """Engines that were let in."""
    gpu = GPU(random.Random(seed), strangers_come=seed % 2 == 1)
    for _ in range(STEPS):
        gpu.step()
        gpu.check()
    return gpu.serial


def test_a_gpu_is_never_passed() -> None:
    assert sum(history(seed) for seed in range(300)) > 300


@pytest.mark.soak
def test_a_gpu_is_never_passed_over_ten_thousand_histories() -> None:
    assert sum(history(seed) for seed in range(10_000)) > 10_000
