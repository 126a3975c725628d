"""A benchmark's table: rows of instance, figure, target and how far within it; a row that misses says why."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from cotenant.cli.pack import STEPS_PER_SECOND
from cotenant.core.packing.packer import Plan, Problem, pack


@dataclass(frozen=True, slots=True)
class Row:
    """One line; `within`: the figure met its target, None where there is none to meet."""

    section: str
    instance: str
    figure: str
    target: str
    ratio: float | None = None
    within: bool | None = None
    why: str = ""
    """Why it misses, where it does."""

    def __str__(self) -> str:
        mark = {True: "ok", False: "MISS", None: "-"}[self.within]
        ratio = "" if self.ratio is None else f"{self.ratio:.3f}"
        line = f"{mark:5}{self.section:13} {self.instance:86} {self.figure:>12} {self.target:>12} {ratio:>7}"
        return f"{line}\n{'':19}{self.why}" if self.why and self.within is False else line


@dataclass(frozen=True, slots=True)
class Options:
    """How much to run."""

    quick: bool = False
    seeds: int = 2
    first: int = 0
    """The first seed."""
    seconds: float | None = None
    """Improvement of each fresh plan instead of the target's own."""
    gpus: tuple[int, ...] = ()
    """Only instances of these sizes."""

    def sizes(self, usual: tuple[int, ...], quick: tuple[int, ...]) -> tuple[int, ...]:
        """Which sizes to run."""
        return self.gpus or (quick if self.quick else usual)

    def span(self, times: int = 1) -> range:
        """The seeds."""
        return range(self.first, self.first + times * self.seeds)

    def time(self, target: float) -> float:
        """Seconds of improvement."""
        return self.seconds or (min(2.0, target) if self.quick else target)


def at_most(section: str, instance: str, figure: float, target: float, unit: str, why: str = "") -> Row:
    """A row whose figure should not be above its target."""
    ratio = figure / target if target else None
    return Row(section, instance, f"{figure:.3g} {unit}", f"<= {target:g} {unit}", ratio, figure <= target, why)


def at_least(section: str, instance: str, figure: float, target: float, unit: str, why: str = "") -> Row:
    """A row whose figure should not be below its target."""
    ratio = figure / target
    return Row(section, instance, f"{figure:.2f} {unit}", f">= {target:g} {unit}", ratio, figure >= target, why)


def timed(problem: Problem, seconds: float | None = None) -> tuple[Plan, float]:
    """A plan and the CPU seconds it took; `seconds` ends the improvement."""
    began = time.process_time()
    going = None if seconds is None else (lambda: time.process_time() - began < seconds)
    plan = pack(problem, going)
    return plan, time.process_time() - began


def improved(problem: Problem, seconds: float) -> tuple[Plan, float]:
    """What `cotenant pack --seconds N --solver none` makes of it, and the CPU seconds it took."""
    return timed(replace(problem, iterations=int(seconds * STEPS_PER_SECOND)), seconds)
