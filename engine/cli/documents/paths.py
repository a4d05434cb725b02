"""Find the input files: folders and globs become lists of files, in the same order on every machine.

A folder is read with the folders in it; a file or folder whose name begins with a dot is left out, and so is what a
link to a folder leads to. What is found this way must be of a known kind; the others are counted.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from lastword.cli.read import STDIN, Source, sources, split_ending
from lastword.errors import InputError, count, list_some, require_extra

# The kinds of files that are read of a folder, by input format, and whole.
_KINDS: Mapping[str, tuple[str, ...]] = {
    "txt": ("txt", "md"),
    "jsonl": ("jsonl", "ndjson"),
    "csv": ("csv",),
    "tsv": ("tsv",),
}
_WHOLE = ("txt", "md", "html", "htm")
_MAGIC = re.compile(r"[*?\[]")

# Takes a path, with "/" at its end if it is a folder, and returns whether to leave it out.
Ignored = Callable[[str], bool]


class Finder:
    """Finds the files that the arguments of a command name.

    Args:
        input_format: the format of every file; None goes by the extension.
        whole: whether each file is one text.
        ignore: patterns, as in a .gitignore file, of what to leave out.

    Raises:
        ConfigError: the package for `ignore` is not installed.
        InputError: a pattern is not valid.
    """

    def __init__(self, input_format: str | None, *, whole: bool, ignore: Sequence[str]) -> None:
        self._format, self._whole = input_format, whole
        self._ignored = _ignored(ignore)
        if whole:
            self._kinds: tuple[str, ...] = _WHOLE
        elif input_format is not None:
            self._kinds = _KINDS[input_format]
        else:
            self._kinds = tuple(kind for kinds in _KINDS.values() for kind in kinds)
        self._skipped: Counter[str] = Counter()

    def find(self, given: Sequence[str]) -> list[Source]:
        """Return the files in the order of the arguments; without arguments the input is stdin.

        Raises:
            InputError: there is no input, an argument leads to no usable file, or a file cannot be read.
            OSError: a file is missing, or a folder cannot be read.
        """
        found = [path for each in given for path in self._expand(each)]
        if given and not found:
            raise InputError("FILES", "no file is left", remedy="Change --ignore.")
        return sources(found, self._format, whole=self._whole)

    def notice(self) -> str | None:
        """Return one line about the files of other kinds that `find` met in folders, or None if there were none."""
        number = sum(self._skipped.values())
        kinds = "another kind" if number == 1 else "other kinds"
        return (
            f"{count(number, 'file')} of {kinds} skipped: {list_some(self._skipped)}"
            if number
            else None
        )

    def _expand(self, given: str) -> list[str]:
        if given == STDIN:
            return [given]
        if os.path.isdir(given):
            found = [os.path.join(given, path) for path in self._usable(self._walk(given))]
            return found or self._nothing_in(given)
        if _MAGIC.search(given) and not os.path.lexists(given):
            return self._matching(given)
        return [] if self._ignored(given) else [given]

    def _nothing_in(self, folder: str) -> list[str]:
        remedy = None
        if not self._whole and any(self._skipped[f".{kind}"] for kind in _WHOLE):
            remedy = "Pass --files to read each file as one text."
        elif self._skipped:
            remedy = "Name the files themselves if they are text."
        raise InputError(
            folder,
            "has no file of a known kind",
            got=list_some(self._skipped) or "no file",
            expected=", ".join(f".{kind}" for kind in self._kinds),
            remedy=remedy,
        )

    def _matching(self, pattern: str) -> list[str]:
        """Return the files that a glob matches; if it has an ending without wildcards, that is a kind asked for."""
        parts = pattern.split("/")
        first = next(i for i, part in enumerate(parts) if _MAGIC.search(part))
        top, wanted = "/".join(parts[:first]), parts[first:]
        if first and not top:
            top = "/"
        depth = None if "**" in wanted else len(wanted)
        entries = self._walk(top or ".", depth)
        matching = (entry for entry in entries if _matches(entry[0].split("/"), wanted))
        ending = split_ending(pattern)[1]
        asked = ending if ending and not _MAGIC.search(ending) else None
        found = [os.path.join(top, path) for path in self._usable(matching, asked)]
        if not found:
            got = f"only {list_some(self._skipped)}" if self._skipped else None
            raise InputError(pattern, f"matches no {'usable ' if got else ''}file", got=got)
        return found

    def _usable(
        self, entries: Iterable[tuple[str, str]], asked: str | None = None
    ) -> Iterator[str]:
        """Yield the paths of files of a known kind, or of the kind asked for; count the others."""
        for path, kind in entries:
            ending = split_ending(path)[1]
            if kind == "file" and (ending in self._kinds or ending == asked):
                yield path
            elif kind == "file":
                self._skipped[f".{ending}" if ending else "no extension"] += 1
            else:
                self._skipped[kind] += 1

    def _walk(self, top: str, depth: int | None = None) -> Iterator[tuple[str, str]]:
        """Yield everything that is no folder, as its path relative to `top` and its kind: files before folders."""
        waiting = [""]
        while waiting:
            folder = waiting.pop()
            with os.scandir(os.path.join(top, folder)) as entries:
                names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
            folders = []
            for name in names:
                path = f"{folder}/{name}" if folder else name
                kind = _kind(os.path.join(top, path))
                if self._ignored(f"{path}/" if kind == "folder" else path):
                    continue
                if kind == "folder":
                    folders.append(path)
                else:
                    yield path, kind
            if depth is None or folder.count("/") + bool(folder) + 1 < depth:
                waiting += reversed(folders)


def _kind(path: str) -> str:
    link = os.path.islink(path)
    if os.path.isdir(path):
        return "link to a folder" if link else "folder"
    if os.path.isfile(path):
        return "file"
    return "broken link" if link else "not a regular file"


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether a path matches a glob, both split at "/"; ** stands for any number of folders."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[i:], pattern[1:] or ["*"]) for i in range(len(parts)))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _ignored(patterns: Sequence[str]) -> Ignored:
    """Return whether to leave out a path, by the rules of .gitignore."""
    if not patterns:
        return lambda path: False  # noqa: ARG005
    with require_extra("pathspec", "documents", "--ignore"):
        from pathspec import GitIgnoreSpec
    try:
        spec = GitIgnoreSpec.from_lines(patterns)
    except (ValueError, re.error) as error:
        got = list_some(repr(pattern) for pattern in patterns)
        raise InputError("--ignore", "not a pattern as in .gitignore", got=got) from error
    return spec.match_file
