"""`python -m tests.soak`: many histories, and the seeds of those that broke a law; then hypothesis on the same world."""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor

from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.soak.history import History, Outcome
from tests.soak.machine import UNBOUND, ClusterMachine


def one(seed: int) -> Outcome:
    """One history, from its seed alone."""
    return History(seed).run()


def shrink(seed: int) -> History:
    """The same history with as few steps as still break it."""
    steps = History(seed).steps
    skip: frozenset[int] = frozenset()
    broken = one(seed).broken
    for size in (8, 4, 2, 1):
        for begin in range(0, steps, size):
            tried = skip | set(range(begin, min(begin + size, steps)))
            if tried != skip and _same(History(seed, tried).run().broken, broken):
                skip = tried
    return History(seed, skip, tell=True)


def _same(one_text: str, other: str) -> bool:
    """The same law, whatever the names in it."""
    return bool(one_text) and one_text.split()[-3:-1] == other.split()[-3:-1]


def main() -> int:
    """Runs them and prints what came of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--histories", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, help="tell one history, as short as it still breaks")
    parser.add_argument("--whole", action="store_true", help="with --seed: as it is, not shortened")
    parser.add_argument("--examples", type=int, help="examples for hypothesis; a twentieth of the histories")
    options = parser.parse_args()
    if options.seed is not None:
        outcome = (History(options.seed, tell=True) if options.whole else shrink(options.seed)).run()
        print(outcome.broken or "all laws held")
        return bool(outcome.broken)
    begun, failed, steps, passes, writes, most = time.monotonic(), [], 0, 0, 0, 0
    seeds = range(options.first, options.first + options.histories)
    with ProcessPoolExecutor(options.jobs) as pool:
        for done, outcome in enumerate(pool.map(one, seeds, chunksize=8), 1):
            steps, passes, writes = steps + outcome.steps, passes + outcome.passes, writes + outcome.writes
            most = max(most, outcome.rest_passes)
            if outcome.broken:
                failed.append(outcome)
                print(f"seed {outcome.seed}: {outcome.broken}", flush=True)
            if done % 250 == 0:
                print(f"{done} histories, {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    seconds = time.monotonic() - begun
    print(
        f"{options.histories} histories, {steps} steps, {passes} passes, {writes} writes in {seconds:.0f} s; rest after at "
        f"most {most} passes; {len(failed)} broke a law"
        + (f": seeds {[o.seed for o in failed[:20]]}" if failed else "")
    )
    examples = options.histories // 20 if options.examples is None else options.examples
    return bool(failed) | (bool(examples) and _machine(examples))


def _machine(examples: int) -> bool:
    """Hypothesis chooses what happens; True where it found how to break a law, told as briefly as it could."""
    begun = time.monotonic()
    found = ""
    try:
        run_state_machine_as_test(
            ClusterMachine, settings=settings(UNBOUND, max_examples=examples, stateful_step_count=40)
        )  # type: ignore[no-untyped-call]
    except Exception:
        found = traceback.format_exc()
        print(found)
    ran = ClusterMachine.ran
    print(
        f"{len(ran)} histories by hypothesis, {sum(o.steps for o in ran)} steps in {time.monotonic() - begun:.0f} s; "
        + ("a law was broken" if found else "all laws held")
    )
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
