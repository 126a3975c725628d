"""A snapshot as a problem file, the form `cotenant pack` reads: the same packing problem in the CR's terms.

What that form cannot say is said in comments: one headroom holds for all, a model has one share (not one per node), and
GPUs are numbered by their place on the node.
"""

from __future__ import annotations

import json
from typing import Any

import yaml

from cotenant.cli.outlook import question
from cotenant.core.packing.problem import Host, Workload
from cotenant.core.snapshot import Device, Model, Placement, Snapshot

NAMED = "cotenant.dev/named-by"
"""Stands for spec.nodes.names: a label of our own on the nodes that a placement names."""


def problem_file(seen: Snapshot, form: str = "yaml") -> str:
    """The file's text; as JSON without the comments."""
    data, notes = as_problem(seen)
    if form == "json":
        return json.dumps(data, indent=1) + "\n"
    lines = ["# From `cotenant snapshot --problem`. Try: cotenant pack FILE", *(f"# {note}" for note in notes)]
    return "\n".join(lines) + "\n" + yaml.safe_dump(data, sort_keys=False, width=140, allow_unicode=True)


def as_problem(seen: Snapshot) -> tuple[dict[str, Any], list[str]]:
    """The problem as plain data, and what it leaves out."""
    problem = question(seen)
    devices = {report.name: sorted(report.devices, key=lambda d: (d.index, d.uuid)) for report in seen.gpu_nodes}
    wishes = {
        f"{placement.namespace}/{placement.name}/{model.name}": (placement, model)
        for placement in seen.placements
        for model in placement.models
    }
    hosts = [host for host in problem.hosts if devices.get(host.name)]
    models, notes = [], []
    for workload in sorted(problem.workloads, key=lambda w: w.key):
        placement, model = wishes["/".join(workload.key.split("/")[:3])]
        entry, said = _model(workload, placement, model)
        models.append(entry)
        notes.extend(said)
    headrooms = sorted({workload.headroom for workload in problem.workloads} or {seen.policy.headroom})
    if len(headrooms) > 1:
        notes.append("placements ask for different headrooms; the largest holds for all here")
    if len({placement.namespace for placement in seen.placements}) > 1:
        notes.append("namespaces protect each other in the cluster; this form knows no namespaces")
    data = {
        "headroom": f"{headrooms[-1] / 100:g}%",
        "maxTenantsPerGPU": problem.max_tenants,
        "products": _products(hosts, devices),
        "nodes": [_node(host, devices[host.name], seen) for host in hosts],
        "models": models,
        "running": [
            {
                "model": running.workload,
                "node": running.host,
                "gpus": [
                    at for uuid in running.gpus for at, d in enumerate(devices.get(running.host, ())) if d.uuid == uuid
                ],
            }
            for running in sorted(problem.running, key=lambda r: (r.workload, r.replica))
            if devices.get(running.host)
        ],
    }
    return data, notes


def _products(hosts: list[Host], devices: dict[str, list[Device]]) -> list[dict[str, Any]]:
    found = {_product(devices[host.name]): (devices[host.name][0].usable, host.cost) for host in hosts}
    return [{"name": name, "memory": memory, "cost": cost} for name, (memory, cost) in sorted(found.items())]


def _product(devices: list[Device]) -> str:
    """Products of one name may differ in what the driver keeps: the memory is part of it."""
    return f"{devices[0].product}-{devices[0].usable >> 20}Mi"


def _node(host: Host, devices: list[Device], seen: Snapshot) -> dict[str, Any]:
    bins = {gpu.uuid: gpu for gpu in host.bins}
    islands: dict[int, list[int]] = {}
    used = {}
    for at, device in enumerate(devices):
        if device.island is not None:
            islands.setdefault(device.island, []).append(at)
        taken = bins[device.uuid].used if device.uuid in bins else device.usable  # not to be planned on at all
        if taken:
            used[str(at)] = taken
    node = next(node for node in seen.nodes if node.name == host.name)
    asked = {key for p in seen.placements for key, _ in _selectors(p)}
    labels = {key: value for key, value in node.labels if key in asked}
    for placement in seen.placements:
        if node.name in placement.names:
            labels[_label(placement)] = "true"
    entry: dict[str, Any] = {"name": host.name, "product": _product(devices), "gpus": len(devices)}
    joined = [members for _, members in sorted(islands.items()) if len(members) > 1]
    optional = {"islands": joined, "labels": labels, "used": used}
    entry |= {name: value for name, value in optional.items() if value}
    entry |= {"cpu": f"{host.cpu}m", "memory": host.memory}
    return entry if host.ready else {**entry, "ready": False}


def _selectors(placement: Placement) -> list[tuple[str, str]]:
    return [
        *placement.selector,
        *(pair for model in placement.models for other in model.per_node for pair in other.selector),
    ]


def _label(placement: Placement) -> str:
    return f"{NAMED}-{placement.namespace}-{placement.name}"


def _model(workload: Workload, placement: Placement, model: Model) -> tuple[dict[str, Any], list[str]]:
    given = [demand for demand in workload.demands if demand is not None]
    share: Any = str(model.share)
    notes = []
    if not share.endswith("%") or "+" in workload.key or len(workload.key.split("/")) > 3:
        share = max((demand.share for demand in given), default=0)
        if len({demand.share for demand in given}) > 1:
            notes.append(f"{workload.key} asks for different bytes on different products; the most is written")
    if model.per_node:
        notes.append(f"{workload.key} has other shares on some nodes (perNode); they are left out")
    entry: dict[str, Any] = {
        "name": workload.key,
        "share": share,
        "overrun": max((demand.overrun for demand in given), default=0),
        "tensorParallelSize": workload.gpus,
        "replicas": workload.replicas,
        "spread": workload.spread.value,
        "priority": workload.priority,
        "cpu": f"{workload.cpu}m",
        "memory": workload.memory,
    }
    selector = dict(placement.selector)
    if placement.names:
        selector[_label(placement)] = "true"
    return (entry | {"selector": selector} if selector else entry), notes
