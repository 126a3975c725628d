"""docs/reasons.md explains every reason that the code can give, and none that it cannot."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from cotenant.core.oom.deaths import Kind
from cotenant.core.packing.whynot import CLOSENESS
from cotenant.core.planning import REASONS
from cotenant.core.status import FAILED, LEAVING, READY, STARTING, UNPLACED, WAITING

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "operator" / "cotenant"
PAGE = ROOT / "docs" / "reasons.md"
MAKERS = {"NoPlace", "Issue", "Leave", "Notice", "ReplicaState", "Refusal", "Create", "Delete", "Verdict", "GPUNode"}
"""What carries a reason, by the name it is made with."""
ELSEWHERE = {"True", "False", "Unknown", "Pod", "Service", "ModelPlacement", "Ready", "Supported"} | {
    str(kind) for kind in Kind
}
"""Words in those calls that are no reasons, and the verdicts of docs/faults.md."""
WORD = re.compile(r"[A-Z]+[A-Za-z]+")


def test_the_page_has_every_reason_and_no_other() -> None:
    rows = set(re.findall(r"^\| `([A-Za-z]+)`", PAGE.read_text(encoding="utf-8"), re.M))
    kinds = {"Ready", "Placed", "Reconciling", "Stalled", "MemoryPressure", "GPUConflict", "Supported"}
    phases = {UNPLACED, WAITING, STARTING, READY, LEAVING, FAILED}

    there = reasons() | kinds | phases

    assert there - rows == set(), "these are not explained"
    assert rows - there == set(), "nothing says these"


def reasons() -> set[str]:
    """Every CamelCase word that the core, the agents' report and the GPUNode's reader give as a reason."""
    agent = [SOURCES / "agent" / name for name in ("report.py", "loop.py", "nvml.py")]
    files = [*(SOURCES / "core").rglob("*.py"), *agent, SOURCES / "api" / "gpunode.py"]
    files = [file for file in files if not {"packing", "oom"} & set(file.relative_to(SOURCES).parts)]
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in files}
    constants = {name: value for tree in trees.values() for name, value in _constants(tree)}
    found = {REASONS.get(code, code) for code in CLOSENESS}
    for file, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and _name(node.func) in MAKERS:
                found.update(_words([*node.args, *(keyword.value for keyword in node.keywords)], constants))
            elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value and "reason" in ast.dump(node):
                found.update(_words([node.value], constants))
            elif isinstance(node, ast.Tuple) and file.name == "status.py":
                found.update(_words(node.elts, constants))
            elif isinstance(node, ast.Dict) and file.name == "nvml.py":
                found.update(_words(node.values, constants))
            elif isinstance(node, ast.keyword) and node.arg == "reason":
                found.update(_words([node.value], constants))
            elif isinstance(node, ast.Call) and _name(node.func) == "get" and file.name == "nvml.py":
                found.update(_words(node.args, constants))
    return found - ELSEWHERE


def _constants(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield from ((target.id, node.value.value) for target in node.targets if isinstance(target, ast.Name))


def _words(values: Iterable[ast.expr], constants: dict[str, str]) -> Iterator[str]:
    """Words among these values, also where one of two is chosen."""
    for value in values:
        match value:
            case ast.Constant(value=str(text)) if WORD.fullmatch(text):
                yield text
            case ast.Name(id=name) if WORD.fullmatch(constants.get(name, "")):
                yield constants[name]
            case ast.IfExp(body=one, orelse=other):
                yield from _words([one, other], constants)
            case ast.BoolOp(values=each):
                yield from _words(each, constants)
            case ast.Tuple(elts=each):
                yield from _words(each, constants)


def _name(function: ast.expr) -> str:
    return (
        function.id if isinstance(function, ast.Name) else function.attr if isinstance(function, ast.Attribute) else ""
    )
