"""`cotenant pack problem.json`: packs one problem file and prints the answer as JSON; no cluster is asked or touched."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from typing import cast

import yaml

from cotenant import solver
from cotenant.cli import terminal
from cotenant.cli.datafile import Once, called, text_of, why
from cotenant.core.packing.answerfile import answer
from cotenant.core.packing.packer import Plan, pack
from cotenant.core.packing.problemfile import ProblemFile, read_problem
from cotenant.core.packing.whyhere import on_board, why_here
from cotenant.errors import CotenantError, InvalidSpec

STEPS_PER_SECOND = 12_000
"""What the search does in a second on a slow core (2 cores shared, Python 3.11: 15,000 to 25,000). Seconds become
steps, so that equal files, seeds and seconds give equal plans; the clock only ends what is slower than that."""

SOLVER_PART = 0.5
"""The part of the seconds that CP-SAT gets where it is installed and the plan is not proven yet."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command line takes."""
    parser.add_argument("problem", help="problem file, JSON or YAML; - reads standard input")
    parser.add_argument("--seconds", type=_seconds, default=2.0, help="improvement budget (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="equal seeds give equal plans (default: 0)")
    parser.add_argument(
        "--solver", choices=("auto", "none", "cp-sat"), default="auto",
        help="exact help by OR-tools CP-SAT: auto uses it where it is installed (default: auto)",
    )  # fmt: skip
    parser.add_argument(
        "--moves", type=_count, help="running replicas that may be disturbed to place others (default: any number)"
    )
    parser.add_argument("--explain", action="store_true", help="say of each placement why it is there")
    parser.add_argument(
        "--move-equals", action="store_true", help="replicas of equal priority may be moved too, never displaced"
    )


def main(argv: list[str]) -> int:
    """0 when everything is placed, 2 when not, 1 and a message when the file is wrong."""
    parser = terminal.Parser(prog="cotenant pack", description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args(argv))


def run(options: argparse.Namespace) -> int:
    """The same for arguments that are parsed already."""
    try:
        file = read_problem(load(options.problem))
        found = solve(file, options)
    except CotenantError as e:
        text = str(e)
        print(
            f"cotenant pack: {text if text.startswith(called(options.problem)) else f'{called(options.problem)}: {text}'}",
            file=sys.stderr,
        )
        return 1
    print(json.dumps(found, indent=1))
    return 2 if found["unplaced"] else 0


def solve(file: ProblemFile, options: argparse.Namespace) -> dict[str, object]:
    """The answer with the seconds it took."""
    began = time.monotonic()
    problem = replace(
        file.problem,
        seed=options.seed,
        iterations=max(1, int(options.seconds * STEPS_PER_SECOND)),
        moves=len(file.problem.running) if options.moves is None else options.moves,
        move_equals=options.move_equals,
    )
    exact = options.solver != "none" and solver.is_installed()
    if options.solver == "cp-sat" and not exact:
        raise InvalidSpec("--solver cp-sat", "OR-tools is not installed; install cotenant[solver] or use --solver auto")
    alone = options.seconds * (1 - SOLVER_PART) if exact else options.seconds
    plan = pack(problem, lambda: time.monotonic() - began < alone)
    left = began + options.seconds - time.monotonic()
    if exact and left > 0.2 and not is_proven(plan):
        plan = solver.improve(problem, plan, left)
    found = answer(plan, file)
    if options.explain:
        board = on_board(problem, plan)
        placed = [r for r, spot in enumerate(board.spot) if spot]
        for entry, r in zip(cast(list[dict[str, object]], found["placements"]), placed, strict=True):
            entry["why"] = why_here(board, r).text
    return {**found, "seconds": round(time.monotonic() - began, 3)}


def is_proven(plan: Plan) -> bool:
    """Whether no plan could be better in what it leaves out, moves, splits and costs."""
    key = plan.key
    return not key.unplaced and not key.moves and not key.splits and plan.bound is not None and key.cost <= plan.bound


def load(name: str) -> object:
    """The file as plain data; InvalidSpec says what is wrong with it."""
    text = text_of(name)
    if text.lstrip().startswith("{"):
        try:
            return cast(object, json.loads(text, object_pairs_hook=_object))
        except json.JSONDecodeError as e:
            try:  # a YAML mapping may be written in braces too
                return cast(object, yaml.load(text, Once))
            except (yaml.YAMLError, ValueError, RecursionError):
                raise InvalidSpec("problem", f"is not JSON: {why(e)}") from e
        except (ValueError, RecursionError) as e:
            raise InvalidSpec("problem", f"is not JSON: {why(e)}") from e
    try:
        return cast(object, yaml.load(text, Once))
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        raise InvalidSpec("problem", f"is not YAML: {why(e)}") from e


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object in which no name stands twice: which of the two counts is not said anywhere."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidSpec(twice, "stands twice in one mapping; leave one of them")
    return found


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 86_400:
        raise argparse.ArgumentTypeError(f"a number of seconds from 0 to 86400 is wanted, not {text}")
    return value


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"a whole number, 0 or more, is wanted, not {text}")
    return int(text)
