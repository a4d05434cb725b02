"""What the server's options are and what they are by default; `GET /info` shows the limits."""

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from lastword.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one server; each is an option of `lastword serve`.

    Args:
        max_body_bytes: bytes of one body.
        max_inputs: texts in one request.
        max_characters: characters of one text.
        max_request_tokens: tokens of one request, after texts are cut.
        max_queued_tokens: when this many tokens wait, further requests are refused with status 429.
        max_queue_seconds: the same, when the waiting tokens would take this long at the recent speed.
        max_requests: requests in hand whose bodies have been read.
        interactive_tokens: requests of at most this many tokens go ahead of larger ones.
        body_seconds: time for a client to send a request, or to wait before its next one.
        request_seconds: time from a request's body to its answer.
        drain_seconds: time to answer what was accepted, after SIGTERM.
    """

    max_body_bytes: int = 8 << 20
    max_inputs: int = 2048
    max_characters: int = 2_000_000
    max_request_tokens: int = 300_000
    max_queued_tokens: int = 600_000
    max_queue_seconds: int = 30
    max_requests: int = 512
    interactive_tokens: int = 512
    body_seconds: int = 30
    request_seconds: int = 120
    drain_seconds: int = 30


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything about a server but its model.

    Args:
        host: address to listen on.
        port: port to listen on; 0 lets the system choose.
        limits: the limits.
        key_file: file with one key per line; None allows every request.
        insecure: allow a public address without keys.
        truncate: cut texts that are too long unless a request asks otherwise; by default they are refused.
        accept_token_ids: accept token ids as input.
        log_format: "text" or "json".
        tls_cert, tls_key: files for TLS.
        model_name: the name under which the model is served; None for its own.

    Raises:
        ConfigError: a public address without keys, or one of the two TLS files without the other.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    limits: Limits = field(default_factory=Limits)
    key_file: Path | None = None
    insecure: bool = False
    truncate: bool = False
    accept_token_ids: bool = False
    log_format: str = "text"
    tls_cert: Path | None = None
    tls_key: Path | None = None
    model_name: str | None = None

    def __post_init__(self) -> None:
        if self.key_file is None and not self.insecure and not is_loopback(self.host):
            raise ConfigError(
                "--host",
                "a public address without keys",
                got=self.host,
                expected="127.0.0.1, or --api-key-file",
                remedy="Name a file with keys, or pass --insecure to let everybody in.",
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("--tls-cert", "needs --tls-key, and the other way round")


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
