"""The process of the load generator: it reads commands from stdin and prints their results on stdout, as lines of JSON.

It imports no torch, sends to loopback addresses only, and ends when stdin ends. Every load is bounded (`load.py`).
"""

import asyncio
import gc
import ipaddress
import json
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lastword.bench.serve.load import Load, send
from lastword.bench.serve.material import KINDS, Material
from lastword.bench.serve.rude import Slow, disconnect


def check_loopback(url: str) -> None:
    """Raise ValueError unless the URL's host is a loopback address."""
    host = urlsplit(url).hostname or ""
    if not ipaddress.ip_address(host).is_loopback:
        raise ValueError(f"not a loopback address: {host}")


async def answer(asked: dict[str, Any], materials: dict[str, Material]) -> dict[str, Any]:
    """Carry out one command (a load, disconnecting clients, or slow clients) and return its result."""
    kind = asked.pop("do")
    check_loopback(asked["url"])
    if kind == "load":
        load = Load(**asked)
        return await send(load, materials[load.kind])
    if kind == "disconnect":
        return await disconnect(asked["url"], asked["count"], materials["queries"], asked["seed"])
    ready = asyncio.Event()
    slow = asyncio.create_task(Slow(**asked).run(ready))
    await ready.wait()
    tell({"ready": True})
    return await slow


def tell(result: dict[str, Any]) -> None:
    """Print a result as one line of JSON."""
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()


def main(folder: str) -> None:
    """Carry out the commands from stdin until it ends, with the texts in `folder`."""
    materials = {kind: Material.load(Path(folder), kind) for kind in KINDS}
    gc.freeze()
    for line in sys.stdin:
        asyncio.run(_told(json.loads(line), materials))


async def _told(asked: dict[str, Any], materials: dict[str, Material]) -> None:
    tell(await answer(asked, materials))


if __name__ == "__main__":
    main(sys.argv[1])
