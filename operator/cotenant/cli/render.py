"""`cotenant render`: the pods and Services that these ModelPlacements would become now, as YAML, for review. Nothing is written.

They are planned first, as `cotenant plan` does, so every pod names its node, its GPUs and its flag. What runs already and
stays is left out. Exit status as of `cotenant plan`: 2 when a replica has no place (it is named in a comment).
"""

from __future__ import annotations

import argparse
import sys

import yaml

from cotenant.cli import cluster, terminal
from cotenant.cli.outlook import KEEPS, Fate, outlook
from cotenant.cli.placementfile import UNKNOWN_UID
from cotenant.cli.plan import add_files, planned
from cotenant.cli.simulation import Key
from cotenant.core.names import PLACEMENT_LABEL
from cotenant.core.snapshot import Manifest
from cotenant.errors import CotenantError


def main(argv: list[str]) -> int:
    """0, 1 or 2: see above."""
    parser = terminal.Parser(
        prog="cotenant render", description=__doc__, epilog=cluster.RESOLUTION, formatter_class=argparse.RawTextHelpFormatter
    )  # fmt: skip
    add_files(parser, required=True)
    cluster.add_arguments(parser)
    parser.add_argument("--all", action="store_true", help="holder and preflight pods too")
    options = parser.parse_args(argv)
    try:
        course, keys, notes = planned(options)
    except CotenantError as error:
        print(f"cotenant render: {error}", file=sys.stderr)
        return 1
    fates = [fate for fate in outlook(course, bound=False).fates if fate.key in keys]
    for line in (*notes, *_comments(fates)):
        print(f"# {line}")
    mine = [_short(manifest) for manifest in (*course.services, *course.pods) if _owner(manifest) in keys]
    for manifest in (*(course.helpers if options.all else ()), *mine):
        print("---")
        print(yaml.safe_dump(manifest, sort_keys=False, width=140, allow_unicode=True), end="")
    return 2 if any(fate.falls_short for fate in fates) else 0


def _owner(manifest: Manifest) -> Key:
    metadata = manifest["metadata"]
    return (metadata["namespace"], metadata["labels"].get(PLACEMENT_LABEL, ""))


def _short(manifest: Manifest) -> Manifest:
    """With a short word for the uid of an owner that does not exist yet."""
    metadata = manifest["metadata"]
    owners = [
        {**owner, "uid": UNKNOWN_UID} if owner["uid"].startswith(UNKNOWN_UID) else owner
        for owner in metadata.get("ownerReferences") or ()
    ]
    return {**manifest, "metadata": {**metadata, "ownerReferences": owners}} if owners else manifest


def _comments(fates: list[Fate]) -> list[str]:
    """What the manifests do not say."""
    lines = []
    for fate in fates:
        if fate.lacks:
            lines.append(f"{fate.name} has no place: {fate.reason}: {fate.message}")
        elif fate.verb == KEEPS:
            lines.append(f"{fate.name} keeps its old spec: {fate.reason}: {fate.message}".rstrip(": "))
        elif fate.verb == "stays":
            lines.append(f"{fate.name} stays as it is on {fate.after.allocation.node if fate.after else '?'}")
        elif fate.verb == "stops":
            lines.append(f"{fate.name} stops: {fate.message}")
    return lines
