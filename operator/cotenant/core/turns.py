"""Who starts and who leaves on each GPU: one start at a time, and none while memory comes back."""

from __future__ import annotations

from cotenant.core.drift import Start
from cotenant.core.names import named_for
from cotenant.core.snapshot import Allocation, Pod

Key = tuple[str, str]
"""Namespace and name of a pod."""


class Turns:
    """Who starts and who leaves on each GPU."""

    def __init__(self, pods: tuple[Pod, ...]) -> None:
        self.starting: dict[str, Key] = {}
        self.leaving: dict[str, Key] = {}
        for pod in pods:
            if pod.ready and not pod.deleting:
                continue
            for uuid in pod.allocation.gpus if pod.allocation else ():
                if pod.deleting and pod.ended is None:
                    self.leaving.setdefault(uuid, (pod.namespace, pod.name))
                elif pod.is_starting:
                    self.starting.setdefault(uuid, (pod.namespace, pod.name))

    def starter(self, allocation: Allocation | None, reader: str, beside: str = "") -> str:
        """The pod that starts on any of these GPUs, other than `beside`, for who reads in a namespace."""
        gpus, own = allocation.gpus if allocation else (), (reader, beside)
        return next((named_for(reader, *self.starting[u]) for u in gpus if self.starting.get(u, own) != own), "")

    def leaver(self, allocation: Allocation, reader: str) -> str:
        """The pod that leaves any of these GPUs, for who reads in a namespace."""
        return next((named_for(reader, *self.leaving[uuid]) for uuid in allocation.gpus if uuid in self.leaving), "")

    def leave(self, pod: Pod) -> None:
        if pod.allocation and pod.is_alive:
            for uuid in pod.allocation.gpus:
                self.leaving.setdefault(uuid, (pod.namespace, pod.name))
                if self.starting.get(uuid) == (pod.namespace, pod.name):
                    del self.starting[uuid]

    def has_any(self, allocation: Allocation | None) -> bool:
        """Whether somebody starts on, or leaves, any of these GPUs."""
        return any(uuid in self.starting or uuid in self.leaving for uuid in (allocation.gpus if allocation else ()))

    def start(self, start: Start) -> None:
        for uuid in start.allocation.gpus:
            self.starting[uuid] = (start.replica.wanted.placement.namespace, start.name)
