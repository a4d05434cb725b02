"""Read files at URLs such as s3://bucket/a.jsonl, through fsspec and the package that it needs for the scheme."""

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

from lastword.errors import InputError, MissingPackageError, require_extra

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_WEB = ("http", "https")
# In the URL of a web page, ? begins the query.
_MAGIC = {True: re.compile(r"[*\[]"), False: re.compile(r"[*?\[]")}
# The packages of common schemes; for others, fsspec's own message says what is missing.
_PACKAGES = {
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("abfs", "abfss", "az", "adl"), "adlfs"),
    **dict.fromkeys(_WEB, "aiohttp"),
}
# The keys under which file systems tell the version of a file.
_VERSION = (
    "ETag", "etag", "md5Hash", "content_md5", "Content-MD5", "generation", "VersionId", "LastModified", "last_modified",
    "Last-Modified", "mtime", "updated", "created",
)  # fmt: skip


def scheme_of(path: str) -> str | None:
    """Return the scheme of a URL in lower case; None for the path of a local file."""
    found = _URL.match(path)
    return None if found is None else found[1].lower()


def name_in(path: str) -> str:
    """Return a path; for the URL of a web page, return the URL without its query and fragment."""
    return re.split(r"[?#]", path, maxsplit=1)[0] if scheme_of(path) in _WEB else path


class ReadError(InputError):
    """A file cannot be opened or read; the cause may be a temporary fault of a disk, a mount or a network."""


class UrlError(ReadError):
    """The file of a URL cannot be opened or read."""


class UrlFile(io.RawIOBase):
    """The content of the file of a URL. Every error of the file system is an InputError.

    Args:
        url: the URL.

    Raises:
        InputError: the file cannot be opened.
        MissingPackageError: the package for the scheme is not installed.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        with _name_errors(url):
            system, path = _open_system(url)
            self._file: IO[bytes] = system.open(path, "rb")

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return whether the position can be changed; some web servers cannot send parts of a file."""
        return self._file.seekable()

    def readinto(self, buffer: Any) -> int:
        """Read up to the length of `buffer`; return the number of bytes read, 0 at the end."""
        with _name_errors(self._url):
            found = self._file.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Change the position."""
        with _name_errors(self._url):
            return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the position."""
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            self._file.close()
        super().close()


def status_of(url: str) -> tuple[int | None, str]:
    """Return the size of a URL's file, None if unknown, and its version: "" if the file system tells none.

    Raises:
        InputError: there is no such file, or it cannot be read.
        MissingPackageError: as for `UrlFile`.
    """
    with _name_errors(url):
        system, path = _open_system(url)
        system.invalidate_cache()
        found: Mapping[str, Any] = system.info(path)
    if found.get("type") == "directory":
        raise InputError(url, "is a folder", expected="a file")
    told = [f"{name}={found[name]}" for name in _VERSION if found.get(name) is not None]
    return found.get("size"), ", ".join(told)


def leads_to_many(url: str) -> bool:
    """Return whether a URL is a pattern or a folder. On a web server, only a URL that ends with a slash is a folder."""
    web = scheme_of(url) in _WEB
    if _MAGIC[web].search(url) or url.endswith("/"):
        return True
    with _name_errors(url):
        system, path = _open_system(url)
        return not web and bool(system.isdir(path))


def files_of(url: str) -> list[tuple[str, str]]:
    """Return (URL, path in the folder) of the files that match a pattern or are in a folder and its subfolders, sorted.

    The folder of a pattern is what comes before its first part with a wildcard.

    Raises:
        InputError: the folder cannot be listed.
        MissingPackageError: as for `UrlFile`.
    """
    with _name_errors(url):
        system, path = _open_system(url)
        top, magic = path, _MAGIC[scheme_of(url) in _WEB]
        if magic.search(url):
            found = system.glob(path, detail=True)
            paths = [name for name, info in found.items() if info.get("type") != "directory"]
            top = magic.split(path, maxsplit=1)[0].rpartition("/")[0]
        else:
            paths = system.find(path)
        inside = [each.removeprefix(top).lstrip("/") for each in paths]
        return sorted(zip(map(system.unstrip_protocol, paths), inside, strict=True))


def _open_system(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the path in it."""
    with require_extra("fsspec", "bulk", url):
        from fsspec.core import url_to_fs
    scheme = scheme_of(url) or ""
    try:
        system, path = url_to_fs(url)
    except ImportError as error:
        package = _PACKAGES.get(scheme)
        what = f"needs {package or 'another package'} for {scheme}://"
        remedy = f"Install it with: pip install {package}" if package else None
        raise MissingPackageError(url, what, got=str(error), remedy=remedy) from error
    return system, path


@contextmanager
def _name_errors(url: str) -> Iterator[None]:
    """Turn every error of a file system, which may be of any kind, into an InputError that names the URL."""
    try:
        yield
    except (InputError, MissingPackageError):
        raise
    except FileNotFoundError as error:
        raise UrlError(url, "No such file or directory") from error
    except Exception as error:  # packages for file systems have their own kinds of errors
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UrlError(url, f"cannot be read ({reason})") from error
