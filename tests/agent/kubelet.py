"""The kubelet's PodResources socket, as a gRPC server of tests: answers what it is given."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from cotenant.agent.podresources import MESSAGES, Holding

NEWER_FIELDS = b"\x20\x01\x32\x02\x08\x01"
"""cpu_ids and a message our descriptors do not know: a real kubelet sends such."""


class Kubelet:
    """Listens on a socket; `held` and `offered` are what it says next."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.held: list[Holding] = []
        self.offered: list[str] = []
        self._server: grpc.Server | None = None

    def start(self) -> None:
        self._server = grpc.server(ThreadPoolExecutor(max_workers=2))
        answers = {"List": self._list, "GetAllocatableResources": self._allocatable}
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(answer, lambda raw: raw, lambda raw: raw)
            for name, answer in answers.items()
        }
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("v1.PodResourcesLister", handlers)])
        self._server.add_insecure_port(f"unix://{self.socket}")
        self._server.start()

    def stop(self) -> None:
        if self._server:
            self._server.stop(None).wait()
        self._server = None

    def hold(self, namespace: str, pod: str, *devices: str, resource: str = "nvidia.com/gpu") -> None:
        """A pod gets devices."""
        self.held += [Holding(namespace, pod, "main", resource, device) for device in devices]

    def _list(self, _: bytes, __: Any) -> bytes:
        answer = MESSAGES["ListPodResourcesResponse"]()
        for held in self.held:
            pod = answer.pod_resources.add(name=held.pod, namespace=held.namespace)
            container = pod.containers.add(name=held.container)
            container.devices.add(resource_name=held.resource, device_ids=[held.device])
            pod.MergeFromString(NEWER_FIELDS)
        return bytes(answer.SerializeToString())

    def _allocatable(self, _: bytes, __: Any) -> bytes:
        answer = MESSAGES["AllocatableResourcesResponse"]()
        devices: Iterable[str] = self.offered
        answer.devices.add(resource_name="nvidia.com/gpu", device_ids=list(devices))
        return bytes(answer.SerializeToString())
