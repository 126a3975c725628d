"""`cotenant snapshot`: the observed cluster as a file: what a decision is made from, and nothing else.

`cotenant plan --snapshot FILE` plans on it anywhere, and it is what a bug report needs: the same file gives the same
plan. --problem prints the packing problem alone, in the form `cotenant pack` reads. Neither holds environment variables,
logs or Secrets.
"""

from __future__ import annotations

import argparse
import sys

from cotenant.cli import asproblem, cluster, snapshotfile, terminal
from cotenant.errors import CotenantError


def main(argv: list[str]) -> int:
    """0, or 1 with one line."""
    parser = terminal.Parser(
        prog="cotenant snapshot", description=__doc__, epilog=cluster.RESOLUTION, formatter_class=argparse.RawTextHelpFormatter
    )  # fmt: skip
    cluster.add_arguments(parser)
    parser.add_argument("--problem", action="store_true", help="a problem file for `cotenant pack` instead")
    parser.add_argument("--no-configs", action="store_true", help="leave out models' configs, asking no hub for them")
    parser.add_argument("-o", "--output", choices=("yaml", "json"), default="yaml", help="default: yaml")
    options = parser.parse_args(argv)
    try:
        view = cluster.look(options, configs=not options.no_configs)
        text = (
            asproblem.problem_file(view.snapshot, options.output)
            if options.problem
            else snapshotfile.dump(view.snapshot, options.output)
        )
    except CotenantError as error:
        print(f"cotenant snapshot: {error}", file=sys.stderr)
        return 1
    for note in view.notes:
        print(f"note: {note}", file=sys.stderr)
    print(text, end="")
    return 0
