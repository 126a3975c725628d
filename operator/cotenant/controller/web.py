"""/healthz, /readyz and /metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import web

from cotenant import metrics

Check = Callable[[], str]
"""'' when all is well, else what is not."""


class Web:
    """The endpoints, on one port or on two."""

    def __init__(self, host: str, health_port: int, metrics_port: int, healthy: Check, ready: Check) -> None:
        self._host = host
        self._ports = (health_port, metrics_port)
        self._healthy = healthy
        self._ready = ready
        self._runners: list[web.AppRunner] = []
        self.health_port = health_port
        self.metrics_port = metrics_port

    async def start(self) -> None:
        """Listen; OSError where a port is taken."""
        health, series = web.Application(), web.Application()
        one_server = self._ports[0] == self._ports[1] != 0
        health.router.add_get("/healthz", lambda _: _answer(self._healthy()))
        health.router.add_get("/readyz", lambda _: _answer(self._ready()))
        (health if one_server else series).router.add_get("/metrics", _metrics)
        self.health_port = await self._serve(health, self._ports[0])
        self.metrics_port = self.health_port if one_server else await self._serve(series, self._ports[1])

    async def _serve(self, app: web.Application, port: int) -> int:
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        self._runners.append(runner)
        site = web.TCPSite(runner, self._host, port)
        await site.start()
        return int(runner.addresses[0][1])

    async def stop(self) -> None:
        """Stop listening."""
        for runner in self._runners:
            await runner.cleanup()


async def _answer(problem: str) -> web.Response:
    return web.Response(status=503 if problem else 200, text=(problem or "ok") + "\n")


async def _metrics(_: web.Request) -> web.Response:
    body = await asyncio.to_thread(metrics.render)  # 1,000 GPUs are 6,000 lines: half a second nothing else should wait
    return web.Response(body=body, headers={"Content-Type": metrics.CONTENT_TYPE_LATEST})
