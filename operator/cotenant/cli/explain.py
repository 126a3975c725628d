"""`cotenant explain`: a replica's whole story, from its wish to its last event. Nothing is written.

What is asked for, where it is and why there (or nowhere, the nearest miss and what would help), its flag and how it was
computed, the ledger of its GPUs, what it waits for, what went wrong and what was and will be tried, and what earlier
starts taught.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from rich.console import Console
from rich.text import Text

from cotenant.cli import cluster, terminal
from cotenant.cli.replicaname import meant, near
from cotenant.cli.story import Story, stories
from cotenant.cli.why import Ground
from cotenant.errors import ClusterError, CotenantError, NotFound, Refused
from cotenant.kube import Kube

EVENTS = 8


class ExplainError(CotenantError):
    """What was named is not there; the text says what is."""


def main(argv: list[str]) -> int:
    """0, or 1 with one line."""
    parser = terminal.Parser(
        prog="cotenant explain", description=__doc__, epilog=cluster.RESOLUTION, formatter_class=argparse.RawTextHelpFormatter
    )  # fmt: skip
    parser.add_argument(
        "replica", metavar="[NAMESPACE/]PLACEMENT[/MODEL[/INDEX]]",
        help="a pod's name and what plan and map print are understood too; without a namespace: that of -n or of the context",
    )  # fmt: skip
    parser.add_argument("-n", "--namespace", help="where the placement is, if its name says none")
    cluster.add_arguments(parser)
    terminal.add_output(parser)
    options = parser.parse_args(argv)
    try:
        view = cluster.look(options, configs=True)
        here = cluster.namespace(options)
        wanted = meant(options.replica, view.snapshot, here) or _parts(options)
        namespace, placement, model, index = wanted
        found = stories(view.snapshot, Ground(view.snapshot), *wanted)
        if not found:
            guess = near(options.replica, view.snapshot, here)
            hint = f"; did you mean {guess}?" if guess and guess != options.replica else ""
            raise ExplainError(_missing(view, *wanted) + hint)
        events = (
            []
            if options.snapshot
            else cluster.connected(options, lambda kube: _events(kube, namespace, placement, model, index))
        )
    except CotenantError as error:
        print(f"cotenant explain: {error}", file=sys.stderr)
        return 1
    if options.output == "table":
        show(terminal.console(), found, events, view.notes)
    else:
        data = [{"replica": story.name, **{title: list(lines) for title, lines in story.parts}} for story in found]
        terminal.emit({"replicas": data, "events": events, "notes": list(view.notes)}, options.output)
    return 0


def _parts(options: argparse.Namespace) -> tuple[str, str, str | None, int | None]:
    parts = options.replica.split("/")
    if len(parts) == 1:
        parts = [cluster.namespace(options), *parts]
    if not 2 <= len(parts) <= 4 or not all(parts):
        raise ExplainError(f'"{options.replica}" must be NAMESPACE/PLACEMENT[/MODEL[/INDEX]]')
    if len(parts) == 4 and not parts[3].isdecimal():
        raise ExplainError(f'"{parts[3]}" must be the number of a replica, counted from 0')
    return parts[0], parts[1], parts[2] if len(parts) > 2 else None, int(parts[3]) if len(parts) > 3 else None


def _missing(view: cluster.View, namespace: str, placement: str, model: str | None, index: int | None) -> str:
    """What is not there, and what is."""
    there = [known for known in view.snapshot.placements if known.key == (namespace, placement)]
    if not there:
        names = ", ".join("/".join(known.key) for known in view.snapshot.placements[:8])
        return f"there is no ModelPlacement {namespace}/{placement}; there are {names or 'none'}"
    found = there[0]
    if found.invalid:
        return f"{namespace}/{placement} cannot be read: {found.invalid.path}: {found.invalid.reason}"
    models = {known.name: known for known in found.models}
    if model is not None and model not in models:
        return f"{namespace}/{placement} has no model {model}; it has {', '.join(models) or 'none'}"
    if model is not None and index is not None:
        many = models[model].replicas
        return f"{namespace}/{placement}/{model} has {many} replica{'s' * (many != 1)}, counted from 0; there is no {index}"
    return f"{namespace}/{placement} asks for no replica"


async def _events(
    kube: Kube, namespace: str, placement: str, model: str | None, index: int | None
) -> list[dict[str, Any]]:
    """The newest events about a placement, or those that name its model; none where they may not be read."""
    about = "" if model is None else f"{model}-" if index is None else f"{model}-{index}"
    try:
        found = await kube.list("events.k8s.io/v1", "Event", namespace)
    except (Refused, NotFound, ClusterError):
        return []
    mine = [
        event
        for event in found
        if (event.get("regarding") or {}).get("kind") == "ModelPlacement"
        and event["regarding"].get("name") == placement
        and about in event.get("note", "")
    ]
    told = [
        {
            "time": _time(event),
            "type": event.get("type", ""),
            "reason": event.get("reason", ""),
            "count": (event.get("series") or {}).get("count", 1),
            "note": event.get("note", ""),
        }
        for event in mine
    ]
    return sorted(told, key=lambda event: str(event["time"]))[-EVENTS:]


def _time(event: dict[str, Any]) -> str:
    last = (event.get("series") or {}).get("lastObservedTime")
    return str(last or event.get("eventTime") or event["metadata"].get("creationTimestamp") or "")[:19].replace(
        "T", " "
    )


def show(console: Console, found: list[Story], events: list[dict[str, Any]], notes: tuple[str, ...]) -> None:
    """For people: a title per replica, a word per part, and its lines."""
    for note in notes:
        console.print(f"note: {note}", soft_wrap=True)
    for story in found:
        style = {"Ready": "bold green", "Failed": "bold red", "Unplaced": "bold red"}.get(story.phase, "bold yellow")
        console.print(Text(story.name, style="bold").append(f"  {story.phase}", style=style).append(story.since))
        for title, lines in story.parts:
            for at, line in enumerate(lines):
                console.print(
                    Text(f"  {title if at == 0 else '':<10}", style="cyan").append(line, style="none"), soft_wrap=True
                )
        console.print()
    if events:
        console.print(Text("events", style="bold"))
    for event in events:
        count = f" x{event['count']}" if event["count"] > 1 else ""
        console.print(f"  {event['time']} {event['type']} {event['reason']}{count}: {event['note']}", soft_wrap=True)
