"""Processes that end with their owner, however it dies.

The owner talks to a small supervisor over a pipe. When the pipe closes or the owner is gone (Ctrl-C, SIGKILL, a test
that was killed), the supervisor ends what it started, the last started first. If the supervisor itself is killed, the
kernel ends its children. The supervisor imports the standard library only: it is up in some 30 ms.
"""

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

PATIENCE = 3.0
"""Seconds from SIGTERM to SIGKILL."""

PR_SET_PDEATHSIG = 1


class ProcessError(Exception):
    """A process could not be started, or is not there."""


class Processes:
    """The processes of one owner; `logs` gets one file per name."""

    def __init__(self, logs: Path) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self.logs = logs
        self._lock = threading.Lock()
        self._supervisor = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(logs)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C at the terminal is for the owner, which then closes the pipe
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, name: str, command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> int:
        """Start `command` as `name`, its output appended to `<logs>/<name>.log`; the process id."""
        words = [str(word) for word in command]
        return int(self._ask(do="start", name=name, command=words, env=dict(os.environ if env is None else env)))

    def signal(self, name: str, number: int) -> None:
        """Send a signal to `name` and all in its process group; nothing if it has ended."""
        self._ask(do="signal", name=name, number=int(number))

    def kill(self, name: str) -> None:
        """`kill -9`; returns when it is gone."""
        self._ask(do="end", name=name, patience=0.0)

    def end(self, name: str) -> None:
        """SIGTERM, then SIGKILL; returns when it is gone."""
        self._ask(do="end", name=name, patience=PATIENCE)

    def pid(self, name: str) -> int | None:
        """The process id of `name` while it runs."""
        pid: int | None = self._ask(do="pid", name=name)
        return pid

    def ended(self) -> list[str]:
        """The names of those that have ended, by themselves or not."""
        names: list[str] = self._ask(do="ended")
        return names

    def tail(self, name: str, lines: int = 15) -> str:
        """The last lines of a process's log."""
        path = self.logs / f"{name}.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""

    def stop(self) -> None:
        """End everything, the last started first; safe to call twice."""
        assert self._supervisor.stdin is not None
        assert self._supervisor.stdout is not None
        self._supervisor.stdin.close()
        self._supervisor.wait()
        self._supervisor.stdout.close()

    def _ask(self, **question: Any) -> Any:
        assert self._supervisor.stdin is not None
        assert self._supervisor.stdout is not None
        with self._lock:
            try:
                self._supervisor.stdin.write(json.dumps(question).encode() + b"\n")
                self._supervisor.stdin.flush()
                line = self._supervisor.stdout.readline()
            except (OSError, ValueError) as error:
                raise ProcessError(f"the supervisor of {self.logs} is gone") from error
        if not line:
            raise ProcessError(f"the supervisor of {self.logs} is gone")
        answer = json.loads(line)
        if answer["error"]:
            raise ProcessError(answer["error"])
        return answer["result"]


class _Supervisor:
    """What runs in the supervising process."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def answer(self, question: dict[str, Any]) -> Any:
        name = question.get("name", "")
        match question["do"]:
            case "start":
                return self._start(name, question["command"], question["env"])
            case "pid":
                child = self._children.get(name)
                return child.pid if child and child.poll() is None else None
            case "ended":
                return [name for name, child in self._children.items() if child.poll() is not None]
            case "signal":
                self._signal(self._child(name), question["number"])
            case "end":
                self._end(self._child(name), question["patience"])
        return None

    def stop(self) -> None:
        for child in reversed(self._children.values()):
            self._end(child, PATIENCE)

    def _child(self, name: str) -> subprocess.Popen[bytes]:
        if name not in self._children:
            raise ProcessError(f"no process named {name!r} was started")
        return self._children[name]

    def _start(self, name: str, command: list[str], env: dict[str, str]) -> int:
        old = self._children.get(name)
        if old and old.poll() is None:
            raise ProcessError(f"{name} is already running")
        with (self._logs / f"{name}.log").open("ab") as log:
            child = subprocess.Popen(
                command,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        self._children[name] = child  # a restart keeps its place in the order
        return child.pid

    def _signal(self, child: subprocess.Popen[bytes], number: int) -> None:
        if child.poll() is None:
            os.killpg(child.pid, number)

    def _end(self, child: subprocess.Popen[bytes], patience: float) -> None:
        if patience and child.poll() is None:
            self._signal(child, signal.SIGCONT)  # a paused process hears no SIGTERM
            self._signal(child, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                child.wait(patience)
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # also what it left behind in its group
        child.wait()


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _serve(logs: Path) -> None:
    owner = os.getppid()
    supervisor = _Supervisor(logs)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    pending = b""
    try:
        # A fork of the owner may hold the pipe open after its death, so its pid is watched too.
        while os.getppid() == owner:
            if not select.select([0], [], [], 0.5)[0]:
                continue
            data = os.read(0, 65536)
            if not data:
                return
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                try:
                    answer = {"result": supervisor.answer(json.loads(line)), "error": None}
                except (ProcessError, OSError) as error:
                    answer = {"result": None, "error": str(error)}
                os.write(1, json.dumps(answer).encode() + b"\n")
    except BrokenPipeError:
        pass
    finally:
        supervisor.stop()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
