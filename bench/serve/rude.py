"""Clients that misbehave: slow clients, and clients that go away in the middle of a request.

They use plain sockets, because HTTP libraries do not let a client misbehave.
"""

import asyncio
import random
import socket
import struct
from collections import Counter
from contextlib import suppress
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from lastword.bench.serve.load import MOST_SECONDS, ROUTE
from lastword.bench.serve.material import Material

# A slow client sends _DRIP_BYTES bytes or reads _READ_BYTES bytes, then waits _PAUSE seconds, and so on.
_DRIP_BYTES, _READ_BYTES, _PAUSE = 1, 512, 0.5
_LONG = 1_000_000  # the stated length, in bytes, of a body that is never sent completely
_AT_ONCE = 64  # most connections of `disconnect` that are open at once
_TEXTS = 4  # texts in a request whose client goes away
_SAME = 64  # equal short texts in the request of a slow reader: the server computes one, and the answer is large
MANNERS = ("connects", "half headers", "half body", "no answer read", "reset", "half answer")


def head(length: int) -> bytes:
    """Return the first line and the headers of a request whose body has `length` bytes."""
    lines = (
        f"POST {ROUTE} HTTP/1.1",
        "Host: 127.0.0.1",
        "Content-Type: application/json",
        f"Content-Length: {length}",
    )
    return "\r\n".join((*lines, "", "")).encode()


class Slow:
    """Slow clients: half of them send their body byte by byte, the others read their answers slowly.

    Args:
        url: the server's address.
        clients: number of clients. A client whose connection ends opens a new one.
        seconds: how long the clients stay.
    """

    def __init__(self, url: str, clients: int, seconds: float) -> None:
        split = urlsplit(url)
        self._place = split.hostname, split.port
        self._clients, self._end = clients, monotonic() + min(seconds, MOST_SECONDS)
        self.counts: Counter[str] = Counter()

    async def run(self, ready: asyncio.Event) -> dict[str, Any]:
        """Connect all clients, set `ready`, stay for the time, and return `counts`.

        `counts` has the numbers of clients that connected ("begun"), of later connections ("came again"), and of bodies
        that the server cut off ("cut off").
        """
        tasks = [asyncio.create_task(self._again(n)) for n in range(self._clients)]
        while self.counts["begun"] < self._clients and monotonic() < self._end:
            await asyncio.sleep(0.02)
        ready.set()
        await asyncio.sleep(max(0.0, self._end - monotonic()))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return dict(self.counts)

    async def _again(self, number: int) -> None:
        await asyncio.sleep(number / 500)
        first = True
        while monotonic() < self._end:
            with suppress(OSError):
                await (self._read if number % 2 else self._drip)(first=first)
            first = False
            await asyncio.sleep(_PAUSE)

    async def _drip(self, *, first: bool) -> None:
        reader, writer = await asyncio.open_connection(*self._place)
        try:
            writer.write(head(_LONG) + b'{"input": "')
            await writer.drain()
            self._begin(first=first)
            answer = asyncio.create_task(reader.read(1))
            while not answer.done():
                writer.write(b"a" * _DRIP_BYTES)
                await asyncio.wait((answer,), timeout=_PAUSE)
            self.counts["cut off"] += 1
        finally:
            writer.transport.abort()

    async def _read(self, *, first: bool) -> None:
        receiver = socket.socket()
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        receiver.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_connect(receiver, self._place)
            listed = ",".join(['"slowly read"'] * _SAME).encode()
            body = b'{"input": [' + listed + b"]}"
            await loop.sock_sendall(receiver, head(len(body)) + body)
            self._begin(first=first)
            while await loop.sock_recv(receiver, _READ_BYTES):
                await asyncio.sleep(_PAUSE)
        finally:
            receiver.close()

    def _begin(self, *, first: bool) -> None:
        self.counts["begun" if first else "came again"] += 1


async def disconnect(url: str, count: int, material: Material, seed: int) -> dict[str, Any]:
    """Open `count` connections that end in the middle of a request; return how many ended in each of the `MANNERS`."""
    split, rng = urlsplit(url), random.Random(seed)  # noqa: S311  manners, not secrets
    room, ended = asyncio.Semaphore(_AT_ONCE), Counter[str]()

    async def one(number: int) -> None:
        async with room:
            manner = MANNERS[number % len(MANNERS)]
            block = rng.randrange(material.blocks(_TEXTS))
            body = material.body(block, _TEXTS, encoding_format="float")
            with suppress(OSError):
                await _leave(split.hostname, split.port, manner, body, rng.uniform(0, 0.03))
                ended[manner] += 1

    async with asyncio.timeout(MOST_SECONDS):
        await asyncio.gather(*(one(number) for number in range(count)))
    return dict(ended)


async def _leave(host: str | None, port: int | None, manner: str, body: bytes, wait: float) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    whole = head(len(body)) + body
    parts = {"connects": b"", "half headers": whole[:30], "half body": whole[: -len(body) // 2]}
    writer.write(parts.get(manner, whole))
    with suppress(ConnectionError):
        await writer.drain()
        if manner == "half answer":
            await reader.read(100)
        elif manner != "no answer read":
            await asyncio.sleep(wait)
    if manner in ("reset", "half answer"):  # RST instead of FIN
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
