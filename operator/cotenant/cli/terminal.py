"""How views are printed: as a table for people, colour or not, or as JSON or YAML for programs."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Collection, Sequence
from typing import IO, Any, NoReturn, cast

import yaml
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

WITHOUT_TERMINAL = 110
"""Columns."""
FORMS = ("table", "json", "yaml")


class Parser(argparse.ArgumentParser):
    """A command line whose mistakes are one line and exit status 1: 2 means an answer that nobody hoped for."""

    def error(self, message: str) -> NoReturn:
        """What is wrong with it."""
        self.exit(1, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def add_output(parser: argparse.ArgumentParser) -> None:
    """-o."""
    parser.add_argument("-o", "--output", choices=FORMS, default="table", help="default: table")


def console(piped: int = WITHOUT_TERMINAL) -> Console:
    """The terminal; where there is none (a pipe, a CI log), plain text of a fixed width, so that outputs can be compared."""
    if sys.stdout.isatty():
        return Console(highlight=False, markup=False)
    told = os.environ.get("COLUMNS", "")
    width = int(told) if told.isdecimal() and int(told) else piped
    out = cast(IO[str], _Trimmed(sys.stdout))
    return Console(file=out, highlight=False, markup=False, width=width, force_terminal=False, color_system=None)


class _Trimmed:
    """A stream without blanks at the ends of lines."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out

    def write(self, text: str) -> int:
        """The same without the blanks that fill a table up."""
        return self._out.write(re.sub(r" +$", "", text, flags=re.MULTILINE))

    def flush(self) -> None:
        """Of the stream behind it."""
        self._out.flush()

    def isatty(self) -> bool:
        """It is a pipe or a file."""
        return False


def table(
    console: Console, columns: Sequence[str], rows: Sequence[Sequence[str | Text]], *,
    right: Collection[str] = (), expendable: Sequence[str] = (),
) -> Table:  # fmt: skip
    """Rows under their columns. What does not fit the width goes without `expendable` columns, the first of them first; then the first column folds."""
    shown = list(columns)
    room = console.width - 1
    cells = {name: [row[at] for row in rows] for at, name in enumerate(columns)}
    widths = {name: max(len(name), *(len(cell) for cell in cells[name])) if rows else len(name) for name in columns}
    for name in expendable:
        if sum(widths[name] + 3 for name in shown) <= room + 2:
            break
        shown.remove(name)
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    rest = sum(widths[name] + 3 for name in shown[1:])
    for at, name in enumerate(shown):
        fold = max(12, room + 2 - 3 - rest) if at == 0 else None
        drawn.add_column(
            name, justify="right" if name in right else "left", overflow="fold", no_wrap=at > 0,
            max_width=fold if fold is not None and fold < widths[name] else None,
        )  # fmt: skip
    for at in range(len(rows)):
        drawn.add_row(*(cells[name][at] for name in shown))
    return drawn


def emit(data: Any, form: str) -> None:
    """Plain data in the form that was asked for."""
    if form == "json":
        print(json.dumps(data, indent=2, ensure_ascii=False))
    else:
        print(yaml.safe_dump(data, sort_keys=False, width=120, allow_unicode=True), end="")
