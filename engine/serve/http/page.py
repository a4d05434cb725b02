"""`GET /`: the page for browsers, which shows what the server does and compares texts.

The page is one file and loads no others. It contains no data of the server, so everybody may load it without a key; the
routes that it calls need one.
"""

import base64
import hashlib
import re
from pathlib import Path

_FILE = Path(__file__).with_name("page.html")


class Page:
    """The page and its headers, read once."""

    def __init__(self) -> None:
        self.content = _FILE.read_bytes()
        self.headers = {
            "content-type": "text/html; charset=utf-8",
            "content-security-policy": _policy(self.content),
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cross-origin-opener-policy": "same-origin",
            "cross-origin-resource-policy": "same-origin",
            "cache-control": "no-cache",
        }


def is_open(method: str, path: str) -> bool:
    """Return whether a request is for the page, which everybody may see."""
    return path == "/" and method in ("GET", "HEAD")


def _policy(content: bytes) -> str:
    """Return the Content-Security-Policy: it allows the page's style and script, by hash, and calls to this server."""
    rules = {
        "default-src": "'none'",
        "style-src": _hash(content, b"style"),
        "script-src": _hash(content, b"script"),
        "connect-src": "'self'",
        "img-src": "data:",  # the icon
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def _hash(content: bytes, tag: bytes) -> str:
    """Return the hash of the content of the page's only `tag` element, as a Content-Security-Policy writes hashes."""
    (inner,) = re.findall(rb"<%s(?: [^>]*)?>(.*?)</%s>" % (tag, tag), content, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(inner).digest()).decode()}'"
