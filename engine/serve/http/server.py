"""Start and stop the server: it listens at once, is healthy once the model is warm, drains on SIGTERM and Ctrl-C."""

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic

import uvicorn
from torch import Tensor
from uvicorn.protocols.http.h11_impl import H11Protocol

from lastword.embedder import Embedder
from lastword.errors import DeviceError, InputError, LastwordError
from lastword.reranker import Reranker
from lastword.serve.http.app import make_app
from lastword.serve.http.gate import LOG, LogFormat
from lastword.serve.service import Service
from lastword.serve.settings import Settings

# Bytes of the first line and the headers of a request, together.
_HEADER_BYTES = 32 << 10
_TICK_S = 0.02


class Server(uvicorn.Server):
    """A uvicorn server with our signals: SIGTERM and Ctrl-C drain, SIGHUP reads the keys again."""

    def __init__(self, service: Service) -> None:
        settings = service.settings
        tls = (settings.tls_cert, settings.tls_key)
        super().__init__(
            uvicorn.Config(
                make_app(service),
                host=settings.host,
                port=settings.port,
                http=Connection,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                h11_max_incomplete_event_size=_HEADER_BYTES,
                timeout_keep_alive=settings.limits.body_seconds,
                timeout_graceful_shutdown=settings.limits.drain_seconds,
                ssl_certfile=tls[0] and str(tls[0]),
                ssl_keyfile=tls[1] and str(tls[1]),
            )
        )
        self.service = service
        self._drain: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self.servers[0].sockets[0].getsockname()[1])

    async def startup(self, sockets: object = None) -> None:
        """Listen, then say where.

        Raises:
            InputError: the address cannot be listened on.
        """
        del sockets
        loop = asyncio.get_running_loop()
        config = self.config
        if not config.loaded:
            config.load()

        def connect() -> asyncio.Protocol:
            return Connection(config, self.server_state, {})

        try:
            server = await loop.create_server(
                connect, config.host, config.port, ssl=config.ssl, backlog=config.backlog
            )
        except OSError as error:
            where = f"{config.host}:{config.port}"
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise InputError(where, "cannot listen there", got=reason) from None
        self.servers = [server]
        self.started = True
        scheme = "https" if config.ssl else "http"
        host = f"[{config.host}]" if ":" in config.host else config.host
        LOG.info("listening", extra={"fields": {"url": f"{scheme}://{host}:{self.port}"}})
        self.service.on_ready = self._log_ready
        self.service.on_failure = lambda: loop.call_soon_threadsafe(self._device_failed)
        self.service.device.start()

    def _log_ready(self) -> None:
        """Say which model is served; called in the device's thread."""
        model = self.service.model
        fields = {"model": self.service.name, "dim": model.dim, "max_length": model.max_length}
        if self.service.reranking is not None:
            fields["reranker"] = self.service.reranking.name
        LOG.info("ready", extra={"fields": fields})

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle the signals while the server runs; only the main thread may."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        ours: list[tuple[int, Callable[[], None]]] = [
            (signal.SIGTERM, self.drain),
            (signal.SIGINT, self.drain),
        ]
        if hasattr(signal, "SIGHUP"):
            ours.append((signal.SIGHUP, self._reread))
        before = [(number, signal.getsignal(number)) for number, _ in ours]
        for number, act in ours:
            loop.add_signal_handler(number, act)
        try:
            yield
        finally:
            for number, handler in before:
                loop.remove_signal_handler(number)
                signal.signal(number, handler)

    def drain(self) -> None:
        """Refuse new work, answer what was accepted, then end; the second time, end at once."""
        if self._drain is not None:
            self._end()
            return
        LOG.info("stopping", extra={"fields": {"requests": self.service.connected}})
        self.service.draining = True
        self._drain = asyncio.get_running_loop().create_task(self._drained())

    async def _drained(self) -> None:
        """Wait until no request is in hand, or until the time is up."""
        end = monotonic() + self.service.limits.drain_seconds
        while self.service.connected and monotonic() < end:
            await asyncio.sleep(_TICK_S)
        self.should_exit = True

    def _device_failed(self) -> None:
        """End, once those who waited have been told."""
        if self._drain is None:
            self.drain()

    def _end(self) -> None:
        self.should_exit = self.force_exit = True

    def _reread(self) -> None:
        try:
            self.service.keys.reread()
        except LastwordError as error:
            LOG.error(f"keys unchanged: {error}")
        else:
            LOG.info("keys read again")


class Connection(H11Protocol):
    """A connection of uvicorn's that is closed when a request does not arrive in time."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take data; it may begin or complete the headers of a request."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        super().connection_lost(exc)
        self._stop()

    def _watch(self) -> None:
        """Limit the time for the headers, from their first byte; it does not start again with each byte."""
        if self._busy():
            self._stop()
        elif self._late is None:
            self._late = self.loop.call_later(self.timeout_keep_alive, self._close)

    def _busy(self) -> bool:
        """Whether a request is being read, computed or answered."""
        cycle: object = (
            self.cycle
        )  # None before the first request, whatever uvicorn's annotation says
        return cycle is not None and not self.cycle.response_complete

    def _stop(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _close(self) -> None:
        self._late = None
        if not self._busy():
            self.transport.close()


def start_log(log_format: str) -> None:
    """Write the server's log to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogFormat(as_json=log_format == "json"))
    for name, level in (("lastword.serve", logging.INFO), ("uvicorn", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


def serve(
    settings: Settings,
    load: Callable[[], Embedder],
    ranges: Tensor | None = None,
    load_reranker: Callable[[], Reranker] | None = None,
) -> int:
    """Serve a model until a signal ends the server; return the exit status.

    Args:
        settings: the server's settings.
        load: opens the model; called in a thread of its own.
        ranges: [2, dim], for int8 and uint8 vectors.
        load_reranker: opens a reranker, in a thread of its own; None for a server without one.

    Raises:
        LastwordError: the model cannot be opened, the address not listened on, or the device has failed.
    """
    start_log(settings.log_format)
    service = Service(settings, load, ranges, load_reranker)
    server = Server(service)
    began = monotonic()
    with suppress(KeyboardInterrupt):
        server.run()
    service.close(max(1.0, settings.limits.drain_seconds - (monotonic() - began)))
    if service.error is not None:
        if isinstance(service.error, LastwordError):
            raise service.error
        raise DeviceError(
            "lastword serve", f"the device's thread ended by {type(service.error).__name__}"
        )
    if any(
        part.device.thread.is_alive() for part in service.parts
    ):  # Python would end under a thread that computes
        sys.stderr.flush()
        os._exit(0)
    return 0
