"""The stand-in card as tests handle it: builds the library once, and changes the live file under a lock."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

SOURCE = Path(__file__).with_name("nvml.c")
H200_TOTAL = 150_754_820_096
H200_RESERVED = 644_939_776
"""NVML v2 figures of an H200, driver 580.159.04 (2026-11-21)."""


def build(folder: Path) -> Path:
    """Compile the stand-in into `folder` (skipped when it is newer than the source); the path of libnvidia-ml.so.1."""
    library = folder / "libnvidia-ml.so.1"
    if not library.exists() or library.stat().st_mtime < SOURCE.stat().st_mtime:
        folder.mkdir(parents=True, exist_ok=True)
        fresh = folder / f".{library.name}.{os.getpid()}"
        subprocess.run(
            [
                "gcc",
                "-shared",
                "-Wl,-soname,libnvidia-ml.so.1",
                "-fPIC",
                "-O2",
                "-Wall",
                "-o",
                fresh,
                SOURCE,
                "-lpthread",
            ],
            check=True,
        )
        fresh.replace(library)
    return library


def environment(library: Path, file: Path) -> dict[str, str]:
    """What a process needs so that nvidia-ml-py finds the stand-in and the stand-in its file."""
    return {"LD_LIBRARY_PATH": str(library.parent), "COTENANT_NVML_FILE": str(file)}


class Card:
    """The file behind the stand-in. Every change is read, change, write under one lock, and appears at once
    (rename)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(f"{self.path}.lock", "w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def lines(self) -> list[str]:
        """The file as it stands; empty when there is none."""
        return self.path.read_text().splitlines() if self.path.exists() else []

    def change(self, edit: Callable[[list[str]], list[str]]) -> None:
        """Replace the lines by what `edit` makes of them."""
        with self._locked():
            fresh = self.path.with_name(f".{self.path.name}.new")
            fresh.write_text("".join(f"{line}\n" for line in edit(self.lines())))
            fresh.replace(self.path)

    def add(self, *lines: str) -> None:
        """Append lines."""
        self.change(lambda old: [*old, *lines])

    def drop(self, start: str) -> None:
        """Remove every line that starts so."""
        self.change(lambda old: [line for line in old if not line.startswith(start)])

    def gpu(
        self,
        uuid: str,
        *,
        total: int = H200_TOTAL,
        reserved: int = H200_RESERVED,
        name: str = "NVIDIA_H200",
        extra: str = "",
    ) -> None:
        """One more GPU; its index is its place among the `gpu` lines."""
        self.add(f"gpu {uuid} name={name} total={total} reserved={reserved} {extra}".rstrip())

    def process(self, uuid: str, pid: int, used: int, kind: str = "compute") -> None:
        """A process that uses `used` bytes now (whatever it used before)."""
        start = f"process {uuid} {pid} "
        self.change(lambda old: [*(line for line in old if not line.startswith(start)), f"{start}{used} {kind}"])

    def end(self, pid: int) -> None:
        """The process is gone and its memory back, on every GPU."""
        self.change(
            lambda old: [line for line in old if not (line.startswith("process ") and line.split()[2] == str(pid))]
        )

    def xid(self, uuid: str, number: int) -> None:
        """The driver reports an Xid."""
        self.add(f"xid {uuid} {number}")

    def used(self, uuid: str) -> int:
        """Bytes all processes use on one GPU."""
        return sum(int(line.split()[3].lstrip("?")) for line in self.lines() if line.startswith(f"process {uuid} "))
