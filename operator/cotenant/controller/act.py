"""Carries out a Decision and decides nothing: deletes and creates now, then Services, statuses and events beside.

Every answer enters the cache at once. Every failure is its own: logged, counted, and tried again by a later pass.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from cotenant import metrics
from cotenant.controller.cache import Cache, Key
from cotenant.controller.changes import Change, is_gone, subject
from cotenant.controller.events import Events
from cotenant.controller.evidence import before_cleanup, start_logs
from cotenant.controller.outbox import Letter, Outbox
from cotenant.controller.records import owner_uid
from cotenant.controller.refusals import Refusals, Subject
from cotenant.controller.services import make, put_right
from cotenant.controller.sources import PLACEMENTS, PODS, SERVICES
from cotenant.core.decision import Apply, Create, Decision, Delete, Emit, WriteStatus
from cotenant.core.names import API_VERSION, MANAGED_BY, MANAGED_BY_LABEL, STATUS_MANAGER
from cotenant.core.snapshot import Manifest, Placement, Pod, ServiceRecord, Snapshot
from cotenant.errors import AlreadyExists, ClusterError, Conflict, NotFound, Refused
from cotenant.kube import Kube

log = logging.getLogger(__name__)


MOST_PROBES = 10
"""Refused creates that are asked about in one pass."""
MOST_CREATES = 1024
"""Pods one pass creates (about 4 s of writing); the next one decides on the rest, so that other news is not kept waiting."""


@dataclass(slots=True)
class Outcome:
    """What came of the part of a decision that a pass waits for."""

    failed: int = 0
    retry_in: float | None = None
    """Seconds until a refused create may be tried again."""


class Act:
    """Carries out decisions, one at a time."""

    def __init__(
        self, kube: Kube, cache: Cache, concurrency: int, identity: str, ring: Callable[[float], None]
    ) -> None:
        self._kube = kube
        self._cache = cache
        self._ring = ring
        self._slots = asyncio.Semaphore(concurrency)
        self._events = Events(kube, identity)
        self._refusals = Refusals()
        self._unknown: set[Key] = set()
        """Pods whose create was sent and never answered: they may be there."""
        self.outbox = Outbox(concurrency)

    async def carry_out(self, decision: Decision, seen: Snapshot) -> Outcome:
        """Do what must be done before the next pass; what may wait is left in the outbox."""
        outcome = Outcome()
        if not await self._found_out():
            outcome.failed = 1  # decided without knowing of a pod that may be on the GPU: the next pass knows
            return outcome
        creates = [c for c in decision.creates if not self._refusals.must_wait(subject(c), c.manifest)]
        if len(creates) > MOST_CREATES:
            creates = creates[:MOST_CREATES]
            self._ring(0.0)
        ended = {pod.uid for pod in seen.pods if pod.ended is not None}
        wishes = {placement.key: placement for placement in seen.placements} if decision.statuses else {}
        first = before_cleanup(decision, ended)
        self.outbox.urgent(True)
        try:
            written = await asyncio.gather(*(self._now(outcome, self._status(s, wishes), s) for s in first))
            unwritten = {(s.namespace, s.name) for s, done in zip(first, written, strict=True) if not done}
            deletes = [
                d
                for d in decision.deletes
                if not self._refusals.must_wait(subject(d), d.uid)
                and (d.uid not in ended or d.about is None or d.about[:2] not in unwritten)
            ]
            await asyncio.gather(
                *(self._now(outcome, self._delete, delete) for delete in deletes),
                *(self._now(outcome, self._create, create) for create in creates),
            )
        finally:
            self.outbox.urgent(False)
        self.outbox.replace(self._letters(decision, {(s.namespace, s.name) for s in first}, seen, wishes))
        asked: tuple[Change, ...] = (*decision.creates, *decision.deletes, *decision.applies, *decision.statuses)
        subjects = [subject(what) for what in asked]
        for refused, manifest in self._refusals.due(subjects, decision.refused)[:MOST_PROBES]:
            await self._probe(refused, manifest)
        kept = (("Create", *pod, "Pod") for pod in decision.refused)
        outcome.retry_in = self._refusals.settle((*subjects, *kept))
        if self._cache.keep_refusals(self._refusals.messages()):
            self._ring(0.0)  # the next pass puts it into the status
        return outcome

    async def _now(self, outcome: Outcome, do: Callable[..., Awaitable[bool | None]], what: object) -> bool:
        """Whether it was done."""
        async with self._slots:
            try:
                return await do(what) is not False
            except ClusterError as e:
                log.warning("%s", e)
            except Exception:  # an answer in a form nobody expected must not stop the others half-way
                log.exception("carrying out %s", what)
            outcome.failed += 1
            return False

    # ------------------------------------------------------------------------------------------------------- the pods
    async def _create(self, create: Create) -> None:
        metadata = create.manifest["metadata"]
        key = (metadata["namespace"], metadata["name"])
        try:
            body = await self._kube.create(create.manifest)
        except AlreadyExists:
            await self._reread(key, create)
            return
        except (Refused, NotFound) as e:
            self._refuse(create, create.manifest, e)
            return
        except ClusterError:
            self._unknown.add(key)
            raise
        self._refusals.accepted(subject(create))
        self._cache.put(PODS, body)
        _count("create", "Pod", "ok")
        metrics.REASONS.labels("create", create.reason).inc()
        log.info("created pod %s/%s: %s %s", *key, create.reason, create.message)
        self._announce(create)

    async def _probe(self, refused: Subject, manifest: Manifest) -> None:
        """Whether a pod could be made by now, without making it: nobody's place is taken for one that would be refused again."""
        try:
            await self._kube.create(manifest, dry_run=True)
        except (Refused, NotFound) as e:
            self._refusals.refused(refused, manifest, str(e))
        except ClusterError as e:
            log.warning("%s", e)
        else:
            self._refusals.accepted(refused)

    async def _found_out(self) -> bool:
        """Whether the decision was made on all we did: asks for every create that was never answered."""
        known = True
        for key in sorted(self._unknown):
            try:
                body = await self._kube.get("v1", "Pod", key[1], key[0])
            except NotFound:
                self._unknown.discard(key)
                continue
            except ClusterError as e:
                log.warning("%s", e)
                return False
            self._unknown.discard(key)
            if (body["metadata"].get("labels") or {}).get(MANAGED_BY_LABEL) == MANAGED_BY:
                known &= not self._cache.put(PODS, body)
        return known

    async def _reread(self, key: Key, create: Create) -> None:
        """A pod of that name is there: ours from before is news, a stranger's is a refusal."""
        _count("create", "Pod", "exists")
        try:
            body = await self._kube.get("v1", "Pod", key[1], key[0])
        except NotFound:
            self._ring(0.0)
            return
        if (body["metadata"].get("labels") or {}).get(MANAGED_BY_LABEL) == MANAGED_BY:
            self._refusals.accepted(subject(create))
            if self._cache.put(PODS, body):
                self._ring(0.0)
            return
        text = f"a pod {key[0]}/{key[1]} that is not Cotenant's is in the way; delete it, or name the model otherwise"
        self._refuse(create, create.manifest, text)

    def _refuse(self, what: Change, content: object, why: object) -> None:
        """Remember what may not be done, and say it once."""
        metrics.WRITES.labels(type(what).__name__.lower(), subject(what)[-1], "refused").inc()
        if self._refusals.refused(subject(what), content, str(why)):
            log.warning("refused: %s", why)

    async def _delete(self, delete: Delete) -> None:
        key = (delete.namespace, delete.name)
        source = PODS if delete.kind == "Pod" else SERVICES
        try:
            answer = await self._kube.delete(
                "v1", delete.kind, delete.name, delete.namespace, delete.uid or None, delete.grace_seconds
            )
        except Refused as e:
            self._refuse(delete, delete.uid, e)
            return
        except (NotFound, Conflict):
            self._cache.forget(source, key, delete.uid or self._cache.uid(source, key) or "")
            self._refusals.accepted(subject(delete))
            _count("delete", delete.kind, "gone")
            return
        self._refusals.accepted(subject(delete))
        if is_gone(answer):
            self._cache.forget(source, key, delete.uid or self._cache.uid(source, key) or "")
        else:
            self._cache.put(source, answer)
        _count("delete", delete.kind, "ok")
        metrics.REASONS.labels("delete", delete.reason).inc()
        log.info("deleted %s %s/%s: %s %s", delete.kind.lower(), *key, delete.reason, delete.message)
        self._announce(delete)

    def _announce(self, change: Create | Delete) -> None:
        """Tell the placement's owner what was done, where the core gave words for it."""
        if change.about is None or not change.message:
            return
        namespace, name, uid = change.about
        event = Emit(namespace, name, uid, "Normal", change.reason, change.message)
        if letter := self._event_letter(event):
            self.outbox.add(letter)

    # ---------------------------------------------------------------------------------------------- what may wait
    def _letters(
        self, decision: Decision, written: set[Key], seen: Snapshot, wishes: dict[Key, Placement]
    ) -> list[Letter]:
        letters = []
        taught = start_logs(seen)
        for status in decision.statuses:
            key = (status.namespace, status.name)
            if key not in written and not self._refusals.must_wait(subject(status), status):
                send = self._later(self._status(status, wishes), taught.get(key, ()))
                letters.append(Letter(subject(status), status, send))
        letters += [
            Letter(subject(a), a, self._later(self._apply), patient=True)
            for a in decision.applies
            if not self._refusals.must_wait(subject(a), a)
        ]
        letters += [letter for event in decision.events if (letter := self._event_letter(event))]
        silent = {k: pods for k, pods in taught.items() if k not in {(s.namespace, s.name) for s in decision.statuses}}
        for pods in silent.values():
            self._cache.learned_from(pods)  # it taught nothing new
        return letters

    def _event_letter(self, event: Emit) -> Letter | None:
        if not self._events.is_news(event):
            return None
        return Letter(("event", event), event, self._later(self._events.write), lasting=True, patient=True)

    def _later(
        self, do: Callable[..., Awaitable[bool | None]], learned: tuple[Pod, ...] = ()
    ) -> Callable[..., Awaitable[None]]:
        async def send(what: object) -> None:
            try:
                if await do(what) is not False:
                    self._cache.learned_from(learned)
                if isinstance(what, Apply | WriteStatus):
                    self._refusals.accepted(subject(what))
            except Refused as e:
                if isinstance(what, Apply | WriteStatus):
                    self._refuse(what, what, e)
                    self._ring(1.0)
            except ClusterError as e:
                log.warning("%s", e)
                self._ring(1.0)
            except Exception:
                log.exception("carrying out %s", what)
                self._ring(5.0)

        return send

    async def _apply(self, apply: Apply) -> None:
        """One Service, made where it is missing and put right where it is ours. Somebody else's of that name is left alone."""
        wanted = apply.manifest
        key = (wanted["metadata"]["namespace"], wanted["metadata"]["name"])
        known = self._cache.record(SERVICES, key)
        ours = isinstance(known, ServiceRecord) and known.owner_uid == owner_uid(wanted)
        body = await (put_right if ours else make)(self._kube, wanted)
        _count("apply", "Service", "ok")
        if self._cache.put(SERVICES, body):
            self._ring(0.0)

    def _status(self, status: WriteStatus, wishes: dict[Key, Placement]) -> Callable[[WriteStatus], Awaitable[bool]]:
        """How a status is written that was decided on these wishes."""
        return partial(self._write_status, wishes.get((status.namespace, status.name)))

    async def _write_status(self, seen: Placement | None, status: WriteStatus) -> bool:
        """Whether it stands there, or nobody is left to read it. Never onto one that is newer than the decision, nor onto a
        successor of the same name (for a status of a custom resource the API server does not look at a uid)."""
        key = (status.namespace, status.name)
        metadata = {"namespace": status.namespace, "name": status.name}
        if seen is not None:
            if self._cache.record(PLACEMENTS, key) is not seen:
                _count("status", "ModelPlacement", "outdated")
                self._ring(0.0)  # more is known of it than when this was decided
                return False
            if version := self._cache.version(PLACEMENTS, key):  # may be newer, if all that counts is as it was
                metadata["resourceVersion"] = str(version)
        manifest = {"apiVersion": API_VERSION, "kind": "ModelPlacement", "metadata": metadata, "status": status.status}
        try:
            body = await self._kube.apply_status(manifest, STATUS_MANAGER)
        except NotFound:
            _count("status", "ModelPlacement", "gone")
            return True
        except Conflict:
            _count("status", "ModelPlacement", "outdated")
            self._ring(0.5)  # news of the change is under way
            return False
        _count("status", "ModelPlacement", "ok")
        if self._cache.put(PLACEMENTS, body):
            self._ring(0.0)
        return True

    async def stop(self) -> None:
        """End what is under way beside."""
        await self.outbox.stop()


def _count(verb: str, kind: str, result: str) -> None:
    metrics.WRITES.labels(verb, kind, result).inc()
