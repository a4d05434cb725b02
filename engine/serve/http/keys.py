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
        """Read the file again. On an error the keys stay as they were.

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
        """Return a name for the client that sent a request, or None if its key is wrong.

        Args:
            authorization: the header: `Bearer KEY`, or the key alone.
            client: the client's address; it is the name if no keys are used.
        """
        if self._path is None:
            return client
        scheme, _, rest = authorization.partition(" ")
        shown = _hash(rest.strip() if scheme.lower() == "bearer" else authorization)
        found = None
        for number, known in enumerate(
            self._hashes
        ):  # all of them, so that the time does not depend on which matches
            if hmac.compare_digest(known, shown):
                found = number
        return None if found is None else f"key {found}"


def _hash(key: str) -> bytes:
    """Hash a key, so that comparing keys takes the same time whatever their length."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
