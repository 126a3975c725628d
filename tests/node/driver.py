"""Stands in for the driver of the cards: who holds how much memory, written down for the stand-in libnvidia-ml to read.

Runs by itself inside the lab: `python driver.py FOLDER`. FOLDER/gpus.json lists the cards; FOLDER/card.txt is what NVML
reads (tests/nvml), replaced whole at every change; FOLDER/driver.sock takes one connection per process. A process says
how much it wants, one JSON line each, and gets one back; its connection's end gives everything back, however it died:
as with a real driver. The kernel tells the pid at the other end as this PID namespace sees it.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Card:
    """One GPU. Bytes."""

    uuid: str
    name: str
    total: int
    reserved: int
    used: dict[int, int] = field(default_factory=dict)
    """By pid."""

    @property
    def free(self) -> int:
        return self.total - self.reserved - sum(self.used.values())


class Driver:
    """The cards of one node and the processes on them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._cards = {card["uuid"]: Card(**card) for card in json.loads((folder / "gpus.json").read_text())}
        self.write()

    def write(self) -> None:
        """Publish the cards to NVML; `extra.txt` of the folder is appended (Xids, row remaps, errors)."""
        # NVML lists processes only to a caller in the driver's own PID namespace
        lines = ["driver 595.91.07", f"pidns {os.readlink('/proc/self/ns/pid')}"]
        for card in self._cards.values():
            name = card.name.replace(" ", "_")
            lines.append(f"gpu {card.uuid} name={name} total={card.total} reserved={card.reserved}")
        for card in self._cards.values():
            lines += [f"process {card.uuid} {pid} {used}" for pid, used in card.used.items()]
        extra = self._folder / "extra.txt"
        scratch = self._folder / "card.txt.new"
        scratch.write_text("\n".join(lines) + "\n" + (extra.read_text() if extra.exists() else ""))
        scratch.chmod(0o644)
        scratch.rename(self._folder / "card.txt")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One process on the cards, from its first word to its end."""
        peer: socket.socket = writer.get_extra_info("socket")
        pid = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        try:
            while line := await reader.readline():
                writer.write(json.dumps(self._answer(pid, json.loads(line))).encode() + b"\n")
                await writer.drain()
        except (OSError, ValueError):
            pass
        finally:
            for card in self._cards.values():
                card.used.pop(pid, None)
            self.write()
            writer.close()

    def _answer(self, pid: int, question: dict[str, Any]) -> dict[str, Any]:
        match question:
            case {"do": "list"}:
                return {"gpus": [{"uuid": c.uuid, "usable": c.total - c.reserved} for c in self._cards.values()]}
            case {"do": "free", "gpu": uuid}:
                return {"free": self._cards[uuid].free}
            case {"do": "use", "gpu": uuid, "bytes": wanted}:
                card = self._cards[uuid]
                if wanted - card.used.get(pid, 0) > card.free:
                    return {"error": "out of memory", "free": card.free}
                card.used[pid] = wanted
                self.write()
                return {"used": wanted}
            case {"do": "rewrite"}:
                self.write()
                return {}
        return {"error": f"unknown question {question}"}


async def main(folder: Path) -> None:
    driver = Driver(folder)
    path = folder / "driver.sock"
    path.unlink(missing_ok=True)
    server = await asyncio.start_unix_server(driver.serve, path)
    path.chmod(0o666)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
