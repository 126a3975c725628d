"""Stands in for `vllm serve` in a pod of the lab: real flags, real memory of the stand-in cards, vLLM's own words.

It starts by vLLM's rules: refuses when less is free than its flag grants, takes weights and then its share and the overrun,
dies when a neighbour gave memory back while it measured. It answers /health once it serves, and /v1/models tells which
GPUs it sees. orders/<pod name> may hold one order: `exit 0` (a worker died: vLLM ends well), `exit 1` (with the cause in
the log only), `eat` (host memory until the kernel ends it), `slow SECONDS` (of every load).
"""

from __future__ import annotations

import http.server
import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

from tests.sim import texts
from tests.sim.argv import BadArgumentsError, Command, parse

FOLDER = Path("/run/nvidia-stand-in")
GIB = 1 << 30
VERSION = "0.33.0"
OVERRUN = int(2.5 * GIB)
"""Beyond the share; 0.5 to 3.0 GiB were measured with vLLM 0.26.0 on an H200."""
LOAD_SECONDS = 2.0


class Cards:
    """A connection to the stand-in driver; what it holds is given back when it ends."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(FOLDER / "driver.sock"))
        self._file = self._socket.makefile("rw")

    def ask(self, **question: Any) -> dict[str, Any]:
        self._file.write(json.dumps(question) + "\n")
        self._file.flush()
        answer: dict[str, Any] = json.loads(self._file.readline())
        return answer

    def visible(self) -> list[dict[str, Any]]:
        """The cards whose device nodes this container has."""
        cards = self.ask(do="list")["gpus"]
        return [card for index, card in enumerate(cards) if Path(f"/dev/nvidia{index}").exists()]

    def free(self, uuid: str) -> int:
        return int(self.ask(do="free", gpu=uuid)["free"])

    def use(self, uuid: str, amount: int) -> None:
        """Hold so much from now on; ends as torch does where it is not there."""
        answer = self.ask(do="use", gpu=uuid, bytes=amount)
        if "error" in answer:
            fail(texts.out_of_memory(0, amount, amount + answer["free"], answer["free"], amount, ()))


def say(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)


def fail(cause: str) -> NoReturn:
    """A start that fails: the cause, then so much traceback that a termination message does not hold it."""
    say(*texts.start_failed(time.time(), cause))
    os._exit(1)


def order(since: float = 0.0) -> list[str]:
    """What this pod is told to do; nothing when it was told a pod of its name before `since`."""
    path = FOLDER / "orders" / os.uname().nodename
    try:
        return path.read_text().split() if path.stat().st_mtime > since else []
    except OSError:
        return []


def obey() -> None:
    """Follow orders; runs beside everything else. One order ends one pod: its successor does not see it."""
    begin = time.time()
    while True:
        match order(begin):
            case ["exit", "0"]:
                say(*texts.engine_died(time.time()))
                os._exit(0)
            case ["exit", "1"]:
                fail(
                    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity"
                )
            case ["eat"]:
                say(texts.core(time.time(), "weight_utils.py:300", "Loading weights into host memory"))
                eaten = []
                while True:
                    eaten.append(bytearray(os.urandom(1 << 12)) * (1 << 10))
        time.sleep(0.2)


def load(command: Command, cards: Cards) -> list[str]:
    """Take the cards' memory as vLLM does; the UUIDs in use."""
    seen = cards.visible()
    if len(seen) < command.tensor_parallel:
        fail(
            f"ValueError: World size ({command.tensor_parallel}) is larger than the number of available GPUs ({len(seen)})"
        )
    mine = seen[: command.tensor_parallel]
    granted = {card["uuid"]: int(card["usable"] * command.utilization) for card in mine}
    before = {uuid: cards.free(uuid) for uuid in granted}
    for rank, card in enumerate(mine):
        free, wanted = before[card["uuid"]], granted[card["uuid"]]
        if free < wanted:
            fail(texts.not_enough_free(rank, free, card["usable"], command.utilization, wanted))
    seconds = float(found[1]) if (found := order())[:1] == ["slow"] else LOAD_SECONDS
    weights = {uuid: int(share * 0.4) for uuid, share in granted.items()}
    for uuid, amount in weights.items():
        cards.use(uuid, amount)
    time.sleep(seconds)
    kv = 0
    for uuid, share in granted.items():
        now = cards.free(uuid)
        if now + weights[uuid] > before[uuid]:
            fail(texts.profiling_disturbed(before[uuid], now + weights[uuid]))
        kv = share - (before[uuid] - now)
        if kv <= 0:
            fail(texts.no_cache_blocks())
        cards.use(uuid, share + OVERRUN)
    clock = time.time()
    first = next(iter(weights.values()))
    say(texts.model_loaded(clock, first, seconds), texts.kv_available(clock, kv))
    say(texts.kv_size(clock, kv // (160 << 10), command.max_model_len or 32768), texts.core_ready(clock, seconds))
    return list(granted)


def serve(command: Command, gpus: list[str]) -> NoReturn:
    visible = [path.name for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]
    about = {
        "object": "list",
        "data": [{"id": command.served_name, "gpus": gpus, "nodes": visible, "args": sys.argv[1:]}],
    }

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path in ("/health", "/v1/models") else 404)
            self.end_headers()
            if self.path == "/v1/models":
                self.wfile.write(json.dumps(about).encode())

        def log_message(self, *_: Any) -> None:
            pass

    signal.signal(signal.SIGTERM, stop)
    say(*texts.startup_complete(time.time()))
    http.server.ThreadingHTTPServer(("", 8000), Handler).serve_forever()
    raise AssertionError("unreachable")


def stop(*_: Any) -> None:
    """SIGTERM while serving."""
    say(*texts.shut_down(time.time()))
    os._exit(0)


def swallow(*_: Any) -> None:
    """A SIGTERM while vLLM loads is swallowed; a second one is not (vLLM 0.32, seen 4 of 4)."""
    signal.signal(signal.SIGTERM, interrupt)


def interrupt(*_: Any) -> None:
    """The second one."""
    say("(APIServer pid=1) KeyboardInterrupt: terminated")
    os._exit(130)


def main() -> None:
    signal.signal(signal.SIGTERM, swallow)
    try:
        command = parse(tuple(sys.argv[1:]))
    except BadArgumentsError as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(2)
    say(*texts.banner(time.time(), command, VERSION), *texts.core_started(time.time(), command, VERSION))
    threading.Thread(target=obey, daemon=True).start()
    cards = Cards()  # held to the end: with the connection the memory goes
    serve(command, load(command, cards))


if __name__ == "__main__":
    main()
