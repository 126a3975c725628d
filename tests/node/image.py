"""Container images without a container engine: layers are tar files, an archive is what `ctr images import` reads."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

FOLDERS = ("tmp", "etc", "proc", "sys", "dev", "run", "var", "usr", "opt", "home")


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link."""

    target: str


Content = Path | Link | bytes | None
"""A file or folder of this machine, a link, a text, or None for an empty folder."""


def write_layer(out: Path, entries: Mapping[str, Content]) -> Path:
    """One layer with these paths; folders are taken whole, owners become root.

    Files keep their times: Python trusts a compiled module only if its source's time is the one it was made from.
    """
    made: set[str] = set()
    with tarfile.open(out, "w") as layer:
        for name in FOLDERS:
            _folder(layer, name, made)
        for name, content in sorted(entries.items()):
            for parent in reversed(Path(name).parents):
                if str(parent) != ".":
                    _folder(layer, str(parent), made)
            _add(layer, name, content, made)
    return out


def _add(layer: tarfile.TarFile, name: str, content: Content, made: set[str]) -> None:
    if content is None:
        _folder(layer, name, made)
    elif isinstance(content, Link):
        info = tarfile.TarInfo(name)
        info.type, info.linkname = tarfile.SYMTYPE, content.target
        layer.addfile(info)
    elif isinstance(content, bytes):
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(content), 0o755
        layer.addfile(info, io.BytesIO(content))
    elif content.is_dir():
        _folder(layer, name, made)
        for child in sorted(content.iterdir()):
            _add(layer, f"{name}/{child.name}", Link(os.readlink(child)) if child.is_symlink() else child, made)
    else:
        info = tarfile.TarInfo(name)
        status = content.stat()
        info.mtime = int(status.st_mtime)
        info.size, info.mode = status.st_size, 0o755 if status.st_mode & 0o111 else 0o644
        with content.open("rb") as file:
            layer.addfile(info, file)


def _folder(layer: tarfile.TarFile, name: str, made: set[str]) -> None:
    if name in made:
        return
    made.add(name)
    info = tarfile.TarInfo(name)
    info.type, info.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
    layer.addfile(info)


@dataclass(frozen=True, slots=True)
class Image:
    """An image: its name, its layers from the lowest up, and what it runs."""

    name: str
    layers: tuple[Path, ...]
    entrypoint: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    user: str = ""


def write_archive(out: Path, images: Iterable[Image]) -> Path:
    """One archive of several images; layers that they share are in it once."""
    manifest = []
    blobs: dict[Path, str] = {}
    with tarfile.open(out, "w") as archive:
        for image in images:
            for layer in image.layers:
                if layer not in blobs:
                    blobs[layer] = _digest(layer)
                    archive.add(layer, f"{blobs[layer]}.tar")
            config = json.dumps(_config(image, [blobs[layer] for layer in image.layers])).encode()
            name = f"{hashlib.sha256(config).hexdigest()}.json"
            _text(archive, name, config)
            layers = [f"{blobs[layer]}.tar" for layer in image.layers]
            manifest.append({"Config": name, "RepoTags": [image.name], "Layers": layers})
        _text(archive, "manifest.json", json.dumps(manifest).encode())
    return out


def _config(image: Image, digests: list[str]) -> dict[str, object]:
    env = {"PATH": "/usr/local/bin:/usr/bin:/bin", **image.env}
    return {
        "architecture": "amd64" if os.uname().machine == "x86_64" else "arm64",
        "os": "linux",
        "config": {
            "Entrypoint": list(image.entrypoint),
            "Env": [f"{key}={value}" for key, value in env.items()],
            "User": image.user,
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in digests]},
        "history": [],
    }


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _text(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))
