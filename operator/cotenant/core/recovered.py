"""Engines whose allocation was taken off their pods by hand: what they hold, from their command lines and what their GPUs say."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from cotenant.core.memo import Memo
from cotenant.core.share import read_utilization
from cotenant.core.snapshot import Allocation, GPUNode, Pod, Policy, Snapshot
from cotenant.core.vllm import utilization_of


def recovered(snapshot: Snapshot, memo: Memo) -> Snapshot:
    """The same, with such pods given what they have: they count, keep their place, and are known to be edited by their hash."""
    if all(pod.allocation is not None for pod in snapshot.pods):
        return snapshot
    reports = {report.name: report for report in snapshot.gpu_nodes}
    pods = tuple(
        pod
        if pod.allocation is not None or not pod.is_alive or (report := reports.get(pod.node or "")) is None
        else memo.of("recovered", (pod, report, snapshot.policy), (), partial(_recovered, pod, report, snapshot.policy))
        for pod in snapshot.pods
    )
    return replace(snapshot, pods=pods)


def _recovered(pod: Pod, report: GPUNode, policy: Policy) -> Pod:
    me = (pod.namespace, pod.name)
    here = [d for d in report.devices if any((reading.namespace, reading.pod) == me for reading in d.tenants)]
    granted = read_utilization(utilization_of(pod.args))
    if not here or granted is None:
        return pod
    share = granted.of(min(device.usable for device in here))
    gpus = tuple(device.uuid for device in here)
    return replace(
        pod, allocation=Allocation(report.name, gpus, share, str(granted), policy.headroom, policy.overrun), hash=""
    )
