"""What is known of the cluster: the last record of every object, whatever the order in which news of it came.

Every object is a register that only a newer resourceVersion changes (they are comparable integers, Kubernetes 1.35:
KEP-5504). Doorbell, lists and our own writes may therefore tell the same thing twice or late. Not thread-safe: one
event loop owns it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from cotenant.controller.refusals import Subject
from cotenant.controller.sources import GPU_NODES, NODES, PLACEMENTS, PODS, SERVICES, Source
from cotenant.core.preflight import Preflight
from cotenant.core.snapshot import GPUNode, Holder, Placement, Pod, Policy, Snapshot

Body = dict[str, Any]
Key = tuple[str, str]
"""(namespace or '', name)."""

TOMBSTONE_SECONDS = 900.0
"""How long news of a deleted object may still be under way."""


@dataclass(slots=True)
class Entry:
    """One object."""

    version: int | None
    uid: str
    record: Any


@dataclass(slots=True)
class Shelf:
    """All objects of one kind."""

    source: Source
    entries: dict[Key, Entry] = field(default_factory=dict)
    tombstones: dict[Key, tuple[int, float]] = field(default_factory=dict)
    """Key -> (resourceVersion of the deletion, when we heard of it)."""
    synced: bool = False
    row: tuple[Any, ...] | None = None
    """The records in order, until one changes."""

    def records(self) -> tuple[Any, ...]:
        """Every record, ordered by namespace and name; the same tuple until one of them changes."""
        if self.row is None:
            self.row = tuple(e.record for _, e in sorted(self.entries.items()) if e.record is not None)
        return self.row


class Cache:
    """What is known; `snapshot` is what a pass decides on."""

    def __init__(self, sources: Iterable[Source], policy: Policy) -> None:
        self.shelves = {source.name: Shelf(source) for source in sources}
        self.policy = policy
        self.refusals: dict[Key, str] = {}
        """(namespace, pod) -> why the API server refused to create it."""
        self.refused_services: dict[Key, str] = {}
        """(namespace, Service) -> why it may not be."""
        self._gone: dict[str, float] = {}
        """uid -> when we learned that this very object is no more."""
        self._logs: dict[str, str] = {}
        """uid of an ended pod -> the end of its log."""
        self._start_logs: dict[str, str] = {}
        """uid of a pod that became ready -> the end of its log then."""
        self._split: tuple[object, tuple[Pod, ...], tuple[Holder, ...], tuple[Preflight, ...]] | None = None
        self.idle: tuple[tuple[str, float], ...] = ()
        """What the last pass said of held GPUs without a tenant."""
        self.injection_version = ""

    # -------------------------------------------------------------------------------------------------------- writing
    def put(self, source: str, body: Body) -> bool:
        """News of an object: whether it changes anything a pass may know."""
        shelf, key, uid, version = self._address(source, body)
        if uid in self._gone:
            return False
        tombstone, old = shelf.tombstones.get(key), shelf.entries.get(key)
        if tombstone is not None and version is not None and version <= tombstone[0]:
            return False
        if old is not None and old.version is not None and version is not None and version <= old.version:
            return False
        record = shelf.source.read(body)
        before = old.record if old is not None and old.uid == uid else None
        record = self._enrich(record, before)
        if old is not None and old.uid != uid:
            self._forget_logs(old.uid)
        if old is not None and old.record == record:
            old.version, old.uid = version, uid
            return False
        shelf.entries[key] = Entry(version, uid, record)
        shelf.row = None
        return record is not None or (old is not None and old.record is not None)

    def remove(self, source: str, body: Body) -> bool:
        """News that an object was deleted, or left the selection."""
        shelf, key, _, version = self._address(source, body)
        old = shelf.entries.get(key)
        if old is not None and old.version is not None and version is not None and version < old.version:
            return False  # the one before it, of the same name
        return self._drop(shelf, key, version or 0)

    def forget(self, source: str, key: Key, uid: str) -> bool:
        """We know that this very object is no more (our delete was answered so): no news of it counts any longer."""
        self._gone[uid] = time.monotonic()
        shelf = self.shelves[source]
        old = shelf.entries.get(key)
        if old is None or old.uid != uid:
            return False
        return self._drop(shelf, key, old.version or 0)

    def settle(self, source: str, seen: Iterable[Key], version: str) -> bool:
        """A whole list was put: what it did not name and is not newer is no more. Whether that changed anything."""
        shelf, named, at = self.shelves[source], set(seen), _integer(version)
        shelf.synced = True
        missing = [key for key, e in shelf.entries.items() if key not in named and (e.version or 0) <= (at or 1 << 63)]
        changed = False
        for key in missing:
            changed |= self._drop(shelf, key, at or 0)
        self._prune()
        return changed

    def keep_log(self, uid: str, key: Key, text: str) -> bool:
        """The log of an ended pod was read (or cannot be: '')."""
        self._logs[uid] = text
        return self._reread(uid, key)

    def keep_start_log(self, uid: str, key: Key, text: str) -> bool:
        """The log of a start that became ready was read (or cannot be: '')."""
        self._start_logs[uid] = text
        return self._reread(uid, key)

    def learned_from(self, pods: Iterable[Pod]) -> None:
        """A status that holds what these start logs taught was written: the text itself is needed no longer."""
        for pod in pods:
            if pod.start_log and pod.uid in self._start_logs:
                self._start_logs[pod.uid] = ""
                self._reread(pod.uid, (pod.namespace, pod.name))

    def keep_refusals(self, messages: dict[Subject, str]) -> bool:
        """What may not be made, and why; whether that is news."""
        before = (self.refusals, self.refused_services)
        self.refusals = {(s[1], s[2]): why for s, why in messages.items() if s[0] == "Create"}
        self.refused_services = {(s[1], s[2]): why for s, why in messages.items() if s[0] == "Apply"}
        return (self.refusals, self.refused_services) != before

    # -------------------------------------------------------------------------------------------------------- reading
    @property
    def synced(self) -> bool:
        """Whether every kind was listed once: before that nothing may be decided."""
        return all(shelf.synced for shelf in self.shelves.values())

    def snapshot(self, now: float) -> Snapshot:
        """What a pass at this moment may know. Records that did not change are the same objects as before."""
        row = self.shelves[PODS].records()
        if self._split is None or self._split[0] is not row:
            pods = tuple(r for r in row if isinstance(r, Pod))
            holders = tuple(r for r in row if isinstance(r, Holder))
            self._split = (row, pods, holders, tuple(r for r in row if isinstance(r, Preflight)))
        return Snapshot(
            now=now,
            policy=self.policy,
            placements=self.shelves[PLACEMENTS].records(),
            nodes=self.shelves[NODES].records(),
            gpu_nodes=self.shelves[GPU_NODES].records(),
            pods=self._split[1],
            holders=self._split[2],
            preflights=self._split[3],
            injection_version=self.injection_version,
            idle=self.idle,
            services=self.shelves[SERVICES].records(),
            refusals=tuple((*key, message) for key, message in sorted(self.refusals.items())),
            refused_services=tuple((*key, message) for key, message in sorted(self.refused_services.items())),
        )

    def sizes(self) -> Iterator[tuple[str, int]]:
        """(kind, objects)."""
        for name, shelf in self.shelves.items():
            yield name, len(shelf.entries)

    def uid(self, source: str, key: Key) -> str | None:
        """The uid of an object, where it is known."""
        entry = self.shelves[source].entries.get(key)
        return entry.uid if entry else None

    def record(self, source: str, key: Key) -> object | None:
        """What a pass would be told of an object."""
        entry = self.shelves[source].entries.get(key)
        return entry.record if entry else None

    def version(self, source: str, key: Key) -> int | None:
        """The resourceVersion of an object, where it is known and a number."""
        entry = self.shelves[source].entries.get(key)
        return entry.version if entry else None

    # --------------------------------------------------------------------------------------------------------- inside
    def _address(self, source: str, body: Body) -> tuple[Shelf, Key, str, int | None]:
        metadata = body["metadata"]
        key = (metadata.get("namespace") or "", metadata["name"])
        return self.shelves[source], key, metadata.get("uid", ""), _integer(metadata.get("resourceVersion"))

    def _drop(self, shelf: Shelf, key: Key, version: int) -> bool:
        before = shelf.tombstones.get(key, (0, 0.0))[0]
        shelf.tombstones[key] = (max(before, version), time.monotonic())
        old = shelf.entries.pop(key, None)
        if old is None:
            return False
        shelf.row = None
        self._forget_logs(old.uid)
        return old.record is not None

    def _forget_logs(self, uid: str) -> None:
        self._logs.pop(uid, None)
        self._start_logs.pop(uid, None)

    def _enrich(self, record: Any, before: Any) -> Any:
        """What we know besides the object itself, and as many parts as possible of the record before it."""
        if isinstance(record, Pod):
            ended = record.ended
            return replace(
                record,
                was_ready=record.was_ready or (isinstance(before, Pod) and before.was_ready),
                ended=replace(ended, log=self._logs.get(record.uid)) if ended else None,
                start_log=self._start_logs.get(record.uid),
            )
        if isinstance(record, Placement) and isinstance(before, Placement):
            known = {model.name: model for model in before.models}
            models = tuple(known[m.name] if known.get(m.name) == m else m for m in record.models)
            return replace(record, models=before.models if models == before.models else models)
        if isinstance(record, GPUNode) and isinstance(before, GPUNode):
            devices = {device.uuid: device for device in before.devices}
            return replace(
                record, devices=tuple(devices[d.uuid] if devices.get(d.uuid) == d else d for d in record.devices)
            )
        return record

    def _reread(self, uid: str, key: Key) -> bool:
        shelf = self.shelves[PODS]
        entry = shelf.entries.get(key)
        if entry is None or entry.uid != uid:
            self._forget_logs(uid)
            return False
        record = self._enrich(entry.record, entry.record)
        if record == entry.record:
            return False
        entry.record, shelf.row = record, None
        return True

    def _prune(self) -> None:
        """Forget deletions that no news can be late for."""
        old = time.monotonic() - TOMBSTONE_SECONDS
        for shelf in self.shelves.values():
            shelf.tombstones = {key: t for key, t in shelf.tombstones.items() if t[1] > old}
        self._gone = {uid: at for uid, at in self._gone.items() if at > old}


def _integer(version: str | None) -> int | None:
    """A resourceVersion as a number; None where the API server's are opaque, and news then counts as it comes."""
    return int(version) if version and version.isdigit() else None
