"""YAML and JSON as a person writes them: a key that stands twice is refused, since nothing says which of the two counts."""

from __future__ import annotations

import sys
from collections.abc import Hashable
from pathlib import Path

import yaml

from cotenant.errors import InvalidSpec


def text_of(name: str) -> str:
    """What a file holds, - = standard input; InvalidSpec says why it cannot be read."""
    try:
        return sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8-sig")
    except OSError as e:
        raise InvalidSpec(called(name), f"cannot be read: {e.strerror or e}") from e
    except (UnicodeDecodeError, ValueError) as e:
        raise InvalidSpec(called(name), f"cannot be read: {e}") from e


def called(name: str) -> str:
    """A file as messages name it."""
    return "standard input" if name == "-" else name


def documents(name: str) -> list[object]:
    """The documents of a YAML (or JSON) file as plain data; InvalidSpec says what is wrong with it."""
    text = text_of(name)
    try:
        return list(yaml.load_all(text, Once))
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        raise InvalidSpec(called(name), f"is not YAML: {why(e)}") from e
    except InvalidSpec as e:
        raise InvalidSpec(f"{called(name)}: {e.path}", e.reason) from e


def why(error: Exception) -> str:
    """What a parser says, on one line."""
    return "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())


class Once(yaml.SafeLoader):
    """Plain YAML in which no key of a mapping stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        """The mapping."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if (key.tag, key.value) in seen:
                    raise InvalidSpec(
                        key.value, f"stands twice in one mapping (line {key.start_mark.line + 1}); leave one"
                    )
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)
