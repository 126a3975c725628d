"""How the agent's two containers are started: `cotenant agent` and `cotenant agent podresources`; and `--print` for
a look by hand."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cotenant.errors import CotenantError
from cotenant.log import configure


def main(argv: Sequence[str]) -> int:
    """Parse, run, and say in one sentence why not; the exit code."""
    parser = argparse.ArgumentParser(prog="cotenant agent", description="Report the GPUs of this node as its GPUNode.")
    parser.add_argument(
        "part", nargs="?", choices=["report", "podresources"], default="report",
        help="podresources: only ask the kubelet who holds which GPU, and write it to COTENANT_PODRESOURCES_FILE",
    )  # fmt: skip
    parser.add_argument("--print", action="store_true", help="one reading of the GPUs as JSON, without Kubernetes")
    parser.add_argument("--node", help="the node's name (COTENANT_NODE_NAME)")
    parser.add_argument("--proc", type=Path, help="the host's /proc (COTENANT_PROC)")
    parser.add_argument("--kubeconfig", help="without it, the pod's ServiceAccount (COTENANT_KUBECONFIG)")
    given = parser.parse_args(argv)
    try:
        if given.part == "podresources":
            return _read_holdings()
        if given.print:
            return _print(given.proc or Path("/proc"))
        named = {"node_name": given.node, "proc": given.proc, "kubeconfig": given.kubeconfig}
        return asyncio.run(_report({key: value for key, value in named.items() if value is not None}))
    except CotenantError as error:
        print(f"cotenant agent: {error}", file=sys.stderr)
        return 1


def _read_holdings() -> int:
    from cotenant.agent.podresources_reader import run as read
    from cotenant.agent.settings import ReaderSettings, load

    settings = load(ReaderSettings)
    configure(settings.log_format, settings.log_level)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    read(settings.podresources_socket, settings.podresources_file, settings.interval, stopping)
    return 0


def _print(proc: Path) -> int:
    from cotenant.agent.nvml import NVML
    from cotenant.agent.processes import Processes
    from cotenant.agent.readings import islands

    nvml = NVML()
    reading = nvml.read()
    nvml.close()
    pids = frozenset(process.pid for device in reading.devices for process in device.processes)
    body = asdict(reading) | {
        "islands": islands(reading.devices),
        "usable": {device.uuid: device.memory.total - device.memory.reserved for device in reading.devices},
        "processes": [asdict(process) for process in Processes(proc).read(pids).values()],
    }
    print(json.dumps(body, indent=2, default=_plain))
    return 0


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, frozenset) else str(value)


async def _report(given: dict[str, Any]) -> int:
    from cotenant.agent.loop import Agent
    from cotenant.agent.nvml import NVML
    from cotenant.agent.processes import Processes
    from cotenant.agent.server import serve
    from cotenant.agent.settings import AgentSettings, load
    from cotenant.kube import Kube

    settings = load(AgentSettings, **given)
    configure(settings.log_format, settings.log_level)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    kube = await Kube.connect(settings.kubeconfig)
    try:
        agent = Agent(settings, kube, NVML(settings.sys), Processes(settings.proc), boot_id(settings.proc))
        server, port = await serve(agent, settings.metrics_port)
        logging.getLogger(__name__).info("node %s, metrics on port %d", settings.node_name, port)
        await agent.run(stopping)
        await server.cleanup()
    finally:
        await kube.close()
    return 0


def boot_id(proc: Path) -> str:
    """Names this boot of the machine; where /proc does not tell, every start counts as one."""
    try:
        return (proc / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"unknown-{time.time_ns()}"
