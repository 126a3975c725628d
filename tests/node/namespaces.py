"""The namespaces and cgroups that a lab lives in, and the processes in them."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.cluster.processes import Processes

HERE = Path(__file__).parent
PATIENCE = 90.0
"""Seconds for any one part to come up."""


class LabError(Exception):
    """The lab could not be started; the text says which part and the end of its log."""


SETUP = """
mount --make-rprivate /
# the machine's own folders that a node writes to are covered
mount -t tmpfs tmpfs /run
mkdir -p /run/cdi
mount -t tmpfs tmpfs /var/log
mount -t tmpfs tmpfs /var/lib
mkdir -p /var/lib/kubelet
mount --bind "$folder/kubelet" /var/lib/kubelet
mount --bind "$folder/cdi" /run/cdi
# a kubelet wants these three; it finds them set and leaves the machine's alone
for setting in vm/overcommit_memory=1 kernel/panic=10 kernel/panic_on_oops=1; do
  file=$folder/kubelet/sysctl-${setting//[\\/=]/-}
  echo "${setting#*=}" >"$file"
  mount --bind "$file" "/proc/sys/${setting%=*}"
done
mount --make-rshared /
ip link set lo up
ip link add node0 type dummy 2>/dev/null || ip link add node0 type veth
ip addr add "$address/32" dev node0
ip addr add "$api/32" dev node0
ip link set node0 up
echo 1 >/proc/sys/net/ipv4/ip_forward
# cgroup v1 wants the root of our own in every hierarchy; v2 has one
for hierarchy in /sys/fs/cgroup/{cpu,cpuacct,cpuset,memory,devices,freezer,blkio,pids,systemd}; do
  if [[ -e $hierarchy/tasks ]]; then mkdir -p "$hierarchy/$cgroup"; fi
done
if [[ -e /sys/fs/cgroup/cpuset/$cgroup ]]; then
  for file in cpuset.cpus cpuset.mems; do cat /sys/fs/cgroup/cpuset/$file >"/sys/fs/cgroup/cpuset/$cgroup/$file"; done
else
  mkdir -p "/sys/fs/cgroup/$cgroup"
fi
"""
"""What is run in fresh namespaces; $folder, $address, $api and $cgroup are set."""


def enter(processes: Processes, folder: Path, own_pids: bool) -> int:
    """New namespaces; the pid of their first process, with which all in them ends."""
    ready = folder / "anchored"
    ready.unlink(missing_ok=True)
    namespaces = ["unshare", "--mount", "--net", "--fork", "--kill-child"]
    namespaces += ["--pid", "--mount-proc"] if own_pids else []
    parent = processes.start("anchor", [*namespaces, sys.executable, HERE / "anchor.py", ready])
    wait("the namespaces", ready.exists, processes, "anchor")
    return int(Path(f"/proc/{parent}/task/{parent}/children").read_text().split()[0])


def wait(what: str, until: Callable[[], bool], processes: Processes, name: str) -> None:
    """Until it is so; LabError with the end of the log of process `name` if that ends or takes too long."""
    deadline = time.monotonic() + PATIENCE
    while not until():
        if name in processes.ended():
            raise LabError(f"{what}: {name} ended; the end of its log:\n{processes.tail(name)}")
        if time.monotonic() > deadline:
            raise LabError(f"{what}: not there after {PATIENCE:g} s; the end of the log:\n{processes.tail(name)}")
        time.sleep(0.1)


def _cgroup_roots() -> list[Path]:
    root = Path("/sys/fs/cgroup")
    return [root, *(path for path in root.iterdir() if (path / "cgroup.procs").exists())]


def processes_in(cgroup: str) -> list[int]:
    """Pids (of this machine) in a cgroup and below."""
    files = {path for root in _cgroup_roots() for path in root.glob(f"{cgroup}/**/cgroup.procs")}
    return sorted({int(pid) for path in files for pid in _read(path).split() if int(pid)})


def shims_of(socket: Path) -> list[int]:
    """Pids of the shims of the containerd that listens there."""
    mine = str(socket).encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        words = _read(process / "cmdline").split(b"\0")
        if words[0].endswith(b"containerd-shim-runc-v2") and mine in words:
            found.append(int(process.name))
    return found


def remove_cgroups(name: str) -> None:
    """Remove a lab's cgroups, which hold no process any more, and those of labs whose tests were killed."""
    for root in _cgroup_roots():
        for top in root.glob("cotenant-node-*"):
            if top.name == name or not Path("/proc", top.name.rpartition("-")[2]).exists():
                for folder in sorted([top, *top.glob("**/")], key=lambda path: -len(path.parts)):
                    with suppress(OSError):
                        folder.rmdir()


def kill(pid: int) -> None:
    """`kill -9`; nothing where it has ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
