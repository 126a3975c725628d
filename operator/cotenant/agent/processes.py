"""Whose process is it: a pid's cgroup text names the pod. The parser is pure; `Processes` reads /proc."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_POD = re.compile(
    r"pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}|[0-9a-f]{32})(?=[./:]|$)"
)
"""A pod's UID after `pod`: with dashes (cgroupfs names), with underscores (systemd names), or, of a static pod, 32
hex digits."""
_CONTAINER = re.compile(r"(?:^|[/:-])([0-9a-f]{64})(?:\.scope)?(?=[/:]|$)")


@dataclass(frozen=True, slots=True)
class Membership:
    """The pod and the container a process is in."""

    pod_uid: str
    container: str = ""


def parse_cgroup(text: str) -> Membership | None:
    """The pod of a process by its /proc/<pid>/cgroup; None for a process of the host.

    Works on cgroup v1 (one line per controller) and v2 (`0::`), on cgroupfs and systemd names, under containerd,
    CRI-O and cri-dockerd, nested (kind, k3s: the node itself is a container), and seen from a cgroup namespace of
    one's own, where other pods' paths begin with `/../`. The innermost pod counts.
    """
    best: Membership | None = None
    for line in text.splitlines():
        path = line.split(":", 2)[-1]
        pods = list(_POD.finditer(path))
        if not pods:
            continue
        pod = pods[-1]
        container = _CONTAINER.search(path, pod.end())
        found = Membership(_with_dashes(pod[1]), container[1] if container else "")
        if found.container:
            return found
        best = best or found
    return best


def _with_dashes(uid: str) -> str:
    return uid.replace("_", "-")


@dataclass(frozen=True, slots=True)
class Process:
    """What /proc says of a process that uses a GPU."""

    pid: int
    command: str
    membership: Membership | None


class Processes:
    """Reads a /proc. What it said of a pid holds as long as the pid is asked for every time: pids are used again."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[int, tuple[str, Process]] = {}

    def read(self, pids: frozenset[int]) -> dict[int, Process]:
        """The processes of these pids; one that has just ended has no command and no pod."""
        known: dict[int, tuple[str, Process]] = {}
        for pid in sorted(pids):
            born = self._born(pid)
            before = self._known.get(pid)
            is_the_same = before is not None and born in ("", before[0])  # '' = it just ended, and NVML still lists it
            if before is not None and is_the_same and (before[1].membership or not born):
                known[pid] = before
            else:
                known[pid] = (born, Process(pid, self._command(pid), parse_cgroup(self._text(pid, "cgroup"))))
        self._known = known
        return {pid: process for pid, (_, process) in known.items()}

    def _born(self, pid: int) -> str:
        """Start time in clock ticks since boot (field 22 of stat; the name before it may hold spaces and brackets)."""
        fields = self._text(pid, "stat").rpartition(")")[2].split()
        return fields[19] if len(fields) > 19 else ""

    def _command(self, pid: int) -> str:
        return self._text(pid, "comm").strip()

    def _text(self, pid: int, name: str) -> str:
        try:
            return (self._root / str(pid) / name).read_text(errors="replace")
        except OSError:
            return ""  # ended meanwhile
