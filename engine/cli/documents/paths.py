"""Find the input files: folders and globs become lists of files, in the same order on every machine.

A folder is read with the folders in it; a file or folder whose name begins with a dot is left out, and so is what a
link to a folder leads to. What is found this way must be of a known kind and not written by lastword. What is left out
is counted, and a file to which several paths lead is read once.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from lastword.cli.documents.written import by_lastword
from lastword.cli.read import RECORDS, STDIN, Source, sources, split_ending
from lastword.errors import InputError, count, list_some, require_extra

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

# The kinds of files that are read of a folder, by input format, and whole.
_KINDS: Mapping[str, tuple[str, ...]] = {
    "txt": ("txt", "md"),
    "jsonl": ("jsonl", "ndjson"),
    "csv": ("csv",),
    "tsv": ("tsv",),
}
_WHOLE = ("txt", "md", "html", "htm")
_MAGIC = re.compile(r"[*?\[]")

# What is left out besides files of other kinds, with its plural.
_OWN = "file that looks like lastword's own output (name it to read it)"
_LEFT_OUT = {
    "hidden file": "hidden files",
    "hidden folder": "hidden folders",
    "link to a folder": "links to folders",
    "broken link": "broken links",
    "pipe or device": "pipes or devices",
    _OWN: "files that look like lastword's own output (name a file to read it)",
}
_CHANGE = "Change --ignore."
_BY_NAME = "Name the files themselves if they are text."
_AS_PATTERN = (
    "It was taken as a pattern, because of its *, ? or [ and because no file has this name."
)


class Finder:
    """Finds the files that the arguments of a command name.

    Args:
        input_format: the format of every file; None goes by the extension.
        whole: whether each file is one text.
        ignore: patterns, as in a .gitignore file, of what to leave out.
        command: how to run the command on stdin, for the advice about files that it cannot read.

    Raises:
        ConfigError: the package for `ignore` is not installed.
        InputError: a pattern is not valid.
    """

    def __init__(
        self,
        input_format: str | None,
        *,
        whole: bool,
        ignore: Sequence[str],
        command: str | None = None,
    ) -> None:
        self._format, self._whole, self._command = input_format, whole, command
        self._ignore = _Ignore(ignore)
        if whole:
            self._kinds: tuple[str, ...] = _WHOLE
        elif input_format is not None:
            self._kinds = _KINDS[input_format]
        else:
            self._kinds = tuple(kind for kinds in _KINDS.values() for kind in kinds)
        # Left out by all arguments, and by the last one.
        self._skipped, self._last = Counter[str](), Counter[str]()
        self._again: list[str] = []
        self._empty: list[str] = []

    def find(self, given: Sequence[str]) -> list[Source]:
        """Return the files in the order of the arguments, each once; without arguments the input is stdin.

        Raises:
            InputError: there is no input, an argument leads to no usable file, or a file cannot be read.
            OSError: a file is missing, or a folder cannot be read.
        """
        found = [path for each in given for path in self._expand(each)]
        if given and not found:
            raise InputError(
                "FILES", "--ignore leaves out all of them", got=self._ignore.told(), remedy=_CHANGE
            )
        paths = self._once(found)
        if len(paths) > 1 and not self._whole:
            self._empty = [path for path in paths if _is_empty(path)]
        named = {*given, STDIN}
        every = sources(paths, self._format, whole=self._whole, command=self._command)
        return [replace(source, found=source.path not in named) for source in every]

    def notices(self) -> Iterator[str]:
        """Yield a line each about what `find` left out of folders, files given twice, and patterns without use."""
        if self._skipped:
            yield f"skipped {_told(self._skipped)}"
        if self._again:
            number = len(self._again)
            files = "1 file that is" if number == 1 else f"{number:,} files that are"
            yield f"{files} given more than once: read once, as {list_some(self._again)}"
        if self._empty:
            yield f"without any text: {count(len(self._empty), 'empty file')} ({list_some(self._empty)})"
        if unused := self._ignore.unused():
            matches = "matches" if len(unused) == 1 else "match"
            yield (
                f"--ignore: {list_some(unused)} {matches} nothing; patterns apply to what is in a folder, "
                "not to the folder itself"
            )

    def _expand(self, given: str) -> list[str]:
        if given == STDIN:
            return [given]
        if os.path.isdir(given):
            found = self._usable(given, self._walk(given))
            return [os.path.join(given, path) for path in found] or self._nothing_in(given)
        if _is_pattern(given):
            return self._matching(given)
        return [] if self._ignore.matches(given) else [given]

    def _once(self, paths: Sequence[str]) -> list[str]:
        """Return the paths, but of several that lead to the same regular file only the first that is no link."""
        kept: dict[tuple[str, int], str] = {}
        again = set[tuple[str, int]]()
        for number, path in enumerate(paths):
            regular = path != STDIN and os.path.isfile(path)
            place = (os.path.realpath(path), -1) if regular else (path, number)
            if place not in kept:
                kept[place] = path
                continue
            again.add(place)
            if os.path.islink(kept[place]) and not os.path.islink(path):
                kept[place] = path
        self._again = [kept[place] for place in again]
        return list(kept.values())

    def _nothing_in(self, folder: str) -> list[str]:
        skipped, ignored = self._last, self._ignore.count
        remedy = None
        if ignored:
            remedy = _CHANGE
        elif not self._whole and any(skipped[f".{kind}"] for kind in _WHOLE):
            remedy = "Pass --files to read each file as one text."
        elif self._whole and any(skipped[f".{kind}"] for kind in RECORDS):
            remedy = "Leave out --files to read the records of such files."
        elif skipped:
            remedy = _BY_NAME
        raise InputError(
            folder,
            "has no file of a known kind" + (" that --ignore leaves" if ignored else ""),
            got=f"only {_told(skipped)}" if skipped else None if ignored else "no file",
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
        if top and not os.path.isdir(top):
            got = f"no folder {top!r}"
            raise InputError(pattern, "matches no file", got=got, remedy=_AS_PATTERN)
        depth = None if "**" in wanted else len(wanted)
        entries = self._walk(top or ".", depth)
        matching = (entry for entry in entries if _matches(entry[0].split("/"), wanted))
        ending = split_ending(pattern)[1]
        asked = ending if ending and not _MAGIC.search(ending) else None
        found = self._usable(top, matching, asked)
        if not found:
            only = f"only {_told(self._last)}" if self._last else None
            what = f"matches no {'usable ' if only else ''}file"
            ignored = self._ignore.count
            what += " that --ignore leaves" if ignored else ""
            remedy = _CHANGE if ignored else _BY_NAME if only else _AS_PATTERN
            raise InputError(pattern, what, got=only, remedy=remedy)
        return [os.path.join(top, path) for path in found]

    def _usable(
        self, top: str, entries: Iterable[tuple[str, str]], asked: str | None = None
    ) -> list[str]:
        """Return the paths, below `top`, of files of a known kind or of the kind asked for; count the others."""
        self._ignore.count, self._last, usable = 0, Counter[str](), list[str]()
        for path, kind in entries:
            ending = split_ending(path)[1]
            if kind == "file" and by_lastword(os.path.join(top, path)):
                self._last[_OWN] += 1
            elif kind == "file" and (ending in self._kinds or ending == asked):
                usable.append(path)
            elif kind == "file":
                self._last[f".{ending}" if ending else "no extension"] += 1
            else:
                self._last[kind] += 1
        self._skipped += self._last
        return usable

    def _walk(self, top: str, depth: int | None = None) -> Iterator[tuple[str, str]]:
        """Yield everything that is no folder, as its path relative to `top` and its kind: files before folders."""
        waiting = [""]
        while waiting:
            folder = waiting.pop()
            with os.scandir(os.path.join(top, folder)) as entries:
                names = sorted(entry.name for entry in entries)
            folders = []
            for name in names:
                path = f"{folder}/{name}" if folder else name
                kind = _kind(os.path.join(top, path))
                if self._ignore.matches(
                    f"{path}/" if kind in ("folder", "hidden folder") else path
                ):
                    continue
                if kind == "folder":
                    folders.append(path)
                else:
                    yield path, kind
            if depth is None or folder.count("/") + bool(folder) + 1 < depth:
                waiting += reversed(folders)


def names_many(given: str) -> bool:
    """Return whether an argument may lead to several files: a folder or a pattern."""
    return os.path.isdir(given) or _is_pattern(given)


def _is_pattern(given: str) -> bool:
    return _MAGIC.search(given) is not None and not os.path.lexists(given)


def _is_empty(path: str) -> bool:
    return path != STDIN and os.path.isfile(path) and os.path.getsize(path) == 0


def _kind(path: str) -> str:
    folder = os.path.isdir(path)
    if os.path.basename(path).startswith("."):
        return "hidden folder" if folder else "hidden file"
    link = os.path.islink(path)
    if folder:
        return "link to a folder" if link else "folder"
    if os.path.isfile(path):
        return "file"
    return "broken link" if link else "pipe or device"


def _told(skipped: Mapping[str, int]) -> str:
    """Return in words what was left out: the files of other kinds with their endings, and the rest by its names."""
    endings = skipped.keys() - _LEFT_OUT.keys()
    number = sum(skipped[ending] for ending in endings)
    kinds = "another kind" if number == 1 else "other kinds"
    told = [f"{count(number, 'file')} of {kinds} ({list_some(endings)})"] if number else []
    told += [
        count(skipped[name], name, plural) for name, plural in _LEFT_OUT.items() if name in skipped
    ]
    return ", ".join(told)


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether a path matches a glob, both split at "/"; ** stands for any number of folders."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[i:], pattern[1:] or ["*"]) for i in range(len(parts)))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


class _Ignore:
    """Decides what to leave out, by the rules of .gitignore, and notes which patterns match anything."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns, self._all = patterns, _spec(patterns)
        self._unused = {each: _spec([each.removeprefix("!")]) for each in patterns}
        self.count = 0  # what was left out since this was set to 0

    def matches(self, path: str) -> bool:
        """Return whether to leave out a path; it has "/" at its end if it is a folder."""
        if self._all is None:
            return False
        for pattern, spec in list(self._unused.items()):
            if spec is not None and spec.match_file(path):
                del self._unused[pattern]
        found = self._all.match_file(path)
        self.count += found
        return found

    def told(self) -> str:
        """Return the patterns."""
        return list_some(repr(pattern) for pattern in self._patterns)

    def unused(self) -> list[str]:
        """Return the patterns that no path has matched so far."""
        return [repr(pattern) for pattern in self._unused]


def _spec(patterns: Sequence[str]) -> "GitIgnoreSpec | None":
    if not patterns:
        return None
    with require_extra("pathspec", "documents", "--ignore"):
        from pathspec import GitIgnoreSpec
    try:
        return GitIgnoreSpec.from_lines(patterns)
    except (ValueError, re.error) as error:
        got = list_some(repr(pattern) for pattern in patterns)
        raise InputError("--ignore", "not a pattern as in .gitignore", got=got) from error
