"""`GPUNode`: what one agent reports of the GPUs of one node."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, ValidationError

from cotenant.api.meta import Conditions, Resource, schema_extra
from cotenant.core.snapshot import Device, GPUNode, Stranger, TenantReading

Byte = Annotated[int, Field(ge=0, json_schema_extra={"format": "int64"})]


class MemoryField(Resource):
    """NVML memory v2, bytes: CUDA sees total - reserved."""

    total: Byte
    reserved: Byte = 0
    used: Byte = 0


class TenantField(Resource):
    """A pod of ours on the GPU."""

    namespace: str
    pod: str
    used: Byte = 0


class StrangerField(Resource):
    """A process on the GPU that is not ours."""

    pid: int
    command: str = ""
    pod: Annotated[str | None, Field(description="namespace/name, where it belongs to a pod.")] = None
    used: Byte = 0


class GPUField(Resource):
    """One GPU."""

    uuid: str
    index: Annotated[int, Field(ge=0)]
    product: str = ""
    memory: MemoryField
    island: Annotated[int | None, Field(description="GPUs of one node with equal numbers are joined by NVLink.")] = None
    numa: int | None = None
    health: Annotated[str, Field(description="Healthy, or Unhealthy/<why>.")] = "Healthy"
    holder: Annotated[str | None, Field(description="The pod that keeps it from others; absent = not ours to use.")] = (
        None
    )
    owner: Annotated[
        str | None, Field(description="namespace/name of a pod that is not ours and has it by nvidia.com/gpu.")
    ] = None
    tenants: Annotated[tuple[TenantField, ...], Field(max_length=128, json_schema_extra=schema_extra(atomic=True))] = ()
    strangers: Annotated[
        tuple[StrangerField, ...], Field(max_length=256, json_schema_extra=schema_extra(atomic=True))
    ] = ()


class GPUNodeStatus(Resource):
    """The node's GPUs now."""

    observed_generation: int | None = None
    summary: Annotated[str | None, Field(description="How many GPUs of which product: 8 x NVIDIA H100 80GB HBM3.")] = (
        None
    )
    driver_version: str | None = None
    agent_version: str | None = None
    conditions: Conditions = ()
    gpus: Annotated[
        tuple[GPUField, ...],
        Field(max_length=64, json_schema_extra=schema_extra(map_keys=["uuid"]), description="The GPUs, one per UUID."),
    ] = ()


class GPUNodeResource(Resource):
    """The GPUs of one node, their memory, and whose processes are on them. Its name is the Node's."""

    status: GPUNodeStatus | None = None


COLUMNS: list[dict[str, Any]] = [
    {"name": "GPUs", "type": "string", "jsonPath": ".status.summary"},
    {"name": "Ready", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Ready")].status'},
    {"name": "Supported", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Supported")].status'},
    {"name": "Reason", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Supported")].reason'},
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
]


def parse(body: dict[str, Any]) -> GPUNode:
    """A GPUNode object as the core's record; one that cannot be read is not ready, and says so."""
    name = body["metadata"]["name"]
    try:
        status = GPUNodeResource.model_validate(body).status
    except ValidationError as error:
        return GPUNode(name=name, ready=False, reason="Unreadable", message=str(error.errors()[0]["msg"]))
    if status is None:
        return GPUNode(name=name, ready=False, reason="NoReport", message="its agent has not reported yet")
    conditions = {condition.type: condition for condition in status.conditions}
    ready, supported = conditions.get("Ready"), conditions.get("Supported")
    unsupported = supported is not None and supported.status == "False"
    blame = supported if unsupported else ready
    return GPUNode(
        name=name,
        devices=tuple(
            sorted((_device(name, gpu) for gpu in status.gpus), key=lambda device: (device.index, device.uuid))
        ),
        supported=not unsupported,
        ready=ready is None or ready.status == "True",
        reason=blame.reason if blame else "",
        message=blame.message if blame else "",
    )


def _device(node: str, gpu: GPUField) -> Device:
    return Device(
        uuid=gpu.uuid,
        node=node,
        index=gpu.index,
        product=gpu.product,
        total=gpu.memory.total,
        reserved=gpu.memory.reserved,
        used=gpu.memory.used,
        island=gpu.island,
        numa=gpu.numa,
        health=gpu.health,
        holder=gpu.holder,
        owner=gpu.owner,
        tenants=tuple(TenantReading(t.namespace, t.pod, t.used) for t in gpu.tenants),
        strangers=tuple(Stranger(s.pid, s.command, s.used, s.pod or "") for s in gpu.strangers),
    )
