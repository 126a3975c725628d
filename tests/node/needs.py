"""What a machine must have to run a real kubelet, and what of it this one lacks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CNI_FOLDERS = (Path("/opt/cni/bin"), Path("/usr/lib/cni"), Path("/usr/libexec/cni"))
CNI_PLUGINS = ("ptp", "host-local", "loopback")
PROGRAMS = {
    "runc": "runc",
    "ip": "iproute2",
    "busybox": "busybox-static",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "gcc": "gcc",
    "ldd": "libc-bin",
    "mount": "mount",
}
"""Program -> the Debian package it comes from."""


def missing() -> list[str]:
    """What this machine lacks, each in words; empty where the lab can run."""
    if sys.platform != "linux":
        return [f"Linux (this is {sys.platform})"]
    lacks = [f"{name} (Debian: {package})" for name, package in PROGRAMS.items() if not shutil.which(name)]
    if not cni_folder():
        lacks.append(f"the CNI plugins {', '.join(CNI_PLUGINS)} (Debian: containernetworking-plugins)")
    if os.geteuid():
        return [*lacks, "root"]
    if shutil.which("unshare") and (said := _try(["unshare", "-m", "-n", "-p", "-f", "--mount-proc", "true"])):
        lacks.append(f"mount, network and PID namespaces ({said})")
    if said := _cgroups():
        lacks.append(said)
    return lacks


def cni_folder() -> Path | None:
    """Where the CNI plugins are."""
    for folder in CNI_FOLDERS:
        if all((folder / plugin).exists() for plugin in CNI_PLUGINS):
            return folder
    return None


def _try(command: list[str]) -> str:
    """What a command says when it fails; empty when it does not."""
    done = subprocess.run(command, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"


def _cgroups() -> str:
    root = Path("/sys/fs/cgroup")
    folder = root / "memory" if (root / "memory").is_dir() else root
    try:
        Path(tempfile.mkdtemp(prefix="cotenant-try-", dir=folder)).rmdir()
    except OSError as error:
        return f"a cgroup of its own ({error})"
    return ""
