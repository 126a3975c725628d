"""The agent's work: read the node every few seconds, say what matters, stay alive whatever fails."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from cotenant.agent.metrics import AgentMetrics
from cotenant.agent.nvml import NVML, NVMLUnavailable
from cotenant.agent.podresources import Holdings, read_holdings
from cotenant.agent.pods import NO_PODS, Pods
from cotenant.agent.processes import Process, Processes
from cotenant.agent.publish import Cluster, Publisher, fatal_xids, lease
from cotenant.agent.readings import NodeReading, is_fatal
from cotenant.agent.report import NO_HOLDINGS, Known, Report, Surroundings, Verdict, matters, report
from cotenant.agent.settings import AgentSettings
from cotenant.core.names import AGENT_MANAGER
from cotenant.core.snapshot import Manifest
from cotenant.errors import ClusterError

log = logging.getLogger(__name__)

ASK_AGAIN = 15.0
"""Seconds before the API server is asked once more for a pod it did not know."""
STUCK_AFTER = 300.0
"""Seconds without a finished reading, or with a driver this container's library does not fit, until /healthz says
so."""
FIRST_HOLDINGS = 10.0
"""Seconds the reader, which starts together with the agent, may take to its first answer."""
RETRY = 5.0
"""Seconds until a failed write is tried again; kube.py has tried for a while already."""


class Agent:
    """One node's agent."""

    def __init__(self, settings: AgentSettings, cluster: Cluster, nvml: NVML, processes: Processes, boot: str) -> None:
        self._settings = settings
        self._cluster = cluster
        self._nvml = nvml
        self._processes = processes
        self._publisher = Publisher(cluster, settings.node_name, boot)
        self._boot = boot
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="nvml")
        self._reading: asyncio.Future[tuple[NodeReading | NVMLUnavailable, dict[int, Process]]] | None = None
        self._known = Known()
        self._around = Surroundings(processes={})
        self._node: Manifest | None = None
        self._pods: Pods = NO_PODS
        self._pods_problem = ""
        self._asked: tuple[frozenset[str], frozenset[tuple[str, str]]] = (frozenset(), frozenset())
        self._ask_after = 0.0
        self._listed_at = -1e9
        self._has_adopted = False
        self._started = time.monotonic()
        self._good_since = self._started
        self._said: Report | None = None
        self._fresh = asyncio.Event()
        self.metrics = AgentMetrics(settings.node_name)
        self.published: Report | None = None

    # --------------------------------------------------------------------------------------------------------- tasks
    async def run(self, stopping: asyncio.Event) -> None:
        """Until told to stop."""
        tasks = [
            asyncio.create_task(self._forever(self._sample, lambda: self._settings.interval)),
            asyncio.create_task(self._forever(self._publish, lambda: 0.0)),
            asyncio.create_task(self._forever(self._beat, lambda: jitter(self._settings.heartbeat))),
        ]
        await stopping.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._thread.submit(self._nvml.close)
        self._thread.shutdown(wait=False)

    async def _forever(self, step: Callable[[], Awaitable[None]], pause: Callable[[], float]) -> None:
        """One step after the other. What was foreseen is handled inside; anything else is logged, and the agent
        goes on."""
        while True:
            try:
                await step()
                await asyncio.sleep(pause())
            except ClusterError as error:
                self.metrics.counts["api_failures"] += 1
                log.warning("%s", error)
                await asyncio.sleep(jitter(RETRY))
            except Exception:
                self.metrics.counts["failures"] += 1
                log.exception("going on after what should not have happened")
                await asyncio.sleep(jitter(RETRY))

    async def _adopt(self) -> None:
        """Take over what an earlier agent said: nothing is written before that is known."""
        found = await self._publisher.before()
        before = dict(fatal_xids(found, self._boot)) | dict(self._known.fatal)
        self._known = replace(self._known, fatal=tuple(sorted(before.items())))
        self._has_adopted = True

    # ------------------------------------------------------------------------------------------------------- reading
    async def _sample(self) -> None:
        problem = await self._read()
        told = self._holdings()
        if told is None:
            return  # a first report without holders would look like a loss of all of them
        holdings, holdings_problem = told
        await self._know_pods(holdings)
        self._around = Surroundings(
            processes=self._around.processes,
            pods=self._pods,
            pods_problem=self._pods_problem,
            holdings=holdings,
            holdings_problem=holdings_problem,
            labels=tuple(sorted((((self._node or {}).get("metadata") or {}).get("labels") or {}).items())),
        )
        self._said = report(self._settings.node_name, self._known, self._around, problem)
        self.metrics.report, self.metrics.pods, self.metrics.readings = self._said, self._pods, self._known.devices
        if matters(self.published, self._said):
            self._fresh.set()

    async def _read(self) -> Verdict | None:
        """One more reading into what is known; the problem when there is none."""
        loop = asyncio.get_running_loop()
        if self._reading is None:
            self._reading = loop.run_in_executor(self._thread, self._read_in_thread)
        done, _ = await asyncio.wait({self._reading}, timeout=self._settings.nvml_patience)
        if not done:
            # A driver in trouble can keep a call for ever; no second one is put behind it.
            self.metrics.counts["readings_late"] += 1
            return Verdict(False, "NVMLTimeout", f"NVML has not answered for {self._settings.nvml_patience:.0f} s")
        finished, self._reading = self._reading, None
        got, processes = finished.result()
        if isinstance(got, NVMLUnavailable):
            self.metrics.counts["readings_failed"] += 1
            if got.reason != "LibraryMismatch":
                self._good_since = time.monotonic()
            return Verdict(False, got.reason, str(got))
        self.metrics.counts["readings"] += 1
        self._good_since = time.monotonic()
        for xid in got.xids:
            self.metrics.xids[(xid.uuid, xid.number)] += 1
            log.warning(
                "GPU %s: Xid %d (%s)", xid.uuid, xid.number, "fatal" if is_fatal(xid.number) else "of a process"
            )
        self._known = self._known.after(got)
        self._around = Surroundings(processes=processes)
        return None

    def _read_in_thread(self) -> tuple[NodeReading | NVMLUnavailable, dict[int, Process]]:
        try:
            reading = self._nvml.read()
        except NVMLUnavailable as error:
            return error, {}
        pids = frozenset(process.pid for device in reading.devices for process in device.processes)
        return reading, self._processes.read(pids)

    def _holdings(self) -> tuple[Holdings, str] | None:
        """What the reader last wrote, and why it is not to be believed; None while it may still be starting."""
        found = read_holdings(self._settings.podresources_file)
        patience = self._settings.podresources_patience
        if found is None or not found.at:
            if time.monotonic() - self._started < min(patience, FIRST_HOLDINGS):
                return None
            silent = f"nothing was written to {self._settings.podresources_file}; is its reader running?"
            return found or NO_HOLDINGS, (found.error if found else "") or silent
        age = abs(time.time() - found.at)
        if age <= patience:
            return found, ""
        silent = f"{self._settings.podresources_file} is not written any more; is its reader running?"
        return found, found.error or silent

    # --------------------------------------------------------------------------------------------------------- pods
    async def _know_pods(self, holdings: Holdings) -> None:
        """List the node's pods when who uses or holds GPUs has changed, when one is unknown, and once in a while."""
        members = [process.membership for process in self._around.processes.values()]
        uids = frozenset(member.pod_uid for member in members if member is not None)
        keys = frozenset((held.namespace, held.pod) for held in holdings.held if held.gpu or held.is_mig)
        unknown = any(uid not in self._pods.by_uid for uid in uids) or any(
            self._pods.named(*key) is None for key in keys
        )
        is_new = (uids, keys) != self._asked
        is_due = time.monotonic() - self._listed_at >= self._settings.resync
        if not (is_new or is_due or unknown):
            return
        # At once where something changed; with a pause where the answer did not help, or there was none.
        if time.monotonic() < self._ask_after and not (is_new and not self._pods_problem):
            return
        self._ask_after = time.monotonic() + ASK_AGAIN
        try:
            async with asyncio.timeout(5):
                await self._list(uids)
        except (ClusterError, TimeoutError) as error:
            self.metrics.counts["api_failures"] += 1
            self._ask_after = time.monotonic() + RETRY
            if unknown or not self._pods.listed:
                self._pods_problem = f"the pods of this node cannot be listed: {error or 'the API server is too slow'}"
            return
        self._asked, self._listed_at, self._pods_problem = (uids, keys), time.monotonic() - jitter(1.0), ""

    async def _list(self, uids: frozenset[str]) -> None:
        name = self._settings.node_name
        bodies = await self._cluster.list("v1", "Pod", field_selector=f"spec.nodeName={name}")
        nodes = await self._cluster.list("v1", "Node", field_selector=f"metadata.name={name}")
        self._pods = self._pods.after(bodies, uids)
        self._node = nodes[0] if nodes else None

    # ------------------------------------------------------------------------------------------------------- writing
    async def _publish(self) -> None:
        """Write when something matters, and once in a while in any case: the object may have been deleted."""
        if not self._has_adopted:
            await self._adopt()
            self._said = None  # said without what was just learned
            self._fresh.clear()
        try:
            async with asyncio.timeout(jitter(self._settings.resync)):
                await self._fresh.wait()
        except TimeoutError:
            log.debug("nothing to say for a while: saying it again")
        self._fresh.clear()
        said = self._said
        if said is None:
            return
        try:
            await self._publisher.publish(said, self._node, time.time())
        except ClusterError:
            self._fresh.set()
            raise
        self.metrics.counts["publications"] += 1
        self.published = said
        await asyncio.sleep(min(1.0, self._settings.interval))

    async def _beat(self) -> None:
        settings = self._settings
        holder = settings.pod_name or settings.node_name
        beat = lease(settings.node_name, settings.agent_namespace, holder, settings.lease_duration, time.time())
        await self._cluster.apply(beat, AGENT_MANAGER)

    # -------------------------------------------------------------------------------------------------------- health
    def is_stuck(self) -> bool:
        """Whether only a new container helps: the driver was replaced under the library, or a call never came back."""
        return time.monotonic() - self._good_since > STUCK_AFTER

    def is_ready(self) -> bool:
        """Whether the node's state was ever published."""
        return self.published is not None


def jitter(seconds: float) -> float:
    """About so long, so that thousands of agents do not act at the same moment."""
    return seconds * random.uniform(0.8, 1.2)
