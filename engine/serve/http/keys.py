"""The API keys: read from a file, compared in constant time, read again on SIGHUP."""

import hashlib
import hmac
from pathlib import Path

from lastword.errors import InputError


class Keys:
    """The API keys that the server accepts.

    Args:
        path: file with one key per line; blank lines and lines that begin with # are ignored. None: no key is needed.

    Raises:
        InputError: the file cannot be read or holds no key.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._hashes: list[bytes] = []
        self.reread()

    def reread(self) -> None:
        """Read the file again. If that fails, the keys stay as they were.

        Raises:
            InputError: the file cannot be read or holds no key.
        """
        if self._path is None:
            return
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise InputError(str(self._path), "cannot be read", got=str(reason)) from None
        keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not keys:
            raise InputError(str(self._path), "holds no key", expected="one key per line")
        self._hashes = [_hash(key) for key in keys]

    def owner(self, authorization: str, client: str) -> str | None:
        """Return a name for the client that sent a request, or None if the request has no valid key.

        Args:
            authorization: the value of the authorization header: `Bearer KEY`, or the key alone.
            client: the client's address, which is returned as the name if the server needs no keys.
        """
        if self._path is None:
            return client
        scheme, _, rest = authorization.partition(" ")
        shown = _hash(rest.strip() if scheme.lower() == "bearer" else authorization)
        found = None
        for number, known in enumerate(
            self._hashes
        ):  # compare with every key, so that the time does not tell which one matches
            if hmac.compare_digest(known, shown):
                found = number
        return None if found is None else f"key {found}"


def _hash(key: str) -> bytes:
    """Hash a key, so that comparing keys takes the same time whatever their length."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
