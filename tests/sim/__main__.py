"""`python -m tests.sim --kubeconfig FILE`: play all GPU nodes of a cluster until interrupted."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import signal
import sys
from pathlib import Path
from typing import Any

import yaml

from cotenant.core.share import parse_quantity
from tests.sim.models import ModelSpec
from tests.sim.settings import Settings
from tests.sim.shell import Shell


def main() -> int:
    """Parse, run, report what broke."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument(
        "--config", type=Path, help="YAML: any field of tests/sim/settings.py; models: {pattern: {weights: 10Gi, ...}}"
    )
    parser.add_argument("--seed", type=int)
    parser.add_argument("--speed", type=float, help="simulated seconds per real second")
    parser.add_argument("--load-seconds", type=float, nargs=2, metavar=("LOW", "HIGH"))
    parser.add_argument(
        "--fast", action="store_true", help="fewest writes and starts that take no time: for benchmarks"
    )
    arguments = parser.parse_args()
    try:
        settings = _settings(arguments)
    except (ValueError, TypeError, OSError, yaml.YAMLError) as error:
        parser.error(f"--config: {error}")
    sim = Shell(arguments.kubeconfig, settings)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(name, sim.ask_to_stop)
        await sim.run()

    asyncio.run(run())
    print(sim.world.audit.report(), flush=True)
    return 1 if sim.world.audit.violations else 0


def _settings(arguments: argparse.Namespace) -> Settings:
    told = yaml.safe_load(arguments.config.read_text()) or {} if arguments.config else {}
    models = {pattern: _model(spec) for pattern, spec in told.pop("models", {}).items()}
    known = {field.name for field in dataclasses.fields(Settings)}
    if unknown := sorted(set(told) - known):
        raise ValueError(f"unknown field {unknown[0]}; known: {', '.join(sorted(known))}")
    settings = Settings(**told, models=models)
    if arguments.seed is not None:
        settings.seed = arguments.seed
    if arguments.speed is not None:
        settings.speed = arguments.speed
    if arguments.load_seconds:
        settings.load_seconds = tuple(arguments.load_seconds)
    if arguments.fast:
        settings.fast, settings.create_seconds = True, 0.0
        if not arguments.load_seconds:
            settings.load_seconds = (0.0, 0.0)
    return settings


def _model(spec: dict[str, Any]) -> ModelSpec:
    told: dict[str, Any] = dict(spec)
    for key in {"weights", "kv_per_token"} & set(told):
        told[key] = parse_quantity(str(told[key]))
    return ModelSpec(**told)


if __name__ == "__main__":
    sys.exit(main())
