"""`ModelPlacement`: the wish and its status as one resource, and its way into the core's records."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

from pydantic import ValidationError

from cotenant.api.check import problems, without_nulls
from cotenant.api.meta import Resource, Rule, seconds
from cotenant.api.schema import Schema, structural
from cotenant.api.share import LARGEST
from cotenant.api.spec import EXTRA_ARGS_RULES, MODEL_RULES, EngineField, ModelField, SpecField
from cotenant.api.status import FaultStatus, LearnedStatus, StatusField
from cotenant.core import vllm, vllmflags
from cotenant.core.share import parse_cpu, parse_percent, parse_quantity, parse_share
from cotenant.core.snapshot import (
    Condition,
    Fault,
    Invalid,
    Learned,
    Model,
    NodeShare,
    OnOutOfMemory,
    Placement,
    Remedy,
    ReplicaMemory,
    RolloutStrategy,
    Spread,
    Status,
)
from cotenant.errors import InvalidSpec


class ModelPlacement(Resource):
    """These models, these memory shares, these nodes: Cotenant packs them onto GPUs and keeps them there."""

    spec: SpecField
    status: StatusField | None = None


ROOT_RULES = [
    Rule(
        "self.spec.models.all(m, size(self.metadata.name) + size(m.name) <= 56)",
        "the names of the placement and of a model together may have 56 characters: pods and Services are called <placement>-<model>",
        lambda body: all(len(body["metadata"]["name"]) + len(m["name"]) <= 56 for m in body["spec"]["models"]),
    ),
    Rule(
        "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        "metadata.name becomes the name of Services: letters, digits and '-', beginning with a letter",
        lambda body: re.search(r"^[a-z]([-a-z0-9]*[a-z0-9])?\Z", body["metadata"]["name"]) is not None,
    ),
]

HOLDS = {rule.cel: rule.holds for rule in (LARGEST, *EXTRA_ARGS_RULES, *MODEL_RULES)}
TOLD = 5
"""Wrong fields that a status names."""

COLUMNS: list[dict[str, Any]] = [
    {
        "name": "Models",
        "type": "string",
        "jsonPath": ".status.summary",
        "description": "Replicas ready of those wanted.",
    },
    {"name": "Ready", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Ready")].status'},
    {"name": "Reason", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Ready")].reason'},
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    {"name": "Nodes", "type": "string", "jsonPath": ".status.nodes", "priority": 1},
]


@cache
def _schema() -> Schema:
    return structural(ModelPlacement)


def check(body: dict[str, Any]) -> list[Invalid]:
    """Everything the API server would refuse of an object with a proper name, then everything that we refuse beside it."""
    whole = _schema()
    if body.get("spec") is None:
        return [Invalid("spec", "is required")]
    found = problems(body.get("spec"), whole["properties"]["spec"], "spec", HOLDS, strict=True)
    if found:
        return found
    found = [Invalid(_blamed(rule), rule.message) for rule in ROOT_RULES if not rule.holds(body)]
    for index, model in enumerate(SpecField.model_validate(body["spec"]).models):
        try:
            _model(index, model)
        except InvalidSpec as error:
            found.append(Invalid(error.path, error.reason))
    return found


def _blamed(rule: Rule) -> str:
    return "spec.models" if "spec" in rule.cel else "metadata.name"


def _unreadable(spec: Any, error: ValidationError) -> Invalid:
    """What is wrong with a spec, in the words of the command line: the first field, and the others in its reason."""
    found = problems(without_nulls(spec), _schema()["properties"]["spec"], "spec", HOLDS)
    if not found:
        first = error.errors()[0]
        return Invalid(_path(first["loc"]), first["msg"])
    others = [f"{other.path}: {other.reason}" for other in found[1:TOLD]]
    return Invalid(found[0].path, "; ".join([found[0].reason, *others]))


def parse(body: dict[str, Any]) -> Placement:
    """A ModelPlacement object as the core's record. A spec that cannot be read leaves `invalid` set and no models: nothing of it is touched."""
    meta = body["metadata"]
    known = {
        "namespace": meta["namespace"],
        "name": meta["name"],
        "uid": meta["uid"],
        "generation": meta.get("generation", 1),
        "created": seconds(meta.get("creationTimestamp")),
        "deleting": "deletionTimestamp" in meta,
        "status": read_status(body.get("status") or {}),
    }
    try:
        spec = SpecField.model_validate(body.get("spec") or {})
    except ValidationError as error:
        return Placement(**known, models=(), invalid=_unreadable(body.get("spec"), error))
    try:
        models = tuple(_model(index, model) for index, model in enumerate(spec.models))
    except InvalidSpec as error:
        return Placement(**known, models=(), invalid=Invalid(error.path, error.reason))
    return Placement(
        **known,
        models=models,
        selector=tuple(sorted(spec.nodes.selector.items())),
        names=tuple(sorted(spec.nodes.names)),
        headroom=None if spec.headroom is None else _headroom(spec.headroom),
        strategy=RolloutStrategy(spec.rollout.strategy.value),
        max_unavailable=spec.rollout.max_unavailable,
    )


def _path(loc: tuple[str | int, ...]) -> str:
    return "spec" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)


def _headroom(text: str) -> int:
    return 0 if set(text) <= set("0.%") else parse_percent(text)


def _model(index: int, model: ModelField) -> Model:
    path = f"spec.models[{index}]"

    def read(field: str, text: Any, parser: Any) -> Any:
        try:
            return None if text is None else parser(text)
        except ValueError as error:
            raise InvalidSpec(f"{path}.{field}", str(error)) from error

    read("uri", model.uri, vllm.source)
    for position in range(len(model.engine.extra_args)):
        if reason := vllmflags.refuse_extra(model.engine.extra_args[: position + 1]):
            raise InvalidSpec(f"{path}.engine.extraArgs[{position}]", reason)
    engine = _engine(model.engine)
    if reason := vllm.contradiction(engine):
        raise InvalidSpec(f"{path}.engine", reason)
    return Model(
        name=model.name,
        uri=model.uri,
        share=read("share", model.share, parse_share),
        served_name=model.served_name or model.name,
        per_node=tuple(
            NodeShare(
                tuple(sorted(other.selector.items())), read(f"perNode[{position}].share", other.share, parse_share)
            )
            for position, other in enumerate(model.per_node)
        ),
        replicas=model.replicas,
        tensor_parallel=model.tensor_parallel_size,
        spread=Spread(model.spread.value),
        priority=model.priority,
        engine=engine,
        cpu=read("resources.cpu", model.resources.cpu, parse_cpu),
        memory=read("resources.memory", model.resources.memory, parse_quantity),
        token_secret=model.token_secret,
        cache_claim=model.cache.claim if model.cache else None,
        on_out_of_memory=OnOutOfMemory(
            max_share=read("onOutOfMemory.maxShare", model.on_out_of_memory.max_share, parse_share),
            max_attempts=model.on_out_of_memory.max_attempts,
            allow=tuple(sorted(Remedy(remedy.value) for remedy in model.on_out_of_memory.allow)),
        ),
    )


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(value, sort_keys=True, separators=(",", ":"))


def _engine(engine: EngineField) -> vllm.Engine:
    length = engine.max_model_len
    return vllm.Engine(
        name=engine.name,
        quantization=engine.quantization,
        dtype=engine.dtype,
        kv_cache_dtype=engine.kv_cache_dtype,
        max_model_len=length if isinstance(length, int) else None,
        auto_max_model_len=length == "auto",
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        target_concurrency=engine.target_concurrency,
        cuda_graphs=engine.cuda_graphs.enabled,
        max_capture_size=engine.cuda_graphs.max_capture_size,
        compilation_config=_json(engine.compilation_config),
        limit_mm_per_prompt=_json(engine.limit_mm_per_prompt),
        mm_processor_kwargs=_json(engine.mm_processor_kwargs),
        mm_processor_cache_gb=engine.mm_processor_cache_gb,
        cpu_offload_gb=engine.cpu_offload_gb,
        kv_offloading_gb=engine.kv_offloading_gb,
        load_format=engine.load_format,
        extra_args=engine.extra_args,
    )


def read_status(body: dict[str, Any]) -> Status:
    """What the status remembers; one that cannot be read (written by hand, or newer) is begun afresh."""
    try:
        status = StatusField.model_validate(body)
        raw = json.dumps(body, sort_keys=True, separators=(",", ":"))
        return Status(
            observed_generation=status.observed_generation or 0,
            conditions=tuple(
                Condition(
                    c.type, c.status, c.reason, c.message, seconds(c.last_transition_time), c.observed_generation or 0
                )
                for c in status.conditions
            ),
            replicas=tuple(
                ReplicaMemory(m.name, r.index, r.phase, seconds(r.since), r.node or "", r.gpus)
                for m in status.models
                for r in m.replicas
            ),
            learned=tuple(_learned(m.name, known) for m in status.models for known in m.learned),
            faults=tuple(_fault(m.name, fault) for m in status.models for fault in m.faults),
            raw=raw,
        )
    except (ValidationError, ValueError):
        return Status()


def _learned(model: str, known: LearnedStatus) -> Learned:
    def size(text: str | None) -> int | None:
        return None if text is None else parse_quantity(text)

    return Learned(
        model=model,
        key=known.key,
        weights=size(known.weights),
        kv_cache_tokens=known.kv_cache_tokens,
        kv_cache_bytes=size(known.kv_cache_memory),
        cuda_graphs=size(known.cuda_graphs),
        overrun=size(known.overrun),
        ready_seconds=known.ready_seconds,
    )


def _fault(model: str, fault: FaultStatus) -> Fault:
    return Fault(
        model=model,
        index=fault.index,
        generation=fault.generation,
        reason=fault.reason,
        message=fault.message,
        attempt=fault.attempt,
        remedies=fault.remedies,
        settings=tuple(sorted(fault.settings.items())),
        times=tuple(seconds(time) for time in fault.times),
        retry_at=seconds(fault.retry_at) if fault.retry_at else 0.0,
        failed=fault.failed,
        uid=fault.uid,
        wish=fault.wish,
    )
