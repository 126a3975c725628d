"""`cotenant` (and `kubectl cotenant`): which program to run. Each is imported only when it is asked for."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
from collections.abc import Mapping
from difflib import get_close_matches

from cotenant.errors import CotenantError

DEBUG = "COTENANT_DEBUG"
"""Set: errors that nobody foresaw are shown with where they come from."""
SERVICES = ("controller", "agent")
PROGRAMS = {
    "controller": ("cotenant.controller.main", "decides and acts for every ModelPlacement of the cluster"),
    "agent": ("cotenant.agent.main", "reports the GPUs of the node it runs on"),
    "plan": ("cotenant.cli.plan", "what would be placed where, and why not"),
    "render": ("cotenant.cli.render", "the pods and Services a ModelPlacement becomes"),
    "explain": ("cotenant.cli.explain", "why a model is where it is, or nowhere"),
    "map": ("cotenant.cli.map", "which model sits on which GPU with which share"),
    "snapshot": ("cotenant.cli.snapshot", "save what a decision is made from, to plan or report a bug with"),
    "pack": ("cotenant.cli.pack", "pack a list of models onto a list of GPUs, without a cluster"),
    "estimate": ("cotenant.cli.estimate", "what a model needs of a GPU"),
    "crds": ("cotenant.cli.crds", "print the CustomResourceDefinitions"),
    "preflight": ("cotenant.cli.preflight", "list the GPUs this container sees (runs inside preflight pods)"),
}


def usage() -> str:
    """What --help says."""
    lines = [f"  {name:<12}{what}" for name, (_, what) in PROGRAMS.items()]
    return "\n".join(
        [
            "usage: cotenant COMMAND [OPTIONS]     (or: kubectl cotenant ...)",
            "",
            "Several LLMs on one NVIDIA GPU.",
            "",
            "commands:",
            *lines,
            "  version     print the version",
            "",
            "`cotenant COMMAND --help` says more of each.",
        ]
    )


def run(argv: list[str], programs: Mapping[str, tuple[str, str]] = PROGRAMS) -> int:
    """Run what was asked for; its exit status."""
    if argv[:1] == ["help"] and argv[1:2] and argv[1] in programs:
        argv = [argv[1], "--help"]
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if argv else 1
    name, rest = argv[0], argv[1:]
    if name in ("version", "--version"):
        print(f"cotenant {importlib.metadata.version('cotenant')}")
        return 0
    if name not in programs:
        near = get_close_matches(name, [*programs, "version", "help"], 1)
        hint = f'did you mean "{near[0]}"?' if near else "see `cotenant --help`"
        print(f'cotenant: there is no command "{name}"; {hint}', file=sys.stderr)
        return 1
    return int(importlib.import_module(programs[name][0]).main(rest))


def finished(
    argv: list[str], programs: Mapping[str, tuple[str, str]] = PROGRAMS, env: Mapping[str, str] = os.environ
) -> int:
    """The same; errors are one sentence and never a traceback, but in services, whose logs are read by who mends them."""
    try:
        status = run(argv, programs)
        sys.stdout.flush()
    except CotenantError as e:
        print(f"cotenant: {e}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:  # `cotenant ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at its end
        status = 0
    except Exception as e:
        if env.get(DEBUG) or argv[0] in SERVICES:
            raise
        text = " ".join(str(e).split())
        bug = f"{type(e).__name__}: {text}: this is a bug in Cotenant; {DEBUG}=1 shows where"
        print(f"cotenant: {text if isinstance(e, OSError) else bug}", file=sys.stderr)
        status = 1
    return status


def main() -> None:
    """The console script."""
    sys.exit(finished(sys.argv[1:]))


if __name__ == "__main__":
    main()
