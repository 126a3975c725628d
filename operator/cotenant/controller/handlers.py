"""kopf as the doorbell: it watches, we are told. Its handlers only pass the news on and write nothing to any object."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import kopf
from kopf._core.engines.peering import Identity

from cotenant.controller.sources import Source
from cotenant.kube import Connection

log = logging.getLogger(__name__)

News = tuple[str, bool, dict[str, Any]]
"""(source, deleted, object)."""

Login = Callable[[], Awaitable[Connection]]

GATHER_SECONDS = 0.02
"""News of that long is told at once; a pass is debounced for longer than that."""


def settings_for(sources: Iterable[Source]) -> kopf.OperatorSettings:
    """kopf's settings: no writing, no scanning, only what the API server selects for us, in pages."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True  # leadership is a Lease; equal peering priorities would freeze every replica
    settings.scanning.disabled = True  # else it needs the right to watch CRDs and namespaces
    settings.watching.chunk_size = 500
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 330
    settings.watching.connect_timeout = 10
    settings.networking.request_timeout = 30
    settings.queueing.idle_timeout = 1.0  # each object that is busy costs a task; 1,000 starts cost 1,000
    settings.process.ultimate_exiting_timeout = None  # it would SIGKILL the whole process
    settings.persistence.finalizer = "cotenant.dev/unused"
    for source in sources:
        if source.selector:
            settings.watching.label_selectors[source.group, source.version, source.plural] = source.selector
    return settings


class Doorbell:
    """kopf in a thread and an event loop of its own: it cancels every task of its loop when it ends.

    `ring` is called in the caller's loop once there is news; `news` then gives it.
    """

    def __init__(
        self, sources: tuple[Source, ...], namespaces: tuple[str, ...], login: Login, ring: Callable[[], None]
    ):
        self._sources = sources
        self._namespaces = namespaces
        self._login = login
        self._ring = ring
        self._loop = asyncio.get_running_loop()
        self._box: deque[News] = deque()
        self._rung = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="doorbell", daemon=True)
        self.ready = threading.Event()

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Ask kopf to end."""
        self._stop.set()

    async def ended(self, seconds: float) -> bool:
        """Whether the thread has ended within so many seconds."""
        await asyncio.to_thread(self._thread.join, seconds)
        return not self._thread.is_alive()

    @property
    def is_alive(self) -> bool:
        """Whether somebody still watches."""
        return self._thread.is_alive()

    def news(self) -> list[News]:
        """What came since the last call, in order."""
        self._rung = False
        found = []
        while self._box:
            found.append(self._box.popleft())
        return found

    # ------------------------------------------------------------------------------------------- in the other thread
    def _tell(self, item: News) -> None:
        self._box.append(item)
        if not self._rung:
            self._rung = True
            # to wake another thread's loop is dear where both have work (each waits for the interpreter): once for all that comes meanwhile
            asyncio.get_running_loop().call_later(GATHER_SECONDS, self._loop.call_soon_threadsafe, self._ring)

    def _registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()

        @kopf.on.login(registry=registry)
        async def login(**_: Any) -> kopf.ConnectionInfo:
            connection = await self._login_here()
            return kopf.ConnectionInfo(
                server=connection.server,
                ca_path=connection.ca_path,
                insecure=connection.insecure,
                scheme=connection.scheme,
                token=connection.token,
                certificate_path=connection.certificate_path,
                private_key_path=connection.private_key_path,
                proxy_url=connection.proxy,
            )

        for source in self._sources:
            self._listen(registry, source)
        return registry

    def _listen(self, registry: kopf.OperatorRegistry, source: Source) -> None:
        @kopf.on.event(source.group, source.version, source.plural, id=source.name, registry=registry)
        async def heard(event: Any, **_: Any) -> None:
            self._tell((source.name, event["type"] == "DELETED", event["object"]))

    async def _login_here(self) -> Connection:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_as_coroutine(self._login), self._loop))

    def _work(self) -> None:
        try:
            asyncio.run(
                kopf.operator(
                    registry=self._registry(),
                    settings=settings_for(self._sources),
                    clusterwide=not self._namespaces,
                    namespaces=self._namespaces,
                    # kopf would name itself by the user, and a uid chosen by the cluster has no name
                    identity=Identity("cotenant"),
                    stop_flag=self._stop,
                    ready_flag=self.ready,
                )
            )
        except asyncio.CancelledError:
            pass
        except Exception:
            log.exception("watching ended")
        finally:
            if not self._stop.is_set():
                log.error("nobody watches the cluster any more")
                self._loop.call_soon_threadsafe(self._ring)


async def _as_coroutine(login: Login) -> Connection:
    return await login()
