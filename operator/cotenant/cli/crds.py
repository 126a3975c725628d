"""`cotenant crds`: writes the CustomResourceDefinitions made from api/, or checks that the committed ones are they."""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml

from cotenant.api import crd

HEADER = "# Made from operator/cotenant/api by `make crds`. Do not edit.\n"


def main(argv: list[str]) -> int:
    """Exit status 0; 1 when --check finds a difference."""
    parser = argparse.ArgumentParser(prog="cotenant crds", description=__doc__)
    parser.add_argument("--dir", type=Path, default=Path("crds"), help="folder to write to (default: crds)")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file differs")
    options = parser.parse_args(argv)
    stale = []
    for name, document in crd.documents().items():
        path, text = (
            options.dir / name,
            HEADER + yaml.safe_dump(document, sort_keys=False, width=140, allow_unicode=True),
        )
        if options.check:
            if not path.exists() or path.read_text() != text:
                stale.append(str(path))
        else:
            options.dir.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    if stale:
        print(f"out of date: {', '.join(stale)}; run `make crds`")
    return 1 if stale else 0
