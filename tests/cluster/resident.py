"""The one cluster that `make cluster` leaves running: a keeper process owns it, a state file says where it is."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from tests.cluster import build
from tests.cluster.access import Cluster
from tests.cluster.control_plane import ControlPlane, ControlPlaneError

STOP_SECONDS = 30.0
"""How long `stop` waits for the keeper before it kills it."""


def home() -> Path:
    """The folder of the resident cluster."""
    return build.cache() / "cluster"


@dataclass(frozen=True, slots=True)
class _Program:
    """A process of this machine, told from a later one of the same pid by when it began."""

    name: str
    pid: int
    began: int
    """Clock ticks after boot: field 22 of /proc/PID/stat."""

    @classmethod
    def of(cls, name: str, pid: int) -> Self:
        return cls(name, pid, _began(pid) or 0)

    def is_running(self) -> bool:
        return self.began == _began(self.pid)

    def end(self, seconds: float) -> None:
        """SIGTERM, and SIGKILL to its process group after `seconds`."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if not self.is_running():
                return
            os.killpg(self.pid, number)
            deadline = time.monotonic() + seconds
            while self.is_running() and time.monotonic() < deadline:
                time.sleep(0.05)


def running() -> Cluster | None:
    """The resident cluster, or None: a state file whose keeper is gone does not count."""
    state = _read_state()
    if state is None or not state[0].is_running():
        return None
    return Cluster(home(), home() / "admin.kubeconfig", Path(state[1]))


def start() -> Cluster:
    """The resident cluster, started unless it runs."""
    build.cache().mkdir(parents=True, exist_ok=True)
    with build.lock(build.cache() / "cluster.lock"):
        return running() or _start()


def run_beside(name: str, command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> int:
    """Start a process that `stop` ends together with the resident cluster; its pid. The log is `logs/NAME.log`."""
    with (home() / "logs" / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            [str(word) for word in command],
            env=None if env is None else dict(env),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    with _beside().open("a") as file:
        file.write(json.dumps(asdict(_Program.of(name, process.pid))) + "\n")
    return process.pid


def stop() -> bool:
    """End the resident cluster and what runs beside it, and remove its files; False if there was none."""
    state = _read_state()
    for program in reversed(_read_beside()):
        program.end(seconds=5)
    if state:
        state[0].end(STOP_SECONDS)
    shutil.rmtree(home(), ignore_errors=True)
    return state is not None


def keep() -> None:
    """Own the resident cluster until SIGTERM: what the keeper process runs."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with ControlPlane.start(home()) as control_plane:
        state = {**asdict(_Program.of("keeper", os.getpid())), "kubectl": str(control_plane.kubectl_path)}
        scratch = home() / "state.json.new"
        scratch.write_text(json.dumps(state))
        scratch.rename(home() / "state.json")
        try:
            while not control_plane.processes.ended():
                time.sleep(1)
            ended = ", ".join(control_plane.processes.ended())
            print(f"{ended} ended by itself; ending the cluster", file=sys.stderr, flush=True)
        finally:
            for program in reversed(_read_beside()):
                program.end(seconds=5)


def _start() -> Cluster:
    if _read_state():
        print(f"clearing away a cluster that died ({home()})", file=sys.stderr)
        stop()
    build.kube(), build.kwok()  # here, where its progress is seen
    home().mkdir(mode=0o700, parents=True, exist_ok=True)
    with (home() / "keeper.log").open("wb") as log:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster", "keep"],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        while keeper.poll() is None:
            cluster = running()
            if cluster:
                return cluster
            time.sleep(0.1)
    except BaseException:
        keeper.terminate()
        keeper.wait()
        raise
    raise ControlPlaneError((home() / "keeper.log").read_text().strip())


def _read_state() -> tuple[_Program, str] | None:
    try:
        state = json.loads((home() / "state.json").read_text())
        return _Program(state["name"], state["pid"], state["began"]), state["kubectl"]
    except (OSError, ValueError, KeyError):
        return None


def _beside() -> Path:
    return home() / "beside.jsonl"


def _read_beside() -> list[_Program]:
    try:
        return [_Program(**json.loads(line)) for line in _beside().read_text().splitlines()]
    except OSError:
        return []


def _began(pid: int) -> int | None:
    """When a process began, or None if it has ended (a zombie has)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
