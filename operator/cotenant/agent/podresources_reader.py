"""The second container of the agent's pod: asks the kubelet who holds which device, again and again, and writes it
down."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace
from pathlib import Path

from cotenant.agent.podresources import Holdings, PodResources, PodResourcesError, read_holdings, write_holdings

log = logging.getLogger(__name__)


def run(socket: Path, file: Path, interval: float, stopping: threading.Event) -> None:
    """Until told to stop. While the kubelet does not answer, the file keeps the last answer, its time, and the
    error."""
    kubelet = PodResources(socket)
    last = read_holdings(file) or Holdings(at=0.0)
    said = ""
    while not stopping.is_set():
        try:
            last = kubelet.read(time.time())
        except PodResourcesError as error:
            last = replace(last, error=str(error))
        if last.error != said:
            log.warning(last.error) if last.error else log.info("the kubelet answers: %d devices held", len(last.held))
            said = last.error
        try:
            write_holdings(file, last)
        except OSError as error:
            log.error("writing %s: %s", file, error)
        stopping.wait(interval)
    kubelet.close()
