"""`cotenant controller`: one process from its settings to its end."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable
from functools import partial

from cotenant import log as logs
from cotenant import metrics
from cotenant.controller.election import Election, Terms
from cotenant.controller.loop import Loop
from cotenant.controller.web import Web
from cotenant.errors import ClusterError
from cotenant.kube import Kube
from cotenant.settings import Settings, load

log = logging.getLogger(__name__)

LAST_SECONDS = 5.0
"""How long what is under way may take to end after SIGTERM."""


def main(argv: list[str]) -> int:
    """Run until SIGTERM; exit status 0."""
    parser = argparse.ArgumentParser(
        prog="cotenant controller",
        description="Decides and acts for every ModelPlacement. Settings are environment variables COTENANT_*.",
    )
    parser.add_argument("--kubeconfig", help="file to use instead of the pod's ServiceAccount (COTENANT_KUBECONFIG)")
    parser.add_argument("--context", help="context of that file (COTENANT_CONTEXT)")
    options = parser.parse_args(argv)
    settings = load(**{key: value for key, value in vars(options).items() if value is not None})
    logs.configure(settings.log_format, settings.log_level)
    return asyncio.run(run(settings))


async def run(settings: Settings) -> int:
    """The controller's whole life."""
    from cotenant.core.memo import Memo
    from cotenant.core.reconcile import reconcile

    stop = asyncio.Event()

    def asked(number: signal.Signals) -> None:
        log.info("asked to end by %s", number.name)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, asked, number)
    async with await Kube.connect(settings.kubeconfig, settings.context) as kube:
        kube.on_request = _measure
        loop = Loop(kube, settings, partial(reconcile, memo=Memo()))
        terms = Terms(settings.namespace, settings.lease_name, settings.identity, settings.lease_seconds)
        election = Election(kube, terms, _die) if settings.leader_election else None
        web = Web(settings.host, settings.health_port, settings.metrics_port, loop.problem, _readiness(loop, election))
        try:
            await web.start()
        except OSError as e:
            raise ClusterError(f"listening for health checks and metrics: {e}; set COTENANT_HEALTH_PORT") from e
        log.info("serving /healthz on port %d, /metrics on port %d", web.health_port, web.metrics_port)
        life = asyncio.create_task(_lead(loop, election))
        await asyncio.wait([life, asyncio.create_task(stop.wait())], return_when=asyncio.FIRST_COMPLETED)
        broken = life.done()
        life.cancel()
        try:
            await asyncio.wait_for(life, LAST_SECONDS)
        except (asyncio.CancelledError, TimeoutError):
            pass
        except Exception as e:
            log.error("ending: %s", e, exc_info=not isinstance(e, ClusterError))
        if election:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(election.release(), LAST_SECONDS)
        await web.stop()
    return 1 if broken else 0


async def _lead(loop: Loop, election: Election | None) -> None:
    if election:
        await election.acquire()
    await loop.run()


def _readiness(loop: Loop, election: Election | None) -> Callable[[], str]:
    """A standby is ready to take over: a rolling update must not wait for it to lead."""
    return lambda: "" if election and not election.is_leader else loop.unready()


def _die() -> None:
    """Another may decide from now on: end at once, with nothing under way."""
    logging.shutdown()
    os._exit(1)


def _measure(verb: str, kind: str, status: int, seconds: float) -> None:
    metrics.API_SECONDS.labels(verb, kind).observe(seconds)
    if not 200 <= status < 300:
        metrics.API_ERRORS.labels(verb, kind, str(status)).inc()
