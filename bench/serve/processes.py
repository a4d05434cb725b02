"""The server and the load generator as child processes."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any
from urllib.error import URLError

from lastword.bench.memory import held_bytes
from lastword.bench.serve.load import Load
from lastword.errors import LastwordError

_SERVE = "import sys; from lastword.cli.entry import main; sys.exit(main())"
_START_SECONDS, _STOP_SECONDS = 180, 60


class ServerProcess:
    """`lastword serve` on a free port.

    Args:
        options: options of `lastword serve`.
        log: the file that gets the server's output.
    """

    def __init__(self, options: Sequence[str], log: Path) -> None:
        self._log = log
        command = [sys.executable, "-c", _SERVE, "serve", "--port", "0", *options]
        with log.open("wb") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file)
        self.url = ""

    def wait_until_ready(self) -> None:
        """Wait until `/health` says that the server is ready.

        Raises:
            LastwordError: the server has ended, or is not ready in time.
        """
        end = time.monotonic() + _START_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            found = re.search(r"listening url=(\S+)", self._read_log())
            if found:
                self.url = found[1]
                with suppress(URLError, OSError):
                    if get(f"{self.url}/health") is not None:
                        return
            time.sleep(0.05)
        last = self._read_log().strip().splitlines()[-1:]
        raise LastwordError("lastword serve", "did not start", got=last[0] if last else None)

    def _read_log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def memory(self) -> int:
        """Return the server's resident bytes, without pages of files."""
        return held_bytes("RssAnon", self.process.pid)

    def descriptors(self) -> int:
        """Return the number of the server's open files and connections."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def metrics(self) -> dict[str, float]:
        """Return the values of `/metrics` by name, except those with labels."""
        lines = get(f"{self.url}/metrics").splitlines()
        plain = (line.split() for line in lines if not line.startswith("#") and "{" not in line)
        return {name: float(value) for name, value in plain}

    def wait_until_idle(self, seconds: float = 60) -> bool:
        """Wait until the server has no request and an empty queue; return False if `seconds` were not enough."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = self.metrics()
            if not (found["lastword_requests_in_hand"] or found["lastword_queue_tokens"]):
                return True
            time.sleep(0.1)
        return False

    def terminate(self) -> None:
        """Send SIGTERM to the server."""
        self.process.send_signal(signal.SIGTERM)

    def end(self) -> int | None:
        """Wait for the server's end after SIGTERM; return its exit status, or None if it had to be killed."""
        try:
            return self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return None


@contextmanager
def serving(options: Sequence[str], log: Path) -> Iterator[ServerProcess]:
    """Run a server during the `with` block, and stop it with SIGTERM."""
    server = ServerProcess(options, log)
    try:
        server.wait_until_ready()
        yield server
    finally:
        if server.process.poll() is None:
            server.terminate()
        server.end()


def get(url: str) -> str:
    """Send a GET to `url` and return the body of the answer."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=30) as response:
        return str(response.read().decode())


def free_port() -> int:
    """Return a loopback port that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_health(process: "subprocess.Popen[bytes]", url: str, name: str) -> str:
    """Wait until another server answers `/health`, and return its URL.

    Raises:
        LastwordError: the server has ended, or is not ready in time.
    """
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with suppress(URLError, OSError):
            get(f"{url}/health")
            return url
        time.sleep(0.2)
    raise LastwordError(name, "did not start", got=f"exit status {process.poll()}")


@contextmanager
def stop_at_end(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """At the end of the `with` block, stop `process` and the whole process group that it leads."""
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)


class GeneratorProcess:
    """The load generator (`generator.py`), ready for one load at a time."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "lastword.bench.serve.generator", str(folder)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, **asked: object) -> None:
        """Send the load generator one command, a line of JSON; `generator.answer` carries it out."""
        self._write().write(json.dumps(asked).encode() + b"\n")
        self._write().flush()

    def wait_for_result(self) -> dict[str, Any]:
        """Wait for the next line that the load generator prints, and return its JSON.

        Raises:
            LastwordError: the load generator died; its own messages are on stderr.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise LastwordError("the load generator", "its process died")
        result: dict[str, Any] = json.loads(line)
        return result

    def begin(self, load: Load) -> None:
        """Start a load; `wait_for_result` waits for the load's end and returns its result."""
        self.ask(do="load", **asdict(load))

    def send(self, load: Load) -> dict[str, Any]:
        """Send a load and return its result, as from `load.summary`."""
        self.begin(load)
        return self.wait_for_result()

    def _write(self) -> IO[bytes]:
        assert self.process.stdin is not None
        return self.process.stdin

    def close(self) -> None:
        """End the process: close its stdin, and kill it if it does not end within 10 seconds."""
        with suppress(OSError):
            self._write().close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextmanager
def run_generator(folder: Path) -> Iterator[GeneratorProcess]:
    """Run a load generator during the `with` block."""
    generator = GeneratorProcess(folder)
    try:
        yield generator
    finally:
        generator.close()
