"""How views are printed: as a table for people, colour or not, or as JSON or YAML for programs."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import yaml
from rich.console import Console

WITHOUT_TERMINAL = 110
"""Columns."""
FORMS = ("table", "json", "yaml")


def add_output(parser: argparse.ArgumentParser) -> None:
    """-o."""
    parser.add_argument("-o", "--output", choices=FORMS, default="table", help="default: table")


def console() -> Console:
    """The terminal; where there is none (a pipe, a CI log), plain text of a fixed width, so that outputs can be compared."""
    if sys.stdout.isatty():
        return Console(highlight=False, markup=False)
    return Console(highlight=False, markup=False, width=WITHOUT_TERMINAL, force_terminal=False, color_system=None)


def emit(data: Any, form: str) -> None:
    """Plain data in the form that was asked for."""
    if form == "json":
        print(json.dumps(data, indent=2, ensure_ascii=False))
    else:
        print(yaml.safe_dump(data, sort_keys=False, width=120, allow_unicode=True), end="")
