"""`python -m tests.bench [NAME [ARGUMENTS]]`: runs one benchmark, or all of them; figures are printed, never asserted."""

from __future__ import annotations

import subprocess
import sys

NAMES = ("packing", "controller", "gpunodes", "one_change")
"""Modules of this package, each run as a program of its own."""


def main(argv: list[str]) -> int:
    """Exit status of the last one that failed, else 0."""
    if argv and argv[0] not in NAMES:
        print(f'there is no benchmark "{argv[0]}"; there are {", ".join(NAMES)}', file=sys.stderr)
        return 2
    status = 0
    for name in argv[:1] or NAMES:
        status = (
            subprocess.run([sys.executable, "-m", f"tests.bench.{name}", *argv[1:]], check=False).returncode or status
        )
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
