"""Too much work, clients that go away, a device that fails, and the end of a server, on a device that can be held."""

import gc
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers.serving.servers import running, until

from lastword import Embedder
from lastword.serve.http.server import Connection
from lastword.serve.settings import Limits, Settings

ROUTE = "/v1/embeddings"


class Held:
    """A runner that computes with another one, once it is let go; it may fail instead."""

    def __init__(self, runner):
        self._runner = runner
        self.go = threading.Event()
        self.go.set()
        self.error: Exception | None = None
        self.texts = 0

    def __getattr__(self, name):
        return getattr(self._runner, name)

    def start(self, task, forest):
        self.go.wait(60)
        if self.error is not None:
            raise self.error
        self.texts += len(forest.texts)
        return self._runner.start(task, forest)


@pytest.fixture
def held():
    return Held(Embedder(device="cpu").loop.runner)


def serving(held, **limits):
    settings = Settings(port=0, limits=Limits(**limits))
    return running(lambda: Embedder(device="cpu", runner=held), settings)


def ask(server, text="a text", **fields):
    return server.post(ROUTE, {"input": text, **fields})


def test_over_capacity_is_429_at_once(held):
    with serving(held, max_queued_tokens=40) as server, ThreadPoolExecutor(8) as pool:
        held.go.clear()
        first = pool.submit(ask, server, "on the device")
        until(lambda: server.service.in_hand == 1 and not server.service.waiting.texts)
        waits = pool.submit(ask, server, ["one of many words " * 10, "two"])
        until(lambda: server.service.waiting.tokens >= 40)
        for text in ("a", ["a", "b"]):
            began = time.monotonic()
            refused = ask(server, text)
            assert time.monotonic() - began < 5
            assert refused.status_code == 429
            assert refused.json()["error"]["code"] == "overloaded"
            assert 1 <= int(refused.headers["retry-after"]) <= 120
            assert 50 <= int(refused.headers["retry-after-ms"]) <= 120_000
            assert "x-should-retry" not in refused.headers
        held.go.set()
        assert first.result().status_code == waits.result().status_code == 200
        assert ask(server).status_code == 200


def test_requests_in_hand_are_limited(held):
    with serving(held, max_requests=2) as server, ThreadPoolExecutor(8) as pool:
        held.go.clear()
        two = [pool.submit(ask, server, f"text {n}") for n in range(2)]
        until(lambda: server.service.in_hand == 2)
        assert ask(server).status_code == 429
        held.go.set()
        assert [each.result().status_code for each in two] == [200, 200]


def test_what_waits_too_long_is_503_and_leaves_the_queue(held):
    with serving(held, request_seconds=1) as server, ThreadPoolExecutor(2) as pool:
        held.go.clear()
        late = [pool.submit(ask, server, text) for text in ("first", "second")]
        for each in late:
            assert each.result().status_code == 503
            assert each.result().json()["error"]["code"] == "timeout"
        assert server.service.waiting.texts == 0
        held.go.set()
        assert ask(server).status_code == 200


def test_clients_that_go_away_leave_the_queue(held):
    with serving(held) as server, ThreadPoolExecutor(1) as pool:
        held.go.clear()
        first = pool.submit(ask, server, "on the device")
        until(lambda: server.service.in_hand == 1 and not server.service.waiting.texts)
        before, connections = held.texts, []
        for n in range(30):
            body = b'{"input": "gone %d"}' % n
            head = f"POST {ROUTE} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
            connection = socket.create_connection(("127.0.0.1", server.server.port))
            connection.sendall(head.encode() + body)
            connections.append(connection)
        until(lambda: server.service.waiting.texts == 30)
        for connection in connections:
            connection.close()
        until(lambda: server.service.waiting.texts == 0)
        until(lambda: server.service.connected == 1)
        held.go.set()
        assert first.result().status_code == 200
        assert held.texts == before + 1
        assert server.service.waiting.tokens == 0


def test_connections_of_clients_that_went_away_are_forgotten(held):
    with serving(held) as server:
        held.go.set()
        for n in range(5):
            body = b'{"input": "gone %d"}' % n
            head = f"POST {ROUTE} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
            with socket.create_connection(("127.0.0.1", server.server.port)) as connection:
                connection.sendall(head.encode() + body)
                assert connection.recv(12) == b"HTTP/1.1 200"

        def left():
            gc.collect()
            found = [each for each in gc.get_objects() if type(each) is Connection]
            return sum(each.server_state is server.server.server_state for each in found)

        until(lambda: left() <= 1, 10)  # that of the test's own client


@pytest.mark.parametrize(
    "error", [RuntimeError("secret of the device"), torch.OutOfMemoryError("secret")]
)
def test_a_failing_device_is_503_for_its_requests_only(held, error):
    with serving(held) as server:
        held.error = error
        failed = ask(server)
        assert failed.status_code == 503
        assert failed.json()["error"]["code"] == "device_error"
        assert "secret" not in failed.text
        assert "retry-after" in failed.headers
        held.error = None
        assert ask(server).status_code == 200
        assert server.get("/health").status_code == 200


def test_if_the_thread_of_the_device_ends_so_does_the_server(held):
    with serving(held) as server:
        held.go.clear()
        with ThreadPoolExecutor(1) as pool:
            waits = pool.submit(ask, server)
            until(lambda: server.service.in_hand == 1 and not server.service.waiting.texts)
            server.service.device._measure = None  # a mistake of ours, in the thread
            held.go.set()
            assert waits.result().status_code == 503
        until(lambda: server.server.should_exit)
        assert isinstance(server.service.error, TypeError)


def test_draining_answers_what_was_accepted_and_refuses_the_rest(held):
    with serving(held) as server, ThreadPoolExecutor(8) as pool:
        held.go.clear()
        accepted = [pool.submit(ask, server, f"text {n}") for n in range(4)]
        until(lambda: server.service.in_hand == 4)
        server.in_loop(server.server.drain)
        until(lambda: server.service.draining)
        assert server.get("/health").status_code == 503
        refused = ask(server)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "stopping"
        assert "retry-after" in refused.headers
        held.go.set()
        assert [each.result().status_code for each in accepted] == [200] * 4
        until(lambda: server.server.should_exit)
