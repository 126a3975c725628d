"""`cotenant crds`: prints the CustomResourceDefinitions, for `cotenant crds | kubectl apply -f -`; --dir writes them as files."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from cotenant.api import crd
from cotenant.cli import terminal

HEADER = "# Made from operator/cotenant/api by `make crds`. Do not edit.\n"


def main(argv: list[str]) -> int:
    """Exit status 0; 1 when --check finds a difference, or a file cannot be written."""
    parser = terminal.Parser(prog="cotenant crds", description=__doc__)
    parser.add_argument(
        "--dir", type=Path, help="write files to this folder instead; with --check: the folder, default crds"
    )
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file differs")
    options = parser.parse_args(argv)
    texts = {
        name: HEADER + yaml.safe_dump(document, sort_keys=False, width=140, allow_unicode=True)
        for name, document in crd.documents().items()
    }
    if options.check:
        folder = options.dir or Path("crds")
        stale = [str(folder / name) for name, text in texts.items() if not _holds(folder / name, text)]
        if stale:
            print(f"out of date: {', '.join(stale)}; run `make crds`")
        return 1 if stale else 0
    if options.dir is None:
        print("---\n".join(texts.values()), end="")
        return 0
    try:
        options.dir.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (options.dir / name).write_text(text)
    except OSError as e:
        print(f"cotenant crds: {e.filename or options.dir} cannot be written: {e.strerror}", file=sys.stderr)
        return 1
    return 0


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text() == text
