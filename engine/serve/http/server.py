"""Start and stop the server: it listens at once, is ready once its models are warm, drains on SIGTERM and Ctrl-C."""

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
from lastword.serve.http.gate import HEADER_BYTES, LOG, LogFormat
from lastword.serve.service import Service
from lastword.serve.settings import Settings

_TICK_S = 0.02


class Server(uvicorn.Server):
    """A uvicorn server with signal handlers of its own: SIGTERM and Ctrl-C drain it, SIGHUP reads the keys again."""

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
                h11_max_incomplete_event_size=HEADER_BYTES,
                timeout_keep_alive=settings.limits.body_seconds,
                timeout_graceful_shutdown=settings.limits.drain_seconds,
                ssl_certfile=tls[0] and str(tls[0]),
                ssl_keyfile=tls[1] and str(tls[1]),
            )
        )
        self.service = service
        self.port = settings.port  # the port that the server listens on, once it has started
        self._drain: asyncio.Task[None] | None = None

    async def startup(self, sockets: object = None) -> None:
        """Start listening, log the address, and start loading the model.

        Raises:
            InputError: the server cannot listen on the address.
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
            remedy = "Choose another --port or --host."
            raise InputError(where, "cannot listen there", got=reason, remedy=remedy) from None
        self.servers = [server]
        self.port = int(server.sockets[0].getsockname()[1])
        self.started = True
        LOG.info("listening", extra={"fields": {"url": self._url()}})
        self.service.on_ready = self._log_ready
        self.service.on_failure = lambda: loop.call_soon_threadsafe(self._on_device_failure)
        self.service.device.start()

    def _url(self, *, for_browser: bool = False) -> str:
        """Return the server's address, or, `for_browser`, an address that a browser on this machine can open."""
        host = self.config.host
        if for_browser and host in ("0.0.0.0", "::"):  # noqa: S104  every address: nothing to open
            host = "localhost"
        scheme = "https" if self.config.is_ssl else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    def _log_ready(self) -> None:
        """Log the notices about the models, and the names of those served; called in the thread of a model."""
        if self.service.draining:
            return
        fields: dict[str, object] = {}
        for backend in self.service.backends:
            model = backend.model
            for notice in () if self.service.settings.quiet else model.notices:
                LOG.warning(notice)
            if isinstance(model, Embedder):
                fields |= {"model": backend.name, "dim": model.dim, "max_length": model.max_length}
            else:
                fields["reranker"] = backend.name
        LOG.info("ready", extra={"fields": fields})
        LOG.info(
            f"open {self._url(for_browser=True)} in a browser to watch the server and try the model"
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while the server runs. Only the main thread may do so; in another thread, do nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        ours: list[tuple[int, Callable[[], None]]] = [
            (signal.SIGTERM, self.drain),
            (signal.SIGINT, self.drain),
        ]
        if hasattr(signal, "SIGHUP"):
            ours.append((signal.SIGHUP, self._reread_keys))
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
        """Refuse new requests, answer those that were accepted, then end. A second call ends at once."""
        if self._drain is not None:
            self._end_now()
            return
        LOG.info("stopping", extra={"fields": {"requests": self.service.connected}})
        self.service.draining = True
        self._drain = asyncio.get_running_loop().create_task(self._finish_requests())

    async def _finish_requests(self) -> None:
        """Wait until every request is answered or `drain_seconds` have passed, then end."""
        end = monotonic() + self.service.limits.drain_seconds
        while self.service.connected and monotonic() < end:
            await asyncio.sleep(_TICK_S)
        self.should_exit = True

    def _on_device_failure(self) -> None:
        """End the server, once the waiting requests have been answered with the error."""
        if self._drain is None:
            self.drain()

    def _end_now(self) -> None:
        self.should_exit = self.force_exit = True

    def _reread_keys(self) -> None:
        try:
            self.service.keys.reread()
        except LastwordError as error:
            LOG.error(f"the keys stay as they were: {error}")
        else:
            LOG.info("the keys were read again")


class Connection(H11Protocol):
    """A uvicorn connection that is closed if the headers of a request do not arrive in time."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer for the first request."""
        super().connection_made(transport)
        self._update_timer()

    def data_received(self, data: bytes) -> None:
        """Pass data on; if it completes the headers of a request, stop the timer."""
        super().data_received(data)
        self._update_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers. uvicorn's timer for idle connections would keep a lost one in memory while it runs."""
        super().connection_lost(exc)
        self._stop_timer()
        self._unset_keepalive_if_required()

    def _update_timer(self) -> None:
        """Run the timer while no request is handled, else stop it; more bytes do not restart a running timer."""
        if self._is_busy():
            self._stop_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.timeout_keep_alive, self._close_unless_busy)

    def _is_busy(self) -> bool:
        """Return whether a request is being read, computed or answered."""
        # None before the first request, though uvicorn's annotation excludes it.
        cycle: object = self.cycle
        return cycle is not None and not self.cycle.response_complete

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close_unless_busy(self) -> None:
        self._timer = None
        if not self._is_busy():
            self.transport.close()


def start_log(log_format: str) -> None:
    """Send the logs of the server, and uvicorn's errors, to stderr.

    Args:
        log_format: "text" or "json".
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogFormat(as_json=log_format == "json"))
    for name, level in (("lastword.serve", logging.INFO), ("uvicorn", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


def serve(
    settings: Settings,
    load: Callable[[], Embedder | Reranker],
    ranges: Tensor | None = None,
    load_reranker: Callable[[], Reranker] | None = None,
) -> int:
    """Serve an embedding model, a reranker, or both, until a signal ends the server.

    Args:
        settings: the server's settings.
        load: opens the model, as for `Service`; called in its own thread.
        ranges: [2, dim], lowest and highest value of each dimension, for int8 and uint8; None if there are none.
        load_reranker: opens the reranker; called in the reranker's thread. None for a server without a reranker.

    Returns:
        The exit status, 0.

    Raises:
        LastwordError: a model cannot be opened, the server cannot listen on the address, or a device has failed.
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
            "lastword serve", f"the device's thread ended with {type(service.error).__name__}"
        )
    # A model's thread that still computes would crash while Python shuts down.
    if any(backend.device.thread.is_alive() for backend in service.backends):
        sys.stderr.flush()
        os._exit(0)
    return 0
