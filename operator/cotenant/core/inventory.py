"""Nodes and what their agents report -> the GPUs that exist, and which of them may be used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from cotenant.core.labelled import by_labels
from cotenant.core.memo import Memo
from cotenant.core.share import gib
from cotenant.core.snapshot import Device, GPUNode, Node, Policy


@dataclass(frozen=True, slots=True)
class Machine:
    """One managed node with its GPUs."""

    node: Node
    devices: tuple[Device, ...]
    closed: str = ""
    """Why nothing new may be placed here; '' = open. What runs here stays."""
    lost: str = ""
    """Why what ran here must be planned elsewhere; '' = it may stay."""
    smallest: int = field(init=False)
    """Usable bytes of its smallest GPU; 0 without any."""
    largest: int = field(init=False)

    def __post_init__(self) -> None:
        sizes = [device.usable for device in self.devices]
        object.__setattr__(self, "smallest", min(sizes, default=0))
        object.__setattr__(self, "largest", max(sizes, default=0))

    @property
    def product(self) -> str:
        """The GPUs' product; nodes have one kind of GPU (GPU Feature Discovery wants so too)."""
        return self.devices[0].product if self.devices else self.node.label("nvidia.com/gpu.product")


@dataclass(frozen=True, slots=True)
class Inventory:
    """All managed nodes, by name, and where each GPU is."""

    machines: dict[str, Machine]
    devices: dict[str, Device]
    wake_at: float | None = None
    """When a grace ends."""

    def healthy(self, uuid: str) -> bool:
        """Whether this GPU exists and works."""
        device = self.devices.get(uuid)
        return device is not None and device.health == "Healthy"


def inventory(
    nodes: tuple[Node, ...],
    gpu_nodes: tuple[GPUNode, ...],
    policy: Policy,
    now: float,
    memo: Memo | None = None,
    silent: frozenset[str] = frozenset(),
) -> Inventory:
    """The GPUs of managed nodes. A node without a report has none: placement by belief over-packs."""
    memo = memo or Memo()
    reports = {report.name: report for report in gpu_nodes}
    machines: dict[str, Machine] = {}
    devices: dict[str, Device] = {}
    wake_at: float | None = None
    for node in sorted(nodes, key=lambda n: n.name):
        if not is_managed(node, policy):
            continue
        report = reports.get(node.name)
        closed, lost = _why_closed(node, report), ""
        if not closed and node.name in silent:
            closed = f"the agent of {node.name} has fallen silent; is its pod running?"
        if not node.ready:
            ends = (node.not_ready_since or now) + policy.node_grace
            if now >= ends:
                lost = f"node {node.name} has been NotReady for more than {policy.node_grace:.0f} s"
            else:
                wake_at = ends if wake_at is None else min(wake_at, ends)
        found = report.devices if report is not None else ()
        make = partial(Machine, node, found, closed, lost)
        machines[node.name] = memo.of("machine", (node, report), (closed, lost), make)
        devices.update((device.uuid, device) for device in found)
    return Inventory(machines, devices, wake_at)


def is_managed(node: Node, policy: Policy) -> bool:
    """Whether the node's owner gave its GPUs to Cotenant, by label."""
    key, value = policy.managed_label
    return not key or (key, value) in node.labels or (not value and not node.label(key))


def _why_closed(node: Node, report: GPUNode | None) -> str:
    if not node.ready:
        return f"node {node.name} is NotReady"
    if node.cordoned:
        return f"node {node.name} is cordoned"
    if report is None:
        return f"no agent reports the GPUs of {node.name}{_labels_say(node)}; is the cotenant agent running there?"
    if not report.supported:
        return f"node {node.name} is not supported ({report.reason}): {report.message}"
    if not report.ready:
        return f"the agent of {node.name} is not ready ({report.reason}): {report.message}"
    return ""


def _labels_say(node: Node) -> str:
    """What is known of them all the same."""
    found = by_labels(node)
    if found is None or not found.devices:
        return ""
    device = found.devices[0]
    return f" (its labels speak of {len(found.devices)} x {device.product}, {gib(device.total)} each, which is enough to plan by and too little to start by)"


def shut(found: Inventory, closed: Callable[[str], str], memo: Memo) -> Inventory:
    """The same inventory with the machines closed that the binding will not give out."""
    whys = {name: why for name, machine in found.machines.items() if not machine.closed and (why := closed(name))}
    if not whys:
        return found
    machines = {
        name: memo.of("shut", (machine,), (whys[name],), partial(replace, machine, closed=whys[name]))
        if name in whys
        else machine
        for name, machine in found.machines.items()
    }
    return replace(found, machines=machines)
