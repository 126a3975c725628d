"""What starts and readings taught, per model: kept in the placement's status, used by the next plan and the next start."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import inf

from cotenant.core.ask import known, per_node_share
from cotenant.core.cases import Case, pods_of
from cotenant.core.demand import Wanted
from cotenant.core.estimate.advice import at_share
from cotenant.core.estimate.modelconfig import ModelConfig
from cotenant.core.inventory import Inventory, Machine
from cotenant.core.learn import SETTLED, overrun
from cotenant.core.learn import learn as read
from cotenant.core.memo import Memo
from cotenant.core.oom.remedies import apply, overrides
from cotenant.core.oom.wish import is_by_spec, is_of, wish_of
from cotenant.core.pod import lesson
from cotenant.core.replica import Replica
from cotenant.core.share import Auto
from cotenant.core.snapshot import Allocation, Learned, Pod, Policy, Snapshot
from cotenant.core.vllm import Engine, runs

LATER = 90.0
"""Seconds after which what an agent says of a pod is of this pod, and not of the one before it under the same name: a silent agent
is known by its Lease (60 s), which is looked at every 15 s."""

Lessons = dict[str, tuple[Learned, ...]]
"""By `namespace/placement/model`."""


def learn(snapshot: Snapshot, cases: tuple[Case, ...], machines: Inventory, memo: Memo) -> Lessons:
    """What the statuses hold, and what serving engines add to it."""
    out: Lessons = {}
    configs = dict(snapshot.configs)
    for case in cases:
        there = tuple(machines.machines.get(node) for node in case.nodes)
        known = tuple(configs.get(wanted.model.uri) for wanted in case.wanted)
        work = partial(_of_case, case, known, machines, snapshot.policy, snapshot.now)
        out.update(memo.until("lessons", (case, snapshot.policy, *there, *known), snapshot.now, work))
    return out


def due_at(pods: tuple[Pod, ...], now: float) -> float | None:
    """When the next engine has run for long enough to be learned from (Unix seconds): its reading may not change any more by then."""
    return min((due for pod in pods if pod.is_alive and pod.ready and (due := pod.created + LATER) > now), default=None)


def _of_case(
    case: Case, configs: tuple[ModelConfig | str | None, ...], machines: Inventory, policy: Policy, now: float
) -> tuple[Lessons, float]:
    """And until when that is all: an engine that has served long enough teaches more."""
    out: Lessons = {}
    until = inf
    for wanted, config in zip(case.wanted, configs, strict=True):
        kept = {taught.key: taught for taught in wanted.placement.status.learned if taught.model == wanted.model.name}
        for index in range(wanted.model.replicas):
            engine = _engine(wanted, index, policy)
            for pod in pods_of(wanted, index, case.by_name):
                machine = machines.machines.get(pod.allocation.node) if pod.allocation else None
                if machine is None or not pod.ready or not pod.is_alive:
                    continue
                _add(kept, wanted, engine, pod, machine, policy, now, config)
                changes = [pod.created + LATER] + ([] if pod.ready_since is None else [pod.ready_since + SETTLED])
                until = min([until, *(at for at in changes if at > now)])
        if kept:
            out[wanted.key] = tuple(kept[key] for key in sorted(kept))
    return out, until


def _engine(wanted: Wanted, index: int, policy: Policy) -> Engine:
    """The block that a replica runs with: the spec's, with the remedies that the status says were taken."""
    placement, model = wanted.placement, wanted.model
    faults = (f for f in placement.status.faults if (f.model, f.index) == (model.name, index))
    fault = next((f for f in faults if is_of(f, wish_of(placement, model, policy), placement.generation)), None)
    return apply(model.engine, overrides(fault))


def _is_run_by(pod: Pod, wanted: Wanted, engine: Engine, machine: Machine, policy: Policy) -> bool:
    """Whether a pod was started with this block: one by an older spec, or with other remedies, teaches nothing of it."""
    given = pod.allocation
    if given is None or not is_by_spec(pod, wanted.model, policy):
        return False
    sized = isinstance(per_node_share(wanted.model, machine), Auto)
    return runs(pod.args, engine, given.bytes, any_length=sized)


def _add(
    kept: dict[str, Learned],
    wanted: Wanted,
    engine: Engine,
    pod: Pod,
    machine: Machine,
    policy: Policy,
    now: float,
    config: ModelConfig | str | None,
) -> None:
    allocation = pod.allocation
    if allocation is None:
        return
    key = lesson(wanted.model, engine, machine.product, allocation.utilization, policy)
    before = kept.get(key, Learned(wanted.model.name, key))
    after = before
    if pod.start_log and before.kv_cache_tokens is None:
        took = None if pod.ready_since is None else max(0, round(pod.ready_since - pod.created))
        after = read(wanted.model.name, key, pod.start_log, ready_seconds=took, before=before)
    is_of_this_pod = not machine.closed and now >= pod.created + LATER
    used = _used(pod, allocation, machine) if is_of_this_pod else None
    if used is not None:
        serving = 0.0 if pod.ready_since is None else now - pod.ready_since
        idle = after.overrun is None and serving >= SETTLED
        expected = _expected(wanted, allocation, config) if idle else None
        seen = used - allocation.bytes
        after = replace(after, overrun=overrun(after.overrun, allocation.overrun, expected, seen, serving))
    if after != before and _is_run_by(pod, wanted, engine, machine, policy):
        kept[key] = after


def _used(pod: Pod, allocation: Allocation, machine: Machine) -> int | None:
    """The most any rank uses, as the agent reads it; None = it says nothing of them."""
    return max(
        (
            reading.used
            for device in machine.devices
            if device.uuid in allocation.gpus
            for reading in device.tenants
            if (reading.namespace, reading.pod) == (pod.namespace, pod.name)
        ),
        default=None,
    )


def _expected(wanted: Wanted, allocation: Allocation, config: ModelConfig | str | None) -> int | None:
    """What the estimate expects beyond the share under load; None = nobody knows the model."""
    if not isinstance(config, ModelConfig) or not config.known:
        return None
    model = wanted.model
    return at_share(config, model.engine, model.tensor_parallel, allocation.bytes).overrun.value


def kv_pin(replica: Replica, allocation: Allocation, machine: Machine | None, policy: Policy) -> int | None:
    """The KV cache of an earlier start with this very share: pinned, a neighbour cannot spoil the next one. None = let vLLM measure."""
    if machine is None:
        return None
    taught = known(replica, machine.product, allocation.utilization, policy)
    return taught.kv_cache_bytes if taught else None
