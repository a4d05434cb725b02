"""The server's settings and their defaults."""

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from lastword.errors import ConfigError

# The served name of the built-in model. It contains "embed", by which tools recognise embedding models in a list.
BUILTIN_NAME = "lastword-builtin-embedding"


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one server. Each is an option of `lastword serve`, and `GET /info` shows them.

    Args:
        max_body_bytes: most bytes in the body of a request.
        max_inputs: most texts in a request.
        max_characters: most characters in a text.
        max_request_tokens: most tokens in a request, after its texts are cut.
        max_queued_tokens: once this many tokens wait, further requests are refused with status 429.
        max_queue_seconds: requests are also refused (429) once the waiting tokens would take longer than this at the
            recent speed.
        max_requests: requests are also refused (429) while this many have been read and not yet answered.
        interactive_tokens: requests of at most this many tokens go ahead of larger ones.
        body_seconds: seconds a client may take to send a request, or leave a connection idle.
        request_seconds: seconds a request may spend in the queue and on the device.
        drain_seconds: after SIGTERM or Ctrl-C, seconds to answer the requests that were accepted.
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
    """The settings of one server, apart from its models.

    Args:
        host: address to listen on.
        port: port to listen on; 0 lets the system choose.
        limits: limits of requests, the queue and time.
        key_file: file with one key per line; None accepts requests without a key.
        insecure: allow `host` to be a public address without keys.
        truncate: cut texts that are too long, unless a request says otherwise; by default they are refused.
        accept_token_ids: accept token ids in place of texts.
        log_format: "text" or "json" (one object per line).
        tls_cert, tls_key: files with the certificate chain and the private key for TLS; both or neither.
        model_name: the name that requests and answers use for the model (with a reranker beside it, for the embedding
            model); None for its own name.
        quiet: log no notices about the models.

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
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.key_file is None and not self.insecure and not is_loopback(self.host):
            raise ConfigError(
                "--host",
                "a public address without keys",
                got=self.host,
                expected="127.0.0.1, or --api-key-file",
                remedy="Name a file of keys, or pass --insecure to accept requests from everybody.",
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("--tls-cert", "must be given together with --tls-key")


def served_name(name: str) -> str:
    """Return the name that requests and answers use for a model, unless a setting says otherwise.

    Args:
        name: the Hugging Face id or folder that was opened.
    """
    if name == "built-in":
        return BUILTIN_NAME
    return Path(name).name if Path(name).is_dir() else name


def is_loopback(host: str) -> bool:
    """Return whether `host` is an address that only this machine can reach."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
