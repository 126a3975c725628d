"""Asks that no managed node could ever meet: only a change of the spec, or of the nodes' labels, helps."""

from __future__ import annotations

from cotenant.core.demand import Demands, Issue, Wanted
from cotenant.core.inventory import Inventory, Machine
from cotenant.core.replica import Assigned, NoPlace, Replica


def impossible(
    demands: Demands, machines: Inventory, replicas: list[Replica], places: dict[str, Assigned | NoPlace]
) -> dict[str, tuple[Issue, ...]]:
    """What only a change of the spec can put right: the spec's own issues, and asks no managed node could ever meet."""
    found = {owner: list(issues) for owner, issues in demands.issues.items()}
    lacking = {r.wanted.key for r in replicas if not r.successor and isinstance(places.get(r.key), NoPlace)}
    nodes_said: set[str] = set()
    for wanted in demands.wanted:
        if wanted.key not in lacking or not machines.machines:
            continue
        owner = f"{wanted.placement.namespace}/{wanted.placement.name}"
        selected = [machine for machine in machines.machines.values() if _selected(wanted, machine)]
        if not selected:
            if owner not in nodes_said:
                nodes_said.add(owner)
                found.setdefault(owner, []).append(_no_node(wanted, machines))
            continue
        most = max((machine for machine in selected), key=lambda machine: (len(machine.devices), machine.node.name))
        if most.devices and len(most.devices) < wanted.model.tensor_parallel:
            found.setdefault(owner, []).append(
                Issue(
                    f"{wanted.path}.tensorParallelSize",
                    "TooManyGPUs",
                    f"asks for {wanted.model.tensor_parallel} GPUs of one node; of the nodes it may use {most.node.name} "
                    f"has the most, {len(most.devices)}; ask for fewer or select larger nodes",
                )
            )
    return {owner: tuple(issues) for owner, issues in found.items()}


def _selected(wanted: Wanted, machine: Machine) -> bool:
    placement = wanted.placement
    if placement.names and machine.node.name not in placement.names:
        return False
    return set(placement.selector) <= set(machine.node.labels)


def _no_node(wanted: Wanted, machines: Inventory) -> Issue:
    placement = wanted.placement
    path = "spec.nodes.names" if placement.names else "spec.nodes.selector"
    asked = ", ".join(placement.names) or ", ".join(f"{key}={value}" for key, value in placement.selector)
    there = sorted({machine.product for machine in machines.machines.values() if machine.product})
    return Issue(
        path,
        "NoNodeSelected",
        f"selects none of the {len(machines.machines)} managed nodes ({asked}); their GPUs are {', '.join(there) or 'not reported'}",
    )
