"""`cotenant plan`: what the controller would do if these ModelPlacements were applied now. Nothing is written.

The controller's own decision is made pass by pass on a copy of the cluster until nothing is left to do, every start
going well. Without -f: what it would do with what is there. Exit status 0 when every replica asked for has its GPUs by its new
spec and nobody lost theirs, 2 when not, 1 when no plan could be made.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cotenant.cli import cluster, placementfile, terminal
from cotenant.cli.map import picture
from cotenant.cli.map import show as show_map
from cotenant.cli.outlook import KEEPS, Fate, Outlook, Where, outlook
from cotenant.cli.replicaname import named, series, together
from cotenant.cli.simulation import Action, Course, Key, run
from cotenant.core.packing.answerfile import reason_data
from cotenant.core.share import gib
from cotenant.errors import CotenantError

COLUMNS = ("replica", "turn", "what", "node", "GPU", "share", "flag", "each GPU", "overrun")
NUMBERS = ("turn", "flag", "each GPU", "overrun")
NOT_BY_ITS_SPEC = "it runs by an older spec, and nothing replaces it as things stand"
STYLES = {
    KEEPS: "bold red",
    "starts": "green",
    "moves": "yellow",
    "restarts": "yellow",
    "stops": "yellow",
    "none": "bold red",
}


def main(argv: list[str]) -> int:
    """0, 1 or 2: see above."""
    parser = terminal.Parser(
        prog="cotenant plan", description=__doc__, epilog=cluster.RESOLUTION, formatter_class=argparse.RawTextHelpFormatter
    )  # fmt: skip
    add_files(parser)
    cluster.add_arguments(parser)
    parser.add_argument("--fast", action="store_true", help="leave out the proven minimum of GPUs")
    parser.add_argument("--explain", action="store_true", help="say of each replica that is placed why it is there")
    parser.add_argument(
        "--map", action="store_true", help="show every GPU as it is once all is done, as `cotenant map` does"
    )
    terminal.add_output(parser)
    options = parser.parse_args(argv)
    try:
        course, keys, notes = planned(options)
        seen = outlook(course, bound=not options.fast)
    except CotenantError as error:
        print(f"cotenant plan: {error}", file=sys.stderr)
        return 1
    fates = _shown(seen, keys)
    if options.output == "table":
        console = terminal.console()
        show(console, seen, fates, keys, notes, explain=options.explain)
        if options.map:
            console.print("\nonce all is done:\n")
            show_map(console, picture(course.after))
    else:
        terminal.emit(_data(seen, course, fates, notes, explain=options.explain), options.output)
    return 2 if _falls_short(seen, fates, keys) else 0


def add_files(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    """-f and -n."""
    parser.add_argument(
        "-f", "--filename", action="append", default=[], required=required, metavar="FILE",
        help="a file or folder with ModelPlacements (- = stdin); may be repeated",
    )  # fmt: skip
    parser.add_argument("-n", "--namespace", help="for ModelPlacements that name none; default: the context's")


def planned(options: argparse.Namespace) -> tuple[Course, frozenset[Key], tuple[str, ...]]:
    """The course of things once these files were applied, and whose placements they are (all, without files)."""
    if options.snapshot == "-" and "-" in options.filename:
        raise placementfile.PlacementFileError(
            "standard input cannot be the snapshot and a file: give one of them by name"
        )
    wishes = placementfile.read(options.filename, cluster.namespace(options)) if options.filename else []
    view = cluster.look(options, lambda seen: placementfile.applied(seen, wishes), configs=True, by_labels=True)
    course = run(view.snapshot)
    mine = {(w.body["metadata"]["namespace"], w.body["metadata"]["name"]) for w in wishes}
    keys = frozenset(mine or {placement.key for placement in course.after.placements})
    return course, keys, (*view.notes, *course.notes)


def _shown(seen: Outlook, keys: frozenset[Key]) -> list[Fate]:
    """Those that were asked for, and others to which something happens."""
    return [fate for fate in seen.fates if fate.key in keys or _is_touched(fate)]


def _is_touched(fate: Fate) -> bool:
    """Something happens to it; one that had no place before and has none now is not news."""
    return fate.verb not in ("stays", KEEPS) and (fate.verb != "none" or fate.before is not None)


def _falls_short(seen: Outlook, fates: list[Fate], keys: frozenset[Key]) -> bool:
    lacking = any((fate.falls_short and fate.key in keys) or (fate.lacks and fate.before is not None) for fate in fates)
    return lacking or any(key in keys for key in seen.issues)


# ------------------------------------------------------------------------------------------------------------- showing
def show(
    console: Console,
    seen: Outlook,
    fates: list[Fate],
    keys: frozenset[Key],
    notes: tuple[str, ...],
    *,
    explain: bool = False,
) -> None:
    """The plan for people."""
    mine = [fate for fate in fates if fate.key in keys]
    others = [fate for fate in fates if fate.key not in keys and _is_touched(fate)]
    for note in notes:
        console.print(f"note: {note}", soft_wrap=True)
    console.print(_summary(mine))
    if mine:
        console.print(_table(console, mine))
    if others:
        console.print("Other placements that this touches:")
        console.print(_table(console, others))
    for fate in fates if explain else ():
        if fate.after and (why := seen.why.against_others(fate.name)):
            console.print(f"+ {fate.name} on {_short(fate.after)}: {why}", soft_wrap=True)
    for (reason, message, lacks), alike in _alike(fates).items():
        short = any(fate.falls_short for fate in alike)
        sign, style = ("x", "bold red") if short else ("-", "")
        names = ", ".join(together(fate.replica for fate in alike))
        because = f"{reason}: {message}" if message else NOT_BY_ITS_SPEC
        console.print(Text(f"{sign} {names}: {because}", style=style), soft_wrap=True)
        if lacks:
            for line in seen.why.nowhere(alike[0].name):
                console.print(f"    {line}", soft_wrap=True)
    for key, message in seen.issues.items():
        if key in keys:
            console.print(Text(f"x {'/'.join(key)}: {message}", style="bold red"), soft_wrap=True)
    _show_order(console, seen)
    _show_estimates(console, seen, keys)
    _show_quality(console, seen)


def _alike(fates: list[Fate]) -> dict[tuple[str, str, bool], list[Fate]]:
    """Replicas by what is said of them: replicas of one model mostly lack the same."""
    found: dict[tuple[str, str, bool], list[Fate]] = {}
    for fate in fates:
        if (fate.message or fate.verb == KEEPS) and fate.verb != "starts":
            found.setdefault((fate.reason, fate.message, fate.lacks), []).append(fate)
    return found


def _summary(mine: list[Fate]) -> str:
    words = {
        "stays": "stay",
        KEEPS: "as before, not by the new spec",
        "starts": "start",
        "restarts": "restart",
        "moves": "move",
        "stops": "stop",
    }
    counts: dict[str, int] = {}
    for fate in mine:
        verb = "without a place" if fate.lacks else words[fate.verb]
        counts[verb] = counts.get(verb, 0) + 1
    wanted = sum(fate.verb != "stops" for fate in mine)
    placed = sum(fate.after is not None for fate in mine)
    return f"{placed} of {wanted} replicas placed: " + (", ".join(f"{n} {v}" for v, n in counts.items()) or "none")


def _table(console: Console, fates: list[Fate]) -> Table:
    rows: list[list[str | Text]] = []
    run: list[Fate] = []
    for fate in fates:  # replicas of one model that differ in their number alone share a row
        if run and fate.replica == (*run[-1].replica[:3], run[-1].index + 1) and _cells(fate) == _cells(run[0]):
            run.append(fate)
            rows.pop()
        else:
            run = [fate]
        rows.append([series(run[0].replica, len(run)), *_cells(fate)])
    return terminal.table(console, COLUMNS, rows, right=NUMBERS, expendable=("overrun", "each GPU", "turn", "flag"))


def _cells(fate: Fate) -> list[str | Text]:
    """All but the name."""
    place = fate.after or (fate.before if fate.verb == "stops" else None)
    came = f"{fate.verb} from {_short(fate.before)}" if fate.verb == "moves" and fate.before else fate.verb
    lost = f"loses {_short(fate.before)}" if fate.before else "no place"
    what = Text(lost if fate.lacks else came, style=STYLES.get(fate.verb, ""))
    turn, share = str(fate.turn or "-"), fate.share or "-"
    if not place:
        return [turn, what, "-", "-", share, "-", "-", "-"]
    given = place.allocation
    return [
        turn, what, given.node, _gpus(place), share, given.utilization, gib(given.bytes), gib(given.overrun),
    ]  # fmt: skip


def _gpus(place: Where) -> str:
    return ",".join(map(str, place.gpus)) or "?"


def _short(place: Where) -> str:
    return f"{place.allocation.node}:{_gpus(place)}"


def _show_order(console: Console, seen: Outlook) -> None:
    if not seen.actions:
        console.print("nothing to do")
        return
    turns: dict[int, dict[str, list[Action]]] = {}
    for action in seen.actions:
        turns.setdefault(action.turn, {}).setdefault(action.verb, []).append(action)
    console.print("order (one start per GPU at a time; one turn's go together):")
    for turn, verbs in turns.items():
        parts = []
        for verb, actions in verbs.items():
            many = f"{len(actions)} {{}}{'s' * (len(actions) > 1)}"
            if verb == "hold":
                parts.append(f"take {many.format('GPU')} from the device plugin")
            elif verb == "prove":
                parts.append(f"prove {many.format('node')}")
            else:
                ours = together(action.replica for action in actions if action.replica)
                parts.append(f"{verb} {', '.join([*ours, *(action.pod for action in actions if not action.replica)])}")
        console.print(f"  {turn:>3}  {'; '.join(parts)}", soft_wrap=True)


def _show_estimates(console: Console, seen: Outlook, keys: frozenset[Key]) -> None:
    told = {k: e for k, e in seen.estimates.items() if tuple(k.split("/")[:2]) in keys}
    if not told:
        return
    names = ("share", "weights", "activation", "cudaGraphs", "kvCache")
    rows = [
        (key, *(str(parts.get(name, "")) for name in names), f"{parts.get('context', 0):,}")
        for key, parts in told.items()
    ]
    columns = ("estimate per GPU", "share", "weights", "activation", "graphs", "KV cache", "context")
    console.print(
        terminal.table(console, columns, rows, right=columns[1:], expendable=("graphs", "activation", "share"))
    )


def _show_quality(console: Console, seen: Outlook) -> None:
    found = seen.quality
    least = f", proven minimum {found.minimum} ({found.method})" if found.minimum is not None else ""
    console.print(f"GPUs in use: {found.in_use_before} -> {found.in_use} of {found.gpus}{least}")
    if left := found.fragmentation:
        part = f" ({100 * left.stranded / left.free:.0f}%)" if left.free else ""
        groups = ", ".join(f"{count} of {size}" for size, count in left.groups)
        console.print(
            f"left: {gib(left.free)}; stranded for replicas like these: {gib(left.stranded)}{part}; "
            f"room for more groups of clean GPUs: {groups}",
            soft_wrap=True,
        )


# ---------------------------------------------------------------------------------------------------------------- data
def _data(
    seen: Outlook, course: Course, fates: list[Fate], notes: tuple[str, ...], *, explain: bool = False
) -> dict[str, Any]:
    found = seen.quality
    left = found.fragmentation
    return {
        "replicas": [_fate_data(fate, seen, explain) for fate in fates],
        "issues": [{"placement": "/".join(key), "message": message} for key, message in seen.issues.items()],
        "order": [
            {"turn": a.turn, "do": a.verb, "pod": a.pod}
            | ({"replica": named(a.replica)} if a.replica else {})
            | {"reason": a.reason, "message": a.message}
            for a in seen.actions
        ],
        "estimates": seen.estimates,
        "gpus": {"all": found.gpus, "inUseBefore": found.in_use_before, "inUse": found.in_use}
        | ({"minimum": found.minimum, "method": found.method} if found.minimum is not None else {})
        | {"each": _each_gpu(course)},
        "left": {"bytes": left.free, "stranded": left.stranded, "groups": {str(s): n for s, n in left.groups}}
        if left
        else None,
        "notes": list(notes),
    }


def _each_gpu(course: Course) -> list[dict[str, Any]]:
    """What is left on every GPU once all is done."""
    kept = ("index", "uuid", "usable", "promised", "headroom", "free")
    return [
        {"node": node["name"]}
        | {name: gpu[name] for name in kept}
        | {"replicas": [named((t["namespace"], t["placement"], t["model"], t["replica"])) for t in gpu["tenants"]]}
        for node in picture(course.after)["nodes"]
        for gpu in node["gpus"]
    ]


def _fate_data(fate: Fate, seen: Outlook, explain: bool) -> dict[str, Any]:
    out: dict[str, Any] = {
        "namespace": fate.namespace,
        "placement": fate.placement,
        "model": fate.model,
        "replica": fate.index,
        "what": "unplaced" if fate.lacks else "keepsOldSpec" if fate.verb == KEEPS else fate.verb,
        "turn": fate.turn,
        "share": fate.share,
    }
    if fate.after:
        out |= _place_data(fate.after)
    if fate.before and fate.verb != "stays":
        out["before"] = _place_data(fate.before)
    if fate.message:
        out |= {"reason": fate.reason, "message": fate.message}
    if explain and fate.after:
        out["whyHere"] = seen.why.against_others(fate.name)
    if fate.lacks and (why := seen.why.reason(fate.name)):
        out["why"] = reason_data(why)
    return out


def _place_data(place: Where) -> dict[str, Any]:
    given = place.allocation
    return {
        "node": given.node,
        "gpus": list(given.gpus),
        "indices": list(place.gpus),
        "utilization": given.utilization,
        "bytes": given.bytes,
        "overrun": given.overrun,
    }
