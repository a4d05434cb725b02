"""Run a real server in a thread of this process, on a free port."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

from lastword import Embedder
from lastword.serve.http.server import Server
from lastword.serve.service import Service
from lastword.serve.settings import Settings


@dataclass
class Running:
    server: Server
    service: Service
    url: str

    def client(self, **kwargs) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False, **kwargs)

    def post(self, path: str, body: object, **kwargs) -> httpx.Response:
        with self.client() as client:
            return client.post(path, json=body, **kwargs)

    def get(self, path: str, **kwargs) -> httpx.Response:
        with self.client() as client:
            return client.get(path, **kwargs)

    def in_loop(self, act: Callable[[], object]) -> None:
        self.server.servers[0].get_loop().call_soon_threadsafe(act)


@contextmanager
def running(
    load: Callable[[], Embedder], settings: Settings | None = None, *, wait: bool = True, **kwargs
) -> Iterator[Running]:
    service = Service(settings or Settings(port=0), load, **kwargs)
    server = Server(service)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    try:
        until(lambda: server.started)
        found = Running(server, service, f"http://127.0.0.1:{server.port}")
        if wait:
            until(lambda: all(backend.device.ready for backend in service.backends))
        yield found
    finally:
        server.should_exit = True
        thread.join(30)
        service.close(30)
        assert not thread.is_alive()


def until(found: Callable[[], object], seconds: float = 60) -> None:
    """Wait until `found` returns a true value."""
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.005)
