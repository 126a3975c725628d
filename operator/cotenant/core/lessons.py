"""What starts and readings taught, per model: kept in the placement's status, used by the next plan and the next start."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from cotenant.core.ask import known
from cotenant.core.demand import Demands, Wanted
from cotenant.core.faults import PodsByName, pods_of
from cotenant.core.inventory import Inventory, Machine
from cotenant.core.learn import learn as read
from cotenant.core.memo import Memo
from cotenant.core.pod import lesson
from cotenant.core.replica import Replica
from cotenant.core.share import MIB
from cotenant.core.snapshot import Allocation, Learned, Pod, Policy, Snapshot

SETTLED = 3600.0
"""Seconds of serving after which what an engine uses beyond its share may count for less than the default: load comes later than Ready."""
STEP = 64 * MIB
"""A learned overrun is written anew when it has grown by this much."""

Lessons = dict[str, tuple[Learned, ...]]
"""By `namespace/placement/model`."""


def learn(snapshot: Snapshot, demands: Demands, machines: Inventory, pods: PodsByName, memo: Memo) -> Lessons:
    """What the statuses hold, and what serving engines add to it."""
    out: Lessons = {}
    for wanted in demands.wanted:
        kept = {taught.key: taught for taught in wanted.placement.status.learned if taught.model == wanted.model.name}
        for index in range(wanted.model.replicas):
            for pod in pods_of(wanted, index, pods):
                machine = machines.machines.get(pod.allocation.node) if pod.allocation else None
                if machine is not None and pod.ready and pod.is_alive:
                    _add(kept, wanted, pod, machine, snapshot.policy, snapshot.now, memo)
        if kept:
            out[wanted.key] = tuple(kept[key] for key in sorted(kept))
    return out


def _add(
    kept: dict[str, Learned], wanted: Wanted, pod: Pod, machine: Machine, policy: Policy, now: float, memo: Memo
) -> None:
    allocation = pod.allocation
    if allocation is None:
        return
    told = (machine.product, allocation.utilization)
    key = memo.of("lesson", (wanted.model, policy), told, partial(lesson, wanted.model, *told, policy))
    before = kept.get(key, Learned(wanted.model.name, key))
    after = before
    if pod.start_log and before.kv_cache_tokens is None:
        took = None if pod.ready_since is None else max(0, round(pod.ready_since - pod.created))
        after = read(wanted.model.name, key, pod.start_log, ready_seconds=took, before=before)
    after = _overrun(after, pod, allocation, machine, policy, now)
    if after != before:
        kept[key] = after


def _overrun(
    taught: Learned, pod: Pod, allocation: Allocation, machine: Machine, policy: Policy, now: float
) -> Learned:
    """The most any rank was seen to use beyond its share. It never shrinks; below the default it counts only after a while."""
    used = [
        reading.used
        for device in machine.devices
        if device.uuid in allocation.gpus
        for reading in device.tenants
        if (reading.namespace, reading.pod) == (pod.namespace, pod.name)
    ]
    seen = max(used, default=0) - allocation.bytes
    settled = pod.ready_since is not None and now - pod.ready_since >= SETTLED
    if seen <= 0 or not (settled or seen > policy.overrun):
        return taught
    before = taught.overrun
    return taught if before is not None and seen < before + STEP else replace(taught, overrun=seen)


def kv_pin(replica: Replica, allocation: Allocation, machine: Machine | None, policy: Policy) -> int | None:
    """The KV cache of an earlier start with this very share: pinned, a neighbour cannot spoil the next one. None = let vLLM measure."""
    if machine is None:
        return None
    taught = known(replica, machine.product, allocation.utilization, policy)
    return taught.kv_cache_bytes if taught else None
