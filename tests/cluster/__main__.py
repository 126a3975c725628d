"""`python -m tests.cluster up | down | kubeconfig | build | clean | helm`."""

import argparse
import os
import sys
import time
from collections.abc import Callable

from tests.cluster import build, resident
from tests.cluster.control_plane import ControlPlaneError


def up(_: argparse.Namespace) -> None:
    begin = time.monotonic()
    was_running = resident.running() is not None
    cluster = resident.start()
    state = "already running" if was_running else f"ready in {time.monotonic() - begin:.1f} s"
    print(f"cluster {state} at {cluster.url}")
    print(f"  export KUBECONFIG={cluster.kubeconfig}")
    print(f"  {cluster.kubectl_path} get nodes")
    print(f"logs in {cluster.directory / 'logs'}; `make cluster-down` ends it")


def down(_: argparse.Namespace) -> None:
    print("cluster ended" if resident.stop() else "no cluster is running")


def kubeconfig(_: argparse.Namespace) -> None:
    cluster = resident.running()
    if cluster is None:
        raise ControlPlaneError("no cluster is running: `make cluster` starts one")
    print(cluster.kubeconfig)


def make(arguments: argparse.Namespace) -> None:
    print(build.kube())
    print(build.kwok().parent)
    if arguments.node:
        print(build.node_tools())


def clean(arguments: argparse.Namespace) -> None:
    resident.stop()
    build.clean(arguments.all)


def helm(arguments: argparse.Namespace) -> None:
    binary = build.helm()
    # helm keeps its own files where it is told, not in the user's home
    homes = {f"HELM_{name}_HOME": str(build.cache() / "helm" / name.lower()) for name in ("CACHE", "CONFIG", "DATA")}
    os.execve(binary, [str(binary), *arguments.words], {**os.environ, **homes})


def keep(_: argparse.Namespace) -> None:
    resident.keep()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description="A real control plane on loopback.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, does: Callable[[argparse.Namespace], None], help: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=help)
        sub.set_defaults(does=does)
        return sub

    verb("up", up, "start a cluster and leave it running")
    verb("down", down, "end it")
    verb("kubeconfig", kubeconfig, "print the path of its kubeconfig")
    verb("build", make, "build what it consists of, if missing").add_argument(
        "--node", action="store_true", help="also what a real node needs"
    )
    verb("clean", clean, "end it and drop Go's caches; keeps the built programs").add_argument(
        "--all", action="store_true", help="drop the built programs too"
    )
    verb("helm", helm, "run the pinned helm").add_argument("words", nargs=argparse.REMAINDER)
    verb("keep", keep, "own the cluster in the foreground (what `up` runs)")
    arguments = parser.parse_args()
    try:
        arguments.does(arguments)
    except (build.BuildError, ControlPlaneError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
