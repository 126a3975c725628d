"""Lets this machine's loopback reach one port inside a network namespace.

Runs by itself: `python relay.py PID ADDRESS PORT FILE` listens on a free port of 127.0.0.1 here, writes it to FILE,
then enters the network namespace of PID and passes every connection on to ADDRESS:PORT there. Standard library only.
"""

import asyncio
import ctypes
import os
import socket
import sys
from pathlib import Path

CLONE_NEWNET = 0x40000000


def enter_network_of(pid: int) -> None:
    """Go into the network namespace of a process; sockets opened before stay where they were."""
    libc = ctypes.CDLL(None, use_errno=True)
    handle = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    try:
        if libc.setns(handle, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"entering the network namespace of process {pid}")
    finally:
        os.close(handle)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


async def _serve(listener: socket.socket, address: str, port: int) -> None:
    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there = await asyncio.open_connection(address, port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_copy(reader, there[1]), _copy(there[0], writer))

    server = await asyncio.start_server(connect, sock=listener)
    await server.serve_forever()


def main(pid: int, address: str, port: int, file: Path) -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    enter_network_of(pid)
    scratch = file.with_suffix(".new")
    scratch.write_text(str(listener.getsockname()[1]))
    scratch.rename(file)
    asyncio.run(_serve(listener, address, port))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
