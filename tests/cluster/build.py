"""Builds the programs of the test cluster from pinned Go modules, once, into a cache outside the tree."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

KUBERNETES = "v1.37.1"
ETCD = "v3.7.1"
KWOK = "v0.8.0"
CONTAINERD = "v2.3.4"
TOOLKIT = "v1.20.1"
HELM = "v4.2.4"

KUBE_MODULE = Path(__file__).parent / "kube"
KUBE_NAMES = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl", "gpu-plugin")
"""The one binary of `kube/` acts as the component by whose name it is called."""

NODE_PACKAGES = {
    **{
        name: f"github.com/containerd/containerd/v2/cmd/{name}@{CONTAINERD}"
        for name in ("containerd", "containerd-shim-runc-v2", "ctr")
    },
    **{
        name: f"github.com/NVIDIA/nvidia-container-toolkit/cmd/{name}@{TOOLKIT}"
        for name in ("nvidia-container-runtime", "nvidia-ctk")
    },
}
NEEDS_C = {"nvidia-container-runtime", "nvidia-ctk"}
"""NVIDIA's tools bind NVML through cgo."""

PROGRESS_EVERY = 15.0
"""Seconds between two progress lines of one build."""


class BuildError(Exception):
    """A program of the test cluster could not be built; the text says why."""


def cache() -> Path:
    """Where everything built and every cluster left running is kept: $COTENANT_CACHE."""
    named = os.environ.get("COTENANT_CACHE")
    if named:
        return Path(named).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cotenant"


def kube() -> Path:
    """The folder with etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubelet and kubectl."""
    stamps = " ".join(
        f"-X {package}.{name}={value}"
        # Without them the server calls itself v0.0.0-master, and Helm's kubeVersion checks fail.
        for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
        for name, value in _version_stamps().items()
    )
    digest = hashlib.sha256(stamps.encode())
    for source in sorted(KUBE_MODULE.iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())

    def build(folder: Path) -> None:
        command = ["build", "-mod=readonly", "-ldflags", f"-s -w {stamps}", "-o", str(folder / "kube"), "."]
        _go(f"kube (etcd {ETCD}, Kubernetes {KUBERNETES})", "6 to 9 minutes on 2 cores", command, KUBE_MODULE)
        for name in KUBE_NAMES:
            (folder / name).symlink_to("kube")

    return _once(f"kube-{KUBERNETES}-{digest.hexdigest()[:12]}", build)


def kwok() -> Path:
    """The `kwok` binary, which keeps simulated nodes alive."""

    def build(folder: Path) -> None:
        command = ["install", "-ldflags", "-s -w", f"sigs.k8s.io/kwok/cmd/kwok@{KWOK}"]
        _go(f"kwok {KWOK}", "2 minutes on 2 cores", command, folder, {"GOBIN": str(folder)})

    return _once(f"kwok-{KWOK}", build) / "kwok"


def helm() -> Path:
    """The `helm` binary, which lints and renders the chart."""
    return _installed("helm", f"helm.sh/helm/v4/cmd/helm@{HELM}") / "helm"


def node_tools() -> Path:
    """The folder with all that a real node needs: the names of `kube()`, containerd and NVIDIA's container runtime."""
    sources = {name: kube() / name for name in ("kube", *KUBE_NAMES)}
    for name, package in NODE_PACKAGES.items():
        sources[name] = _installed(name, package) / name
    key = hashlib.sha256("\n".join(map(str, sources.values())).encode()).hexdigest()[:12]

    def link(folder: Path) -> None:
        for name, source in sources.items():
            (folder / name).symlink_to(source)

    return _once(f"node-{key}", link)


def clean(everything: bool = False) -> None:
    """Drop Go's build and module caches used here, and with `everything` the built programs too."""
    for folder in (cache() / "go", *((cache() / "tools",) if everything else ())):
        shutil.rmtree(folder, ignore_errors=True)


def _version_stamps() -> dict[str, str]:
    major, minor, _ = KUBERNETES.removeprefix("v").split(".")
    return {
        "gitVersion": KUBERNETES,
        "gitMajor": major,
        "gitMinor": minor,
        "gitCommit": "module",
        "gitTreeState": "clean",
    }


def _installed(name: str, package: str) -> Path:
    version = package.partition("@")[2]

    def build(folder: Path) -> None:
        if name in NEEDS_C and not shutil.which("gcc"):
            raise BuildError(f"{name} needs a C compiler: install gcc")
        env = {"GOBIN": str(folder), "CGO_ENABLED": "1" if name in NEEDS_C else "0"}
        _go(f"{name} {version}", "a minute on 2 cores", ["install", "-ldflags", "-s -w", package], folder, env)

    return _once(f"{name}-{version}", build)


def _once(name: str, build: Callable[[Path], None]) -> Path:
    """The folder tools/`name`, built unless it is there; whole or not at all, also when two ask at once."""
    target = cache() / "tools" / name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with lock(target.parent / f".{name}.lock"):
        if target.is_dir():
            return target
        scratch = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=target.parent))
        try:
            build(scratch)
            scratch.chmod(0o755)
            scratch.rename(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return target


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Keep others from doing the same meanwhile, in this process or another."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"waiting for another process that holds {path}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _go(what: str, usually: str, arguments: list[str], folder: Path, env: Mapping[str, str] | None = None) -> None:
    """Run one `go` command and say how far it is."""
    if not shutil.which("go"):
        raise BuildError(f"building {what} needs Go 1.26 or newer on PATH: https://go.dev/dl/")
    caches = cache() / "go"
    go_env = {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOCACHE": str(caches / "build"),
        "GOMODCACHE": str(caches / "mod"),
        "GOWORK": "off",
        # -modcacherw: a module cache that can be removed like any other folder
        "GOFLAGS": "-trimpath -buildvcs=false -modcacherw",
        **(env or {}),
    }
    _say(f"building {what}: once, {usually}")
    begin = last = time.monotonic()
    downloaded = compiled = 0
    tail: deque[str] = deque(maxlen=25)
    command = ["go", arguments[0], "-v", *arguments[1:]]
    with subprocess.Popen(command, cwd=folder, env=go_env, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                tail.append(line.rstrip())
                if line.startswith("go: downloading"):
                    downloaded += 1
                else:
                    compiled += 1
                if time.monotonic() - last > PROGRESS_EVERY:
                    last = time.monotonic()
                    _say(f"  {last - begin:4.0f} s: {downloaded} modules fetched, {compiled} packages compiled")
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise BuildError(f"building {what} failed (go exit code {process.returncode}):\n" + "\n".join(tail))
    _say(f"  built in {time.monotonic() - begin:.0f} s")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
