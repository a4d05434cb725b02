"""Open the bytes of input files: whole files or parts of them; gzip and zstd files are unpacked while they are read."""

import gzip
import io
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from lastword.cli.read.kinds import Source
from lastword.cli.read.urls import ReadError, UrlFile, scheme_of
from lastword.errors import InputError, require_extra

_BLOCK = 1 << 17
_METHODS = {"gz": "gzip", "zst": "zstd"}


def open_bytes(source: Source) -> io.RawIOBase:
    """Open a file to read its content from the beginning.

    Raises:
        InputError: the file cannot be opened.
    """
    try:
        return open_file(source.path) if source.packed is None else Unpacked(source)
    except OSError as error:
        raise ReadError(source.name, f"cannot be read ({error.strerror or error})") from error


def open_file(path: str) -> io.RawIOBase:
    """Open the file of a path or URL to read its bytes as they are."""
    return open(path, "rb", buffering=0) if scheme_of(path) is None else UrlFile(path)


class Unpacked(io.RawIOBase):
    """The content of a compressed file. Its errors are InputErrors that tell how far the file could be unpacked.

    Args:
        source: the file.

    Raises:
        MissingPackageError: the package for zstd is not installed.
        OSError: the file cannot be opened.
    """

    def __init__(self, source: Source) -> None:
        assert source.packed is not None
        self.path, self.at = source.path, 0  # `at` counts unpacked bytes
        self._name, self._method = source.name, _METHODS[source.packed]
        if self._method == "zstd":
            with require_extra("pyarrow", "bulk", source.name):
                import pyarrow as pa
        self._file = io.BufferedReader(open_file(source.path), _BLOCK)
        self._read: Callable[[int], bytes]
        if self._method == "gzip":
            self._stream: Any = gzip.GzipFile(fileobj=self._file, mode="rb")
            self._read = self._stream.read1
        else:
            # Unlike the package zstandard, pyarrow notices that a file ends too early.
            self._stream = pa.CompressedInputStream(pa.PythonFile(self._file, mode="r"), "zstd")
            self._read = self._stream.read

    def count_taken(self) -> int:
        """Return the number of compressed bytes read so far."""
        return self._file.tell()

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read up to the length of `buffer`; return the number of bytes read, 0 at the end.

        Raises:
            InputError: the file is damaged or ends too early.
        """
        size = min(len(buffer), _BLOCK)
        try:
            found = self._read(size)
        except InputError:
            raise  # the file of a URL names its own errors
        except (EOFError, OSError, ValueError, zlib.error) as error:
            raise ReadError(
                self._name,
                f"cannot be unpacked as {self._method} ({error})",
                got=f"the error after {self.at:,} unpacked bytes",
                remedy="Get the file again, or leave it out.",
            ) from error
        buffer[: len(found)] = found
        self.at += len(found)
        return len(found)

    def skip_to(self, start: int) -> None:
        """Read on until the position is `start` or the file ends.

        Raises:
            InputError: as for `readinto`.
        """
        block = memoryview(bytearray(_BLOCK))
        while self.at < start and self.readinto(block[: start - self.at]):
            pass

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            with suppress(OSError, ValueError):
                self._stream.close()
            self._file.close()
        super().close()


class KeptOpen:
    """Keeps a compressed file open after a part of it was read.

    A compressed file can only be read from its beginning. If the next part to read comes later in the same file,
    reading continues where the last part ended, so reading all parts in order takes as long as reading the file once.
    """

    def __init__(self) -> None:
        self._kept: Unpacked | None = None

    def take(self, source: Source, start: int) -> Unpacked:
        """Return the content of a compressed file from byte `start` on."""
        kept, self._kept = self._kept, None
        if kept is not None and (kept.path != source.path or kept.at > start):
            kept.close()
            kept = None
        file = kept or Unpacked(source)
        file.skip_to(start)
        return file

    def give_back(self, file: Unpacked) -> None:
        """Take a file that `take` returned, to keep it open."""
        self.close()
        self._kept = file

    def close(self) -> None:
        """Close the file that is kept open, if there is one."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None


class PartStream(io.RawIOBase):
    """The header of a file, then the bytes of one of its parts.

    Args:
        source: the file, with its part.
        kept: gets the file, if it is compressed, once this stream is closed; None to close the file too.

    Raises:
        InputError: the file cannot be opened or unpacked.
    """

    def __init__(self, source: Source, kept: KeptOpen | None) -> None:
        assert source.part is not None
        part, self._kept, self._name = source.part, kept, source.name
        if source.packed is None:
            self._file = open_bytes(source)
            self._file.seek(part.start)
        else:
            self._file = (kept or KeptOpen()).take(source, part.start)
        self._header, self._left, self._read = memoryview(part.header), part.stop - part.start, 0

    def tell(self) -> int:
        """Return the number of bytes read."""
        return self._read

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read up to the length of `buffer`; return the number of bytes read.

        Raises:
            InputError: the file cannot be read, or ends before its part does.
        """
        if self._header:
            size = min(len(buffer), len(self._header))
            buffer[:size], self._header = self._header[:size], self._header[size:]
        else:
            size = self._file.readinto(memoryview(buffer)[: self._left]) or 0
            self._left -= size
            if size == 0 and self._left and len(buffer):
                raise ReadError(self._name, "ends earlier than when the job was planned")
        self._read += size
        return size

    def close(self) -> None:
        """Close the file, or keep it open for its next part."""
        if not self.closed:
            if self._kept is not None and isinstance(self._file, Unpacked):
                self._kept.give_back(self._file)
            else:
                self._file.close()
        super().close()
