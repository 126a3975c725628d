"""The loop: rings -> one pass at a time -> act(reconcile(observe(cache, now))). What fails is tried again; it never ends."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from cotenant import metrics
from cotenant.controller.act import Act, Outcome
from cotenant.controller.cache import Cache, Key
from cotenant.controller.configs import Configs
from cotenant.controller.evidence import Evidence, reader
from cotenant.controller.handlers import Doorbell
from cotenant.controller.heartbeats import Heartbeats
from cotenant.controller.measures import Measures
from cotenant.controller.sources import Source, sources
from cotenant.controller.surroundings import survey
from cotenant.core.decision import Decision
from cotenant.core.snapshot import Manifest, Snapshot
from cotenant.errors import ClusterError
from cotenant.kube import Kube
from cotenant.settings import Settings
from cotenant.sources import model_config

log = logging.getLogger(__name__)

Reconcile = Callable[[Snapshot], Decision]

SECOND_LOOK = 5.0
"""Seconds after the watches began until everything is listed again: what was deleted between list and watch."""
LONGEST_BACKOFF = 60.0
STUCK = 180.0
"""Seconds one pass may take before the process counts as hung."""


class Bell:
    """When the next pass is due."""

    def __init__(self) -> None:
        self._due = float("inf")
        self._rung = asyncio.Event()

    def ring(self, delay: float) -> None:
        """A pass is wanted that many seconds from now, or earlier."""
        self._due = min(self._due, time.monotonic() + delay)
        self._rung.set()

    async def wait(self) -> None:
        """Return when a pass is due; rings from then on are for the one after it."""
        while (left := self._due - time.monotonic()) > 0:
            self._rung.clear()
            try:
                await asyncio.wait_for(self._rung.wait(), None if left == float("inf") else left)
            except TimeoutError:
                continue
        self._due = float("inf")


class Loop:
    """The controller's life while it leads."""

    def __init__(self, kube: Kube, settings: Settings, reconcile: Reconcile) -> None:
        self._kube = kube
        self._settings = settings
        self._reconcile = reconcile
        self._sources = sources(settings.policy)
        self._bell = Bell()
        self.cache = Cache(self._sources, settings.policy)
        self.act = Act(kube, self.cache, settings.concurrency, settings.identity, self.ring)
        self._evidence = Evidence(self.cache, reader(kube.pod_log), self.ring)
        self._doorbell = Doorbell(self._sources, self._namespaces(), kube.connection, self._hear)
        self._configs = Configs(partial(model_config, offline=settings.hub_offline), self.ring)
        self._heartbeats = Heartbeats(kube, settings.agent_namespace, self.ring)
        self._considered: object = None
        self._measures = Measures()
        self._failures = 0
        self._pass_begun: float | None = None
        self.last_pass: float | None = None
        """time.monotonic() when the last pass ended well."""

    def _namespaces(self) -> tuple[str, ...]:
        """Where to look; holders live in the operator's own namespace. Empty = everywhere."""
        watched = self._settings.watch_namespaces
        return tuple(sorted({*watched, self._settings.namespace})) if watched else ()

    def ring(self, delay: float = 0.0) -> None:
        """A pass is wanted; several within the debounce are one."""
        self._bell.ring(max(delay, self._settings.debounce))

    async def run(self) -> None:
        """Look at everything, then decide and act until cancelled."""
        await self._first_look()
        self._doorbell.start()
        beside = [asyncio.create_task(self._resync()), asyncio.create_task(self._heartbeats.run())]
        try:
            self.ring()
            while True:
                await self._bell.wait()
                if not self._doorbell.is_alive:
                    raise ClusterError("nobody watches the cluster any more; see the log for why")
                await self._pass()
        finally:
            for task in beside:
                task.cancel()
            self._doorbell.stop()
            await self._evidence.stop()
            await self._configs.stop()
            await self.act.stop()
            await self._doorbell.ended(2.0)

    # ------------------------------------------------------------------------------------------------------ observing
    async def _first_look(self) -> None:
        """List every kind before anything is decided; wait for what is not there yet (the CRDs, the API server)."""
        pause, told = 0.5, ""
        while True:
            try:
                await self._look()
            except ClusterError as e:
                if str(e) != told:
                    log.warning("waiting for the cluster: %s", e)
                    told = str(e)
                await asyncio.sleep(pause)
                pause = min(10.0, pause * 1.5)
                continue
            log.info("in view: %s", ", ".join(f"{count} {name}" for name, count in self.cache.sizes()))
            return

    async def _look(self) -> bool:
        """List everything; whether it told anything new."""
        found = await survey(self._kube, self._settings.policy)
        changed = (found.policy, found.version) != (self.cache.policy, self.cache.injection_version)
        self.cache.policy, self.cache.injection_version = found.policy, found.version
        for source in self._sources:
            changed |= await self._list(source)
        for name, count in self.cache.sizes():
            metrics.OBJECTS.labels(name).set(count)
        return changed

    async def _list(self, source: Source) -> bool:
        seen: list[Key] = []
        versions: list[str] = []
        changed = False
        for namespace in (self._namespaces() if source.namespaced else ()) or (None,):
            selector = source.selector or None
            async for page, at in self._kube.pages(source.api_version, source.kind, namespace, selector):
                versions.append(at)
                for body in page:
                    changed |= self._read(source.name, body)
                    seen.append((body["metadata"].get("namespace") or "", body["metadata"]["name"]))
                await asyncio.sleep(0)  # others may work between two pages
        oldest = min(versions, key=lambda v: int(v) if v.isdigit() else 0)
        return self.cache.settle(source.name, seen, oldest) or changed

    async def _resync(self) -> None:
        """Look at everything now and then: a watch may have missed something, and the clock moves."""
        delay = SECOND_LOOK
        while True:
            await asyncio.sleep(delay)
            delay = self._settings.resync * random.uniform(0.9, 1.1)
            try:
                if await self._look():
                    log.info("the lists told what the watches had not")
                self.ring()
            except ClusterError as e:
                log.warning("listing everything: %s", e)
                delay = min(delay, 15.0)
            except Exception:  # ended, it would end silently: nobody waits for it
                log.exception("listing everything")
                delay = min(delay, 15.0)

    def _hear(self) -> None:
        """Put what the doorbell brought into the cache; ring if it changes anything."""
        rings = False
        for source, deleted, body in self._doorbell.news():
            changed = self._read(source, body, deleted=deleted)
            metrics.NEWS.labels(source, "yes" if changed else "no").inc()
            rings |= changed
        if rings:
            self.ring()

    def _read(self, source: str, body: Manifest, *, deleted: bool = False) -> bool:
        """Put one object into the cache; whether that changes anything."""
        try:
            return self.cache.remove(source, body) if deleted else self.cache.put(source, body)
        except Exception:  # one unreadable object must not stop the others
            log.exception("reading %s %s", source, body.get("metadata", {}).get("name"))
            return False

    # ------------------------------------------------------------------------------------------------------- deciding
    async def _pass(self) -> None:
        """One pass. What goes wrong is logged and tried again, later each time."""
        self._pass_begun = time.monotonic()
        try:
            outcome = await self._decide_and_act()
        except Exception as e:
            self._failures += 1
            log.exception("a pass failed")
            metrics.PASSES.labels("error").inc()
            self.ring(self._backoff())
            if not isinstance(e, ClusterError):
                return
        else:
            self._failures = self._failures + 1 if outcome.failed else 0
            metrics.PASSES.labels("partly" if outcome.failed else "ok").inc()
            if outcome.failed:
                self.ring(self._backoff())
            self.last_pass = time.monotonic()
            metrics.LAST_PASS.set_to_current_time()
        finally:
            self._pass_begun = None

    async def _decide_and_act(self) -> Outcome:
        begun = time.perf_counter()
        snapshot = self.cache.snapshot(time.time())
        configs = self._configs.of(snapshot.placements)
        snapshot = replace(snapshot, configs=configs, reading=self._configs.reading(), silent=self._heartbeats.silent)
        if self._considered is not snapshot.pods:
            self._evidence.consider(snapshot.pods, snapshot.placements)
            self._considered = snapshot.pods
        observed = time.perf_counter()
        decision = await asyncio.to_thread(self._reconcile, snapshot)
        self.cache.idle = decision.idle
        decided = time.perf_counter()
        self._measures.take(decision)
        outcome = await self.act.carry_out(decision, snapshot)
        acted = time.perf_counter()
        steps = {"observe": observed - begun, "reconcile": decided - observed, "act": acted - decided}
        for step, seconds in steps.items():
            metrics.PASS_SECONDS.labels(step).observe(seconds)
        if decision.wake_at is not None:
            self.ring(max(0.0, decision.wake_at - time.time()))
        if outcome.retry_in is not None:
            self.ring(outcome.retry_in)
        if decision.deletes and not outcome.failed:
            # What was gone at once (an ended pod, one on a lost node) is forgotten already: its DELETED will ring nothing.
            self.ring()
        return outcome

    def _backoff(self) -> float:
        return min(LONGEST_BACKOFF, float(1 << min(self._failures, 10)) / 2) * random.uniform(0.8, 1.2)

    # --------------------------------------------------------------------------------------------------------- health
    def problem(self) -> str:
        """Why this process should be restarted; '' while it works."""
        if self.last_pass is not None and not self._doorbell.is_alive:
            return "nobody watches the cluster"
        if self._pass_begun is not None and time.monotonic() - self._pass_begun > STUCK:
            return f"a pass has been under way for more than {STUCK:.0f} s"
        return ""

    def unready(self) -> str:
        """Why its decisions are not to be relied on; '' when they are."""
        if not self.cache.synced:
            return "the cluster was not seen whole yet"
        if self.last_pass is None:
            return "no pass has ended yet"
        if time.monotonic() - self.last_pass > self._settings.resync * 2 + 60:
            return "no pass has ended well for long"
        return self.problem()
