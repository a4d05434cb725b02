"""`lastword serve`: answer requests for vectors and scores over HTTP, in protocols that existing clients speak."""

import argparse
import gc
from collections.abc import Iterable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lastword.cli import console, options
from lastword.errors import ConfigError, require_extra

if TYPE_CHECKING:
    from lastword.embedder import Embedder
    from lastword.model_info import ModelInfo
    from lastword.reranker import Reranker
    from lastword.reranker_info import RerankerInfo
    from lastword.serve.settings import Settings

ABOUT = "answer requests for vectors and scores over HTTP"
EXAMPLES = """examples:
  lastword serve
  lastword serve Qwen/Qwen3-Embedding-0.6B --port 8000 --truncate
  lastword serve Qwen/Qwen3-Embedding-0.6B --reranker Qwen/Qwen3-Reranker-0.6B
  lastword serve Qwen/Qwen3-Reranker-0.6B
  lastword serve ./model --host 0.0.0.0 --api-key-file keys.txt

  curl http://127.0.0.1:8080/v1/embeddings -d '{"input": "how do plants make sugar?"}'
  Or open http://127.0.0.1:8080 in a browser.

Needs FastAPI and other packages: pip install 'lastword[serve]'. Client libraries for OpenAI,
text-embeddings-inference, Cohere and Ollama work with this server. For the routes, the limits and the differences from
those servers, see engine/serve/README.md in the source repository. If MODEL is a reranker, the server only scores
documents, at /rerank, /v1/rerank, /v2/rerank and /score. After SIGTERM or Ctrl-C, the server answers the requests that
it has accepted, then stops. On SIGHUP, the server reads the file of keys again."""

# The help texts of the options for the limits; `serve.settings.Limits` has their order and defaults.
_LIMITS = {
    "max_body_bytes": "maximum bytes of {body}",
    "max_inputs": "maximum texts in one request",
    "max_characters": "maximum characters of one text",
    "max_request_tokens": "maximum tokens of one request",
    "max_queued_tokens": "maximum tokens in the queue; beyond that, requests are refused with status 429",
    "max_queue_seconds": "maximum seconds to work through the queue at the present speed; beyond that, "
    "requests are refused with status 429",
    "max_requests": "maximum requests accepted but not yet answered; beyond that, requests are refused with status 429",
    "interactive_tokens": "requests of at most this many tokens go before larger ones",
    "body_seconds": "maximum seconds for a client to send a request",
    "request_seconds": "maximum seconds between reading and answering a request",
    "drain_seconds": "maximum seconds to answer accepted requests after SIGTERM or Ctrl-C",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    from lastword.serve.settings import Limits

    options.add_name(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; by default 127.0.0.1"
    )
    parser.add_argument(
        "--port",
        type=_port,
        default=8080,
        help="port to listen on; 0 chooses a free one; by default 8080",
    )
    parser.add_argument(
        "--api-key-file",
        type=options.path_argument,
        metavar="FILE",
        help="file with one accepted key per line; by default no key is needed",
    )
    parser.add_argument(
        "--insecure",
        action="store_true",
        help="allow listening on an address that other machines can reach, even without --api-key-file",
    )
    add_answer_options(parser)
    _add_tls_and_log(parser)
    add_limits(parser, [field.name for field in fields(Limits)])
    options.add_model_options(parser, kinds=options.EITHER_KIND)


def add_answer_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that change what is answered, apart from limits; run-batch has them too."""
    parser.add_argument(
        "--model-name",
        type=options.name_argument,
        metavar="NAME",
        help="name of MODEL in requests and responses; by default MODEL as given or, for a folder, the folder's name",
    )
    parser.add_argument(
        "--reranker",
        type=options.model_argument,
        metavar="MODEL",
        help="Hugging Face id or folder of a reranker that scores documents, alongside an embedding model; "
        "--device, --dtype, --quantize and --local-files-only apply to both models, the other model options only to "
        "--model",
    )
    parser.add_argument(
        "--truncate",
        action="store_true",
        help="cut texts that are too long, unless a request says otherwise; by default they are refused",
    )
    parser.add_argument(
        "--accept-token-ids",
        action="store_true",
        help="accept token ids, of this model's tokenizer, in place of texts",
    )
    parser.add_argument(
        "--ranges",
        type=options.path_argument,
        metavar="FILE",
        help="file made by lastword embed --save-ranges, for int8 and uint8 vectors",
    )


def _add_tls_and_log(parser: argparse.ArgumentParser) -> None:
    """Add the options for TLS and for what is printed."""
    parser.add_argument(
        "--tls-cert",
        type=options.path_argument,
        metavar="FILE",
        help="certificate chain, to serve HTTPS; needs --tls-key",
    )
    parser.add_argument(
        "--tls-key",
        type=options.path_argument,
        metavar="FILE",
        help="private key of the certificate",
    )
    parser.add_argument(
        "--log-format",
        choices=("text", "json"),
        default="text",
        help="format of the log on stderr; by default text",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the limits and the memory that the weights take, and exit without starting the server",
    )
    parser.add_argument("--quiet", action="store_true", help="print no progress bar or notices")


def add_limits(
    parser: argparse.ArgumentParser, names: Iterable[str], *, body: str = "a request's body"
) -> None:
    """Add an option for each of these limits; `body` says what --max-body-bytes limits."""
    from lastword.serve.settings import Limits

    group = parser.add_argument_group("limits")
    for name in names:
        default = getattr(Limits(), name)
        group.add_argument(
            f"--{name.replace('_', '-')}",
            type=options.positive,
            default=default,
            metavar="N",
            help=f"{_LIMITS[name].format(body=body)}; by default {default:,}",
        )


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    options.choose_model(args)
    settings = _settings(args)
    # Imports make many objects and no garbage; searching these for garbage would take a tenth of the startup time.
    gc.disable()
    try:
        return _run(args, settings)
    finally:
        gc.enable()


def _run(args: argparse.Namespace, settings: "Settings") -> int:
    """Import what the server needs, and start it."""
    with require_extra("FastAPI and uvicorn", "serve", "lastword serve"):
        import fastapi  # noqa: F401
        import numpy  # noqa: F401, ICN001
        import orjson  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    if args.dry_run:
        console.print_lines(_describe(args, settings))
        return 0
    from lastword.serve.http.server import serve

    load_reranker = (
        partial(options.open_second_reranker, args, args.reranker) if args.reranker else None
    )
    return serve(settings, lambda: _open_model(args), open_ranges(args), load_reranker)


def _open_model(args: argparse.Namespace) -> "Embedder | Reranker":
    """Open the model, then turn garbage collection on again, except for the objects that exist by then: they stay."""
    model: Embedder | Reranker
    model = options.open_reranker(args) if reranks(args) else options.open_embedder(args)
    gc.freeze()
    gc.enable()
    return model


def reranks(args: argparse.Namespace) -> bool:
    """Return whether MODEL is a reranker.

    Raises:
        ConfigError: MODEL is a reranker, but another option needs an embedding model.
    """
    from lastword.reranker_info import refuse_for_reranker

    if not options.model_is_reranker(args):
        return False
    if args.reranker is not None:
        raise ConfigError(
            "--reranker",
            "MODEL is a reranker too",
            got=args.reranker,
            expected="one reranker",
            remedy="Leave --reranker out, or name an embedding model as MODEL.",
        )
    refuse_for_reranker(
        {
            "--dim": args.dim,
            "--ranges": args.ranges,
            "--accept-token-ids": args.accept_token_ids,
        }
    )
    return True


def _settings(args: argparse.Namespace) -> "Settings":
    from lastword.serve.settings import Limits, Settings

    def path(given: str | None) -> Path | None:
        return None if given is None else Path(given)

    return Settings(
        host=args.host,
        port=args.port,
        limits=Limits(**{each.name: getattr(args, each.name) for each in fields(Limits)}),
        key_file=path(args.api_key_file),
        insecure=args.insecure,
        truncate=args.truncate,
        accept_token_ids=args.accept_token_ids,
        log_format=args.log_format,
        tls_cert=path(args.tls_cert),
        tls_key=path(args.tls_key),
        model_name=args.model_name,
        quiet=args.quiet,
    )


def open_ranges(args: argparse.Namespace) -> Any:
    """Read the --ranges file; return None without it."""
    if args.ranges is None:
        return None
    from lastword.cli.ranges import read_ranges

    if reranks(args):  # which refuses --ranges
        return None
    model = options.open_embedder_info(args)
    return read_ranges(args.ranges, model.dim, model.space_fingerprint())


def _describe(args: argparse.Namespace, settings: "Settings") -> list[str]:
    """Return the lines of --dry-run: the model, the memory that its weights take, and the limits."""
    alone = reranks(args)
    model: ModelInfo | RerankerInfo
    model = options.open_reranker_info(args) if alone else options.open_embedder_info(args)
    each = " on each device" if len(model.devices) > 1 else ""
    facts = {
        "model": model.name,
        "kind": "reranker" if alone else "embedding model",
        "device": ", ".join(map(str, model.devices)),
        "weights": f"{model.weights_bytes:,} bytes in {_number_types(model)}{each}",
        "max_length": f"{model.max_length:,}",
        **_describe_reranker(args),
        "host": settings.host,
        "port": settings.port,
        "keys": "none" if settings.key_file is None else str(settings.key_file),
        **{
            field.name: f"{getattr(settings.limits, field.name):,}"
            for field in fields(settings.limits)
        },
    }
    return [f"{name:<28} {value}" for name, value in facts.items()]


def _describe_reranker(args: argparse.Namespace) -> dict[str, str]:
    """Return the facts about the reranker, if there is one."""
    if args.reranker is None:
        return {}
    info = options.open_second_reranker_info(args, args.reranker)
    weights = f"{info.weights_bytes:,} bytes in {_number_types(info)}"
    return {"reranker": info.name, "reranker_weights": weights}


def _number_types(model: "ModelInfo | RerankerInfo") -> str:
    """Return the number types of the weights in memory, such as "int8 and float32"."""
    plain = str(model.dtype).removeprefix("torch.")
    return plain if model.quantize is None else f"{model.quantize} and {plain}"


def _port(text: str) -> int:
    """Parse a port number."""
    number = int(text) if text.isascii() and text.isdecimal() else -1
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError("not a port from 0 to 65535")
    return number
