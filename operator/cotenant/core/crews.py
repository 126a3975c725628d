"""Every replica that is wanted with its pod, and the successors of those that are to be replaced without a gap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from cotenant.core.cases import Case, home, pods_of
from cotenant.core.demand import SUCCESSOR, Wanted
from cotenant.core.drift import outdated
from cotenant.core.estimate.modelconfig import ModelConfig
from cotenant.core.faults import Faults
from cotenant.core.inventory import Inventory
from cotenant.core.lessons import Lessons
from cotenant.core.memo import Memo
from cotenant.core.replica import Crew, Replica
from cotenant.core.snapshot import Learned, Pod, Policy, RolloutStrategy, Snapshot


def crews(
    snapshot: Snapshot, cases: tuple[Case, ...], machines: Inventory, troubles: Faults, lessons: Lessons, memo: Memo
) -> tuple[Crew, ...]:
    """Every replica that is wanted with its pod, and the successors of those that are to be replaced without a gap."""
    configs = {uri: found for uri, found in snapshot.configs if isinstance(found, ModelConfig)}
    refused = frozenset((namespace, pod) for namespace, pod, _ in snapshot.refusals)
    out = []
    for case in cases:
        placement = case.wanted[0].placement
        taught = tuple(lessons.get(wanted.key, ()) for wanted in case.wanted)
        known = tuple(configs.get(wanted.model.uri) for wanted in case.wanted)
        make = partial(_crew, case, known, taught, machines, troubles, refused, snapshot.policy, memo)
        plain = not any(namespace == placement.namespace for namespace, _ in refused)
        plain = plain and not any(pod.name.endswith(SUCCESSOR) for pod in case.pods)
        if case.calm and plain and placement.strategy is not RolloutStrategy.SURGE_IF_ROOM:
            out.append(memo.of("crew", (case, *known, *taught), (), make))
        else:
            crew = make()
            out.append(memo.of("crew as it is", crew, (), partial(tuple, crew)))
    return tuple(out)


def _crew(
    case: Case,
    configs: Sequence[ModelConfig | None],
    lessons: Sequence[tuple[Learned, ...]],
    machines: Inventory,
    troubles: Faults,
    refused: frozenset[tuple[str, str]],
    policy: Policy,
    memo: Memo,
) -> Crew:
    out = []
    for wanted, config, taught in zip(case.wanted, configs, lessons, strict=True):
        placement = wanted.placement
        failed = any(
            (fault := troubles.of.get(f"{wanted.key}/{n}")) and fault.failed for n in range(wanted.model.replicas)
        )
        surging = 0
        for index in range(wanted.model.replicas):
            found = sorted(pods_of(wanted, index, case.by_name), key=_seniority)
            if len(found) > 1 and placement.strategy is not RolloutStrategy.SURGE_IF_ROOM:
                # a surge under way was called off: the one that is right stays
                found.sort(
                    key=lambda pod: (*_seniority(pod)[:2], _is_outdated(wanted, index, pod, config, machines, policy))
                )
            pod = found[0] if found else None
            make = partial(Replica, wanted, index, pod, config=config, learned=taught)
            replica = troubles.applied(memo.of("replica", (wanted, pod, config, *taught), (index,), make))
            if pod is None and any((placement.namespace, name) in refused for name in wanted.names[index]):
                replica = replace(replica, refused=True)
            out.append(replica)
            if placement.strategy is not RolloutStrategy.SURGE_IF_ROOM or surging >= placement.max_unavailable:
                continue
            if len(found) > 1 or (not failed and _to_be_replaced(replica, machines, policy, memo)):
                surging += 1
                out.append(replace(replica, pod=found[1] if len(found) > 1 else None, successor=True))
    return tuple(out)


def _seniority(pod: Pod) -> tuple[bool, bool, float, str]:
    return (not pod.is_alive, not pod.ready, pod.created, pod.name)


def _is_outdated(
    wanted: Wanted, index: int, pod: Pod, config: ModelConfig | None, machines: Inventory, policy: Policy
) -> bool:
    replica, machine = Replica(wanted, index, pod, config=config), machines.machines.get(home(pod))
    return machine is not None and outdated(replica, machine, policy)


def _to_be_replaced(replica: Replica, machines: Inventory, policy: Policy, memo: Memo) -> bool:
    """It serves by an older spec."""
    pod = replica.pod
    if pod is None or pod.allocation is None or not pod.ready or pod.deleting:
        return False
    machine = machines.machines.get(pod.allocation.node)
    if machine is None:
        return False
    return memo.of("outdated", (replica, machine, policy), (), partial(outdated, replica, machine, policy))


def hopeful(crew: Crew, without: set[str]) -> Crew:
    """Replicas left `Failed`, or resting for long, keep no GPU from others; one that runs after all is planned as ever."""
    kept = [r for r in crew if r.key not in without or (r.pod is not None and r.pod.is_alive)]
    return crew if len(kept) == len(crew) else tuple(kept)
