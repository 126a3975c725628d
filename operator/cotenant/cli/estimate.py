"""`cotenant estimate`: what a model needs of each GPU, the share that serves it, and what fits a given one. Starts nothing."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich import box
from rich.table import Table

from cotenant import catalogue, sources
from cotenant.api import placement
from cotenant.api.spec import EngineField
from cotenant.cli import terminal
from cotenant.core.estimate.advice import (
    AutoShare,
    Refusal,
    at_share,
    auto_share,
    longest_context,
    refuse,
    sized,
    smallest_share,
)
from cotenant.core.estimate.engine import Estimate
from cotenant.core.estimate.figure import Figure
from cotenant.core.estimate.modelconfig import ModelConfig
from cotenant.core.share import Auto, Bytes, Percent, Share, Utilization, gib, parse_quantity, parse_share
from cotenant.core.vllm import Engine, Sizing, settle
from cotenant.core.vllmflags import refuse_extra
from cotenant.errors import CotenantError

WIDTH = 150
"""Columns where there is no terminal: sources are sentences."""


class UsageError(CotenantError):
    """The command line asks for something that cannot be done; the text says what to write."""


def main(argv: list[str]) -> int:
    """0 with an answer, 2 where that is a refusal, 1 with one line where there is none."""
    parser = terminal.Parser(prog="cotenant estimate", description=__doc__)
    parser.add_argument("model", nargs="?", metavar="MODEL", help="org/name or hf://org/name@revision")
    parser.add_argument("--config", metavar="FILE", help="a config.json, or a model's folder, instead of MODEL")
    parser.add_argument(
        "--engine", metavar="FILE", help="the engine block of a ModelPlacement, in YAML; - reads standard input"
    )
    card = parser.add_mutually_exclusive_group()
    card.add_argument("--gpu", metavar="NAME", help=f"one of {', '.join(gpu.name for gpu in catalogue.gpus())}")
    card.add_argument(
        "--memory",
        metavar="BYTES",
        help="a GPU's usable memory (NVML v2 total - reserved), such as 85017493504 or 79Gi",
    )
    parser.add_argument("--tp", type=int, default=1, metavar="N", help="GPUs of the tensor-parallel group (default: 1)")
    parser.add_argument("--share", default="auto", metavar="S", help='"70%%", "60Gi" or "auto" (default)')
    parser.add_argument("--offline", action="store_true", help="ask no hub: its cache on disk, then the catalogue")
    terminal.add_output(parser)
    options = parser.parse_args(argv)
    try:
        answer = _answer(options)
    except CotenantError as error:
        print(f"cotenant estimate: {error}", file=sys.stderr)
        return 1
    if options.output == "table":
        _print(answer)
    else:
        terminal.emit(_json(answer), options.output)
    return 2 if answer.refusal else 0


@dataclass(frozen=True, slots=True)
class Answer:
    """Everything that is printed."""

    config: ModelConfig
    engine: Engine
    tensor_parallel: int
    share: int
    """Bytes per GPU the figures are for: granted by the flag where the card is known."""
    memory: int | None
    auto: AutoShare
    estimate: Estimate
    context: int
    refusal: Refusal | None


# ------------------------------------------------------------------------------------------------------------- reading
def _answer(options: argparse.Namespace) -> Answer:
    if bool(options.model) == bool(options.config):
        raise UsageError("give a MODEL or --config FILE, one of them")
    if not 1 <= options.tp <= 1024:
        raise UsageError(f"--tp {options.tp}: 1 or more GPUs are wanted")
    engine = _engine(options.engine) if options.engine else Engine()
    memory = _memory(options)
    wanted = _share(options.share)
    if isinstance(wanted, Percent) and memory is None:
        raise UsageError(f"--share {wanted} is a part of a GPU: say which with --gpu or --memory")
    config = (
        sources.read_file(options.config)
        if options.config
        else sources.model_config(options.model, offline=options.offline)
    )
    auto = auto_share(config, engine, options.tp)
    share = _granted(wanted, auto, memory)
    if isinstance(wanted, Auto):
        engine = sized(engine, auto.max_model_len)
    refusal = _refusal(config, engine, options.tp, share, memory)
    fits = longest_context(config, engine, options.tp, share)
    if engine.auto_max_model_len:
        engine = settle(engine, Sizing(share, max_model_len=max(1, fits)))
    return Answer(
        config, engine, options.tp, share, memory, auto, at_share(config, engine, options.tp, share), fits, refusal
    )  # fmt: skip


def _engine(name: str) -> Engine:
    """An `engine` block; unknown and wrong fields are refused by name."""
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
        block = yaml.safe_load(text) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--engine {name} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"--engine {name} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(block, dict):
        raise UsageError(f"--engine {name}: the fields of an engine block are wanted, not {type(block).__name__}")
    if set(block) == {"engine"} and isinstance(block["engine"], dict):
        block = block["engine"]
    known = {field.alias or key for key, field in EngineField.model_fields.items()}
    if unknown := sorted(str(key) for key in block if key not in known):
        raise UsageError(f'--engine {name}: there is no field "{unknown[0]}"; there are {", ".join(sorted(known))}')
    model = {"name": "m", "uri": "hf://org/name", "share": "auto", "engine": block}
    read = placement.parse({"metadata": {"namespace": "n", "name": "n", "uid": "u"}, "spec": {"models": [model]}})
    if read.invalid:
        raise UsageError(
            f"--engine {name}: {read.invalid.path.removeprefix('spec.models[0].engine.')}: {read.invalid.reason}"
        )
    engine = read.models[0].engine
    if wrong := refuse_extra(engine.extra_args):
        raise UsageError(f"--engine {name}: extraArgs: {wrong}")
    return engine


def _memory(options: argparse.Namespace) -> int | None:
    """Usable bytes of the GPU that was named."""
    if options.gpu:
        wanted = options.gpu.lower()
        for gpu in catalogue.gpus():
            if wanted in (gpu.name.lower(), gpu.product.lower()):
                return gpu.usable
        raise UsageError(
            f'--gpu "{options.gpu}" is not known; known are {", ".join(gpu.name for gpu in catalogue.gpus())}'
        )
    if options.memory is None:
        return None
    try:
        memory = parse_quantity(options.memory)
    except ValueError as error:
        raise UsageError(f"--memory: {error}") from error
    if not 1 << 28 <= memory < 1 << 50:
        raise UsageError(f"--memory {options.memory}: a GPU's bytes are wanted, 256Mi or more")
    return memory


def _share(text: str) -> Share:
    try:
        return parse_share(text)
    except ValueError as error:
        raise UsageError(f"--share: {error}") from error


def _granted(wanted: Share, auto: AutoShare, memory: int | None) -> int:
    """Bytes per GPU the flag would grant."""
    if isinstance(wanted, Percent):
        return wanted.utilization(memory or 0).of(memory or 0)
    asked = auto.bytes if isinstance(wanted, Auto) else wanted.bytes
    return asked if memory is None else _flag(asked, memory).of(memory)


def _flag(share: int, memory: int) -> Utilization:
    return Bytes(share).utilization(memory)


def _refusal(config: ModelConfig, engine: Engine, ranks: int, share: int, memory: int | None) -> Refusal | None:
    """The share's own refusal, or the card's."""
    if refusal := refuse(config, engine, ranks, share):
        return refusal
    if memory is None or share <= memory:
        return None
    length = engine.max_model_len or config.max_position
    least = smallest_share(config, engine, ranks, length)
    fits = longest_context(config, engine, ranks, memory)
    instead = f"; the whole GPU holds the weights and {fits:,} tokens" if fits else "; use more GPUs (--tp) or quantize"
    message = f"{gib(share)} are wanted and the GPU has {gib(memory)}, {gib(least)} would serve one sequence{instead}"
    return Refusal("LargerThanGPU", message, least, fits)


# ------------------------------------------------------------------------------------------------------------ printing
def _parts(answer: Answer) -> dict[str, Figure]:
    """What is told of each GPU, by the names of the JSON form."""
    found, share = answer.estimate, answer.share
    room = found.kv_cache(share)
    return {
        "weights": found.weights,
        "activation": found.activation,
        "cudaGraphs": found.cuda_graphs,
        "nonTorch": found.non_torch,
        "kvBytesPerToken": found.token_bytes,
        "kvCache": Figure(max(0, room.value), max(0, room.low), max(0, room.high), room.source),
        "peak": found.peak(share),
    }


def _figure(figure: Figure) -> dict[str, Any]:
    return {"value": figure.value, "low": figure.low, "high": figure.high, "source": figure.source}


def _products(answer: Answer) -> dict[str, dict[str, Any] | None]:
    """The share of `auto` on every card we know: None where it is too small."""
    shares: dict[str, dict[str, Any] | None] = {}
    for gpu in catalogue.gpus():
        flag = _flag(answer.auto.bytes, gpu.usable)
        percent = str(Percent(flag.ten_thousandths))
        fits = answer.auto.bytes <= gpu.usable
        shares[gpu.name] = {"share": percent, "utilization": str(flag), "bytes": flag.of(gpu.usable)} if fits else None
    return shares


def _json(answer: Answer) -> dict[str, Any]:
    refusal = answer.refusal
    return {
        "perGPU": {name: _figure(figure) for name, figure in _parts(answer).items()},
        "kvCacheTokens": _figure(answer.estimate.kv_tokens(answer.share)),
        "contextThatFits": answer.context,
        "share": {"auto": answer.auto.bytes, "perProduct": _products(answer)},
        "refusal": refusal and {"reason": refusal.reason, "message": refusal.message, "needs": refusal.needs},
    }


def _print(answer: Answer) -> None:
    config, console = answer.config, terminal.console(piped=WIDTH)
    group = f", on each of {answer.tensor_parallel} GPUs" if answer.tensor_parallel > 1 else ""
    console.print(f"{config.architecture}, {config.layers} layers, from {config.source}{group}", soft_wrap=True)
    for note in config.notes:
        console.print(f"note: {note}", soft_wrap=True)
    parts = Table(box=box.SIMPLE_HEAD)
    for name, side in (("per GPU", "left"), ("", "right"), ("from", "right"), ("to", "right"), ("source", "left")):
        parts.add_column(name, justify=side, overflow="fold")  # type: ignore[arg-type]
    for name, figure in _parts(answer).items():
        shown = [f"{n:,}" if name == "kvBytesPerToken" else gib(n) for n in (figure.value, figure.low, figure.high)]
        parts.add_row(name, *shown, figure.source)
    tokens = answer.estimate.kv_tokens(answer.share)
    parts.add_row("kvCacheTokens", f"{tokens.value:,}", f"{tokens.low:,}", f"{tokens.high:,}", tokens.source)
    console.print(parts)
    of = f" ({_flag(answer.share, answer.memory)} of {gib(answer.memory)})" if answer.memory else ""
    console.print(f"at a share of {gib(answer.share)}{of} a context of {answer.context:,} tokens fits", soft_wrap=True)
    auto = answer.auto
    console.print(
        f"share: auto = {gib(auto.bytes)} for {auto.concurrency} sequences of {auto.max_model_len:,} tokens at once",
        soft_wrap=True,
    )
    cards = Table(box=box.SIMPLE_HEAD)
    for name in ("GPU", "share", "--gpu-memory-utilization"):
        cards.add_column(name)
    for name, fitting in _products(answer).items():
        cards.add_row(name, *([fitting["share"], fitting["utilization"]] if fitting else ["too small", "-"]))
    console.print(cards)
    if answer.refusal:
        console.print(f"refused ({answer.refusal.reason}): {answer.refusal.message}", soft_wrap=True)
