"""What is promised and really used on each device, and what is left. Bytes, exact, never negative.

Two sums hold on every GPU: promised, `sum(flag x T) + strangers <= T - headroom`; expected, `sum(flag x T + overrun) + strangers <= T`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from cotenant.core.memo import Memo
from cotenant.core.share import GIB, MIB, SCALE
from cotenant.core.snapshot import Allocation, Device, Pod

CONTEXT = 700 * MIB
"""What a process takes before vLLM's start-up check and beside its share: CUDA context, cuBLAS (about 0.5 GiB on an H200, 0.7 with slack)."""
CONTEXT_TENSOR_PARALLEL = 3 * GIB // 2
"""The same with NCCL's buffers, per rank (planned from 1.5 GiB up; overrun of a rank measured 2.75-2.96 GiB on an H200 pair)."""
NOISE = 512 * MIB


def context(tensor_parallel: int) -> int:
    """Bytes a start needs free on each GPU beside its share."""
    return CONTEXT if tensor_parallel == 1 else CONTEXT_TENSOR_PARALLEL


@dataclass(frozen=True, slots=True)
class Tenant:
    """One of our pods on a device."""

    pod: Pod
    allocation: Allocation

    @property
    def promised(self) -> int:
        """Its share."""
        return self.allocation.bytes

    @property
    def expected(self) -> int:
        """What it will really use: share + overrun."""
        return self.allocation.bytes + self.allocation.overrun


@dataclass(frozen=True, slots=True)
class Account:
    """One device's ledger."""

    device: Device
    tenants: tuple[Tenant, ...] = ()
    headroom: int = 0
    """Ten-thousandths: the largest ask of its tenants."""
    strangers: int = field(init=False)
    """Bytes used by processes that are not ours: no plan may touch them.

    What pods that are gone still hold, and what no process accounts for, is not among it: it mostly comes back in a moment, and a
    start waits for it (`free_now`). What stays hidden the agent itself reports as a stranger.
    """
    promised: int = field(init=False)
    """Sum of the shares of its tenants."""
    expected: int = field(init=False)
    """Sum of shares and overruns of its tenants."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "strangers", sum(stranger.used for stranger in self.device.strangers))
        object.__setattr__(self, "promised", sum(tenant.promised for tenant in self.tenants))
        object.__setattr__(self, "expected", sum(tenant.expected for tenant in self.tenants))

    @property
    def unexplained(self) -> int:
        """Bytes in use that no process accounts for; what a driver keeps (seen: 14 MiB a device) is not worth a word."""
        listed = sum(reading.used for reading in self.device.tenants) + self.strangers
        beyond = self.device.used - listed
        return beyond if beyond > NOISE else 0

    @property
    def reserved(self) -> int:
        """Bytes of headroom."""
        return self.device.usable * self.headroom // SCALE

    @property
    def free_use(self) -> int:
        """Room for another's real use."""
        return max(0, self.device.usable - self.expected - self.strangers)

    def free_now(self) -> int:
        """Bytes a start would find free this moment."""
        ours = {(tenant.pod.namespace, tenant.pod.name) for tenant in self.tenants if tenant.pod.is_alive}
        going = sum(reading.used for reading in self.device.tenants if (reading.namespace, reading.pod) not in ours)
        return max(0, self.free_soon() - going - self.unexplained)

    def free_soon(self) -> int:
        """The same once everything that ended tenants and pods that are gone still hold has been given back.

        The reading may be older than the newest tenant, so what tenants that serve hold counts as their share at least.
        """
        held = {(reading.namespace, reading.pod): reading.used for reading in self.device.tenants}
        ours = sum(
            max(held.get((tenant.pod.namespace, tenant.pod.name), 0), tenant.promised)
            for tenant in self.tenants
            if tenant.pod.is_alive
        )
        return max(0, self.device.usable - ours - self.strangers)

    def over(self) -> tuple[tuple[Tenant, int], ...]:
        """Tenants that use more than share + overrun, and by how many bytes."""
        held = {(reading.namespace, reading.pod): reading.used for reading in self.device.tenants}
        found = (
            (tenant, held.get((tenant.pod.namespace, tenant.pod.name), 0) - tenant.expected) for tenant in self.tenants
        )
        return tuple((tenant, excess) for tenant, excess in found if excess > 0)


def accounts(devices: dict[str, Device], pods: tuple[Pod, ...], memo: Memo | None = None) -> dict[str, Account]:
    """Every device's ledger, from the pods that are on it or still leaving it. An ended pod's processes are gone: it promises nothing."""
    memo = memo or Memo()
    here: dict[str, list[Pod]] = {}
    for pod in pods:
        if pod.allocation is None or pod.ended is not None or pod.phase in ("Succeeded", "Failed"):
            continue
        for uuid in pod.allocation.gpus:
            if uuid in devices:
                here.setdefault(devices[uuid].node, []).append(pod)
    nodes: dict[str, list[Device]] = {}
    for device in devices.values():
        nodes.setdefault(device.node, []).append(device)
    out: dict[str, Account] = {}
    for node, there in nodes.items():
        mine = here.get(node, ())
        out.update(memo.of("accounts", (*there, *mine), (len(there),), partial(_accounts, there, mine)))
    return out


def _accounts(devices: Sequence[Device], pods: Sequence[Pod]) -> dict[str, Account]:
    """Those of one node. A pod is among `pods` as often as it has GPUs there."""
    by_device: dict[str, dict[int, Pod]] = {device.uuid: {} for device in devices}
    for pod in pods:
        for uuid in pod.allocation.gpus if pod.allocation else ():
            if uuid in by_device:
                by_device[uuid][id(pod)] = pod
    return {device.uuid: _account(device, tuple(by_device[device.uuid].values())) for device in devices}


def _account(device: Device, pods: Sequence[Pod]) -> Account:
    ordered = sorted(pods, key=lambda pod: (pod.namespace, pod.name))
    tenants = tuple(Tenant(pod, pod.allocation) for pod in ordered if pod.allocation)
    return Account(device, tenants, max((tenant.allocation.headroom for tenant in tenants), default=0))
