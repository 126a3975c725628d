"""`ModelPlacement.status`: what became of the wish, and what the next decision builds on."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cotenant.api.meta import Conditions, Resource, Time, schema_extra


class ReplicaStatus(Resource):
    """One replica now."""

    index: int
    phase: Annotated[
        str,
        Field(
            json_schema_extra={"enum": ["Unplaced", "Waiting", "Starting", "Ready", "Leaving", "Failed"]},
            description="Unplaced, Waiting (its turn at the GPU), Starting, Ready, Leaving or Failed.",
        ),
    ]
    pod: str | None = None
    node: str | None = None
    gpus: Annotated[tuple[str, ...], Field(json_schema_extra=schema_extra(atomic=True), description="UUIDs.")] = ()
    memory: Annotated[str | None, Field(description="Granted on each GPU.")] = None
    utilization: Annotated[str | None, Field(description="The flag its engine runs with.")] = None
    reason: Annotated[str | None, Field(description="Why it is not Ready, in one word.")] = None
    message: Annotated[str | None, Field(description="Why it is not Ready, and what to do.")] = None
    since: Annotated[Time | None, Field(description="When the phase last changed.")] = None


class LearnedStatus(Resource):
    """What starts of this model taught."""

    key: Annotated[str, Field(description="Engine, settings, tensor parallel size and GPU product this was seen with.")]
    weights: str | None = None
    kv_cache_tokens: int | None = None
    kv_cache_memory: str | None = None
    cuda_graphs: str | None = None
    overrun: Annotated[str | None, Field(description="Used beyond the share, per GPU, at most.")] = None
    ready_seconds: int | None = None


class FaultStatus(Resource):
    """A replica's ladder so far: what went wrong, what was tried, when it starts again."""

    index: int
    generation: Annotated[int, Field(description="Of the spec, when it last failed.")]
    wish: Annotated[
        str, Field(description="What was asked for this model then: a change of it starts the ladder afresh.")
    ] = ""
    reason: str
    message: str
    attempt: int
    uid: Annotated[str, Field(description="The pod whose end this took down last.")] = ""
    remedies: Annotated[tuple[str, ...], Field(json_schema_extra=schema_extra(atomic=True))] = ()
    settings: dict[str, str] = {}
    times: Annotated[tuple[Time, ...], Field(json_schema_extra=schema_extra(atomic=True))] = ()
    retry_at: Time | None = None
    failed: bool = False


class LastFaultStatus(Resource):
    """The newest fault of the model, for people."""

    reason: str
    message: str
    remedy: str | None = None
    attempt: int
    time: Time


class EstimateStatus(Resource):
    """What the model is expected to need on each GPU, and so what `auto` asks for."""

    share: str | None = None
    weights: str | None = None
    activation: str | None = None
    cuda_graphs: str | None = None
    kv_cache: str | None = None
    context: int | None = None
    source: str | None = None


class ModelStatus(Resource):
    """One model now."""

    name: str
    desired: int = 0
    ready: int = 0
    url: Annotated[str | None, Field(description="Where it is served inside the cluster.")] = None
    replicas: Annotated[tuple[ReplicaStatus, ...], Field(json_schema_extra=schema_extra(atomic=True))] = ()
    learned: Annotated[tuple[LearnedStatus, ...], Field(json_schema_extra=schema_extra(atomic=True))] = ()
    faults: Annotated[tuple[FaultStatus, ...], Field(json_schema_extra=schema_extra(atomic=True))] = ()
    last_fault: LastFaultStatus | None = None
    estimate: EstimateStatus | None = None


class StatusField(Resource):
    """What became of the wish."""

    observed_generation: int | None = None
    summary: Annotated[str | None, Field(description="Replicas ready of those wanted: 2/2.")] = None
    nodes: Annotated[str | None, Field(description="Nodes its replicas are on.")] = None
    conditions: Conditions = ()
    models: Annotated[tuple[ModelStatus, ...], Field(json_schema_extra=schema_extra(map_keys=["name"]))] = ()
