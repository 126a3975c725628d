"""The controller's loop without its clock and its network: the real cache, the real core, writes one by one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from cotenant.controller.cache import Cache
from cotenant.controller.sources import GPU_NODES, NODES, PLACEMENTS, PODS, SERVICES, sources
from cotenant.core.decision import Apply, Create, Decision, Delete, WriteStatus
from cotenant.core.memo import Memo
from cotenant.core.names import MANAGED_BY, MANAGED_BY_LABEL
from cotenant.core.reconcile import reconcile
from cotenant.core.snapshot import Policy, Snapshot
from tests.soak.laws import Broken
from tests.soak.physics import Physics
from tests.soak.store import ExistsError

KINDS = (NODES, GPU_NODES, PODS, SERVICES, PLACEMENTS)


class DiedError(Exception):
    """The controller was killed between two writes."""


@dataclass(slots=True)
class Weather:
    """How the API server behaves."""

    refuses: float = 0.0
    """Part of the writes that fail (409, 429, 5xx) and did nothing."""
    loses: float = 0.0
    """Part of the writes that are done, but whose answer never comes."""
    lag: int = 0
    """News that may still be under way, per kind."""
    skew: float = 0.0
    """Seconds the controller's clock is off."""


@dataclass(slots=True)
class Tally:
    """What was done, for the report."""

    passes: int = 0
    writes: int = 0
    log: list[str] = field(default_factory=list)
    doubt: float = 0.03
    """Part of the passes that are decided a second time with nothing remembered."""


class Controller:
    """One process."""

    def __init__(self, name: str, physics: Physics, policy: Policy, rng: Random, tally: Tally) -> None:
        self.name, self._physics, self._rng, self._tally = name, physics, rng, tally
        self._policy = policy
        self.begin()

    def begin(self) -> None:
        """A fresh process: everything is listed once."""
        store = self._physics.store
        self.memo = Memo()
        self.refusals: dict[tuple[str, str], str] = {}
        """(namespace, pod) -> why the API server refused to create it."""
        self._unknown: set[tuple[str, str]] = set()
        """Pods whose create was sent and never answered."""
        self.cache = Cache(sources(self._policy), self._policy)
        for kind in KINDS:
            for body in store.all(kind):
                if self._selected(kind, body):
                    self.cache.put(kind, body)
            keys = [(b["metadata"].get("namespace") or "", b["metadata"]["name"]) for b in store.all(kind)]
            self.cache.settle(kind, keys, store.version)
        self._heard = dict.fromkeys(KINDS, len(store.news))

    @staticmethod
    def _selected(kind: str, body: dict[str, Any]) -> bool:
        if kind in (PODS, SERVICES):
            return (body["metadata"].get("labels") or {}).get(MANAGED_BY_LABEL) == MANAGED_BY
        return True

    def snapshot(self, skew: float) -> Snapshot:
        """What a pass decides on, with what other parts of the controller find out beside the watches."""
        physics = self._physics
        self.cache.injection_version = physics.injection_version
        seen = self.cache.snapshot(physics.now + skew)
        uris = sorted({model.uri for placement in seen.placements for model in placement.models})
        known = tuple((uri, told) for uri in uris if (told := physics.config(uri)) is not None)
        silent = frozenset(m.name for m in physics.machines.values() if m.silent and physics.now - m.silent_since > 60)
        refused = tuple((*subject, why) for subject, why in sorted(self.refusals.items()))
        return replace(seen, configs=known, silent=silent, refusals=refused)

    def listen(self, lag: int) -> None:
        """Take in news, each kind up to its own moment, as watches do."""
        news = self._physics.store.news
        for kind in KINDS:
            until = len(news) - (self._rng.randint(0, lag) if lag else 0)
            for source, deleted, body in news[self._heard[kind] : until]:
                if source == kind and self._selected(kind, body):
                    if deleted:
                        self.cache.remove(kind, body)
                    else:
                        self.cache.put(kind, body)
            self._heard[kind] = max(self._heard[kind], until)

    def _read_logs(self) -> None:
        for pod in self.cache.snapshot(0.0).pods:
            if pod.ended is not None and pod.ended.log is None:
                self.cache.keep_log(pod.uid, (pod.namespace, pod.name), self._physics.logs.get(pod.uid, ""))
            elif pod.ready and pod.start_log is None:
                self.cache.keep_start_log(pod.uid, (pod.namespace, pod.name), "")

    def run(self, weather: Weather, dies_after: int | None = None) -> Decision:
        """One pass: hear, decide, write. DiedError where it is killed before its write number `dies_after`."""
        self.listen(weather.lag)
        self._read_logs()
        snapshot = self.snapshot(weather.skew)
        decision = reconcile(snapshot, self.memo)
        if self._rng.random() < self._tally.doubt and reconcile(snapshot) != decision:
            raise Broken("what a pass remembers from the one before changed its decision")
        self._tally.passes += 1
        self.cache.idle = decision.idle
        ended = {pod.uid for pod in snapshot.pods if pod.ended is not None}
        owners = {(d.about[0], d.about[1]) for d in decision.deletes if d.about and d.uid in ended}
        first = [status for status in decision.statuses if (status.namespace, status.name) in owners]
        if not self._found_out(weather):
            return decision
        rest = [status for status in decision.statuses if status not in first]
        for number, write in enumerate([*first, *decision.deletes, *decision.creates, *decision.applies, *rest]):
            if dies_after is not None and number >= dies_after:
                raise DiedError
            self._tally.writes += not self._is_refused_again(write)
            chance = self._rng.random()
            if chance < weather.refuses:
                continue
            self._write(write, answered=chance >= weather.refuses + weather.loses)
        return decision

    def _found_out(self, weather: Weather) -> bool:
        """As act does: whether the decision was made on all this controller did."""
        known = True
        for key in sorted(self._unknown):
            if self._rng.random() < weather.refuses:
                return False
            self._unknown.discard(key)
            body = self._physics.store.get(PODS, key)
            if body is not None and self._selected(PODS, body):
                known &= not self.cache.put(PODS, body)
        return known

    def _is_refused_again(self, write: Create | Delete | Apply | WriteStatus) -> bool:
        """The same answer as before is no news, and act asks for it ever more rarely."""
        if not isinstance(write, Create):
            return False
        meta = write.manifest["metadata"]
        return meta["namespace"] in self._physics.full and (meta["namespace"], meta["name"]) in self.refusals

    # --------------------------------------------------------------------------------------------------------- writes
    def _write(self, write: Create | Delete | Apply | WriteStatus, *, answered: bool) -> None:
        match write:
            case Create():
                self._create(write, answered)
            case Delete():
                self._delete(write, answered)
            case Apply():
                self._apply(write, answered)
            case WriteStatus():
                self._status(write, answered)

    def _create(self, create: Create, answered: bool) -> None:
        store, meta = self._physics.store, create.manifest["metadata"]
        if meta["namespace"] in self._physics.full:
            self.refusals[meta["namespace"], meta["name"]] = "exceeded quota: small"
            return
        self.refusals.pop((meta["namespace"], meta["name"]), None)
        self._tally.log.append(f"{self.name} creates {meta['name']}: {create.reason}")
        try:
            body = store.create(PODS, {**create.manifest, "status": {"phase": "Pending"}}, self._physics.now)
        except ExistsError:
            there = store.get(PODS, (meta["namespace"], meta["name"]))
            if answered and there is not None and self._selected(PODS, there):
                self.cache.put(PODS, there)
            return
        if answered:
            self.cache.put(PODS, body)
        else:
            self._unknown.add((meta["namespace"], meta["name"]))

    def _delete(self, delete: Delete, answered: bool) -> None:
        store, key = self._physics.store, (delete.namespace, delete.name)
        self._tally.log.append(f"{self.name} deletes {delete.name}: {delete.reason}")
        source = PODS if delete.kind == "Pod" else SERVICES
        body = store.get(source, key)
        if body is None or (delete.uid and body["metadata"]["uid"] != delete.uid):
            self.cache.forget(source, key, delete.uid or self.cache.uid(source, key) or "")
            return
        if source == SERVICES:
            store.drop(source, key)
            gone = True
        else:
            gone = self._physics.ask_to_leave(body, delete.grace_seconds)
        if not answered:
            return
        if gone:
            self.cache.forget(source, key, body["metadata"]["uid"])
        else:
            self.cache.put(source, store.get(source, key) or body)

    def _apply(self, apply: Apply, answered: bool) -> None:
        store, meta = self._physics.store, apply.manifest["metadata"]
        before = store.get(SERVICES, (meta["namespace"], meta["name"]))
        if before is None:
            body = store.create(SERVICES, apply.manifest, self._physics.now)
        else:
            body = store.put(SERVICES, {**before, **apply.manifest, "metadata": {**before["metadata"], **meta}})
        if answered:
            self.cache.put(SERVICES, body)

    def _status(self, write: WriteStatus, answered: bool) -> None:
        store, key = self._physics.store, (write.namespace, write.name)
        body = store.get(PLACEMENTS, key)
        uid = self.cache.uid(PLACEMENTS, key)
        if body is None or (uid and body["metadata"]["uid"] != uid):
            return
        body = store.change(PLACEMENTS, body, status=write.status)
        if answered:
            self.cache.put(PLACEMENTS, body)
