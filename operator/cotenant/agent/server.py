"""/healthz, /readyz and /metrics of the agent."""

from __future__ import annotations

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from cotenant.agent.loop import Agent


async def serve(agent: Agent, port: int) -> tuple[web.AppRunner, int]:
    """Start to listen; the runner to clean up, and the port."""

    async def healthz(_: web.Request) -> web.Response:
        return _answer(not agent.is_stuck(), "no reading for a long time; a new container may help")

    async def readyz(_: web.Request) -> web.Response:
        return _answer(agent.is_ready(), "nothing was published yet")

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=agent.metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "0.0.0.0", port)
    await site.start()
    return runner, runner.addresses[0][1]


def _answer(good: bool, otherwise: str) -> web.Response:
    return web.Response(text="ok\n") if good else web.Response(status=503, text=f"{otherwise}\n")
