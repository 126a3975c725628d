"""Reading plain data field by field: every error names the path as a user would write it, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import TypeVar

from cotenant.errors import InvalidSpec

T = TypeVar("T")
MISSING = object()


class Fields:
    """One mapping of the input; each field is taken once, `done` refuses the rest."""

    def __init__(self, data: object, path: str, known: tuple[str, ...]) -> None:
        if not isinstance(data, dict):
            raise InvalidSpec(path or "problem", f"must be a mapping of fields, not {describe(data)}")
        self.data, self.path = data, path
        for name in data:
            if name not in known:
                near = get_close_matches(str(name), known, 1)
                hint = f'; did you mean "{near[0]}"?' if near else f"; known are {', '.join(known)}"
                raise InvalidSpec(self.at(str(name)), f"unknown field{hint}")

    def at(self, name: str) -> str:
        """The path of a field."""
        return f"{self.path}.{name}" if self.path else name

    def take(self, name: str, default: object = MISSING) -> object:
        """The value; null is the same as absent."""
        value = self.data.get(name)
        if value is not None:
            return value
        if default is MISSING:
            raise InvalidSpec(self.at(name), "is required")
        return default

    def text(self, name: str, default: object = MISSING) -> str:
        """A string that is not empty."""
        value = self.take(name, default)
        if not isinstance(value, str) or (not value and default is MISSING):
            raise InvalidSpec(self.at(name), f"must be a string that is not empty, not {describe(value)}")
        return value

    def whole(self, name: str, default: int | object = MISSING, least: int | None = 0, most: int = 1 << 62) -> int:
        """A whole number."""
        value = self.take(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidSpec(self.at(name), f"must be a whole number, not {describe(value)}")
        if (least is not None and value < least) or not -most <= value <= most:
            raise InvalidSpec(self.at(name), f"must be a whole number from {least} to {most}, not {value}")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise InvalidSpec(self.at(name), f"must be true or false, not {describe(value)}")
        return value

    def parsed(self, name: str, parse: Callable[[object], T], default: T | object = MISSING) -> T:
        """A value that `parse` reads; its ValueError becomes the reason."""
        value = self.take(name, default)
        if value is default:
            return value  # type: ignore[return-value]
        try:
            return parse(value)
        except ValueError as e:
            raise InvalidSpec(self.at(name), str(e)) from e

    def choice(self, name: str, choices: tuple[str, ...], default: str) -> str:
        """One of a few words."""
        value = self.take(name, default)
        if value not in choices:
            raise InvalidSpec(self.at(name), f"must be one of {', '.join(choices)}, not {describe(value)}")
        return str(value)

    def listed(self, name: str) -> list[tuple[str, object]]:
        """The entries of a list, each with its path; absent is empty."""
        value = self.take(name, [])
        if not isinstance(value, list):
            raise InvalidSpec(self.at(name), f"must be a list, not {describe(value)}")
        return [(f"{self.at(name)}[{at}]", entry) for at, entry in enumerate(value)]

    def mapped(self, name: str) -> dict[object, object]:
        """A mapping whose keys are the user's; absent is empty."""
        value = self.take(name, {})
        if not isinstance(value, dict):
            raise InvalidSpec(self.at(name), f"must be a mapping, not {describe(value)}")
        return value

    def labels(self, name: str) -> tuple[tuple[str, str], ...]:
        """Label keys and values, sorted."""
        found = self.mapped(name)
        for key, value in found.items():
            if not isinstance(key, str) or not isinstance(value, str):
                raise InvalidSpec(f"{self.at(name)}.{key}", f"must be a string (quote it), not {describe(value)}")
        return tuple(sorted((str(k), str(v)) for k, v in found.items()))


def indices(value: object, path: str, limit: int, host: str) -> list[int]:
    """A list of different GPU indices of a host with `limit` GPUs."""
    if not isinstance(value, list):
        raise InvalidSpec(path, f"must be a list of GPU indices, not {describe(value)}")
    found: list[int] = []
    for at, entry in enumerate(value):
        if isinstance(entry, bool) or not isinstance(entry, int):
            raise InvalidSpec(f"{path}[{at}]", f"must be a GPU index, not {describe(entry)}")
        if not 0 <= entry < limit:
            raise InvalidSpec(f"{path}[{at}]", f"node {host} has no GPU {entry}; it has {limit}, counted from 0")
        if entry in found:
            raise InvalidSpec(f"{path}[{at}]", f"GPU {entry} is named twice")
        found.append(entry)
    return found


def describe(value: object) -> str:
    """A value as an error message shows it."""
    text = "null" if value is None else f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
