"""Who holds which GPU, by the kubelet's PodResources API (v1), and the file in which the reader tells the agent.

The socket belongs to root. So that the agent, which sees every process of the host, need not be root, a second
container of its pod (uid 0, no capabilities, no hostPID) asks the kubelet and writes the answer to a directory both
share.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from cotenant.errors import CotenantError

SOCKET = Path("/var/lib/kubelet/pod-resources/kubelet.sock")
FILE_VERSION = 1
_GPU = re.compile(r"^(GPU-[0-9a-zA-Z-]+)(?:::([0-9]+))?$")
"""What NVIDIA's device plugin calls a GPU (strategy uuid), and `::n` for the n-th replica of a shared one."""
MAX_MESSAGE = 16 << 20
"""Bytes; the kubelet's answer for 500 pods is below 1 MiB."""


class PodResourcesError(CotenantError):
    """The kubelet did not answer."""


@dataclass(frozen=True, slots=True)
class Holding:
    """One device of one container, as the device plugin named it."""

    namespace: str
    pod: str
    container: str
    resource: str
    device: str

    @property
    def gpu(self) -> str:
        """The GPU's UUID without the replica; '' for what is no whole GPU."""
        found = _GPU.match(self.device)
        return found[1] if found else ""

    @property
    def is_mig(self) -> bool:
        """Whether it is a slice of a GPU."""
        return self.device.startswith("MIG-") or "/mig-" in self.resource


@dataclass(frozen=True, slots=True)
class Holdings:
    """What the kubelet said at one moment."""

    at: float
    """Unix seconds of the last answer."""
    held: tuple[Holding, ...] = ()
    allocatable: tuple[str, ...] = ()
    """Ids of all devices the plugins offer and call healthy, replicas counted singly."""
    error: str = ""
    """Why there is no newer answer."""


# ------------------------------------------------------------------------------------------------------- the API (v1)
_MESSAGES: dict[str, list[tuple[str, int, str]]] = {
    "ListPodResourcesRequest": [],
    "AllocatableResourcesRequest": [],
    "ContainerDevices": [("resource_name", 1, "string"), ("device_ids", 2, "string*")],
    "ContainerResources": [("name", 1, "string"), ("devices", 2, "ContainerDevices*")],
    "PodResources": [("name", 1, "string"), ("namespace", 2, "string"), ("containers", 3, "ContainerResources*")],
    "ListPodResourcesResponse": [("pod_resources", 1, "PodResources*")],
    "AllocatableResourcesResponse": [("devices", 1, "ContainerDevices*")],
}
"""The fields we read of k8s.io/kubelet/pkg/apis/podresources/v1/api.proto (Kubernetes 1.37); others are skipped as
unknown."""


def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="cotenant/podresources_v1.proto", package="v1", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind in fields:
            label = kinds.LABEL_REPEATED if kind.endswith("*") else kinds.LABEL_OPTIONAL
            kind = kind.rstrip("*")
            if kind == "string":
                message.field.add(name=field, number=number, label=label, type=kinds.TYPE_STRING)
            else:
                message.field.add(
                    name=field, number=number, label=label, type=kinds.TYPE_MESSAGE, type_name=f".v1.{kind}"
                )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"v1.{name}")) for name in _MESSAGES}


MESSAGES = _classes()
LIST = "/v1.PodResourcesLister/List"
ALLOCATABLE = "/v1.PodResourcesLister/GetAllocatableResources"


class PodResources:
    """A connection to one kubelet; it comes back by itself when the kubelet is started again."""

    def __init__(self, socket: Path = SOCKET, timeout: float = 5.0) -> None:
        options = [
            ("grpc.max_receive_message_length", MAX_MESSAGE),
            ("grpc.default_authority", "localhost"),  # the socket's path would be one that Go's HTTP/2 server refuses
            ("grpc.max_reconnect_backoff_ms", 2000),
        ]
        self._channel = grpc.insecure_channel(f"unix://{socket.absolute()}", options=options)
        self._timeout = timeout

    def read(self, now: float) -> Holdings:
        """Who holds what now; PodResourcesError when the kubelet does not answer."""
        held = tuple(
            Holding(pod.namespace, pod.name, container.name, devices.resource_name, device)
            for pod in self._call(LIST, "ListPodResources").pod_resources
            for container in pod.containers
            for devices in container.devices
            for device in devices.device_ids
        )
        offered = self._offered()
        allocatable = tuple(sorted({device for devices in offered for device in devices.device_ids}))
        return Holdings(at=now, held=held, allocatable=allocatable)

    def close(self) -> None:
        """Hang up."""
        self._channel.close()

    def _offered(self) -> Any:
        try:
            return self._call(ALLOCATABLE, "AllocatableResources").devices
        except PodResourcesError as error:
            if isinstance(error.__cause__, grpc.RpcError) and error.__cause__.code() is grpc.StatusCode.UNIMPLEMENTED:
                return ()  # kubelets before 1.23; what is held tells most of it
            raise

    def _call(self, method: str, name: str) -> Any:
        ask = self._channel.unary_unary(
            method,
            request_serializer=MESSAGES[f"{name}Request"].SerializeToString,
            response_deserializer=MESSAGES[f"{name}Response"].FromString,
        )
        try:
            return ask(MESSAGES[f"{name}Request"](), timeout=self._timeout)
        except grpc.RpcError as error:
            raise PodResourcesError(
                f"asking the kubelet {method.rpartition('/')[2]}: {error.code().name}: {error.details()}"
            ) from error


# ----------------------------------------------------------------------------------------------------------- the file
def write_holdings(path: Path, holdings: Holdings) -> None:
    """Put them where the agent reads; it never sees half of them."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(json.dumps({"version": FILE_VERSION, **asdict(holdings)}))
    fresh.chmod(0o644)  # read by another uid
    fresh.replace(path)


def read_holdings(path: Path) -> Holdings | None:
    """What the reader last wrote; None when it wrote nothing (yet) or nothing that can be read."""
    try:
        body = json.loads(path.read_text())
        if body.get("version") != FILE_VERSION:
            return None
        held = tuple(Holding(**holding) for holding in body["held"])
        return Holdings(
            at=float(body["at"]), held=held, allocatable=tuple(body["allocatable"]), error=str(body["error"])
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
