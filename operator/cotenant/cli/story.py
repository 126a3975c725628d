"""A replica's whole story as lines of text, part by part, from the status, the objects and the core's own arithmetic."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any

from cotenant.api.spec import EngineField
from cotenant.cli.accounts import of_gpu
from cotenant.cli.map import phase
from cotenant.cli.why import Ground
from cotenant.core.ask import known, per_node_share
from cotenant.core.inventory import Machine
from cotenant.core.oom.deaths import Kind
from cotenant.core.oom.ladder import LADDERS
from cotenant.core.oom.remedies import PERMISSION, Rung, Setting, overrides
from cotenant.core.replica import Replica
from cotenant.core.share import SCALE, Auto, Bytes, Percent, gib
from cotenant.core.snapshot import Allocation, Fault, Learned, Model, Placement, Pod, Snapshot
from cotenant.core.status import rfc3339
from cotenant.core.vllm import Engine

IN_BYTES = frozenset(
    {
        Setting.KV_CACHE_BYTES,
        Setting.SHARE,
        Setting.WAIT_FOR_FREE,
        Setting.YIELD,
        Setting.RESERVE,
        Setting.HOST_MEMORY,
        Setting.SHARED_MEMORY,
    }
)
Parts = tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True)
class Story:
    """One replica's."""

    name: str
    """`namespace/placement/model/index`."""
    phase: str
    since: str
    parts: Parts


def stories(
    seen: Snapshot, ground: Ground, namespace: str, name: str, model: str | None = None, index: int | None = None
) -> list[Story]:
    """Of every replica that is meant; none where there is no such thing."""
    placement = next((p for p in seen.placements if p.key == (namespace, name)), None)
    if placement is None:
        return []
    return [
        _story(seen, ground, placement, entry, number)
        for entry in placement.models
        if model in (None, entry.name)
        for number in range(entry.replicas)
        if index in (None, number)
    ]


def _story(seen: Snapshot, ground: Ground, placement: Placement, model: Model, index: int) -> Story:
    key = f"{placement.namespace}/{placement.name}/{model.name}/{index}"
    said = _said(placement, model.name, index)
    replica = ground.replica(key)
    pod = replica.pod if replica else None
    state = said.get("phase") or (phase(pod) if pod else "not looked at yet")
    since = f" since {said['since'].replace('T', ' ')}" if said.get("since") else ""
    fault = next((f for f in placement.status.faults if (f.model, f.index) == (model.name, index)), None)
    parts = [
        ("wish", _wish(placement, model, seen)),
        ("now", _now(placement, said, pod)),
        ("place", _place(ground, key, pod, said)),
        ("flag", _flag(ground, replica, model, fault)),
        ("estimate", _estimate(placement, model.name)),
        ("ledger", _ledger(ground, pod)),
        ("start", _start(pod)),
        ("fault", _fault(fault, model)),
        ("learned", _learned(seen, ground, replica, placement, model)),
    ]
    return Story(key, state, since, tuple((title, tuple(lines)) for title, lines in parts if lines))


def _said(placement: Placement, model: str, index: int) -> dict[str, Any]:
    """The status's entry of a replica."""
    return next((r for r in _of_model(placement, model).get("replicas") or () if r.get("index") == index), {})


def _of_model(placement: Placement, model: str) -> dict[str, Any]:
    status = json.loads(placement.status.raw) if placement.status.raw else {}
    return next((entry for entry in status.get("models") or () if entry.get("name") == model), {})


# ------------------------------------------------------------------------------------------------------ wish and state
def _wish(placement: Placement, model: Model, seen: Snapshot) -> list[str]:
    group = f", tensor parallel over {model.tensor_parallel} GPUs" if model.tensor_parallel > 1 else ""
    headroom = seen.policy.headroom if placement.headroom is None else placement.headroom
    lines = [
        f"{model.uri}",
        f"share {model.share}, {model.replicas} replica{'s' * (model.replicas != 1)}{group}, spread {model.spread}, priority {model.priority}, "
        f"headroom {headroom / 100:g}%",
    ]
    if placement.selector or placement.names:
        chosen = [f"{key}={value}" for key, value in placement.selector] + list(placement.names)
        lines.append(f"on nodes {', '.join(chosen)}")
    lines += [f"share {other.share} on {_pairs(other.selector)}" for other in model.per_node]
    if told := _engine(model.engine):
        lines.append("engine " + ", ".join(told))
    return lines


def _engine(engine: Engine) -> list[str]:
    """What its spec says of the engine, by the names of the spec's fields."""
    default = Engine()
    written = {"cuda_graphs": "cudaGraphs.enabled", "max_capture_size": "cudaGraphs.maxCaptureSize"} | {
        name: field.alias or name for name, field in EngineField.model_fields.items() if name != "cuda_graphs"
    }
    told = [] if not engine.auto_max_model_len else ["maxModelLen=auto"]
    return told + [
        f"{written[field.name]}={_value(getattr(engine, field.name))}"
        for field in fields(Engine)
        if field.name in written and getattr(engine, field.name) != getattr(default, field.name)
    ]


def _pairs(pairs: tuple[tuple[str, str], ...]) -> str:
    return ",".join(f"{key}={value}" for key, value in pairs)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _now(placement: Placement, said: dict[str, Any], pod: Pod | None) -> list[str]:
    lines = []
    if placement.status.observed_generation != placement.generation:
        lines.append("the controller has not looked at the newest spec yet; is it running?")
    if said.get("message"):
        lines.append(f"{said.get('reason', '')}: {said['message']}")
    if pod is not None:
        state = "leaving" if pod.deleting else "ready" if pod.ready else pod.phase
        lines.append(f"pod {pod.namespace}/{pod.name} ({state})")
        if pod.blocked:
            lines.append(f"it is held up: {pod.blocked_reason}: {pod.blocked}")
        if pod.ended:
            lines.append(
                f"its engine ended at {rfc3339(pod.ended.at)}: {pod.ended.reason}, exit code {pod.ended.exit_code}"
            )
    return lines


# ------------------------------------------------------------------------------------------------------ place and flag
def _place(ground: Ground, key: str, pod: Pod | None, said: dict[str, Any]) -> list[str]:
    if pod is not None and pod.allocation is not None:
        devices = [ground.known.machines.devices.get(uuid) for uuid in pod.allocation.gpus]
        gpus = ", ".join(f"GPU {d.index} ({d.uuid})" if d else "a GPU no longer reported" for d in devices)
        product = next((d.product for d in devices if d), "")
        return [f"node {pod.allocation.node}, {gpus} {product}".rstrip(), *ground.here(key)]
    if said.get("node"):
        return [f"planned on node {said['node']}, {', '.join(said.get('gpus') or ())}"]
    return ["none", *ground.nowhere(key)]


def _flag(ground: Ground, replica: Replica | None, model: Model, fault: Fault | None) -> list[str]:
    pod = replica.pod if replica else None
    if pod is None or pod.allocation is None:
        return []
    given = pod.allocation
    machine = ground.known.machines.machines.get(given.node)
    device = next((d for d in machine.devices if d.uuid in given.gpus), None) if machine else None
    lines = [f"--gpu-memory-utilization {given.utilization} grants {gib(given.bytes)} on each GPU"]
    if machine and device:
        share = per_node_share(model, machine)
        lines.append(
            f"T = {gib(device.usable)}: NVML total {gib(device.total)} - reserved {gib(device.reserved)}, what vLLM multiplies"
        )
        lines.append(_computed(share, given, machine, fault))
    running = _running_flag(pod)
    if running and running != given.utilization:
        lines.append(f"but it runs with {running}: its pod was edited, and will be replaced")
    return lines


def _computed(share: Percent | Bytes | Auto, given: Allocation, machine: Machine, fault: Fault | None) -> str:
    grown = overrides(fault).share
    if grown is not None:
        return f"share {share}, which remedies have grown to {grown}"
    asked = share if not isinstance(share, Auto) else None
    if asked is None:
        return f"auto: the estimate below (or what its first start taught) came to {gib(given.bytes)}"
    wanted = asked.utilization(machine.smallest)
    if str(wanted) != given.utilization:
        return f"the spec now asks for {share} = {wanted}: it runs by an older one"
    if isinstance(asked, Percent):
        return f"{share} of T, exactly {given.utilization}"
    return f"{share}: the smallest fraction of four digits of the smallest T that grants it"


def _running_flag(pod: Pod) -> str:
    found = ""
    for at, word in enumerate(pod.args):
        name, equals, value = word.partition("=")
        if name == "--gpu-memory-utilization":
            found = value if equals else next(iter(pod.args[at + 1 : at + 2]), "")
    return found


def _estimate(placement: Placement, model: str) -> list[str]:
    parts = _of_model(placement, model).get("estimate") or {}
    if not parts:
        return []
    names = {"weights": "weights", "activation": "activation", "cudaGraphs": "graphs", "kvCache": "KV cache"}
    told = ", ".join(f"{said} {parts[name]}" for name, said in names.items() if name in parts)
    return [
        f"at {parts.get('share', '?')}: {told}; context {parts.get('context', 0):,} tokens ({parts.get('source', '')})"
    ]


# -------------------------------------------------------------------------------------------------------------- ledger
def _ledger(ground: Ground, pod: Pod | None) -> list[str]:
    if pod is None or pod.allocation is None:
        return []
    lines = []
    for uuid in pod.allocation.gpus:
        account = ground.known.ledger.get(uuid)
        if account is not None:
            lines.extend(of_gpu(account, pod))
    return lines


# ------------------------------------------------------------------------------------------- starts, faults, lessons
def _start(pod: Pod | None) -> list[str]:
    if pod is None:
        return []
    lines = [f"created {rfc3339(pod.created)}"]
    if pod.ready_since is not None:
        lines[0] += f", ready {rfc3339(pod.ready_since)}, {max(0, round(pod.ready_since - pod.created))} s later"
    return lines


def _fault(fault: Fault | None, model: Model) -> list[str]:
    if fault is None:
        return []
    lines = [f"{fault.reason}: {fault.message}"]
    state = "given up" if fault.failed else f"attempt {fault.attempt}" if fault.attempt else "healed; what helped stays"
    when = f", last at {rfc3339(max(fault.times))}" if fault.times else ""
    lines.append(f"{state}{when} (of {model.on_out_of_memory.max_attempts} failures an hour)")
    if fault.retry_at and not fault.failed:
        lines.append(f"starts again at {rfc3339(fault.retry_at)} at the earliest")
    if fault.remedies:
        lines.append(f"taken: {', '.join(fault.remedies)}")
    if fault.settings:
        lines.append("so it runs with " + ", ".join(f"{name}={_told(name, value)}" for name, value in fault.settings))
    lines += _next(fault, model)
    return lines


def _told(name: str, value: str) -> str:
    """A setting's value; bytes as people read them."""
    return gib(int(value)) if name in IN_BYTES and value.isdecimal() and int(value) > SCALE else value


def _next(fault: Fault, model: Model) -> list[str]:
    """The rungs that are left, and those the spec does not allow."""
    try:
        ladder = LADDERS[Kind(fault.reason)]
    except (ValueError, KeyError):
        return []
    left = [rung for rung in ladder.rungs if rung not in fault.remedies]
    allowed = [str(r) for r in left if PERMISSION.get(r) is None or PERMISSION[r] in model.on_out_of_memory.allow]
    if (ladder.repeat or ladder.outside) and Rung.RESTART in fault.remedies:
        allowed.append(f"{Rung.RESTART} again")
    barred = [f"{r} (allow {PERMISSION[r]})" for r in left if str(r) not in allowed]
    lines = [f"next, as far as it helps: {', '.join(allowed) or 'nothing is left'}"] if not fault.failed else []
    if barred:
        lines.append(f"not allowed by onOutOfMemory: {', '.join(barred)}")
    if ladder.advice:
        lines.append(f"what a person can do: {ladder.advice}")
    return lines


def _learned(seen: Snapshot, ground: Ground, replica: Replica | None, placement: Placement, model: Model) -> list[str]:
    pod = replica.pod if replica else None
    mine: Learned | None = None
    if replica and pod and pod.allocation and (machine := ground.known.machines.machines.get(pod.allocation.node)):
        mine = known(replica, machine.product, pod.allocation.utilization, seen.policy)
    entries = [mine] if mine else [taught for taught in placement.status.learned if taught.model == model.name]
    return [_lesson(taught) for taught in entries]


def _lesson(taught: Learned) -> str:
    sizes = {
        "weights": taught.weights, "KV cache": taught.kv_cache_bytes, "graphs": taught.cuda_graphs, "overrun": taught.overrun,
    }  # fmt: skip
    parts = [f"{name} {gib(size)}" for name, size in sizes.items() if size is not None]
    if taught.kv_cache_tokens is not None:
        parts.append(f"{taught.kv_cache_tokens:,} tokens of KV cache")
    if taught.ready_seconds is not None:
        parts.append(f"ready in {taught.ready_seconds} s")
    return f"{', '.join(parts) or 'nothing yet'} ({taught.key})"
