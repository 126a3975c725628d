"""What is seen: the GPUs of one node, and whose processes are on them."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """`cotenant agent`: run until stopped; the exit code."""
    from cotenant.agent.entry import run

    return run(argv)
