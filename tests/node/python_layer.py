"""The lowest layer of the lab's images: this machine's Python, the packages Cotenant needs, the C libraries of both.

In a release `images/*/Dockerfile` does this; here there is no container engine and no registry, so the environment that
the tests run in is copied, at the versions of uv.lock.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from tests.node.image import Content, Link, write_layer

VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
SITE = f"usr/local/lib/{VERSION}/site-packages"
WITHOUT = {"test", "idlelib", "tkinter", "ensurepip", "lib2to3", "turtledemo", "site-packages", "lib-dynload"}
"""Parts of the standard library that no pod needs."""
ENV = {"LD_LIBRARY_PATH": "/usr/local/lib", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
"""What the image's environment needs for this layer."""


def python_layer(folder: Path) -> Path:
    """The layer, made once per Python and set of packages, and kept in `folder`."""
    packages = sorted(_closure("cotenant"))
    versions = [f"{name}=={metadata.version(name)}" for name in packages]
    key = hashlib.sha256("\n".join([sys.version, __doc__ or "", *versions]).encode()).hexdigest()[:12]
    target = folder / f"python-{key}.tar"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        scratch = folder / f".python-{key}.tar"
        write_layer(scratch, dict(_entries(packages)))
        scratch.rename(target)
    return target


def _closure(name: str) -> set[str]:
    """Names of the distributions that `name` needs at run time, itself left out."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        for text in metadata.requires(waiting.pop()) or ():
            need = Requirement(text)
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                key = re.sub(r"[-_.]+", "-", need.name).lower()
                if key not in found:
                    found.add(key)
                    waiting.append(key)
    return found


def _entries(packages: list[str]) -> Iterator[tuple[str, Content]]:
    binaries: list[Path] = []
    interpreter = Path(sysconfig.get_config_var("BINDIR")) / VERSION
    yield f"usr/local/bin/{VERSION}", interpreter
    yield "usr/local/bin/python3", Link(VERSION)
    yield "usr/local/bin/python", Link(VERSION)
    binaries.append(interpreter)
    library = Path(sysconfig.get_path("stdlib"))
    for child in sorted(library.iterdir()):
        if child.name not in WITHOUT and not child.name.startswith("config-"):
            yield f"usr/local/lib/{VERSION}/{child.name}", child
    for module in sorted((library / "lib-dynload").glob("*.so")):
        if not module.name.startswith("_tkinter"):
            yield f"usr/local/lib/{VERSION}/lib-dynload/{module.name}", module
            binaries.append(module)
    for package in packages:
        for file in metadata.files(package) or ():
            path = Path(str(file.locate()))
            if ".." not in str(file) and path.is_file():
                yield f"{SITE}/{file}", path
                if path.suffix == ".so":
                    binaries.append(path)
    yield from _libraries(binaries)


def _libraries(binaries: list[Path]) -> Iterator[tuple[str, Content]]:
    """The shared libraries that these binaries load, and the loader, found by ldd."""
    if not shutil.which("ldd"):
        raise RuntimeError("packing Python into an image needs ldd (Debian: libc-bin)")
    seen: dict[str, Path] = {}
    said = subprocess.run(["ldd", *map(str, binaries)], capture_output=True, text=True).stdout
    for name, path in re.findall(r"^\s+(\S+) (?:=> (/\S+) )?\(0x", said, re.MULTILINE):
        if path:
            seen[Path(name).name] = Path(path)
        elif name.startswith("/"):
            yield name.lstrip("/"), Path(name).resolve()
    for name, path in seen.items():
        # what lies inside a package is loaded from there; the rest where the loader looks without a cache
        if "site-packages" not in str(path):
            yield f"usr/local/lib/{name}", path.resolve()
