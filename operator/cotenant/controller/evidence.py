"""Evidence before cleanup: the log of every engine that ended, and of every start that became ready, is read once.

The core judges an ended engine only when its log was read, so nothing deletes a pod whose last words nobody heard.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass

from cotenant.controller.cache import Cache, Key
from cotenant.core.decision import Decision, WriteStatus
from cotenant.core.names import ENGINE_CONTAINER
from cotenant.core.snapshot import Placement, Pod, Snapshot
from cotenant.errors import ClusterError, NotFound, Refused

log = logging.getLogger(__name__)

ReadLog = Callable[[str, str], Awaitable[str]]
"""(namespace, pod) -> the end of its log."""

LINES = 1500
BYTES = 256 * 1024
"""Of the end of a log: the API server's traceback of some 60 lines comes last, before it up to 130 of every rank's, and
the cause stands in the first rank's. The kubelet takes the last lines and of those the first bytes."""
READERS = 8
PAUSES = (0.0, 0.5, 2.0)
"""Seconds before each try; a kubelet that does not answer then has nothing to say."""


@dataclass(frozen=True, slots=True)
class Task:
    """One log to read."""

    uid: str
    namespace: str
    name: str
    ended: bool


class Evidence:
    """Reads logs beside the passes and puts them into the cache."""

    def __init__(self, cache: Cache, read_log: ReadLog, ring: Callable[[], None]) -> None:
        self._cache = cache
        self._read_log = read_log
        self._ring = ring
        self._tasks: dict[tuple[str, bool], asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(READERS)
        self._running: set[str] = set()
        """uids seen not ready: their becoming ready is a start of which something can be learned."""

    def consider(self, pods: Collection[Pod], placements: Iterable[Placement]) -> None:
        """Begin to read what these pods have to say and was not read yet."""
        self._running &= {pod.uid for pod in pods}  # one that was deleted becomes ready no more
        taught = {(p.namespace, p.name, known.model) for p in placements for known in p.status.learned}
        for pod in pods:
            if pod.ended is not None and pod.ended.log is None:
                self._begin(Task(pod.uid, pod.namespace, pod.name, ended=True))
            elif pod.is_starting:
                self._running.add(pod.uid)
            elif pod.ready and pod.start_log is None and not pod.deleting:
                # of a start seen by a former controller nothing is asked that a status tells already
                fresh = pod.uid in self._running or (pod.namespace, pod.placement, pod.model) not in taught
                if fresh:
                    self._begin(Task(pod.uid, pod.namespace, pod.name, ended=False))
                else:
                    self._cache.keep_start_log(pod.uid, (pod.namespace, pod.name), "")

    def _begin(self, task: Task) -> None:
        key = (task.uid, task.ended)
        if key not in self._tasks:
            self._tasks[key] = asyncio.create_task(self._read(task))
            self._tasks[key].add_done_callback(lambda _: self._tasks.pop(key, None))

    async def _read(self, task: Task) -> None:
        text = ""
        async with self._slots:
            for pause in PAUSES:
                await asyncio.sleep(pause)
                try:
                    text = await self._read_log(task.namespace, task.name)
                    break
                except (NotFound, Refused) as e:
                    log.debug("no log: %s", e)
                    break
                except ClusterError as e:
                    log.debug("no log yet: %s", e)
        self._running.discard(task.uid)
        keep = self._cache.keep_log if task.ended else self._cache.keep_start_log
        if keep(task.uid, (task.namespace, task.name), text):
            self._ring()

    async def stop(self) -> None:
        """End what is being read."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def reader(pod_log: Callable[..., Awaitable[str]]) -> ReadLog:
    """How a pod's log is read through a Kube."""

    async def read(namespace: str, name: str) -> str:
        return await pod_log(namespace, name, tail_lines=LINES, limit_bytes=BYTES, container=ENGINE_CONTAINER)

    return read


def before_cleanup(decision: Decision, ended: set[str]) -> list[WriteStatus]:
    """The statuses that remember why a pod ended which is about to be deleted: the pod is the only other witness."""
    owners = {(d.about[0], d.about[1]) for d in decision.deletes if d.about and d.uid in ended}
    return [status for status in decision.statuses if (status.namespace, status.name) in owners]


def start_logs(seen: Snapshot) -> dict[Key, tuple[Pod, ...]]:
    """The pods whose start log this pass read, by placement."""
    found: dict[Key, tuple[Pod, ...]] = {}
    for pod in seen.pods:
        if pod.start_log:
            key = (pod.namespace, pod.placement)
            found[key] = (*found.get(key, ()), pod)
    return found
